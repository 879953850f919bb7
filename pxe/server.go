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

	asking = 128 // questions to the Booter at once
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
