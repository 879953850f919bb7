package pxe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

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
	unicast bool       // came to our own address
}

// parseRequest decodes a datagram that came to port 67.
func parseRequest(data []byte) (*request, error) {
	// The library accepts any hardware address length; a MAC is all we know.
	if len(data) < 240 {
		return nil, fmt.Errorf("%d bytes are too few for a DHCP message", len(data))
	}
	if data[0] != byte(dhcpv4.OpcodeBootRequest) {
		return nil, errors.New("not a request")
	}
	if data[1] != byte(iana.HWTypeEthernet) || data[2] != 6 {
		return nil, fmt.Errorf("hardware type %d with addresses of %d bytes: want Ethernet", data[1], data[2])
	}
	m, err := dhcpv4.FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("malformed: %v", err)
	}
	if err := overload(m, data); err != nil {
		return nil, err
	}
	r := &request{msg: m, max: minMessage - headerSize}
	mac, err := ParseMAC(m.ClientHWAddr.String())
	if err != nil {
		return nil, err
	}
	r.machine.MAC = mac
	if b := m.Options.Get(dhcpv4.OptionDHCPMessageType); len(b) == 1 {
		r.kind = dhcpv4.MessageType(b[0])
	} else {
		return nil, errors.New("no message type (option 53): BOOTP is not served")
	}
	if r.ciaddr, err = addr4(m.ClientIPAddr); err != nil {
		return nil, fmt.Errorf("ciaddr: %v", err)
	}
	if r.giaddr, err = addr4(m.GatewayIPAddr); err != nil {
		return nil, fmt.Errorf("giaddr: %v", err)
	}
	if b := m.Options.Get(dhcpv4.OptionRequestedIPAddress); b != nil {
		if r.want, err = addr4(b); err != nil {
			return nil, fmt.Errorf("requested address (option 50): %v", err)
		}
	}
	if b := m.Options.Get(dhcpv4.OptionServerIdentifier); b != nil {
		if r.server, err = addr4(b); err != nil {
			return nil, fmt.Errorf("server identifier (option 54): %v", err)
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
			return fmt.Errorf("malformed overloaded options: %v", err)
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
	// RFC 3046: only a relay adds option 82.
	if info := r.msg.RelayAgentInfo(); info != nil && r.giaddr.IsValid() {
		m.Circuit = plain(string(info.Get(dhcpv4.AgentCircuitIDSubOption)), 64)
		m.Remote = plain(string(info.Get(dhcpv4.AgentRemoteIDSubOption)), 64)
	}
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

// target is where an answer goes (RFC 2131 section 4.1).
type target struct {
	addr netip.AddrPort
	mac  MAC // zero: let the system resolve; else straight to this one
}

// answer is what is sent back.
type answer struct {
	msg *dhcpv4.DHCPv4
	to  target
}

// respond decides on one DHCP message. It returns no answer when there is none
// to give; the event says why either way.
func (s *Server) respond(ctx context.Context, n *network, r *request, now time.Time) (*answer, Event) {
	e := Event{At: now, Machine: r.machine, Kind: "dhcp " + strings.ToLower(r.kind.String())}
	no := func(format string, args ...any) (*answer, Event) {
		e.Answer, e.Why = "none", fmt.Sprintf(format, args...)
		return nil, e
	}
	if r.giaddr.IsValid() && !n.leases.subnet.Contains(r.giaddr) {
		// Also the door of a reflection attack: we answer to giaddr.
		return no("relayed from %s, which is in no network of ours on %s", r.giaddr, n.Interface)
	}
	mac := r.machine.MAC
	r.machine.Addr = n.leases.lookup(mac, now)
	r.machine.Network, r.machine.Relay = n.Name, r.giaddr
	r.machine.Starts = s.started(r, now)
	e.Machine = r.machine

	switch r.kind {
	case dhcpv4.MessageTypeDecline:
		if !n.leases.decline(mac, r.want, now) {
			return no("declines %s, which is not its address", r.want)
		}
		s.log.Warn("boot: an address is in use by an unknown machine", "addr", r.want, "found by", mac, "interface", n.Interface)
		return no("%s is in use by somebody else: not given out for %s", r.want, quarantine)
	case dhcpv4.MessageTypeRelease:
		if r.server.IsValid() && r.server != n.id {
			return no("gives back an address of another server")
		}
		if !n.leases.release(mac, r.ciaddr, now) {
			return no("gives back %s, which is not its address", r.ciaddr)
		}
		return no("gave back %s", r.ciaddr)
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform:
	default:
		return no("a server has no answer to this")
	}

	if r.kind == dhcpv4.MessageTypeRequest && r.server.IsValid() && r.server != n.id {
		n.leases.withdraw(mac, now)
		return no("it chose the server %s", r.server)
	}
	if r.kind == dhcpv4.MessageTypeInform && !n.leases.subnet.Contains(r.ciaddr) {
		return no("informs from %s, which is not an address of this network", r.ciaddr)
	}

	var decided Boot // the zero Boot: not yet
	var boot string  // what the booter said, for the record
	if r.client != plain4 {
		b, err := s.ask(ctx, r.machine, askAddressTime)
		switch {
		case err != nil:
			// With a lease and a loader it reaches the script, which can show
			// why it waits and ask again; without, it would fall through to
			// whatever its firmware tries next.
			boot = fmt.Sprintf("; undecided (%v), the script will ask again", err)
		case b.Action == Ignore:
			return no("to be ignored: %s", b.Why)
		default:
			decided = b
			boot = fmt.Sprintf("; %s: %s", b.Action, b.Why)
		}
	}

	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		a, err := s.offer(ctx, n, r, now)
		if err != nil {
			return no("%v", err)
		}
		e.Machine.Addr = a
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeOffer, a)
		e.Answer, e.Why = "offer "+a.String(), what+boot
		return &answer{msg, destination(r, a)}, e
	case dhcpv4.MessageTypeInform:
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeAck, netip.Addr{})
		e.Answer, e.Why = "ack", what+boot
		return &answer{msg, destination(r, netip.Addr{})}, e
	}

	c := claim{mac: mac, addr: r.want, unicast: r.unicast}
	switch {
	case r.server.IsValid(): // SELECTING
		if !r.want.IsValid() {
			return no("accepts an offer but names no address (option 50)")
		}
	case r.want.IsValid() && !r.ciaddr.IsValid():
		c.reboot = true
	case r.ciaddr.IsValid():
		c.renew = true
		c.addr = r.ciaddr
	default:
		return no("asks for no address")
	}
	v, why, wait := n.leases.request(c, now, n.LeaseTime)
	switch v {
	case ack:
		if err := wait(); err != nil {
			return no("the lease could not be made durable: %v", err)
		}
		e.Machine.Addr = c.addr
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeAck, c.addr)
		e.Answer, e.Why = "ack "+c.addr.String(), why+", "+what+boot
		return &answer{msg, destination(r, c.addr)}, e
	case nak:
		e.Answer, e.Why = "nak", why
		return &answer{refuse(n, r, why), refusal(r)}, e
	}
	return no("%s", why)
}

// offer chooses an address that nobody seems to use.
func (s *Server) offer(ctx context.Context, n *network, r *request, now time.Time) (netip.Addr, error) {
	for range 4 { // probes, each takes its time: the client repeats its question
		a, fresh, err := n.leases.offer(r.machine.MAC, r.want, now)
		if err != nil || !fresh || n.prober == nil || r.giaddr.IsValid() {
			return a, err
		}
		by, used := n.prober.inUse(ctx, a)
		if !used || by == r.machine.MAC {
			return a, nil
		}
		n.leases.decline(r.machine.MAC, a, now)
		s.log.Warn("boot: an address of the pool is in use by an unknown machine", "addr", a, "by", by, "interface", n.Interface)
	}
	return netip.Addr{}, errors.New("the next addresses of the pool are all in use by unknown machines")
}

// destination follows RFC 2131 section 4.1 for OFFER and ACK.
func destination(r *request, yiaddr netip.Addr) target {
	switch {
	case r.giaddr.IsValid():
		return target{addr: netip.AddrPortFrom(r.giaddr, serverPort)}
	case r.ciaddr.IsValid():
		return target{addr: netip.AddrPortFrom(r.ciaddr, clientPort)}
	case r.msg.IsBroadcast() || !yiaddr.IsValid():
		return target{addr: broadcast}
	}
	// The client has no address yet and so answers no ARP request.
	return target{addr: netip.AddrPortFrom(yiaddr, clientPort), mac: r.machine.MAC}
}

var broadcast = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)

// refusal is where a NAK goes: the client may have no usable address at all.
func refusal(r *request) target {
	if r.giaddr.IsValid() {
		return target{addr: netip.AddrPortFrom(r.giaddr, serverPort)}
	}
	return target{addr: broadcast}
}

// header is the part that every answer to r has (RFC 2131 table 3).
func header(n *network, r *request, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        iana.HWTypeEthernet,
		TransactionID: r.msg.TransactionID,
		Flags:         r.msg.Flags,
		ClientIPAddr:  net.IPv4zero,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: r.msg.GatewayIPAddr,
		ClientHWAddr:  r.msg.ClientHWAddr,
		Options:       make(dhcpv4.Options),
	}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptServerIdentifier(n.id.AsSlice()))
	if id := r.msg.Options.Get(dhcpv4.OptionClientIdentifier); id != nil {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id)) // RFC 6842
	}
	// RFC 3046 section 2.2: the relay gets its option back as it was.
	if info := r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation); info != nil && r.giaddr.IsValid() {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRelayAgentInformation, info))
	}
	return m
}

func refuse(n *network, r *request, why string) *dhcpv4.DHCPv4 {
	m := header(n, r, dhcpv4.MessageTypeNak)
	if r.giaddr.IsValid() {
		m.SetBroadcast() // the relay must not try to reach the address we refuse
	}
	m.UpdateOption(dhcpv4.OptMessage(why))
	return m
}

// reply builds an OFFER or ACK and says what is in it.
func (s *Server) reply(n *network, r *request, b Boot, kind dhcpv4.MessageType, yiaddr netip.Addr) (*dhcpv4.DHCPv4, string) {
	m := header(n, r, kind)
	if kind == dhcpv4.MessageTypeAck && r.ciaddr.IsValid() {
		m.ClientIPAddr = r.msg.ClientIPAddr
	}
	if yiaddr.IsValid() {
		m.YourIPAddr = yiaddr.AsSlice()
		m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(n.LeaseTime))
		m.UpdateOption(dhcpv4.OptRenewTimeValue(n.LeaseTime / 2))
		m.UpdateOption(dhcpv4.OptRebindingTimeValue(n.LeaseTime * 7 / 8))
	}
	m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.Address.Bits(), 32)))
	if n.Router.IsValid() {
		m.UpdateOption(dhcpv4.OptRouter(n.Router.AsSlice()))
	}
	if len(n.DNS) > 0 {
		var ips []net.IP
		for _, a := range n.DNS {
			ips = append(ips, a.AsSlice())
		}
		m.UpdateOption(dhcpv4.OptDNS(ips...))
	}
	what := s.bootOptions(n, r, b, m)
	// Options nobody misses make room first (option 57).
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionTFTPServerName, dhcpv4.OptionRebindingTimeValue, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionDomainNameServer, dhcpv4.OptionClientMachineIdentifier} {
		if len(m.ToBytes()) <= r.max {
			break
		}
		m.DeleteOption(o)
	}
	return m, what
}

// bootOptions adds what makes the machine boot from us.
func (s *Server) bootOptions(n *network, r *request, b Boot, m *dhcpv4.DHCPv4) string {
	file := func(name string) {
		if len(name) < 128 {
			m.BootFileName = name
		}
		m.UpdateOption(dhcpv4.OptBootFileName(name))
	}
	if r.client == plain4 {
		return "plain lease"
	}
	// RFC 4578 section 2.3: the identifier comes back as it was.
	if id := r.msg.Options.Get(dhcpv4.OptionClientMachineIdentifier); id != nil {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id))
	}
	if r.client == ipxe { // not a choice: it is there, and takes a script
		m.ServerIPAddr = n.id.AsSlice()
		file(s.scriptURL(n, r.machine))
		// Sub-option 176 no-pxedhcp: do not wait for proxyDHCP offers.
		m.UpdateOption(dhcpv4.OptGeneric(optEtherboot, []byte{0xb0, 1, 1}))
		return "script"
	}
	c := s.choose(r, b)
	if c.via == byNothing {
		return "plain lease: " + c.why
	}
	m.ServerIPAddr = n.id.AsSlice()
	switch {
	case c.via == byHTTP:
		m.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient"))
		file(s.fileURL(n, c.file))
		return c.why
	case r.machine.Arch == BIOS:
		// Nothing of PXE but the file: a PXE ROM that is told PXEClient looks
		// for boot servers, one that is told nothing takes the file.
	default:
		m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
		// PXE 2.1 table 2-1, tag 6 bit 3: take the file of this answer, ask no
		// boot server and show no menu.
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255}))
	}
	m.UpdateOption(dhcpv4.OptTFTPServerName(n.id.String()))
	file(c.file)
	return c.why
}
