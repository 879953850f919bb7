package pxe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
)

const (
	workers = 256 // messages decided at once on one interface; most wait for disk, Booter or ARP
	kept    = 64  // of them, for machines that somebody knows
	backlog = 512 // messages waiting for a worker; clients repeat what is dropped
)

// segment is one interface and the networks that are served on it.
type segment struct {
	s        *Server
	name     string
	networks []*network
	link     *link
	limit    *throttle // of strangers

	// Messages that wait. Those of machines that somebody knows, or that take up
	// an offer, overtake, so that they get their answers while made-up machines
	// ask without end.
	known, strangers chan packet

	// Answers that wait for the disk.
	promised chan promise
}

// promise is an answer that is not sent before it is durable.
type promise struct {
	answer *answer
	event  Event
	boot   bool
}

// newSegments sorts the networks of s by their interface.
func newSegments(s *Server) []*segment {
	var out []*segment
	byName := make(map[string]*segment)
	for _, n := range s.networks {
		g := byName[n.Interface]
		if g == nil {
			g = &segment{s: s, name: n.Interface, limit: newThrottle(strangerRate, 1), known: make(chan packet, backlog), strangers: make(chan packet, backlog), promised: make(chan promise, 4096)}
			byName[g.name] = g
			out = append(out, g)
		}
		g.networks = append(g.networks, n)
	}
	return out
}

// addrs are our addresses on it.
func (g *segment) addrs() []netip.Addr {
	var out []netip.Addr
	for _, n := range g.networks {
		if !slices.Contains(out, n.id) {
			out = append(out, n.id)
		}
	}
	return out
}

// answers reports whether any machine is answered there.
func (g *segment) answers() bool {
	return slices.ContainsFunc(g.networks, func(n *network) bool { return n.Mode != Observe })
}

// local is the network of the wire itself, or nil.
func (g *segment) local() *network {
	for _, n := range g.networks {
		if !n.relayed() {
			return n
		}
	}
	return nil
}

// packet is a datagram that waits for a worker.
type packet struct {
	data    []byte
	src     netip.AddrPort
	unicast bool
	boot    bool // came to port 4011
}

// run reads from the link and lets a bounded number of workers decide.
func (g *segment) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range kept {
		wg.Go(func() {
			for p := range g.known {
				g.handle(ctx, p)
			}
		})
	}
	for range workers - kept {
		wg.Go(func() {
			for {
				p, ok := g.next()
				if !ok {
					return
				}
				g.handle(ctx, p)
			}
		})
	}
	var settlers sync.WaitGroup
	for range workers / 4 { // one alone would have little of the processor among so many
		settlers.Go(func() {
			for p := range g.promised {
				a, e := p.answer.settle(p.event)
				g.answer(a, e, p.boot)
			}
		})
	}
	defer g.link.close() // after those who send on it
	defer func() {
		wg.Wait()
		close(g.promised)
		settlers.Wait()
	}()
	defer close(g.strangers)
	defer close(g.known)
	conns := g.link.conns()
	errs := make(chan error, len(conns))
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	for _, c := range conns {
		go func() { errs <- g.read(ctx, c) }()
	}
	var err error
	for range conns {
		if e := <-errs; e != nil && err == nil {
			err = e
			for _, c := range conns { // the other one is to end too
				_ = c.SetReadDeadline(time.Unix(1, 0))
			}
		}
	}
	return err
}

// next is the next message, of a known machine first; false once there is none
// and will be none.
func (g *segment) next() (packet, bool) {
	select {
	case p, ok := <-g.known:
		if ok {
			return p, true
		}
		p, ok = <-g.strangers
		return p, ok
	default:
	}
	select {
	case p, ok := <-g.known:
		if ok {
			return p, true
		}
		p, ok = <-g.strangers
		return p, ok
	case p, ok := <-g.strangers:
		return p, ok
	}
}

// read queues what comes until ctx ends.
func (g *segment) read(ctx context.Context, conn *ipv4.PacketConn) error {
	buf := make([]byte, 4096)
	for {
		size, cm, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("DHCP on %s: %v", g.name, err)
		}
		queue, reason := g.admit(buf[:size], time.Now())
		if reason != "" {
			g.drop(reason)
			continue
		}
		p := packet{data: append([]byte(nil), buf[:size]...), src: addrPort(from), unicast: g.link.toUs(cm), boot: conn == g.link.boot}
		select {
		case queue <- p:
		default:
			g.drop("busy")
		}
	}
}

// admit looks at nothing but who seems to ask, before anything is decoded or
// kept, and says in which queue the message waits or why it is dropped.
func (g *segment) admit(data []byte, now time.Time) (chan packet, string) {
	if len(data) < 240 {
		return nil, "short"
	}
	mac := MAC(data[28:34])
	// Who was offered an address overtakes who was not: when there is more to
	// do than can be done, begun exchanges end, instead of all being half done.
	request := peek(data) == dhcpv4.MessageTypeRequest
	switch {
	case g.familiar(mac, request):
		if !allow(g.s.limits.known, mac, now) {
			return nil, "rate of its machine"
		}
		return g.known, ""
	case !allow(g.s.limits.strangers, mac, now):
		return nil, "rate of its machine"
	case !allow(g.limit, 0, now):
		return nil, "rate of the interface"
	}
	return g.strangers, ""
}

// peek is the message type in data, or 0.
func peek(data []byte) dhcpv4.MessageType {
	for o := data[240:]; len(o) > 2; {
		switch {
		case o[0] == 53:
			return dhcpv4.MessageType(o[2])
		case o[0] == 0:
			o = o[1:]
		case len(o) < 2+int(o[1]):
			return 0
		default:
			o = o[2+int(o[1]):]
		}
	}
	return 0
}

// familiar reports whether mac is a machine of the site, or has an address of ours.
func (g *segment) familiar(mac MAC, request bool) bool {
	return slices.ContainsFunc(g.networks, func(n *network) bool { return n.known[mac] || n.gives() && n.leases.familiar(mac, request) })
}

func (g *segment) drop(reason string) { g.s.recorder.stats.dropped.add(1, "dhcp", reason) }

// handle decides on one datagram and sends the answer. The library can panic
// on input nobody thought of; such a datagram is dropped, the server stays.
func (g *segment) handle(ctx context.Context, p packet) {
	s := g.s
	defer func() {
		if v := recover(); v != nil {
			g.drop("panic")
			s.log.Error("boot: DHCP message dropped after a panic", "interface", g.name, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	a, e, err := g.decide(ctx, p, time.Now())
	if err != nil {
		var d dropped
		if errors.As(err, &d) {
			g.drop(d.reason)
		}
		s.log.Debug("boot: DHCP message dropped", "interface", g.name, "from", p.src, "why", err)
		return
	}
	if a != nil && a.durable != nil {
		g.promised <- promise{a, e, p.boot} // and on to the next: the disk takes its time
		return
	}
	g.answer(a, e, p.boot)
}

// answer sends a, if there is one, and records what was decided.
func (g *segment) answer(a *answer, e Event, boot bool) {
	g.s.recorder.record(e)
	if a == nil {
		return
	}
	if err := g.link.send(a, boot); err != nil {
		g.s.log.Log(context.Background(), g.s.recorder.level(slog.LevelWarn, time.Now()), "boot: DHCP answer not sent", "interface", g.name, "mac", e.Machine.MAC, "to", a.to.addr, "err", err)
	}
}

// decide finds the answer to one datagram; an error says why there was nothing
// to decide.
func (g *segment) decide(ctx context.Context, p packet, now time.Time) (*answer, Event, error) {
	r, err := parseRequest(p.data)
	if err != nil {
		return nil, Event{}, err
	}
	if isProbe(r.machine.MAC) {
		return nil, Event{}, drop("probe", "a Smelt that looks for rivals, and no machine")
	}
	r.src, r.boot = p.src, p.boot
	r.unicast = p.unicast && !r.giaddr.IsValid() // a relay sends on by unicast what it heard by broadcast
	n, why := pick(g.networks, r)
	if n == nil {
		g.drop("relay")
		r.machine.Relay = r.giaddr
		return nil, Event{At: now, Machine: r.machine, Kind: r.asked(), Answer: "none", Why: why}, nil
	}
	if r.machine.Circuit != "" && !g.familiar(r.machine.MAC, r.kind == dhcpv4.MessageTypeRequest) && !allow(g.s.limits.circuits, circuit{r.giaddr.As4(), r.machine.Circuit}, now) {
		return nil, Event{}, drop("rate of its circuit", "too much from circuit %q of relay %s", r.machine.Circuit, r.giaddr)
	}
	g.s.late.hear(n.Name, r, g.s.recorder.lastHeard(r.machine.MAC), now)
	if r.kind == dhcpv4.MessageTypeRequest && r.server.IsValid() && r.server != r.serverID(n) {
		n.rivals.named(r.server, now)
	}
	a, e := g.s.respond(ctx, n, r, now)
	if a != nil {
		a.from, a.wire = n.id, a.msg.ToBytes()
	}
	return a, e, nil
}
