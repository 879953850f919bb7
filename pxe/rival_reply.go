package pxe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// DHCP message types (RFC 2132 section 9.6) of answers.
const (
	offerMessage = 2
	nakMessage   = 6
)

// sighting is what one answer says about the server that sent it. It is read
// without the library: rivals send what no library expects, and the order of
// the options, which a library loses, tells what program wrote them.
type sighting struct {
	kind   byte
	xid    uint32
	client MAC
	yiaddr netip.Addr
	giaddr netip.Addr
	server netip.Addr // option 54
	next   string     // siaddr, else option 66
	file   string     // option 67, else the field
	vendor string     // option 60
	prefix string     // option 210, the path prefix of PXELINUX (RFC 5071)
	proxy  bool       // from port 4011
	menu   bool       // boots, and names no file here
	item   uint16     // the first entry of its menu
	order  []byte     // codes of the options, as they stood
}

const (
	dhcpHeader = 240  // fields and magic cookie
	maxReply   = 4096 // no answer is larger
)

var dhcpCookie = []byte{99, 130, 83, 99} // RFC 2131 section 3

// parseSighting reads an answer of another server: any bytes at all.
func parseSighting(b []byte) (*sighting, error) {
	if len(b) < dhcpHeader || len(b) > maxReply {
		return nil, fmt.Errorf("%d bytes are no DHCP message", len(b))
	}
	if b[0] != 2 || !bytes.Equal(b[236:240], dhcpCookie) {
		return nil, errors.New("not a DHCP answer")
	}
	s := &sighting{xid: binary.BigEndian.Uint32(b[4:]), client: MAC(b[28:34])}
	options := make(map[byte][]byte)
	var err error
	if s.order, err = readOptions(b[dhcpHeader:], options); err != nil {
		return nil, err
	}
	sname, file := b[44:108], b[108:236]
	if o := options[52]; len(o) == 1 { // RFC 2132 section 9.3
		if o[0]&1 != 0 {
			if _, err := readOptions(file, options); err != nil {
				return nil, err
			}
			file = nil
		}
		if o[0]&2 != 0 {
			if _, err := readOptions(sname, options); err != nil {
				return nil, err
			}
		}
	}
	if o := options[53]; len(o) == 1 {
		s.kind = o[0]
	}
	// Errors of addr4 are lengths that a client would not accept either.
	s.yiaddr, _ = addr4(b[16:20])
	s.giaddr, _ = addr4(b[24:28])
	s.server, _ = addr4(options[54])
	s.vendor = plain(cstring(options[60]), 64)
	s.prefix = plain(cstring(options[210]), maxName)
	s.file = plain(cstring(options[67]), 128)
	if s.file == "" {
		s.file = plain(cstring(file), 128)
	}
	if a, _ := addr4(b[20:24]); a.IsValid() {
		s.next = a.String()
	} else {
		s.next = plain(cstring(options[66]), 64)
	}
	// A ProxyDHCP answer without a file has a menu of boot servers, or nothing
	// yet: either way port 4011 says what there is (PXE 2.1 section 2.2.2).
	s.menu = s.file == "" && !s.yiaddr.IsValid() && s.kind != nakMessage && isBootClass(s.vendor)
	sub := make(map[byte][]byte)
	if _, err := readOptions(options[43], sub); err == nil && s.menu && len(sub[9]) >= 2 {
		s.item = binary.BigEndian.Uint16(sub[9]) // PXE 2.1 table 2-1, PXE_BOOT_MENU
	}
	return s, nil
}

// readOptions adds the options in b to m, parts of one option joined (RFC
// 3396), and returns their codes in order.
func readOptions(b []byte, m map[byte][]byte) (order []byte, err error) {
	for len(b) > 0 {
		code := b[0]
		if code == 0 {
			b = b[1:]
			continue
		}
		if code == 255 {
			return order, nil
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return nil, fmt.Errorf("option %d does not fit", code)
		}
		if m[code] == nil {
			m[code] = []byte{}
			order = append(order, code)
		}
		m[code] = append(m[code], b[2:2+int(b[1])]...)
		b = b[2+int(b[1]):]
	}
	return order, nil // without an end: ROMs read it, so we do
}

// cstring is b up to a zero byte, or to the 0xff that some servers leave.
func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(bytes.TrimRight(b, "\xff"))
}

func isBootClass(vendor string) bool {
	return strings.HasPrefix(vendor, "PXEClient") || strings.HasPrefix(vendor, "HTTPClient")
}

// boots reports whether s tells a machine what to boot.
func (s *sighting) boots() bool { return s.file != "" || s.menu }

const programSmelt = "Smelt"

// marks are what well-known boot services give to boot.
var marks = []struct {
	file    *regexp.Regexp
	program string
}{
	// minershive/hiveos-pxe-diskless, pxe-config.sh: dnsmasq as ProxyDHCP.
	{regexp.MustCompile(`^/?bios/l?pxelinux\.0$|^/?efi/grubnetx64\.efi$|hiveramfs`), "HiveOS diskless PXE server (dnsmasq)"},
	{regexp.MustCompile(`(?i)wdsnbp\.(com|n12)|wdsmgfw\.efi|bootmgfw\.efi|(^|/)boot/x64/`), "Windows Deployment Services"},
	// MAAS serves its loaders by HTTP from port 5248.
	{regexp.MustCompile(`:5248/`), "MAAS"},
	// Tinkerbell's smee appends a trace parent to the name of the loader.
	{regexp.MustCompile(`\.(efi|kpxe)-00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$|/auto\.ipxe$`), "Tinkerbell"},
	{regexp.MustCompile(`undionly\.kkpxe$|/fog/service/ipxe/`), "FOG"},
	{regexp.MustCompile(`netboot\.xyz`), "netboot.xyz"},
	{regexp.MustCompile(`/boot/script\?mac=`), programSmelt},
}

// service guesses which boot service sent s.
func service(s *sighting) string {
	for _, m := range marks {
		if m.file.MatchString(s.file) || m.file.MatchString(s.prefix) {
			return m.program
		}
	}
	return ""
}

// writer guesses which DHCP server wrote s: each has its own order of options.
func writer(s *sighting) string {
	var order []byte // less those that depend on what it boots
	for _, c := range s.order {
		if c != 66 && c != 67 {
			order = append(order, c)
		}
	}
	begins := func(codes ...byte) bool { return len(order) >= len(codes) && slices.Equal(order[:len(codes)], codes) }
	switch {
	case begins(53, 54, 51, 58, 59), begins(53, 54, 60, 97):
		return "dnsmasq" // 2.90, as DHCP and as ProxyDHCP
	case begins(53, 54, 51, 1):
		return "ISC dhcpd" // 4.4
	case begins(53, 1, 58, 59, 51, 54):
		return "Windows Server DHCP"
	case begins(53, 1) && slices.IsSorted(order[1:]) && slices.Contains(order, 51):
		return "Kea" // 2.2: the message type, then all others by number
	}
	return ""
}
