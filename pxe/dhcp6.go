package pxe

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	serverPort6 = 547
	clientPort6 = 546

	// maxIA bounds the identity associations of one message that are answered;
	// firmware and operating systems ask for one.
	maxIA = 4
	// maxDeclined bounds the addresses that are remembered as in use.
	maxDeclined = 1024

	// Intel's: who makes firmware uses it for PXEClient and HTTPClient (UEFI
	// 2.10 section 24.7.3.1), iPXE too.
	enterpriseIntel = 343
)

// allServers is All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
var allServers = net.ParseIP("ff02::1:2")

// request6 is a DHCPv6 message, checked and bounded.
type request6 struct {
	request // of it only client and machine
	msg     *dhcpv6.Message
	kind    dhcpv6.MessageType
}

// parseRequest6 decodes a datagram that came to port 547 from the address from.
func parseRequest6(data []byte, from netip.Addr) (*request6, error) {
	if len(data) < dhcpv6.MessageHeaderSize {
		return nil, fmt.Errorf("%d bytes are too few for a DHCPv6 message", len(data))
	}
	switch kind := dhcpv6.MessageType(data[0]); kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeInformationRequest:
	case dhcpv6.MessageTypeRelayForward:
		return nil, errors.New("relayed: IPv6 is served on the wire only")
	default:
		return nil, fmt.Errorf("a server has no answer to %s", kind)
	}
	if !from.Is6() || !from.IsLinkLocalUnicast() {
		// RFC 8415 section 18.2: so clients send, and so an answer never leaves
		// the wire.
		return nil, fmt.Errorf("sent from %s, which is no link-local address", from)
	}
	m, err := dhcpv6.MessageFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("malformed: %v", err)
	}
	r := &request6{msg: m, kind: m.MessageType}
	id := m.Options.ClientID()
	if id == nil && r.kind != dhcpv6.MessageTypeInformationRequest {
		return nil, errors.New("no client identifier (option 1)")
	}
	r.machine.MAC = mac6(id, from)
	r.classify(id)
	return r, nil
}

// mac6 is the hardware address of the card a message came from, or zero when
// nothing says it. Firmware and iPXE make their link-local address of it (RFC
// 4291 appendix A) and identify themselves by UUID; operating systems do the
// reverse. Where both say one, the DUID may be that of another card of the
// machine (RFC 8415 section 11).
func mac6(id dhcpv6.DUID, from netip.Addr) MAC {
	single := func(m MAC) bool { return m != (MAC{}) && m[0]&1 == 0 }
	if b := from.As16(); b[11] == 0xff && b[12] == 0xfe {
		if m := (MAC{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}); single(m) {
			return m
		}
	}
	var hw net.HardwareAddr
	switch d := id.(type) {
	case *dhcpv6.DUIDLL:
		if d.HWType == iana.HWTypeEthernet {
			hw = d.LinkLayerAddr
		}
	case *dhcpv6.DUIDLLT:
		if d.HWType == iana.HWTypeEthernet {
			hw = d.LinkLayerAddr
		}
	}
	if len(hw) == 6 && single(MAC(hw)) {
		return MAC(hw)
	}
	return MAC{}
}

// classify finds out who asks (RFC 5970).
func (r *request6) classify(id dhcpv6.DUID) {
	r.client = plain4
	m := &r.machine
	for _, v := range r.msg.Options.VendorClasses() {
		for _, class := range v.Data {
			if s := plain(string(class), 64); m.Vendor == "" || strings.HasPrefix(s, "PXEClient") || strings.HasPrefix(s, "HTTPClient") {
				m.Vendor = s
			}
		}
	}
	switch {
	case m.MAC == (MAC{}):
		return // the Booter knows machines by their MAC
	case slices.ContainsFunc(r.msg.Options.UserClasses(), func(c []byte) bool { return string(c) == "iPXE" }):
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
	if d, ok := id.(*dhcpv6.DUIDUUID); ok && r.client != ipxe {
		m.UUID = clientUUID(append([]byte{0}, d.UUID[:]...)) // EDK2 takes it from SMBIOS as it stands there
	}
	for i, a := range r.msg.Options.ArchTypes() {
		_, known := ladders[Arch(a)]
		if i == 0 || known {
			m.Arch = Arch(a)
		}
		if known {
			break
		}
	}
}

// address is the address of an identity association: 62 bits of a hash of who
// asks. The same machine gets the same address, after a restart too, with
// nothing written down; two machines of 5,000 get the same one with a
// probability of 1 in 10^11, and would notice and decline it. The MAC is in it
// because boards of one make can claim one UUID. An interface identifier of
// ours begins with the bits 01, so it is none of those that people give by hand
// or that are reserved (RFC 5453).
func (d *dhcp6) address(id dhcpv6.DUID, iaid [4]byte, mac MAC) (netip.Addr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for try := range byte(16) {
		h := sha256.New()
		h.Write(mac[:])
		h.Write(iaid[:])
		h.Write([]byte{try})
		h.Write(id.ToBytes())
		b := d.n.IPv6.Masked().Addr().As16()
		copy(b[8:], h.Sum(nil))
		b[8] = b[8]&0x3f | 0x40
		a := netip.AddrFrom16(b)
		if a != d.n.id && !d.declined[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// decline remembers that a is in use by a stranger. What is forgotten beyond the
// bound, or at a restart, is declined again.
func (d *dhcp6) decline(a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.declined) >= maxDeclined {
		clear(d.declined)
	}
	d.declined[a] = true
}

// respond decides on one DHCPv6 message (RFC 8415 section 18.3). It returns no
// answer when there is none to give; the event says why either way.
func (d *dhcp6) respond(ctx context.Context, r *request6, now time.Time) (*dhcpv6.Message, Event) {
	n := d.n
	r.machine.Network = n.Name
	id, ias := r.msg.Options.ClientID(), r.msg.Options.IANA()
	if len(ias) > maxIA {
		ias = ias[:maxIA]
	}
	if len(ias) > 0 && id != nil {
		r.machine.Addr, _ = d.address(id, ias[0].IaId, r.machine.MAC)
	}
	e := Event{At: now, Machine: r.machine, Kind: "dhcp6 " + strings.ToLower(r.kind.String())}
	no := func(format string, args ...any) (*dhcpv6.Message, Event) {
		e.Answer, e.Why = "none", fmt.Sprintf(format, args...)
		return nil, e
	}
	if why := d.meant(r); why != "" {
		return no("%s", why)
	}
	if why := n.rules.refuses(r.machine.MAC, r.machine.Vendor); why != "" {
		d.drop("denied")
		return no("%s", why)
	}
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: r.msg.TransactionID}
	if id != nil {
		m.AddOption(dhcpv6.OptClientID(id))
	}
	m.AddOption(dhcpv6.OptServerID(d.duid))
	e.Answer = "reply"

	switch r.kind {
	case dhcpv6.MessageTypeRelease:
		// There is nothing to free. But EDK2 waits for this REPLY for minutes
		// before it goes on.
		m.AddOption(status(iana.StatusSuccess))
		e.Why = "gave back " + r.machine.Addr.String()
		return m, e
	case dhcpv6.MessageTypeDecline:
		for _, ia := range ias {
			a, ok := d.address(id, ia.IaId, r.machine.MAC)
			if ok && slices.Contains(addresses(ia), a) { // its own, and nobody else's
				d.decline(a)
				d.s.log.Log(ctx, d.s.recorder.level(slog.LevelWarn, now), "boot: an address is in use by an unknown machine", "addr", a, "found by", r.machine.MAC, "interface", n.Interface)
			}
		}
		m.AddOption(status(iana.StatusSuccess))
		e.Why = r.machine.Addr.String() + " is in use by somebody else: it gets another"
		return m, e
	case dhcpv6.MessageTypeConfirm:
		code, asked := iana.StatusSuccess, false
		for _, ia := range ias {
			for _, a := range addresses(ia) {
				asked = true
				if !n.IPv6.Contains(a) {
					code = iana.StatusNotOnLink
				}
			}
		}
		if !asked {
			return no("asks about no address")
		}
		m.AddOption(status(code))
		e.Why = "its addresses: " + code.String()
		return m, e
	}

	begins := r.kind == dhcpv6.MessageTypeSolicit
	xid := r.msg.TransactionID
	r.machine.Starts = d.s.trail.start(r.machine.MAC, r.client, dhcpv4.TransactionID{byte(r.kind), xid[0], xid[1], xid[2]}, begins, now)
	e.Machine = r.machine
	decided, boot := d.s.decide(ctx, &r.request)
	if decided.Action == Ignore {
		return no("to be ignored: %s", decided.Why)
	}
	for _, ia := range ias {
		m.AddOption(d.assign(r, id, ia))
	}
	// Section 18.3: what is not given is refused in its place.
	if ta := r.msg.Options.OneIATA(); ta != nil {
		m.AddOption(&dhcpv6.OptIATA{IaId: ta.IaId, Options: dhcpv6.IdentityOptions{Options: dhcpv6.Options{status(iana.StatusNoAddrsAvail)}}})
	}
	if pd := r.msg.Options.OneIAPD(); pd != nil {
		m.AddOption(&dhcpv6.OptIAPD{IaId: pd.IaId, Options: dhcpv6.PDOptions{Options: dhcpv6.Options{status(iana.StatusNoPrefixAvail)}}})
	}
	if begins {
		m.MessageType = dhcpv6.MessageTypeAdvertise
		m.AddOption(dhcpv6.OptPreference(255)) // section 18.2.1: wait for no other server
		e.Answer = "advertise"
	}
	if r.machine.Addr.IsValid() {
		e.Answer += " " + r.machine.Addr.String()
		if r.client != plain4 {
			n.neighbours.learn(r.machine.MAC, r.machine.Addr)
		}
	}
	e.Why = d.bootOptions(r, decided, m) + boot
	return m, e
}

// meant reports why r is not for us (RFC 8415 section 16), or nothing.
func (d *dhcp6) meant(r *request6) string {
	server := r.msg.Options.ServerID()
	switch r.kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind: // to all servers
		if server != nil {
			return "names a server where none is to be named"
		}
	case dhcpv6.MessageTypeInformationRequest:
		if server != nil && !server.Equal(d.duid) {
			return "asks another server"
		}
	default:
		if server == nil || !server.Equal(d.duid) {
			return "it chose another server"
		}
	}
	return ""
}

// assign answers one identity association.
func (d *dhcp6) assign(r *request6, id dhcpv6.DUID, ia *dhcpv6.OptIANA) *dhcpv6.OptIANA {
	out := &dhcpv6.OptIANA{IaId: ia.IaId}
	a, ok := d.address(id, ia.IaId, r.machine.MAC)
	if !ok {
		out.Options.Add(status(iana.StatusNoAddrsAvail))
		return out
	}
	out.T1, out.T2 = d.n.LeaseTime/2, d.n.LeaseTime*4/5
	out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: d.n.LeaseTime, ValidLifetime: d.n.LeaseTime})
	if r.kind == dhcpv6.MessageTypeRenew || r.kind == dhcpv6.MessageTypeRebind {
		for _, o := range addresses(ia) { // section 18.3.4: it must stop using any other
			if o != a && len(out.Options.Options) <= maxIA {
				out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: o.AsSlice()})
			}
		}
	}
	return out
}

func addresses(ia *dhcpv6.OptIANA) []netip.Addr {
	var out []netip.Addr
	for _, o := range ia.Options.Addresses() {
		if a, ok := netip.AddrFromSlice(o.IPv6Addr); ok {
			out = append(out, a)
		}
	}
	return out
}

func status(code iana.StatusCode) *dhcpv6.OptStatusCode {
	return &dhcpv6.OptStatusCode{StatusCode: code}
}

// bootOptions adds what makes the machine boot from us, and says what.
func (d *dhcp6) bootOptions(r *request6, b Boot, m *dhcpv6.Message) string {
	s, n := d.s, d.n
	switch {
	case r.machine.MAC == (MAC{}):
		return "plain lease: no MAC is known"
	case r.client == plain4:
		return "plain lease"
	case r.client == ipxe:
		m.AddOption(dhcpv6.OptBootFileURL(s.scriptURL(n, r.machine)))
		return "script"
	}
	c := s.choose(n, &r.request, b)
	switch c.via {
	case byNothing:
		return "plain lease: " + c.why
	case byHTTP:
		m.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: enterpriseIntel, Data: [][]byte{[]byte("HTTPClient")}})
		m.AddOption(dhcpv6.OptBootFileURL(s.fileURL(n, c.file)))
	case byHTTPS:
		return "plain lease: its network boots by HTTPS, which is served over IPv4 only"
	case byTFTP:
		m.AddOption(dhcpv6.OptBootFileURL(fmt.Sprintf("tftp://[%s]/%s", n.id, escapePath(c.file))))
	}
	return c.why + " over IPv6"
}
