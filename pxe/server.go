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
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// A PXE ROM repeats its first DISCOVER after 4 s (PXE 2.1 section 2.2.3)
	// and iPXE sooner: the decision must not eat that.
	askAddressTime = 500 * time.Millisecond
	askScriptTime  = 5 * time.Second

	defaultLease = time.Hour
	minLease     = time.Minute

	asking = 256 // questions to the Booter at once
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

// Server is the boot service of a site. It is a Task.
type Server struct {
	networks []*network
	segments []*segment // the networks by their interface
	limits   struct{ known, strangers, circuits, clients *throttle }
	files    *Files
	booter   Booter
	log      *slog.Logger
	path     string
	http     netip.AddrPort
	late     late
	recorder *recorder
	trail    *trail
	since    time.Time     // what we make ourselves is as old as that
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
		recorder: newRecorder(c.Log, c.Observe), trail: newTrail(), since: time.Now(), slots: make(chan struct{}, asking), ready: make(chan struct{}),
	}
	for _, c := range c.Networks {
		n, err := newNetwork(c)
		if err != nil {
			return nil, fmt.Errorf("network on %s: %v", c.Interface, err)
		}
		for _, other := range s.networks {
			if err := n.apart(other); err != nil {
				return nil, fmt.Errorf("network on %s: %v", n.Interface, err)
			}
		}
		s.networks = append(s.networks, n)
	}
	s.segments = newSegments(s)
	s.limits.known, s.limits.strangers = newThrottle(machineRate, limitCells), newThrottle(machineRate, limitCells)
	s.limits.circuits, s.limits.clients = newThrottle(circuitRate, limitCells), newThrottle(clientRate, limitCells)
	s.watchRivals(c.Rival)
	return s, nil
}

// Ready is closed once every port is open.
func (s *Server) Ready() <-chan struct{} { return s.ready }

func (s *Server) String() string {
	var names []string
	for _, g := range s.segments {
		names = append(names, g.name)
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
	}
	asked := make(map[netip.Addr]bool) // addresses that serve TFTP
	for _, g := range s.segments {
		if g.link, err = openLink(g.name, g.addrs(), g.answers()); err != nil {
			return fail(err)
		}
		undo = append(undo, g.link.close)
		tasks = append(tasks, g.run)
		for _, n := range g.networks {
			if asked[n.id] || n.Mode == Observe {
				continue
			}
			asked[n.id] = true
			t, err := openTFTP(s, n)
			if err != nil {
				return fail(err)
			}
			undo = append(undo, func() { t.conn.Close() })
			tasks = append(tasks, t.run)
		}
		n := g.local()
		if n != nil && n.gives() {
			if n.prober, err = openProber(g.name); err != nil {
				return fail(err)
			}
			undo = append(undo, func() { n.prober.file.Close() })
			tasks = append(tasks, n.prober.run)
		}
		if n != nil && n.v6 != nil {
			run, close6, err := s.open6(n.v6)
			undo = append(undo, close6...)
			if err != nil {
				return fail(err)
			}
			tasks = append(tasks, run...)
		} else if n != nil && n.RouterAdvertisement {
			a, err := openAdvertiser(g.name, netip.Prefix{})
			if err != nil {
				// It only makes iPXE faster: a site without IPv6 still boots.
				s.log.Warn("boot: router solicitations are not answered, iPXE starts slower", "interface", g.name, "err", err)
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
	s.late.begin(time.Now())
	close(s.ready)
	return g.Wait()
}

// ask puts the question to the Booter, for so long and no longer: a Booter
// that hangs, even beyond its context, costs its own machine and nobody else.
func (s *Server) ask(ctx context.Context, m Machine, limit time.Duration) (Boot, error) {
	if n := s.networkOf(m.Addr); n != nil && m.Stage != AskAddress {
		m.Network = n.Name
		if why := n.rules.refusesMAC(m.MAC); why != "" {
			return Boot{Action: Ignore, Why: why}, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case s.slots <- struct{}{}: // a hall that asks at once takes its turn
	case <-ctx.Done():
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
		if r.err == nil && (r.boot.Action < Ignore || r.boot.Action > Program) {
			return Boot{}, fmt.Errorf("the decision was %v", r.boot.Action)
		}
		return r.boot, r.err
	case <-ctx.Done():
		return Boot{}, fmt.Errorf("no decision within %s", limit)
	}
}

// networkOf is the network that a machine with the address a is on, or nil.
func (s *Server) networkOf(a netip.Addr) *network {
	for _, n := range s.networks {
		if n.machines().Contains(a) {
			return n
		}
		if n.IPv6.Contains(a) {
			return n.v6
		}
	}
	return nil
}

// ours reports whether a is an address of a network whose machines are answered.
func (s *Server) ours(a netip.Addr) bool {
	n := s.networkOf(a)
	return n != nil && n.Mode != Observe
}

// holder finds the machine that has the address a.
func (s *Server) holder(a netip.Addr, now time.Time) (MAC, bool) {
	n := s.networkOf(a)
	switch {
	case n == nil:
		return MAC{}, false
	case n.gives() && a.Is4():
		return n.leases.holder(a, now)
	}
	return n.neighbours.holder(a)
}

// networkFor is the network a client reaches us by: its own, else the one of
// the address it called, else the first.
func (s *Server) networkFor(r *http.Request, client netip.Addr) *network {
	if n := s.networkOf(client); n != nil {
		return n
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		local := a.AddrPort().Addr().Unmap()
		for _, n := range s.networks {
			if n.id == local || n.machines().Contains(local) {
				return n
			}
			if n.IPv6.Contains(local) {
				return n.v6
			}
		}
	}
	return s.networks[0]
}
