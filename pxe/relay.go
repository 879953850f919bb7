package pxe

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Sub-options of option 82 that the library has no name for.
const (
	subLinkSelection    dhcpv4.GenericOptionCode = 5  // RFC 3527: the subnet to choose from, where giaddr is not in it
	subServerIdentifier dhcpv4.GenericOptionCode = 11 // RFC 5107: what to call ourselves, so that renewals come through the relay
)

// readRelay reads what a relay agent added (RFC 3046). Without giaddr no relay
// did: whatever stands there was made by the client.
func (r *request) readRelay() {
	if !r.giaddr.IsValid() {
		return
	}
	info := r.msg.RelayAgentInfo()
	if info == nil {
		return // none, or broken: it goes back as it came
	}
	r.machine.Circuit = plain(string(info.Get(dhcpv4.AgentCircuitIDSubOption)), 64)
	r.machine.Remote = plain(string(info.Get(dhcpv4.AgentRemoteIDSubOption)), 64)
	if a, err := addr4(info.Get(subLinkSelection)); err == nil {
		r.link = a
	}
	if a, err := addr4(info.Get(subServerIdentifier)); err == nil {
		r.override = a
	}
}

// serverID is what we call ourselves towards r.
func (r *request) serverID(n *network) netip.Addr {
	if r.override.IsValid() {
		return r.override
	}
	return n.id
}

// pick finds the network that r belongs to, among those on the interface it
// came in by, or says why it belongs to none.
func pick(on []*network, r *request) (*network, string) {
	if r.giaddr.IsValid() {
		return pickRelayed(on, r)
	}
	for _, n := range on {
		// A machine behind a relay renews, gives back and asks boot servers
		// without it, from its own address straight to ours.
		if n.relayed() && r.unicast && n.machines().Contains(r.ciaddr) {
			return n, ""
		}
	}
	for _, n := range on {
		if !n.relayed() {
			return n, ""
		}
	}
	return nil, "no network is served on this wire itself, only through relays"
}

// pickRelayed obeys listed relays only. What others pass on is not looked at:
// who can make us answer to any giaddr has a reflector.
func pickRelayed(on []*network, r *request) (*network, string) {
	var heard []*network
	for _, n := range on {
		if slices.Contains(n.Relays, r.giaddr) || n.Mode == Authoritative && len(n.Relays) == 0 && n.machines().Contains(r.giaddr) {
			heard = append(heard, n)
		}
	}
	if len(heard) == 0 {
		return nil, fmt.Sprintf("relayed from %s, which is no relay of a network of ours", r.giaddr)
	}
	at := r.giaddr
	if r.link.IsValid() {
		at = r.link
	}
	for _, n := range heard {
		if n.machines().Contains(at) {
			return n, ""
		}
	}
	if len(heard) == 1 && !r.link.IsValid() {
		return heard[0], "" // a relay that speaks from an address elsewhere
	}
	return nil, fmt.Sprintf("relayed from %s for %s, which is in no network of that relay", r.giaddr, at)
}
