// Package agent is the part of Smelt that runs on a node: in the RAM system,
// where it inspects, wipes and writes images, and as a service of the installed
// system, where it runs burn-in and joins the cluster.
//
// It dials out only, to one server whose public key it was built with, asks
// for orders and does one at a time; while it writes an image, and then only, it
// serves the chunks of it to other nodes. It believes an order for a destructive
// step only after its own checks: see authorise.
package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/images"
	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/internal/inspect"
	"smelt/inventory"
)

// Mode is what this machine may be told to do.
type Mode string

// The modes. The RAM system takes its mode from the kernel command line that
// the machine was started with; the server cannot raise it.
const (
	Inspect   Mode = "inspect"   // look and report, nothing more
	Convert   Mode = "convert"   // an approved machine in the RAM system
	RAM       Mode = "ram"       // a machine that runs its image from memory
	Rescue    Mode = "rescue"    // a machine that an operator works on
	Installed Mode = "installed" // a service of the installed system
)

// Config is what an Agent starts with.
type Config struct {
	Version  string
	Mode     Mode
	Server   string // https URL
	Pin      string // SHA-256 of the server's SPKI, hexadecimal
	SiteKey  ed25519.PublicKey
	Images   images.Signers // of what is written; SiteKey alone when empty
	Nonce    string         // RAM system
	Handoff  *api.Handoff   // installed system
	StateDir string         // /run/smelt or /var/lib/smelt
	System   inspect.System
	// Seal and Unseal set a disk read-only in the kernel and lift that, for one
	// disk at a time; nil where disks are not sealed.
	Seal, Unseal func(disk string) error
	GPUHelper    string   // path of smelt-gpu
	Memory       *Memory  // RAM: what an image is run with
	Rescue       *Rescued // Rescue: what an operator is let in with
	Cmdline      string   // of the running kernel
	ImageBase    string   // image store this machine was written from, for the network check
	Log          *slog.Logger
}

// End is how an agent wants the machine to go on.
type End int

// The ends. The zero value is none: the context ended.
const (
	_ End = iota
	Reboot
	Off
	Switch // into the root that was made in memory
	Kexec  // into the kernel that was loaded
)

func (e End) String() string {
	switch e {
	case Reboot:
		return "reboot"
	case Off:
		return "off"
	case Switch:
		return "switch"
	case Kexec:
		return "kexec"
	}
	return "none"
}

// Agent is a task: Run, Ready, String.
type Agent struct {
	c      Config
	log    *slog.Logger
	client *client
	state  *state
	clock  clock
	live   *reporter
	load   load
	ready  chan struct{}
	next   End    // of an order that ends this system with another
	putOff putOff // of the one job there is at a time
	beacon beacon

	testOnlyShow func(lines ...string)
}

// putOff counts what stood in the way of an order that is asked for again.
type putOff struct {
	order     string
	conflicts int // permits the server refused
	backoff
}

// New checks c. It talks to nobody.
func New(c Config) (*Agent, error) {
	switch c.Mode {
	case Inspect, Convert, RAM, Rescue:
		if c.Nonce == "" {
			return nil, errors.New("agent: no boot nonce")
		}
		if c.Mode == RAM && c.Memory == nil {
			return nil, errors.New("agent: nothing to run an image with")
		}
	case Installed:
		if c.Handoff == nil {
			return nil, errors.New("agent: no handoff")
		}
	default:
		return nil, fmt.Errorf("agent: unknown mode %q", c.Mode)
	}
	if len(c.SiteKey) != ed25519.PublicKeySize {
		return nil, errors.New("agent: no site key")
	}
	if len(c.Images.Keys) == 0 {
		c.Images.Keys = []ed25519.PublicKey{c.SiteKey}
	}
	if err := c.Images.Check(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if c.Seal == nil || c.Unseal == nil {
		c.Seal = func(string) error { return nil }
		c.Unseal = c.Seal
	}
	if c.System.Signatures == nil {
		c.System.Signatures = signatures
		c.System.Erase = disk.Offers
	}
	st, err := openState(c.StateDir)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if h := c.Handoff; h != nil {
		if err := st.adopt(*h); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
	}
	a := &Agent{c: c, log: c.Log, state: st, ready: make(chan struct{})}
	a.client, err = newClient(c.Server, c.Pin, func() string { return st.get().Session })
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.live = newReporter(a.client)
	return a, nil
}

// adopt takes over what the RAM system left. A handoff is adopted once: the
// session it began with has been replaced since.
func (s *state) adopt(h api.Handoff) error {
	d := sha256.Sum256([]byte(h.Session))
	id := hex.EncodeToString(d[:])
	return s.update(func(v *stateFile) {
		v.Node = h.Node
		if v.Handoff != id {
			v.Handoff, v.Session, v.Expires = id, h.Session, h.Expires
		}
		v.Fence = max(v.Fence, h.Fence)
	})
}

// Fingerprint names an agent's key: what a permit is bound to.
func Fingerprint(key ed25519.PublicKey) string {
	d := sha256.Sum256(key)
	return hex.EncodeToString(d[:])
}

// Ready is closed once the server knows this agent.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

func (a *Agent) String() string { return "agent" }

// Waits between tries, with half of it as jitter so that a hall of machines
// does not come back in one second.
const (
	shortWait = time.Second
	longWait  = 30 * time.Second
	// A machine whose session or nonce the server no longer takes gets a new
	// nonce only by booting again. It waits long enough for a server that is
	// being restored.
	refusedFor = 10 * time.Minute
)

type backoff struct{ d time.Duration }

func (b *backoff) reset() { b.d = 0 }

func (b *backoff) wait(ctx context.Context) {
	b.d = min(max(2*b.d, shortWait), longWait)
	sleep(ctx, b.d/2+rand.N(b.d/2+1))
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Run enrols, obeys and reports until ctx ends or an order ends the machine.
func (a *Agent) Run(ctx context.Context) (End, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer a.client.http.CloseIdleConnections()
	wg.Go(func() { a.live.run(ctx) })

	if a.c.Mode != Installed {
		if end, err := a.enrol(ctx); end != 0 || err != nil {
			return end, err
		}
	}
	if err := a.report(ctx); err != nil {
		return 0, nil // ctx ended
	}
	close(a.ready)
	wg.Go(func() { a.renewals(ctx) })
	if a.c.Mode == Installed && a.c.GPUHelper != "" {
		wg.Go(func() { a.limits(ctx) })
	}
	return a.obey(ctx)
}

// enrol shows nonce, key and hardware until the server takes them.
func (a *Agent) enrol(ctx context.Context) (End, error) {
	if st := a.state.get(); st.Session != "" {
		a.log.Info("session resumed", "node", st.Node)
		return 0, nil
	}
	hw := a.c.System.Hardware()
	for _, m := range hw.Missing {
		a.log.Warn("inspection", "missing", m)
	}
	var b backoff
	var refused time.Time
	for {
		start := time.Now()
		e, err := a.client.enrol(ctx, api.Enrol{Nonce: a.c.Nonce, Key: a.state.public(), Version: a.c.Version, Hardware: hw})
		if err == nil && (e.Session == "" || e.Node == "") {
			err = errors.New("the server's answer names no node or session")
		}
		if err == nil {
			a.clock.set(e.Now, start)
			err = a.state.update(func(v *stateFile) {
				v.Node, v.Session, v.Expires, v.Fence = e.Node, e.Session, e.Expires, max(v.Fence, e.Fence)
			})
			if err != nil {
				return 0, err
			}
			a.log.Info("enrolled", "node", e.Node, "mode", string(a.c.Mode))
			return 0, nil
		}
		if ctx.Err() != nil {
			return 0, nil
		}
		a.log.Warn("enrolment", "server", a.c.Server, "err", err)
		if final(err) {
			if refused.IsZero() {
				refused = start
			}
			// Each refusal may be an alarm over there: it is not repeated fast.
			b.d = max(b.d, longWait/4)
			if time.Since(refused) > refusedFor {
				a.log.Error("the server keeps refusing this boot: booting again for a new nonce")
				return Reboot, nil
			}
		} else {
			refused = time.Time{}
		}
		b.wait(ctx)
	}
}

// report sends what this machine is, once the server can be reached.
func (a *Agent) report(ctx context.Context) error {
	inv := a.inventory("")
	var b backoff
	for {
		err := a.client.call(ctx, http.MethodPost, api.PathInventory, inv, nil)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.log.Warn("inventory", "err", err)
		if final(err) {
			break // obey meets the same refusal and acts on it
		}
		b.wait(ctx)
	}
	a.tick(ctx)
	return nil
}

// tick takes the server's time.
func (a *Agent) tick(ctx context.Context) {
	start := time.Now()
	if t, err := a.client.now(ctx); err == nil {
		a.clock.set(t, start)
	}
}

func (a *Agent) inventory(order string) api.Inventory {
	inv := api.Inventory{Order: order, Hardware: a.c.System.Hardware(), Addr: inspect.Addr(a.client.base)}
	switch a.c.Mode {
	case Installed:
		inv.Image, inv.Start = a.c.Handoff.Image, startOf(a.c.Cmdline)
	case Inspect:
		s, err := a.c.System.Salvage()
		if err != nil {
			a.log.Warn("salvage", "err", err)
		}
		inv.Salvage = s
	}
	return inv
}

// renewals replaces the session when half of its life is over.
func (a *Agent) renewals(ctx context.Context) {
	var b backoff
	for ctx.Err() == nil {
		now, known := a.clock.now()
		if !known {
			now = time.Now()
		}
		left := a.state.get().Expires.Sub(now)
		if left > 0 && b.d == 0 {
			sleep(ctx, max(left/2, 10*time.Second))
			if ctx.Err() != nil {
				return
			}
		}
		start := time.Now()
		e, err := a.client.renew(ctx)
		if err == nil && e.Session == "" {
			err = errors.New("the server's answer has no session")
		}
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("session renewal", "err", err)
			}
			b.wait(ctx)
			continue
		}
		b.reset()
		a.clock.set(e.Now, start)
		if err := a.state.update(func(v *stateFile) {
			v.Session, v.Expires, v.Fence = e.Session, e.Expires, max(v.Fence, e.Fence)
		}); err != nil {
			a.log.Warn("session is not stored", "err", err)
		}
	}
}

// obey asks for orders and does them, one at a time.
func (a *Agent) obey(ctx context.Context) (End, error) {
	var (
		b       backoff
		after   string
		refused time.Time
		now     *job
	)
	defer func() { now.stop() }()
	defer a.beacon.stop()
	for ctx.Err() == nil {
		asked := time.Now()
		pollCtx, cancel := context.WithTimeout(ctx, 45*time.Second) // the server holds it for 25
		if now != nil {
			// The next order follows from the result: ask as soon as there is one.
			go func(done <-chan struct{}) {
				select {
				case <-done:
					cancel()
				case <-pollCtx.Done():
				}
			}(now.done)
		}
		obeyed, _ := a.load.get()
		o, err := a.client.order(pollCtx, after, a.beacon.taken, obeyed)
		cancel()
		if now != nil {
			select {
			case <-now.done:
				end := now.end
				if now.again {
					after = "" // the same order, with another permit
				}
				now = nil
				if end != 0 {
					return end, nil
				}
				continue
			default:
			}
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			a.log.Warn("orders", "err", err)
			if hasStatus(err, http.StatusUnauthorized) || hasStatus(err, http.StatusForbidden) {
				if refused.IsZero() {
					refused = asked
				}
				if time.Since(refused) > refusedFor && a.c.Mode != Installed && now == nil {
					a.log.Error("the server keeps refusing this session: booting again for a new one")
					return Reboot, nil
				}
			}
			b.wait(ctx)
			continue
		}
		b.reset()
		refused = time.Time{}
		if o.Locate != nil {
			a.beacon.take(ctx, a, *o.Locate, now != nil && feels(now.order))
		}
		same := o.ID == after && o.Load == obeyed
		if o.Fence >= a.state.get().Fence {
			a.load.set(o.Load)
		}
		after = o.ID
		switch {
		case now != nil && o.ID == now.order.ID:
			// still at it
		case now != nil && o.Kind == api.OrderWait && o.Fence <= now.order.Fence && !destructive(now.order):
			// Nothing new: what runs may end. A write, though, stops at once:
			// somebody holds the machine, or stopped everything.
		case o.Kind == api.OrderWait:
			if ok, err := a.state.raise(o.Fence); !ok || err != nil {
				a.log.Warn("order to wait", "fence", o.Fence, "err", err)
			}
			now.stop()
			now = nil
		default:
			now.stop()
			if feels(o) {
				a.beacon.hush()
			}
			now = a.start(ctx, o)
		}
		// A server that says the same again at once is not asked in a tight loop.
		if same && time.Since(asked) < time.Second {
			sleep(ctx, time.Second-time.Since(asked))
		}
	}
	return 0, nil
}

// job is an order being done.
type job struct {
	order  api.Order
	cancel context.CancelFunc
	done   chan struct{}
	end    End  // valid after done
	again  bool // valid after done: nothing was done, ask for the order again
}

// stop ends a job and waits for it. A nil job is none.
func (j *job) stop() {
	if j == nil {
		return
	}
	j.cancel()
	<-j.done
}

func (a *Agent) start(ctx context.Context, o api.Order) *job {
	ctx, cancel := context.WithCancel(ctx)
	j := &job{order: o, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(j.done)
		defer cancel()
		j.end, j.again = a.do(ctx, o)
	}()
	return j
}

// do carries out one order and sends its result until the server has it. again
// says that nothing was done and nobody was told.
func (a *Agent) do(ctx context.Context, o api.Order) (end End, again bool) {
	st := a.state.get()
	if st.Last != nil && st.Last.Order == o.ID && o.ID != "" {
		// Done already; the server missed it.
		a.deliver(ctx, *st.Last)
		return endOf(o, *st.Last), false
	}
	a.log.Info("order", "id", o.ID, "kind", o.Kind, "fence", o.Fence, "why", o.Why)
	if a.putOff.order != o.ID {
		a.putOff = putOff{order: o.ID}
	}
	r := bounded(a.execute(ctx, o))
	if r.OK && (o.Kind == api.OrderRAM || o.Kind == api.OrderRescue) {
		// What begins now is the answer. An image's system may come to this
		// order again, on another kernel, and must not take it for done.
		return a.next, false
	}
	if ctx.Err() != nil && !r.OK {
		// Interrupted by a newer order or by the end of the process: no result.
		a.log.Warn("order interrupted", "id", o.ID, "kind", o.Kind)
		return 0, false
	}
	if r.Cause == undecided {
		a.log.Warn("order put off", "id", o.ID, "kind", o.Kind, "err", r.Error)
		a.putOff.wait(ctx)
		return 0, true
	}
	r.Order, r.Kind = o.ID, o.Kind
	if r.OK {
		a.log.Info("order done", "id", o.ID, "kind", o.Kind)
	} else {
		a.log.Error("order failed", "id", o.ID, "kind", o.Kind, "cause", r.Cause, "err", r.Error)
	}
	if err := a.state.update(func(v *stateFile) { v.Last, v.Acked = &r, false }); err != nil {
		a.log.Warn("result is not stored", "err", err)
	}
	end = endOf(o, r)
	if end != 0 {
		// Ending the machine does not wait for a server that is gone.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	a.deliver(ctx, r)
	return end, false
}

func destructive(o api.Order) bool { return o.Kind == api.OrderWipe || o.Kind == api.OrderImage }

func endOf(o api.Order, r api.Result) End {
	if !r.OK {
		return 0
	}
	switch o.Kind {
	case api.OrderReboot:
		return Reboot
	case api.OrderOff:
		return Off
	case api.OrderKexec:
		return Kexec
	}
	return 0
}

// deliver sends a result until it is acknowledged or cannot be wanted any more.
func (a *Agent) deliver(ctx context.Context, r api.Result) {
	var b backoff
	for ctx.Err() == nil {
		err := a.client.call(ctx, http.MethodPost, api.PathResult, r, nil)
		if err == nil {
			_ = a.state.update(func(v *stateFile) { v.Acked = true })
			return
		}
		if ctx.Err() != nil {
			return
		}
		a.log.Warn("result", "order", r.Order, "err", err)
		if hasStatus(err, http.StatusConflict) || hasStatus(err, http.StatusNotFound) || hasStatus(err, http.StatusGone) {
			return // the server has gone on without it
		}
		b.wait(ctx)
	}
}

// execute does the work of one order.
func (a *Agent) execute(ctx context.Context, o api.Order) (r api.Result) {
	defer func() {
		if p := recover(); p != nil {
			r = failed("other", fmt.Errorf("the agent panicked: %v", p))
		}
	}()
	ok, err := a.state.raise(o.Fence)
	if err != nil {
		return failed("other", err)
	}
	if !ok {
		return failed("fence", fmt.Errorf("order has fence %d, this machine has seen %d: the server that sent it is no longer responsible", o.Fence, a.state.get().Fence))
	}
	switch o.Kind {
	case api.OrderInspect:
		return a.inspect(ctx, o)
	case api.OrderReboot, api.OrderOff:
		return api.Result{OK: true}
	case api.OrderWipe:
		return a.wipe(ctx, o)
	case api.OrderImage:
		return a.image(ctx, o)
	case api.OrderRAM:
		return a.ram(ctx, o)
	case api.OrderRescue:
		return a.rescue(ctx, o)
	case api.OrderKexec:
		return a.kexec(o)
	case api.OrderBurnin:
		return a.burnin(ctx, o)
	case api.OrderJoin:
		return a.join(ctx, o)
	}
	return failed("other", fmt.Errorf("this agent (%s) does not know orders of kind %q", a.c.Version, o.Kind))
}

func (a *Agent) inspect(ctx context.Context, o api.Order) api.Result {
	if err := a.client.call(ctx, http.MethodPost, api.PathInventory, a.inventory(o.ID), nil); err != nil {
		return failed("network", err)
	}
	return api.Result{OK: true}
}

func failed(cause string, err error) api.Result {
	return api.Result{Cause: cause, Error: err.Error()}
}

// What a result may hold: the server keeps it in the history of the node for
// good, and what a drive, a tool or a server answers may be of any length.
const (
	maxText     = 4 << 10
	maxEvidence = 32
	maxKey      = 256
)

// bounded cuts what is too long in r and says so.
func bounded(r api.Result) api.Result {
	r.Error = cut(r.Error, maxText)
	if len(r.Evidence) == 0 {
		return r
	}
	keys := slices.Sorted(maps.Keys(r.Evidence))
	out := map[string]string{}
	if n := len(keys) - (maxEvidence - 1); n > 1 {
		keys = keys[:maxEvidence-1]
		out["left out"] = fmt.Sprintf("%d more entries", n)
	}
	for _, k := range keys {
		out[cut(k, maxKey)] = cut(r.Evidence[k], maxText)
	}
	r.Evidence = out
	return r
}

// cut returns at most n bytes of s, whole characters only.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	mark := fmt.Sprintf(" ... (%d bytes in all)", len(s))
	return strings.ToValidUTF8(s[:n-len(mark)], "") + mark
}

// clock is the server's time, kept by our monotonic clock.
type clock struct {
	mu  sync.Mutex
	at  time.Time // server's time
	ref time.Time // ours, with its monotonic reading
}

// set notes what the server answered to a question sent then. Counting from
// the question makes our time run ahead by the trip rather than behind: a
// permit is rather taken for expired than for valid.
func (c *clock) set(server, sent time.Time) {
	if server.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.ref = server, sent
}

// now is the server's time now, and whether it is known.
func (c *clock) now() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ref.IsZero() {
		return time.Time{}, false
	}
	return c.at.Add(time.Since(c.ref)), true
}

// reporter sends progress at most once a second and forgets what it cannot
// send: it is live only.
type reporter struct {
	client *client
	mu     sync.Mutex
	next   *api.Progress
	wake   chan struct{}
}

func newReporter(c *client) *reporter { return &reporter{client: c, wake: make(chan struct{}, 1)} }

func (r *reporter) set(p api.Progress) {
	r.mu.Lock()
	r.next = &p
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		r.mu.Lock()
		p := r.next
		r.next = nil
		r.mu.Unlock()
		if p != nil {
			c, cancel := context.WithTimeout(ctx, 5*time.Second)
			_ = r.client.call(c, http.MethodPost, api.PathProgress, p, nil)
			cancel()
		}
		sleep(ctx, time.Second)
	}
}

// progress notes how far an order is.
func (a *Agent) progress(o api.Order, done float64, doing string, rate float64) {
	a.live.set(api.Progress{Order: o.ID, Done: min(max(done, 0), 1), Doing: doing, Rate: rate})
}

// node is who this machine is.
func (a *Agent) node() inventory.NodeID { return a.state.get().Node }
