package config

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

func (p *parser) networks(raw []rawNetwork) {
	names := map[string]int{}
	for _, r := range raw {
		n := Network{Name: p.word(r.Name), Mode: "authoritative", Interface: r.Interface.v, RouterAdvertisement: r.RA.v, HTTPS: r.HTTPS.v}
		if r.Mode.v != "" {
			n.Mode = r.Mode.v
		}
		p.unique(names, r.Name.at, "network", n.Name)
		if len(n.Interface) > 15 { // IFNAMSIZ less its zero byte
			p.fail(r.Interface.at, "see: ip -br link", "%q is too long for an interface", clip(n.Interface))
		}
		p.networkKeys(r, n.Mode)
		if n.HTTPS && p.site.Listen.BootTLS == "" {
			p.fail(r.HTTPS.at, "add bootTLS to listen, for example bootTLS: 10.20.0.1:443", "network %s has https, and nothing serves it", n.Name)
		}
		n.Address = p.prefix(r.Address, "10.20.0.1/16")
		if n.Address.IsValid() && n.Address.Addr() == n.Address.Masked().Addr() {
			p.fail(r.Address.at, "give this server's own address on it", "%s is the network, not an address in it", n.Address)
		}
		n.Subnet = p.prefix(r.Subnet, "10.21.0.0/16")
		if n.Subnet.IsValid() && n.Subnet != n.Subnet.Masked() {
			p.fail(r.Subnet.at, "write "+n.Subnet.Masked().String(), "%s is an address, not a network", n.Subnet)
		}
		if n.IPv6 = p.prefix6(r.IPv6); n.IPv6.IsValid() && n.HTTPS {
			p.fail(r.IPv6.at, "remove one of them", "network %s has https, and over IPv6 loaders are sent in clear", n.Name)
		}
		p.apart(r, n)
		machines := n.Machines()
		n.Pool = p.pool(r.Pool, machines, n.Address.Addr())
		if n.Router = p.addr(r.Router); n.Router.IsValid() && machines.IsValid() && !machines.Contains(n.Router) {
			p.fail(r.Router.at, "machines reach their router without one", "router %s is outside %s", n.Router, machines)
		}
		n.DNS = p.addrs(r.DNS, "name server")
		n.Relays = p.addrs(r.Relays, "relay")
		n.Servers = p.addrs(r.Servers, "DHCP server")
		for i, a := range n.Relays {
			switch {
			case a == n.Address.Addr():
				p.fail(r.Relays[i].at, "name the relay agent's address on the machines' side", "relay %s is this server's own address", a)
			case n.Mode == "authoritative" && machines.IsValid() && !machines.Contains(a):
				p.fail(r.Relays[i].at, "machines of another subnet are a network of their own: mode: relay", "relay %s is outside %s", a, machines)
			case n.Pool.Contains(a):
				p.fail(r.Relays[i].at, "move the pool", "the pool holds the relay %s", a)
			}
		}
		for i, a := range n.Servers {
			if a == n.Address.Addr() {
				p.fail(r.Servers[i].at, "this server is always known", "DHCP server %s is this server's own address", a)
			}
		}
		p.site.Networks = append(p.site.Networks, n)
	}
}

// networkKeys refuses keys that mean nothing in a mode, and asks for those that
// it cannot do without.
func (p *parser) networkKeys(r rawNetwork, mode string) {
	list := func(l []text) at {
		if len(l) == 0 {
			return at{}
		}
		return l[0].at
	}
	relayed := map[string]at{"subnet": r.Subnet.at, "relays": list(r.Relays)}
	gives := map[string]at{"pool": r.Pool.at, "router": r.Router.at, "dns": list(r.DNS)}
	six := map[string]at{"ipv6": r.IPv6.at}
	switch mode {
	case "authoritative":
		p.refuses("mode authoritative", map[string]at{"subnet": r.Subnet.at})
	case "relay":
		p.needs(r.at, "mode relay", relayed)
		p.refuses("mode relay", map[string]at{"routerAdvertisement": r.RA.at})
		p.refuses("mode relay, which is for IPv4 alone,", six)
	case "proxy":
		if r.Subnet.set() || len(r.Relays) > 0 {
			p.needs(r.at, "a network behind relays", relayed)
		}
		p.refuses("mode proxy, where the hall's DHCP server gives the addresses,", gives)
		p.refuses("mode proxy, where the hall's DHCP server gives the addresses,", six)
	case "observe":
		p.refuses("mode observe", relayed)
		p.refuses("mode observe, where nobody is answered,", gives)
		p.refuses("mode observe, where nobody is answered,", six)
		p.refuses("mode observe, where nobody is answered,", map[string]at{"routerAdvertisement": r.RA.at, "https": r.HTTPS.at, "allow": r.Allow.at, "deny": r.Deny.at})
	}
}

// apart keeps networks from claiming the same machines: one network on each
// wire, beside those that come to it through relays.
func (p *parser) apart(r rawNetwork, n Network) {
	where := r.Address.at
	if n.Relayed() && r.Subnet.set() {
		where = r.Subnet.at
	}
	if n.Subnet.Overlaps(n.Address) {
		p.fail(where, "machines on this wire need no relay", "%s overlaps %s, which is on the wire", n.Subnet, n.Address.Masked())
		return
	}
	for _, o := range p.site.Networks {
		same, wires := o.Interface == n.Interface, o.Address.Overlaps(n.Address)
		switch {
		case same && !o.Relayed() && !n.Relayed():
			p.fail(r.Interface.at, "a second subnet there has mode: relay", "interface %q has network %s already", n.Interface, o.Name)
		case n.Machines().Overlaps(o.Machines()):
			p.fail(where, "", "network %s overlaps %s (%s)", n.Machines(), o.Name, o.Machines())
		case n.Subnet.Overlaps(o.Address), o.Subnet.Overlaps(n.Address):
			p.fail(where, "", "one of %s and %s is behind relays and on a wire of ours as well", n.Name, o.Name)
		case o.IPv6.Overlaps(n.IPv6):
			p.fail(r.IPv6.at, "each network has its own", "%s is network %s already", n.IPv6.Masked(), o.Name)
		case wires && !same:
			p.fail(r.Address.at, "", "network %s is on interface %s (%s)", n.Address.Masked(), o.Interface, o.Name)
		case wires && n.Address.Bits() != o.Address.Bits():
			p.fail(r.Address.at, "", "network %s says that this wire has /%d", o.Name, o.Address.Bits())
		}
	}
}

func (p *parser) prefix(t text, like string) netip.Prefix {
	if t.v == "" {
		return netip.Prefix{}
	}
	n, err := netip.ParsePrefix(t.v)
	if err != nil || !n.Addr().Is4() {
		p.fail(t.at, "write it like "+like, "%q is no IPv4 address with a prefix length", clip(t.v))
		return netip.Prefix{}
	}
	if bits := n.Bits(); bits < 8 || bits > 30 {
		p.fail(t.at, "use /8 to /30", "a network of /%d serves no machines", bits)
		return netip.Prefix{}
	}
	return n
}

// prefix6 reads our IPv6 address on a network. Firmware takes every network for
// a /64.
func (p *parser) prefix6(t text) netip.Prefix {
	if t.v == "" {
		return netip.Prefix{}
	}
	n, err := netip.ParsePrefix(t.v)
	switch {
	case err != nil || !n.Addr().Is6() || n.Addr().Is4In6() || n.Bits() != 64:
		p.fail(t.at, "write it like fd00:10:20::1/64", "%q is no IPv6 address with the prefix length 64", clip(t.v))
	case !n.Addr().IsGlobalUnicast():
		p.fail(t.at, "take one of your own, or a unique local one such as fd00:10:20::1/64", "machines cannot boot from %s", n.Addr())
	case n.Addr() == n.Masked().Addr():
		p.fail(t.at, "give this server's own address on it", "%s is the network, not an address in it", n)
	default:
		return n
	}
	return netip.Prefix{}
}

// addrs reads a list of addresses; one that is wrong keeps its place in it.
func (p *parser) addrs(list []text, what string) []netip.Addr {
	var out []netip.Addr
	seen := map[string]int{}
	for _, t := range list {
		p.unique(seen, t.at, what, t.v)
		out = append(out, p.addr(t))
	}
	return out
}

func (p *parser) pool(t text, in netip.Prefix, own netip.Addr) Range {
	if t.v == "" {
		return Range{}
	}
	first, last, ok := strings.Cut(t.v, "-")
	a, err1 := netip.ParseAddr(strings.TrimSpace(first))
	b, err2 := netip.ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil || !a.Is4() || !b.Is4() {
		p.fail(t.at, "write FIRST-LAST, for example 10.20.200.1-10.20.200.250", "%q is no range of addresses", clip(t.v))
		return Range{}
	}
	r := Range{a, b}
	switch {
	case b.Less(a):
		p.fail(t.at, "write the lower address first", "the range %q is empty", t.v)
	case in.IsValid() && (!in.Contains(a) || !in.Contains(b)):
		p.fail(t.at, "keep it inside the network's own addresses", "the pool %s is outside %s", t.v, in)
	case r.Contains(own):
		p.fail(t.at, "move the pool, or this server", "the pool %s holds this server's own address %s", t.v, own)
	}
	return r
}

// rules reads whom networks answer. Classes are known by then.
func (p *parser) rules(raw []rawNetwork) {
	for i, r := range raw {
		p.site.Networks[i].Allow = p.rule(r.Allow)
		p.site.Networks[i].Deny = p.rule(r.Deny)
	}
}

func (p *parser) rule(r rawRule) Rule {
	var out Rule
	if r.set() && len(r.MACs)+len(r.OUIs)+len(r.Vendors)+len(r.Classes) == 0 {
		p.fail(r.at, "name machines in it, or remove it", "the rule names no machine")
	}
	macs, ouis, words := map[string]int{}, map[string]int{}, map[string]int{}
	for _, t := range r.MACs {
		if m, ok := p.mac(t, macs); ok {
			out.MACs = append(out.MACs, m)
		}
	}
	for _, t := range r.OUIs {
		b, err := hex.DecodeString(strings.NewReplacer(":", "", "-", "").Replace(t.v))
		if t.v == "" {
			continue
		}
		if err != nil || len(b) != 3 || len(t.v) != 8 || [3]byte(b) == [3]byte{} {
			p.fail(t.at, `write the first three bytes, in quotes: "b4:2e:99"`, "%q is no OUI", clip(t.v))
			continue
		}
		p.unique(ouis, t.at, "OUI", strings.ToLower(t.v))
		out.OUIs = append(out.OUIs, [3]byte(b))
	}
	for _, t := range r.Vendors {
		if t.v == "" {
			continue
		}
		if len(t.v) > 64 || strings.Trim(t.v, "*") == "" {
			p.fail(t.at, `write what option 60 begins with, such as "PXEClient*"`, "%q is no vendor class", clip(t.v))
			continue
		}
		p.unique(words, t.at, "vendor class", t.v)
		out.Vendors = append(out.Vendors, t.v)
	}
	var classes []string
	for c := range p.site.Classes {
		classes = append(classes, c)
	}
	slices.Sort(classes)
	for _, t := range r.Classes {
		p.unique(words, t.at, "class", "class "+t.v)
		out.Classes = append(out.Classes, p.refer(t, "class", classes))
	}
	return out
}

// fixedAddress holds a fixed lease against the networks: inside exactly one
// that gives addresses, and never one that the pool may give to another
// machine.
func (p *parser) fixedAddress(r rawNode, n Node) {
	if len(n.MACs) == 0 && !slices.ContainsFunc(r.MACs, func(t text) bool { return t.set() }) {
		p.fail(r.Address.at, "add macs", "a fixed address needs the MAC address that gets it")
	}
	var nets []string
	for _, w := range p.site.Networks {
		machines := w.Machines()
		if !machines.IsValid() {
			return // reported already
		}
		nets = append(nets, machines.String())
		if !machines.Contains(n.Address) {
			continue
		}
		switch {
		case !w.GivesAddresses():
			p.fail(r.Address.at, "reserve it in the DHCP server of that network, and leave it out here", "fixed address %s is in network %s, whose addresses are not ours to give (mode %s)", n.Address, w.Name, w.Mode)
		case w.Pool.Contains(n.Address):
			p.fail(r.Address.at, "take one outside the pool", "fixed address %s is inside the pool %s-%s of %s", n.Address, w.Pool.First, w.Pool.Last, w.Name)
		case n.Address == w.Address.Addr():
			p.fail(r.Address.at, "", "%s is this server's own address", n.Address)
		case n.Address == w.Router:
			p.fail(r.Address.at, "", "%s is the router of %s", n.Address, w.Name)
		case slices.Contains(w.Relays, n.Address):
			p.fail(r.Address.at, "", "%s is a relay of %s", n.Address, w.Name)
		case n.Address == machines.Addr() || n.Address == broadcast(machines):
			p.fail(r.Address.at, "", "%s is the network or broadcast address of %s", n.Address, w.Name)
		}
		return
	}
	p.fail(r.Address.at, "networks are "+strings.Join(nets, ", "), "address %s is in no network", n.Address)
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
