package pxe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Network is a set of machines that are served alike: those on the wire of an
// interface, or those of a subnet whose relay agents reach us there. Several
// of the latter may share an interface.
type Network struct {
	Name                string // for people; the interface's when empty
	Mode                Mode
	Interface           string
	Address             netip.Prefix       // ours on it, already configured
	Subnet              netip.Prefix       // of machines behind relays: Relay has one, Proxy may; else invalid
	Relays              []netip.Addr       // the relay agents (giaddr) that are answered; Authoritative without any answers those within Address
	Pool                Range              // for machines without a fixed address; the zero Range is none
	Fixed               map[MAC]netip.Addr // outside the pool
	Servers             []netip.Addr       // DHCP servers of the hall that are no rivals
	Router              netip.Addr         // may be invalid: none
	DNS                 []netip.Addr
	LeaseTime           time.Duration  // 0: one hour
	RouterAdvertisement bool           // answer IPv6 router solicitations with an empty advertisement
	IPv6                netip.Prefix   // ours on it, already configured; invalid: no boot over IPv6
	HTTPS               netip.AddrPort // where UEFI HTTP clients fetch their loader by TLS; invalid: they fetch it in clear
	Known               []MAC          // machines of the site: strangers never use up the addresses they may need
	Rules               Rules          // whom to answer; the zero Rules name everybody
}

// Range is a range of addresses, both ends included.
type Range struct{ From, To netip.Addr }

func (r Range) String() string { return r.From.String() + "-" + r.To.String() }

// machines are the addresses that machines of the network have.
func (n *Network) machines() netip.Prefix {
	if n.relayed() {
		return n.Subnet.Masked()
	}
	return n.Address.Masked()
}

// relayed reports whether machines of n come through relays, and never by the
// wire itself.
func (n *Network) relayed() bool { return n.Subnet.IsValid() }

// gives reports whether the addresses of n are ours to give.
func (n *Network) gives() bool { return n.Mode == Authoritative || n.Mode == Relay }

// network is a Network at work.
type network struct {
	Network
	id         netip.Addr // ours: server identifier, TFTP server
	rules      rules
	known      map[MAC]bool
	leases     *leases
	neighbours neighbours // who has which address, where leases cannot know
	prober     *prober    // nil before Run, and where nobody could answer
	rivals     *rivals    // other servers that were heard or named
	v6         *network   // as machines see it that boot over IPv6; nil: none may
}

func newNetwork(n Network) (*network, error) {
	if n.Name == "" {
		n.Name = n.Interface
	}
	if n.LeaseTime == 0 {
		n.LeaseTime = defaultLease
	}
	if err := n.validate(); err != nil {
		return nil, err
	}
	rules, err := newRules(n.Rules)
	if err != nil {
		return nil, err
	}
	known := make(map[MAC]bool)
	for _, m := range n.Known {
		known[m] = true
	}
	for m := range n.Fixed {
		known[m] = true
	}
	out := &network{Network: n, id: n.Address.Addr(), rules: rules, known: known, leases: newLeases(n, known, nil)}
	if n.IPv6.IsValid() {
		out.v6 = &network{Network: n, id: n.IPv6.Addr(), rules: rules, known: known, leases: out.leases}
	}
	return out, nil
}

// apart reports why n and o cannot be served together: whose machine is it
// must never be a question.
func (n *network) apart(o *network) error {
	switch {
	case n.Interface == o.Interface && !n.relayed() && !o.relayed():
		return errors.New("the interface has two networks: a second subnet there is reached through relays")
	case n.machines().Overlaps(o.machines()):
		return fmt.Errorf("%s overlaps %s on %s", n.machines(), o.machines(), o.Interface)
	case n.Subnet.Overlaps(o.Address), o.Subnet.Overlaps(n.Address):
		return fmt.Errorf("one of %s and %s is behind relays and on a wire of ours as well", n.machines(), o.machines())
	case n.IPv6.Overlaps(o.IPv6):
		return fmt.Errorf("%s is on %s as well", n.IPv6.Masked(), o.Interface)
	case n.Interface != o.Interface && n.Address.Overlaps(o.Address):
		return fmt.Errorf("%s overlaps %s on %s", n.Address.Masked(), o.Address.Masked(), o.Interface)
	}
	return nil
}

func (n *Network) validate() error {
	if n.Interface == "" {
		return errors.New("no interface")
	}
	if !n.Address.IsValid() || !n.Address.Addr().Is4() || n.Address.Bits() < 8 || n.Address.Bits() > 30 {
		return fmt.Errorf("address %s: want our IPv4 address with its prefix length, such as 10.20.0.1/16", n.Address)
	}
	if err := usable("address", n.Address.Addr(), n.Address.Masked()); err != nil {
		return err
	}
	if err := n.validateMode(); err != nil {
		return err
	}
	if n.HTTPS != (netip.AddrPort{}) && (!n.HTTPS.Addr().Is4() || n.HTTPS.Addr().IsUnspecified() || n.HTTPS.Port() == 0) {
		return fmt.Errorf("HTTPS boot at %s: machines cannot be told that address", n.HTTPS)
	}
	if err := n.validate6(); err != nil {
		return err
	}
	pool := n.Pool != Range{}
	if pool {
		if err := usable("pool start", n.Pool.From, n.machines()); err != nil {
			return err
		}
		if err := usable("pool end", n.Pool.To, n.machines()); err != nil {
			return err
		}
		if n.Pool.To.Less(n.Pool.From) {
			return fmt.Errorf("pool %s ends before it starts", n.Pool)
		}
		if size := distance(n.Pool.From, n.Pool.To); size >= maxPool {
			return fmt.Errorf("pool %s has %d addresses: at most %d", n.Pool, size+1, maxPool)
		}
	}
	inPool := func(a netip.Addr) bool { return pool && !a.Less(n.Pool.From) && !n.Pool.To.Less(a) }
	if inPool(n.Address.Addr()) {
		return fmt.Errorf("pool %s holds our own address %s", n.Pool, n.Address.Addr())
	}
	if n.Router.IsValid() {
		if err := usable("router", n.Router, n.machines()); err != nil {
			return err
		}
		if inPool(n.Router) {
			return fmt.Errorf("pool %s holds the router %s", n.Pool, n.Router)
		}
	}
	if len(n.DNS) > 8 {
		return fmt.Errorf("%d DNS servers: at most 8", len(n.DNS))
	}
	for _, a := range n.DNS {
		if !a.Is4() {
			return fmt.Errorf("DNS server %s is no IPv4 address", a)
		}
		if inPool(a) {
			return fmt.Errorf("pool %s holds the DNS server %s", n.Pool, a)
		}
	}
	for _, a := range n.Relays {
		if inPool(a) {
			return fmt.Errorf("pool %s holds the relay %s", n.Pool, a)
		}
	}
	if n.LeaseTime < minLease {
		return fmt.Errorf("lease time %s: at least %s", n.LeaseTime, minLease)
	}
	owner := make(map[netip.Addr]MAC)
	for mac, a := range n.Fixed {
		if err := usable("fixed address", a, n.machines()); err != nil {
			return fmt.Errorf("%v (of %s)", err, mac)
		}
		switch {
		case inPool(a):
			return fmt.Errorf("fixed address %s of %s lies in the pool %s: move one of them", a, mac, n.Pool)
		case a == n.Address.Addr() || a == n.Router || slices.Contains(n.Relays, a):
			return fmt.Errorf("fixed address %s of %s is our own, the router's or a relay's", a, mac)
		}
		if other, ok := owner[a]; ok {
			return fmt.Errorf("fixed address %s is given to %s and %s", a, other, mac)
		}
		owner[a] = mac
	}
	return nil
}

// validateMode checks what the mode asks for and what means nothing in it.
func (n *Network) validateMode() error {
	switch n.Mode {
	case Authoritative, Observe:
		if n.Subnet.IsValid() {
			return fmt.Errorf("mode %s takes no subnet: its machines are on the wire", n.Mode)
		}
	case Relay:
		if !n.Subnet.IsValid() {
			return errors.New("mode relay needs the subnet of the machines")
		}
	case Proxy:
	default:
		return fmt.Errorf("%v is none", n.Mode)
	}
	if !n.gives() && (n.Pool != Range{} || len(n.Fixed) > 0) {
		return fmt.Errorf("mode %s gives no addresses: no pool, no fixed address", n.Mode)
	}
	if n.Mode == Observe && n.RouterAdvertisement {
		return errors.New("mode observe answers nobody: no router advertisement")
	}
	if n.Subnet.IsValid() {
		switch {
		case !n.Subnet.Addr().Is4() || n.Subnet.Bits() < 8 || n.Subnet.Bits() > 30:
			return fmt.Errorf("subnet %s: want an IPv4 network, such as 10.21.0.0/16", n.Subnet)
		case n.Subnet.Overlaps(n.Address):
			return fmt.Errorf("subnet %s overlaps %s, which is on the wire", n.Subnet, n.Address.Masked())
		case len(n.Relays) == 0:
			return errors.New("a subnet behind relays needs their addresses: no other relay is answered")
		}
	} else if len(n.Relays) > 0 && n.Mode != Authoritative {
		return fmt.Errorf("mode %s takes no relays without a subnet behind them", n.Mode)
	}
	for _, a := range n.Relays {
		if !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a == n.Address.Addr() {
			return fmt.Errorf("relay %s: want the IPv4 address of a relay agent", a)
		}
	}
	return nil
}

// usable reports why no machine of subnet can have a.
func usable(what string, a netip.Addr, subnet netip.Prefix) error {
	switch {
	case !a.Is4() || !subnet.Contains(a):
		return fmt.Errorf("%s %s is not in %s", what, a, subnet)
	case a == subnet.Addr() || a == last(subnet):
		return fmt.Errorf("%s %s is the network or the broadcast address of %s", what, a, subnet)
	}
	return nil
}

// last is the broadcast address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func distance(from, to netip.Addr) int {
	f, t := from.As4(), to.As4()
	n := 0
	for i := range f {
		n = n<<8 + int(t[i]) - int(f[i])
	}
	return n
}
