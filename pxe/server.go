package pxe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
)

const (
	// A PXE ROM repeats its first DISCOVER after 4 s (PXE 2.1 section 2.2.3)
	// and iPXE sooner: the decision must not eat that.
	askAddressTime = 500 * time.Millisecond
	askScriptTime  = 5 * time.Second

	defaultLease = time.Hour
	minLease     = time.Minute

	workers = 64  // messages decided at once on one interface; most wait for disk or Booter
	backlog = 512 // messages waiting for a worker; clients repeat what is dropped
	asking  = 128 // questions to the Booter at once
)

// Config is what a Server needs. Networks, Files, Booter, Log, Leases and HTTP
// must be given.
type Config struct {
	Networks []Network
	Files    *Files
	Booter   Booter
	Log      *slog.Logger
	Leases   string         // path of the lease journal
	HTTP     netip.AddrPort // where machines reach Handler; 0.0.0.0 stands for our address on their network
	Observe  func(Event)    // told of each decision, late or never when it is slow; must return; may be nil
	Rival    func(Rival)    // told when the alarm about another server begins, changes or ends; must return; may be nil
}

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

// Server is the boot service of a site. It is a Task.
type Server struct {
	networks []*network
	files    *Files
	booter   Booter
	log      *slog.Logger
	path     string
	http     netip.AddrPort
	recorder *recorder
	trail    *trail
	slots    chan struct{} // questions to the Booter under way
	ready    chan struct{}
}

// New checks c and returns a server that does nothing until Run. Its Handler
// works at once.
func New(c Config) (*Server, error) {
	switch {
	case len(c.Networks) == 0:
		return nil, errors.New("boot server: no network")
	case c.Files == nil || c.Booter == nil || c.Log == nil:
		return nil, errors.New("boot server: Files, Booter and Log are needed")
	case c.Leases == "":
		return nil, errors.New("boot server: no path for the lease journal")
	case !c.HTTP.Addr().Is4() || c.HTTP.Port() == 0:
		return nil, fmt.Errorf("boot server: %q is no IPv4 address and port where machines reach boot HTTP", c.HTTP)
	}
	s := &Server{
		files: c.Files, booter: c.Booter, log: c.Log, path: c.Leases, http: c.HTTP,
		recorder: newRecorder(c.Log, c.Observe), trail: newTrail(), slots: make(chan struct{}, asking), ready: make(chan struct{}),
	}
	for _, n := range c.Networks {
		if n.Name == "" {
			n.Name = n.Interface
		}
		if n.LeaseTime == 0 {
			n.LeaseTime = defaultLease
		}
		if err := n.validate(); err != nil {
			return nil, fmt.Errorf("network on %s: %v", n.Interface, err)
		}
		rules, err := newRules(n.Rules)
		if err != nil {
			return nil, fmt.Errorf("network on %s: %v", n.Interface, err)
		}
		for _, other := range s.networks {
			switch {
			case other.Interface == n.Interface:
				return nil, fmt.Errorf("network on %s: the interface has two networks", n.Interface)
			case other.Address.Overlaps(n.Address):
				return nil, fmt.Errorf("network on %s: %s overlaps %s on %s", n.Interface, n.Address.Masked(), other.Address.Masked(), other.Interface)
			}
		}
		s.networks = append(s.networks, &network{Network: n, id: n.Address.Addr(), rules: rules, leases: newLeases(n, nil)})
	}
	s.watchRivals(c.Rival)
	return s, nil
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

// Ready is closed once every port is open.
func (s *Server) Ready() <-chan struct{} { return s.ready }

func (s *Server) String() string {
	var names []string
	for _, n := range s.networks {
		names = append(names, n.Interface)
	}
	return "network boot on " + strings.Join(names, ", ")
}

// Recent returns the last decisions about a machine, oldest first.
func (s *Server) Recent(mac MAC) []Event { return s.recorder.recent(mac) }

// Run serves DHCP and TFTP until ctx ends. It is called once.
func (s *Server) Run(ctx context.Context) error {
	j, err := openJournal(s.path)
	if err != nil {
		return err
	}
	records := j.records()
	g, ctx := errgroup.WithContext(ctx)
	var undo []func()
	fail := func(err error) error {
		for _, f := range undo {
			f()
		}
		j.close()
		return err
	}
	var tasks []func(context.Context) error
	for _, n := range s.networks {
		n.leases.journal = j
		n.leases.load(records)
		l, err := openLink(n.Interface, n.id)
		if err != nil {
			return fail(err)
		}
		undo = append(undo, l.close)
		t, err := openTFTP(s, n)
		if err != nil {
			return fail(err)
		}
		undo = append(undo, func() { t.conn.Close() })
		p, err := openProber(n.Interface)
		if err != nil {
			return fail(err)
		}
		undo = append(undo, func() { p.file.Close() })
		n.prober = p
		tasks = append(tasks, func(ctx context.Context) error { return s.serveDHCP(ctx, n, l) }, t.run, p.run)
		if n.RouterAdvertisement {
			a, err := openAdvertiser(n.Interface)
			if err != nil {
				// It only makes iPXE faster: a site without IPv6 still boots.
				s.log.Warn("boot: router solicitations are not answered, iPXE starts slower", "interface", n.Interface, "err", err)
				continue
			}
			undo = append(undo, func() { a.conn.Close() })
			tasks = append(tasks, a.run)
		}
	}
	watchers, err := s.openWatchers()
	if err != nil {
		return fail(err)
	}
	for _, w := range watchers {
		tasks = append(tasks, w.listen, w.run)
	}
	g.Go(func() error { return j.run(ctx) })
	g.Go(func() error { return s.recorder.run(ctx) })
	for _, t := range tasks {
		g.Go(func() error { return t(ctx) })
	}
	close(s.ready)
	return g.Wait()
}

// packet is a datagram that waits for a worker.
type packet struct {
	data    []byte
	unicast bool
}

// serveDHCP reads from l and lets a bounded number of workers decide.
func (s *Server) serveDHCP(ctx context.Context, n *network, l *link) error {
	queue := make(chan packet, backlog)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for p := range queue {
				s.handle(ctx, n, l, p)
			}
		})
	}
	defer l.close() // after the workers, which send on it
	defer wg.Wait()
	defer close(queue)
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		size, cm, _, err := l.conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("DHCP on %s: %v", n.Interface, err)
		}
		p := packet{data: append([]byte(nil), buf[:size]...), unicast: toUs(cm, n.id)}
		select {
		case queue <- p:
		default:
			s.log.Debug("boot: DHCP message dropped, too many wait", "interface", n.Interface)
		}
	}
}

func toUs(cm *ipv4.ControlMessage, id netip.Addr) bool {
	return cm != nil && cm.Dst.Equal(net.IP(id.AsSlice()))
}

// handle decides on one datagram and sends the answer. The library can panic
// on input nobody thought of; such a datagram is dropped, the server stays.
func (s *Server) handle(ctx context.Context, n *network, l *link, p packet) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("boot: DHCP message dropped after a panic", "interface", n.Interface, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r, err := parseRequest(p.data)
	if err != nil {
		s.log.Debug("boot: DHCP message dropped", "interface", n.Interface, "why", err)
		return
	}
	if isProbe(r.machine.MAC) {
		return // a Smelt that looks for rivals, and no machine
	}
	if n.rivals != nil && r.kind == dhcpv4.MessageTypeRequest && r.server.IsValid() && r.server != n.id {
		n.rivals.named(r.server, time.Now())
	}
	r.unicast = p.unicast && !r.giaddr.IsValid() // a relay sends on by unicast what it heard by broadcast
	a, e := s.respond(ctx, n, r, time.Now())
	s.recorder.record(e)
	if a == nil {
		return
	}
	if err := l.send(a.msg.ToBytes(), a.to); err != nil {
		s.log.Warn("boot: DHCP answer not sent", "interface", n.Interface, "mac", e.Machine.MAC, "to", a.to.addr, "err", err)
	}
}

// ask puts the question to the Booter, for so long and no longer: a Booter
// that hangs, even beyond its context, costs its own machine and nobody else.
func (s *Server) ask(ctx context.Context, m Machine, limit time.Duration) (Boot, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
	default:
		return Boot{}, errors.New("too many machines are being decided on")
	}
	type result struct {
		boot Boot
		err  error
	}
	c := make(chan result, 1)
	go func() {
		defer func() { <-s.slots }()
		defer func() {
			if v := recover(); v != nil {
				s.log.Error("boot: the decision failed", "mac", m.MAC, "panic", v, "stack", string(debug.Stack()))
				c <- result{err: errors.New("the decision failed")}
			}
		}()
		b, err := s.booter.Boot(ctx, m)
		c <- result{b, err}
	}()
	select {
	case r := <-c:
		if r.err == nil && (r.boot.Action < Ignore || r.boot.Action > Hold) {
			return Boot{}, fmt.Errorf("the decision was %v", r.boot.Action)
		}
		return r.boot, r.err
	case <-ctx.Done():
		return Boot{}, fmt.Errorf("no decision within %s", limit)
	}
}

// ours reports whether a is an address of a network we serve.
func (s *Server) ours(a netip.Addr) bool {
	for _, n := range s.networks {
		if n.leases.subnet.Contains(a) {
			return true
		}
	}
	return false
}

// holder finds the machine that has the address a.
func (s *Server) holder(a netip.Addr, now time.Time) (MAC, bool) {
	for _, n := range s.networks {
		if n.leases.subnet.Contains(a) {
			return n.leases.holder(a, now)
		}
	}
	return MAC{}, false
}

// networkFor is the network a client reaches us by: its own, else the one of
// the address it called, else the first.
func (s *Server) networkFor(r *http.Request, client netip.Addr) *network {
	var local netip.Addr
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		local = a.AddrPort().Addr().Unmap()
	}
	for _, a := range []netip.Addr{client, local} {
		for _, n := range s.networks {
			if n.leases.subnet.Contains(a) {
				return n
			}
		}
	}
	return s.networks[0]
}
