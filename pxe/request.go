package pxe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	serverPort = 67
	clientPort = 68

	// minMessage is what every client must accept as a whole IP datagram (RFC
	// 2132 section 9.10); headerSize of it is not the DHCP message.
	minMessage = 576
	headerSize = 28

	maxUUID = 32 // of option 97; RFC 4578 says 17
)

// Options that the library has no name for.
const (
	optOverload  dhcpv4.GenericOptionCode = 52
	optEtherboot dhcpv4.GenericOptionCode = 175 // iPXE's own, when the client is iPXE (RFC 3942: others may mean anything)
)

// client is what kind of program sent a DHCP message.
type client int

const (
	_        client = iota
	plain4          // an operating system: no boot options, ever
	ipxe            // user class iPXE
	firmware        // vendor class PXEClient
	httpBoot        // vendor class HTTPClient (UEFI HTTP boot)
)

// request is a DHCP message, checked and bounded.
type request struct {
	msg     *dhcpv4.DHCPv4
	kind    dhcpv4.MessageType
	client  client
	machine Machine
	archs   []Arch
	ciaddr  netip.Addr
	giaddr  netip.Addr
	want    netip.Addr // option 50
	server  netip.Addr // option 54
	max     int        // largest DHCP message the client takes

	link     netip.Addr // subnet that the relay asks for, where giaddr is not in it
	override netip.Addr // what the relay wants us to call ourselves

	src     netip.AddrPort // where it came from, by its own account
	unicast bool           // came to our own address, and through no relay
	boot    bool           // came to port 4011, where boot servers are asked
}

// asked is what r is, for events.
func (r *request) asked() string { return "dhcp " + strings.ToLower(r.kind.String()) }

// dropped is why a datagram gets no decision: reason is one of few words, to
// be counted, and text is for people.
type dropped struct{ reason, text string }

func (d dropped) Error() string { return d.text }

func drop(reason, format string, args ...any) error {
	return dropped{reason, fmt.Sprintf(format, args...)}
}

// parseRequest decodes a datagram that came to port 67.
func parseRequest(data []byte) (*request, error) {
	// The library accepts any hardware address length; a MAC is all we know.
	if len(data) < 240 {
		return nil, drop("short", "%d bytes are too few for a DHCP message", len(data))
	}
	if data[0] != byte(dhcpv4.OpcodeBootRequest) {
		return nil, drop("no request", "not a request")
	}
	if data[1] != byte(iana.HWTypeEthernet) || data[2] != 6 {
		return nil, drop("hardware", "hardware type %d with addresses of %d bytes: want Ethernet", data[1], data[2])
	}
	m, err := dhcpv4.FromBytes(data)
	if err != nil {
		return nil, drop("malformed", "malformed: %v", err)
	}
	if err := overload(m, data); err != nil {
		return nil, err
	}
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if n := len(m.Options.Get(o)); n > 255 { // they go back as they came
			return nil, drop("overlong", "option %d of %d bytes: at most 255", o.Code(), n)
		}
	}
	r := &request{msg: m, max: minMessage - headerSize}
	mac, err := ParseMAC(m.ClientHWAddr.String())
	if err != nil {
		return nil, drop("hardware", "%v", err)
	}
	r.machine.MAC = mac
	if b := m.Options.Get(dhcpv4.OptionDHCPMessageType); len(b) == 1 {
		r.kind = dhcpv4.MessageType(b[0])
	} else {
		return nil, drop("message type", "no message type (option 53): BOOTP is not served")
	}
	if r.ciaddr, err = addr4(m.ClientIPAddr); err != nil {
		return nil, drop("address", "ciaddr: %v", err)
	}
	if r.giaddr, err = addr4(m.GatewayIPAddr); err != nil {
		return nil, drop("address", "giaddr: %v", err)
	}
	if b := m.Options.Get(dhcpv4.OptionRequestedIPAddress); b != nil {
		if r.want, err = addr4(b); err != nil {
			return nil, drop("address", "requested address (option 50): %v", err)
		}
	}
	if b := m.Options.Get(dhcpv4.OptionServerIdentifier); b != nil {
		if r.server, err = addr4(b); err != nil {
			return nil, drop("address", "server identifier (option 54): %v", err)
		}
	}
	if b := m.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(b) == 2 {
		if n := int(binary.BigEndian.Uint16(b)); n > minMessage {
			r.max = min(n, 1500) - headerSize // EDK2 says 65280; a fragment helps nobody
		}
	}
	r.classify()
	return r, nil
}

// overload adds the options that RFC 2131 section 4.1 lets a client put into
// the fields sname and file; the library reads only the options proper.
func overload(m *dhcpv4.DHCPv4, data []byte) error {
	b := m.Options.Get(optOverload)
	if len(b) != 1 {
		return nil
	}
	const sname, file, end = 44, 108, 236
	var parts [][]byte
	if b[0]&1 != 0 {
		parts = append(parts, data[file:end])
		m.BootFileName = ""
	}
	if b[0]&2 != 0 {
		parts = append(parts, data[sname:file])
		m.ServerHostName = ""
	}
	for _, p := range parts {
		if err := m.Options.FromBytes(p); err != nil {
			return drop("malformed", "malformed overloaded options: %v", err)
		}
	}
	m.Options.Del(optOverload)
	return nil
}

// addr4 reads four bytes; 0.0.0.0 is the invalid Addr.
func addr4(b []byte) (netip.Addr, error) {
	if len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("%d bytes: want 4", len(b))
	}
	a := netip.AddrFrom4([4]byte(b))
	if a.IsUnspecified() {
		return netip.Addr{}, nil
	}
	return a, nil
}

// classify finds out who asks.
func (r *request) classify() {
	o := r.msg.Options
	r.client = plain4
	m := &r.machine
	m.Vendor = plain(string(o.Get(dhcpv4.OptionClassIdentifier)), 64)
	m.Hostname = plain(string(o.Get(dhcpv4.OptionHostName)), 64)
	m.UUID = clientUUID(o.Get(dhcpv4.OptionClientMachineIdentifier))
	r.readRelay()
	switch {
	case isIPXE(o.Get(dhcpv4.OptionUserClassInformation)):
		r.client = ipxe
		m.IPXE = true
	case strings.HasPrefix(m.Vendor, "PXEClient"):
		r.client = firmware
	case strings.HasPrefix(m.Vendor, "HTTPClient"):
		r.client = httpBoot
	default:
		return
	}
	m.Stage = AskAddress
	// RFC 4578 section 2.1: a list, the first we know wins.
	b := o.Get(dhcpv4.OptionClientSystemArchitectureType)
	for ; len(b) >= 2; b = b[2:] {
		r.archs = append(r.archs, Arch(binary.BigEndian.Uint16(b)))
	}
	if len(r.archs) == 0 {
		// "PXEClient:Arch:00007:UNDI:003000" says it too.
		var a uint16
		if _, rest, ok := strings.Cut(m.Vendor, ":Arch:"); ok {
			if _, err := fmt.Sscanf(rest, "%5d", &a); err == nil {
				r.archs = append(r.archs, Arch(a))
			}
		}
	}
	if len(r.archs) == 0 {
		r.archs = []Arch{BIOS} // undionly.kpxe in some ROMs, and BIOS ROMs before RFC 4578
	}
	m.Arch = r.archs[0]
	for _, a := range r.archs {
		if _, ok := ladders[a]; ok {
			m.Arch = a
			break
		}
	}
}

// isIPXE knows both encodings of the user class: RFC 3004 (counted strings)
// and the bare string, which is what iPXE sends.
func isIPXE(class []byte) bool {
	if string(class) == "iPXE" {
		return true
	}
	for len(class) > 0 {
		n := int(class[0])
		if n == 0 || n >= len(class) {
			return false
		}
		if string(class[1:1+n]) == "iPXE" {
			return true
		}
		class = class[1+n:]
	}
	return false
}

// clientUUID prints option 97: type 0 and the bytes of the SMBIOS UUID, whose
// first three fields are little-endian since SMBIOS 2.6; dmidecode and iPXE
// print it the same way.
func clientUUID(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	u := b[1:]
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(u), binary.LittleEndian.Uint16(u[4:]),
		binary.LittleEndian.Uint16(u[6:]), u[8:10], u[10:16])
}
