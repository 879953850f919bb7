package pxe

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// bootItem is the sub-option of option 43 by which a client says which boot
// server of a menu it wants, and a boot server which one it is (PXE 2.1 table
// 2-1, PXE_BOOT_ITEM).
const bootItem = 71

// respondBoot answers what a machine boots and never what its address is: as a
// ProxyDHCP server beside the DHCP server of the hall, and as a boot server on
// port 4011. Of the latter, every offer of ours says that none is needed (tag
// 6), and some firmware asks all the same.
func (s *Server) respondBoot(ctx context.Context, n *network, r *request, e Event) (*answer, Event) {
	no := func(format string, args ...any) (*answer, Event) {
		e.Answer, e.Why = "none", fmt.Sprintf(format, args...)
		return nil, e
	}
	kind := dhcpv4.MessageTypeOffer
	switch {
	case r.client == plain4:
		return no("wants an address and no boot: the DHCP server of this network has it")
	case !r.boot && r.kind != dhcpv4.MessageTypeDiscover:
		return no("settles with the DHCP server of this network")
	case r.boot && r.kind != dhcpv4.MessageTypeRequest && r.kind != dhcpv4.MessageTypeInform:
		return no("boot servers are asked by REQUEST or INFORM")
	case r.boot && !n.machines().Contains(r.src.Addr()):
		return no("asks a boot server from %s, which is not of this network", r.src.Addr())
	case r.boot && r.ciaddr.IsValid() && r.ciaddr != r.src.Addr():
		return no("asks a boot server from %s and says that it is %s", r.src.Addr(), r.ciaddr)
	case r.boot:
		kind = dhcpv4.MessageTypeAck
	}
	decided, boot := s.decide(ctx, r)
	if decided.Action == Ignore {
		return no("to be ignored: %s", decided.Why)
	}
	m := header(n, r, kind)
	what := s.bootOptions(n, r, decided, m)
	if m.BootFileName == "" && !m.Options.Has(dhcpv4.OptionBootfileName) {
		return no("%s", what)
	}
	to := destination(n, r, netip.Addr{})
	if r.boot {
		m.ClientIPAddr = r.msg.ClientIPAddr
		to = target{addr: r.src}
		if item := r.bootItem(); item != nil {
			v := append([]byte{6, 1, 8, bootItem, byte(len(item))}, item...)
			m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, append(v, 255)))
		}
	}
	fit(m, r.max)
	if r.boot {
		what += ", as its boot server"
	}
	e.Answer, e.Why = kindName(kind)+" (boot only)", what+boot
	return &answer{msg: m, to: to}, e
}

func kindName(k dhcpv4.MessageType) string {
	if k == dhcpv4.MessageTypeOffer {
		return "offer"
	}
	return "ack"
}

// bootItem is which boot server r asks for, or nil.
func (r *request) bootItem() []byte {
	b := r.msg.Options.Get(dhcpv4.OptionVendorSpecificInformation)
	for len(b) >= 2 && b[0] != 255 {
		if b[0] == 0 { // padding
			b = b[1:]
			continue
		}
		n := int(b[1])
		if len(b) < 2+n {
			return nil
		}
		if b[0] == bootItem && n == 4 {
			return b[2:6]
		}
		b = b[2+n:]
	}
	return nil
}

// overhear notes which address the machine says it has, or is about to have,
// where another server gives the addresses.
func (n *network) overhear(r *request) netip.Addr {
	mac := r.machine.MAC
	switch {
	case n.machines().Contains(r.ciaddr):
		n.neighbours.learn(mac, r.ciaddr)
	case r.kind == dhcpv4.MessageTypeRequest && n.machines().Contains(r.want):
		n.neighbours.learn(mac, r.want)
	}
	return n.neighbours.addr(mac)
}
