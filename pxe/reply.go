package pxe

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// target is where an answer goes (RFC 2131 section 4.1).
type target struct {
	addr netip.AddrPort
	mac  MAC // zero: let the system resolve; else straight to this one
}

// answer is what is sent back.
type answer struct {
	msg  *dhcpv4.DHCPv4
	to   target
	from netip.Addr // ours on its network
	wire []byte     // msg as it is sent

	// durable waits until what it promises is on disk; it must not be sent
	// before. Nil: it promises nothing that is not.
	durable func() error
}

// settle waits for a, and is the event of what came of it.
func (a *answer) settle(e Event) (*answer, Event) {
	if a == nil || a.durable == nil {
		return a, e
	}
	if err := a.durable(); err != nil {
		e.Answer, e.Why = "none", fmt.Sprintf("the lease could not be made durable: %v", err)
		return nil, e
	}
	return a, e
}

// destination follows RFC 2131 section 4.1 for OFFER and ACK. Of the addresses
// that the message names, those are obeyed that are a relay's of ours or inside
// the network: no others can be made to receive what they did not ask for.
func destination(n *network, r *request, yiaddr netip.Addr) target {
	switch {
	case r.giaddr.IsValid():
		return target{addr: netip.AddrPortFrom(r.giaddr, serverPort)}
	case n.machines().Contains(r.ciaddr) && n.relayed():
		return target{addr: netip.AddrPortFrom(r.ciaddr, clientPort)} // it renews from beyond a router
	case n.machines().Contains(r.ciaddr):
		// Straight to it: Linux remembers 1,024 neighbours (gc_thresh3), and a
		// hall that came up together renews together.
		return target{addr: netip.AddrPortFrom(r.ciaddr, clientPort), mac: r.machine.MAC}
	case r.msg.IsBroadcast() || !yiaddr.IsValid():
		return target{addr: broadcast}
	}
	// The client has no address yet and so answers no ARP request.
	return target{addr: netip.AddrPortFrom(yiaddr, clientPort), mac: r.machine.MAC}
}

var broadcast = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)

// refusal is where a NAK goes: the client may have no usable address at all.
func refusal(n *network, r *request) target {
	switch {
	case r.giaddr.IsValid():
		return target{addr: netip.AddrPortFrom(r.giaddr, serverPort)}
	case n.relayed() && n.machines().Contains(r.ciaddr):
		// RFC 2131 says broadcast, but it renews from beyond a router, where no
		// broadcast of ours comes.
		return target{addr: netip.AddrPortFrom(r.ciaddr, clientPort)}
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
	m.UpdateOption(dhcpv4.OptServerIdentifier(r.serverID(n).AsSlice()))
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
	m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.machines().Bits(), 32)))
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
	fit(m, r.max)
	return m, what
}

// fit makes m no larger than its client takes (option 57).
func fit(m *dhcpv4.DHCPv4, size int) {
	// Options nobody misses make room first.
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionTFTPServerName, dhcpv4.OptionRebindingTimeValue, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionDomainNameServer, dhcpv4.OptionClientMachineIdentifier} {
		if length(m) <= size {
			break
		}
		m.DeleteOption(o)
	}
}

// length is how many bytes m takes, without writing it.
func length(m *dhcpv4.DHCPv4) int {
	n := 240 + 1 // with END
	for _, v := range m.Options {
		n += len(v) + 2*max(1, (len(v)+254)/255)
	}
	return max(n, 300)
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
	if id := r.msg.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(id) > 0 && len(id) <= maxUUID {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id))
	}
	pxe := func() {
		m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
		// PXE 2.1 table 2-1, tag 6 bit 3: take the file of this answer, ask no
		// boot server and show no menu.
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255}))
	}
	// Beside an offer of another server only the class says what this one is:
	// iPXE, too, drops it otherwise.
	beside := n.Mode == Proxy || r.boot
	if r.client == ipxe { // not a choice: it is there, and takes a script
		m.ServerIPAddr = n.id.AsSlice()
		file(s.scriptURL(n, r.machine))
		// Sub-option 176 no-pxedhcp: do not wait for proxyDHCP offers.
		m.UpdateOption(dhcpv4.OptGeneric(optEtherboot, []byte{0xb0, 1, 1}))
		if beside {
			pxe()
		}
		return "script"
	}
	c := s.choose(n, r, b)
	switch {
	case c.via == byNothing && beside:
		return c.why
	case c.via == byNothing:
		return "plain lease: " + c.why
	}
	m.ServerIPAddr = n.id.AsSlice()
	switch {
	case c.via == byHTTP || c.via == byHTTPS:
		m.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient"))
		file(s.loaderURL(n, c.file))
		return c.why
	case r.machine.Arch == BIOS && !beside:
		// Nothing of PXE but the file: a PXE ROM that is told PXEClient looks
		// for boot servers, one that is told nothing takes the file.
	default:
		pxe()
	}
	m.UpdateOption(dhcpv4.OptTFTPServerName(n.id.String()))
	file(c.file)
	return c.why
}
