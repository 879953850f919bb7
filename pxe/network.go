package pxe

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Network is one interface whose machines are served.
type Network struct {
	Name                string // for people; the interface's when empty
	Mode                Mode
	Interface           string
	Address             netip.Prefix       // ours on it, already configured
	Pool                Range              // for machines without a fixed address; the zero Range is none
	Fixed               map[MAC]netip.Addr // outside the pool
	Subnet              netip.Prefix       // of the machines, in mode Relay; Address is then where their relays reach us
	Relays              []netip.Addr       // the relay agents (giaddr) of Subnet; others are not answered
	Servers             []netip.Addr       // DHCP servers of the hall that are no rivals
	Router              netip.Addr         // may be invalid: none
	DNS                 []netip.Addr
	LeaseTime           time.Duration // 0: one hour
	RouterAdvertisement bool          // answer IPv6 router solicitations with an empty advertisement
	Known               []MAC         // machines of the site: strangers never use up the addresses they may need
	Rules               Rules         // whom to answer; the zero Rules name everybody
}

// Range is a range of addresses, both ends included.
type Range struct{ From, To netip.Addr }

func (r Range) String() string { return r.From.String() + "-" + r.To.String() }

// network is a Network at work.
type network struct {
	Network
	id     netip.Addr // ours: server identifier, TFTP server
	rules  rules
	leases *leases
	prober *prober // nil before Run
	rivals *rivals // nil where nobody listens to other servers
}

func (n *Network) validate() error {
	if n.Mode != Authoritative {
		return fmt.Errorf("mode %s is not served yet", n.Mode)
	}
	if n.Interface == "" {
		return errors.New("no interface")
	}
	if !n.Address.IsValid() || !n.Address.Addr().Is4() || n.Address.Bits() < 8 || n.Address.Bits() > 30 {
		return fmt.Errorf("address %s: want our IPv4 address with its prefix length, such as 10.20.0.1/16", n.Address)
	}
	subnet := n.Address.Masked()
	usable := func(what string, a netip.Addr) error {
		switch {
		case !a.Is4() || !subnet.Contains(a):
			return fmt.Errorf("%s %s is not in %s", what, a, subnet)
		case a == subnet.Addr() || a == last(subnet):
			return fmt.Errorf("%s %s is the network or the broadcast address of %s", what, a, subnet)
		}
		return nil
	}
	if err := usable("address", n.Address.Addr()); err != nil {
		return err
	}
	pool := n.Pool != Range{}
	if pool {
		if err := usable("pool start", n.Pool.From); err != nil {
			return err
		}
		if err := usable("pool end", n.Pool.To); err != nil {
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
		if err := usable("router", n.Router); err != nil {
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
	if n.LeaseTime < minLease {
		return fmt.Errorf("lease time %s: at least %s", n.LeaseTime, minLease)
	}
	owner := make(map[netip.Addr]MAC)
	for mac, a := range n.Fixed {
		if err := usable("fixed address", a); err != nil {
			return fmt.Errorf("%v (of %s)", err, mac)
		}
		switch {
		case inPool(a):
			return fmt.Errorf("fixed address %s of %s lies in the pool %s: move one of them", a, mac, n.Pool)
		case a == n.Address.Addr() || a == n.Router:
			return fmt.Errorf("fixed address %s of %s is our own or the router's", a, mac)
		}
		if other, ok := owner[a]; ok {
			return fmt.Errorf("fixed address %s is given to %s and %s", a, other, mac)
		}
		owner[a] = mac
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
