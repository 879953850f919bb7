package convert

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/pxe"

	"golang.org/x/sync/errgroup"
)

// The lease: renewed often enough that one slow write does not lose it. Where
// another controller may take over, a dead one is replaced after leaseTTL.
const (
	leaseName  = "conductor"
	leaseTTL   = 15 * time.Second
	leaseEvery = 5 * time.Second
)

const (
	workers = 8                     // nodes stepped at once
	settle  = 20 * time.Millisecond // changes within it are looked at together
	rescan  = 30 * time.Second      // every node that does not rest is looked at this often, whatever was missed
	retry   = time.Second           // after a step that failed
)

var _ pxe.Booter = (*Conductor)(nil)

// Conductor is a Task: Run, Ready, String.
type Conductor struct {
	Config
	secret   []byte // handoff sessions are derived from it, so that asking twice gives the same
	ready    chan struct{}
	metered  chan struct{} // closed when every PDU was read once, or did not answer
	wake     chan struct{}
	jobs     sync.WaitGroup
	learning sync.Mutex // held while learnedBlob is written
	known    sync.Map   // images.Digest -> variant: manifests that were read

	// testOnlyBoundary is called at every point where the process may die with
	// something half done; tests make it die there.
	testOnlyBoundary func(node inventory.NodeID, what string)
	testOnlyPause    time.Duration // instead of clusterPoll and clusterPause
	testOnlyMeter    time.Duration // instead of meterEvery and tendEvery

	mu       sync.Mutex
	restored bool
	lease    store.Lease
	until    time.Time // the lease is believed until then
	begun    time.Time // this process took the lease
	locks    map[inventory.NodeID]*sync.Mutex
	changed  map[inventory.NodeID]chan struct{}
	live     map[inventory.NodeID]Live
	job      map[inventory.NodeID]*job
	due      map[inventory.NodeID]time.Time
	active   map[inventory.NodeID]bool      // counts against MaxActive
	asked    map[inventory.NodeID]time.Time // the cluster is left alone about it until then
	booted   map[inventory.NodeID]string    // the last boot request that was stored
	failing  map[inventory.NodeID]string    // what the last step said that failed
	sighted  map[inventory.NodeID]time.Time // the last boot request, of any kind
	told     map[inventory.NodeID]*told     // an order for the agent that no state asks for
	codes    inventory.Codes                // of every node
	full     time.Time                      // until then there are too many machines that nobody expected
	stop     stop
	fleet    map[inventory.NodeID]machine    // every node, as its power needs to be known
	gauges   map[inventory.NodeID]*gauge     // what is measured
	found    map[inventory.NodeID]foundState // power states that are not events yet
	granted  map[inventory.NodeID]time.Time  // power for a restart that did not begin yet
	called   map[inventory.NodeID]string     // what was shut down and may come back: why
	toppedUp time.Time                       // a curtailment took more than it had planned
	proofs   map[inventory.NodeID]bool       // of its wiring, under way
	hall     inventory.SitePower

	hallLock sync.Mutex // held while hall is changed
}

// New checks c and returns a conductor that does nothing until Run.
func New(c Config) (*Conductor, error) {
	switch {
	case c.Store == nil || c.Images == nil || c.Budget == nil:
		return nil, errors.New("convert: store, images and power budget are needed")
	case len(c.SiteKey) != ed25519.PrivateKeySize:
		return nil, errors.New("convert: the site key is not an ed25519 private key")
	case c.Owner == "":
		return nil, errors.New("convert: the lease needs an owner")
	case c.Site.MaxActive < 0:
		return nil, fmt.Errorf("convert: maxActive %d: want 1 or more", c.Site.MaxActive)
	}
	for _, s := range c.Site.Specs {
		if _, err := inventory.ParseNodeID(string(s.Name)); err != nil {
			return nil, fmt.Errorf("convert: %w", err)
		}
	}
	if c.Site.MaxActive == 0 {
		c.Site.MaxActive = 25
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	secret, err := hkdf.Key(sha256.New, c.SiteKey.Seed(), nil, "smelt handoff session v1", 32)
	if err != nil {
		return nil, fmt.Errorf("convert: %w", err)
	}
	return &Conductor{
		Config:  c,
		secret:  secret,
		ready:   make(chan struct{}),
		metered: make(chan struct{}),
		wake:    make(chan struct{}, 1),
		locks:   map[inventory.NodeID]*sync.Mutex{},
		changed: map[inventory.NodeID]chan struct{}{},
		live:    map[inventory.NodeID]Live{},
		job:     map[inventory.NodeID]*job{},
		due:     map[inventory.NodeID]time.Time{},
		active:  map[inventory.NodeID]bool{},
		asked:   map[inventory.NodeID]time.Time{},
		failing: map[inventory.NodeID]string{},
		booted:  map[inventory.NodeID]string{},
		sighted: map[inventory.NodeID]time.Time{},
		told:    map[inventory.NodeID]*told{},
		fleet:   map[inventory.NodeID]machine{},
		gauges:  map[inventory.NodeID]*gauge{},
		found:   map[inventory.NodeID]foundState{},
		granted: map[inventory.NodeID]time.Time{},
		called:  map[inventory.NodeID]string{},
		proofs:  map[inventory.NodeID]bool{},
	}, nil
}

func (c *Conductor) String() string { return "conductor" }

// Ready is closed once the lease is held and every stored node was looked at.
func (c *Conductor) Ready() <-chan struct{} { return c.ready }

// Run takes the lease and conducts until ctx ends. It returns
// store.ErrFenced when another conductor took over.
func (c *Conductor) Run(ctx context.Context) error {
	if err := c.lead(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.keepLease(gctx) })
	g.Go(func() error { return c.conduct(gctx) })
	g.Go(func() error { return c.powerTasks(gctx) })
	err := g.Wait()
	c.jobs.Wait()
	c.mu.Lock()
	c.until, c.restored = time.Time{}, false
	c.mu.Unlock()
	if ctx.Err() != nil && !errors.Is(err, store.ErrFenced) {
		return nil
	}
	return err
}

// lead waits for the lease.
func (c *Conductor) lead(ctx context.Context) error {
	said := false
	for {
		asked := time.Now()
		l, err := c.Store.Acquire(ctx, leaseName, c.Owner, leaseTTL)
		if err == nil {
			c.mu.Lock()
			c.lease, c.until, c.begun = l, asked.Add(leaseTTL), c.Now()
			c.mu.Unlock()
			c.Log.Info("conductor leads", "owner", c.Owner, "fence", l.Fence)
			return nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("conductor: %w", err)
		}
		if !said {
			c.Log.Info("conductor stands by", "reason", err)
			said = true
		}
		if err := sleep(ctx, leaseEvery); err != nil {
			return err
		}
	}
}

func (c *Conductor) keepLease(ctx context.Context) error {
	for {
		if err := sleep(ctx, leaseEvery); err != nil {
			return nil
		}
		asked := time.Now()
		c.mu.Lock()
		l, until := c.lease, c.until
		c.mu.Unlock()
		l, err := c.Store.Renew(ctx, l, leaseTTL)
		switch {
		case err == nil:
			c.mu.Lock()
			c.lease, c.until = l, asked.Add(leaseTTL)
			c.mu.Unlock()
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("conductor: %w", err)
		case time.Now().After(until):
			return fmt.Errorf("conductor: the lease ended and could not be renewed (%w): %w", err, store.ErrFenced)
		default:
			c.Log.Warn("lease not renewed, trying again", "err", err)
		}
	}
}

// leading returns the lease, or ErrFenced while this process must not act.
func (c *Conductor) leading() (store.Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !time.Now().Before(c.until) {
		return store.Lease{}, fmt.Errorf("%w: this process does not conduct now", store.ErrFenced)
	}
	return c.lease, nil
}

// serving is nil once machines and agents may be answered: a machine that asks
// before site.yaml was taken in would be one that nobody expected.
func (c *Conductor) serving() error {
	if _, err := c.leading(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.restored {
		return fmt.Errorf("%w: this process begins to conduct; ask again", store.ErrFenced)
	}
	return nil
}

// conduct steps nodes whenever something about them changed.
func (c *Conductor) conduct(ctx context.Context) error {
	if err := c.restore(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.restored = true
	c.mu.Unlock()
	// What flows and belongs to no machine is known by the meters of circuits
	// alone: nothing is granted before they were read once.
	select {
	case <-c.metered:
	case <-ctx.Done():
		return nil
	}
	p := pool{c: c, running: map[inventory.NodeID]bool{}, again: map[inventory.NodeID]bool{}, failed: make(chan error, 1), idle: make(chan struct{}, 1)}
	defer p.wg.Wait()
	first := true
	next := time.Time{} // of the next look at every node
	for {
		changed := c.Store.Changed() // before looking: nothing is missed
		ids, err := c.pending(ctx)
		if err == nil && !c.Now().Before(next) {
			var nodes []inventory.Node
			if nodes, err = c.Store.Nodes(ctx); err == nil {
				for _, n := range nodes {
					if first || !resting(n.State) {
						ids[n.ID] = true
					}
				}
				next = c.Now().Add(rescan)
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			c.Log.Error("conductor cannot read the store", "err", err)
			if sleep(ctx, retry) != nil {
				return nil
			}
			continue
		}
		for id := range ids {
			p.step(ctx, id)
		}
		if first {
			p.drain()
			close(c.ready)
			first = false
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-p.failed:
			return err
		case <-changed:
		case <-c.wake:
		case <-time.After(c.untilDue()):
		}
		if sleep(ctx, settle) != nil {
			return nil
		}
	}
}

// pending returns the nodes with something to do.
func (c *Conductor) pending(ctx context.Context) (map[inventory.NodeID]bool, error) {
	ids := map[inventory.NodeID]bool{}
	obs, err := c.Store.Unconsumed(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, o := range obs {
		ids[o.Node] = true
	}
	intents, err := c.Store.PendingIntents(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range intents {
		ids[i.Node] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.Now()
	for id, at := range c.due {
		if !at.After(now) {
			ids[id] = true
			delete(c.due, id)
		}
	}
	for id, j := range c.job {
		if j.outcome != nil {
			ids[id] = true
		}
	}
	return ids, nil
}

func (c *Conductor) untilDue() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := rescan
	now := c.Now()
	for _, at := range c.due {
		d = min(d, max(at.Sub(now), 0))
	}
	return d
}

// poke makes the conductor look at a node again at the given time.
func (c *Conductor) poke(id inventory.NodeID, at time.Time) {
	c.mu.Lock()
	if old, ok := c.due[id]; !ok || at.Before(old) {
		c.due[id] = at
	}
	c.mu.Unlock()
	c.nudge()
}

func (c *Conductor) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// pool steps nodes side by side, each by one worker at a time.
type pool struct {
	c      *Conductor
	wg     sync.WaitGroup
	failed chan error
	idle   chan struct{}

	mu      sync.Mutex
	running map[inventory.NodeID]bool
	again   map[inventory.NodeID]bool
}

// step runs a step of id, or notes that another must follow the running one.
// It blocks while all workers are busy.
func (p *pool) step(ctx context.Context, id inventory.NodeID) {
	p.mu.Lock()
	for len(p.running) >= workers && !p.running[id] {
		p.mu.Unlock()
		select {
		case <-p.idle:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	if p.running[id] {
		p.again[id] = true
		return
	}
	p.running[id] = true
	p.wg.Go(func() {
		for {
			p.once(ctx, id)
			p.mu.Lock()
			if !p.again[id] || ctx.Err() != nil {
				delete(p.running, id)
				p.mu.Unlock()
				select {
				case p.idle <- struct{}{}:
				default:
				}
				return
			}
			delete(p.again, id)
			p.mu.Unlock()
		}
	})
}

func (p *pool) once(ctx context.Context, id inventory.NodeID) {
	err := p.c.step(ctx, id)
	switch {
	case err == nil || ctx.Err() != nil:
		p.c.repeats(id, "")
	case errors.Is(err, store.ErrFenced):
		select {
		case p.failed <- fmt.Errorf("conductor: %w", err):
		default:
		}
	default:
		p.c.Log.Error("step failed, trying again", "node", id, "err", err)
		if p.c.repeats(id, err.Error()) {
			p.c.tell(ctx, id, err)
		}
		p.c.poke(id, p.c.Now().Add(retry))
	}
}

const cannotGoOn = "cannot go on"

// repeats tells whether the step before failed in the same way.
func (c *Conductor) repeats(id inventory.NodeID, err string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.failing[id]
	if err == "" {
		delete(c.failing, id)
		return false
	}
	c.failing[id] = err
	return was == err
}

// tell makes an error that stays the node's note: nobody reads the log of a
// thousand machines.
func (c *Conductor) tell(ctx context.Context, id inventory.NodeID, why error) {
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil || n.Version == 0 {
		return
	}
	t := c.turn(ctx, n)
	t.note("%s: %v", cannotGoOn, why)
	if t.dirty() {
		if err := t.commit(); err != nil {
			c.Log.Error("note not stored", "node", id, "err", err)
		}
	}
}

func (p *pool) drain() { p.wg.Wait() }

// restore makes what lives in memory from what is stored, and takes in site.yaml.
func (c *Conductor) restore(ctx context.Context) error {
	if err := c.loadStop(ctx); err != nil {
		return fmt.Errorf("conductor: %w", err)
	}
	nodes, err := c.Store.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("conductor: %w", err)
	}
	specs := map[inventory.NodeID]inventory.Spec{}
	for _, s := range c.Site.Specs {
		specs[s.Name] = s
	}
	known := map[inventory.NodeID]inventory.Node{}
	for _, n := range nodes {
		known[n.ID] = n
		c.codes.Add(n.ID)
		running := converting(n.State)
		if n.State == inventory.Approved {
			events, err := c.Store.NodeEvents(ctx, n.ID)
			if err != nil {
				return fmt.Errorf("conductor: %w", err)
			}
			running = sinceMove(events).mark(markRestart) != nil
		}
		if running {
			c.active[n.ID] = true
		}
		if running || draws(n) {
			at := n // where site.yaml says that it hangs now: the node hears of it only below
			if s, ok := specs[n.ID]; ok {
				at.Spec = s
			}
			if !c.onTree(at.Spec.Circuit) {
				c.Log.Error("what a machine draws counts nowhere: its circuit is not in site.yaml any more", "node", n.ID, "circuit", at.Spec.Circuit)
			}
			c.Budget.Restore(n.ID, at.Spec.Circuit, c.watts(at))
		}
		c.remember(n)
		if _, err := c.learned(ctx, n); err != nil {
			return fmt.Errorf("conductor: %w", err)
		}
	}
	if err := c.loadHall(ctx); err != nil {
		return fmt.Errorf("conductor: %w", err)
	}
	if err := c.distrustStored(ctx); err != nil {
		c.Log.Error("whether a BMC is another machine's is not known from earlier looks", "err", err)
	}
	for _, s := range c.Site.Specs {
		if err := c.adopt(ctx, known[s.Name], s); err != nil {
			return fmt.Errorf("conductor: node %s of the site: %w", s.Name, err)
		}
	}
	return nil
}

func (c *Conductor) onTree(circuit string) bool {
	return circuit == "" || slices.ContainsFunc(c.Site.Circuits, func(x inventory.Circuit) bool { return x.Name == circuit })
}

// adopt makes the stored node what site.yaml says.
func (c *Conductor) adopt(ctx context.Context, n inventory.Node, s inventory.Spec) error {
	was, err := json.Marshal(n.Spec)
	if err != nil {
		return err
	}
	is, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if n.Version > 0 && string(was) == string(is) {
		return nil
	}
	unlock := c.lock(s.Name)
	defer unlock()
	t := c.turn(ctx, n)
	if n.Version == 0 {
		t.n.ID = s.Name
		t.add(inventory.Event{Kind: inventory.KindCreated, Actor: system, Spec: &s, To: inventory.Expected, Reason: "named in site.yaml"})
	} else {
		t.add(inventory.Event{Kind: inventory.KindSpec, Actor: system, Spec: &s, Reason: "changed in site.yaml"})
	}
	return t.commit()
}

// converting states count against the blast radius.
func converting(s inventory.State) bool {
	switch s {
	case inventory.Wiping, inventory.Imaging, inventory.Starting, inventory.BurningIn, inventory.Joining:
		return true
	}
	return false
}

// resting states change only when something is seen or asked.
func resting(s inventory.State) bool {
	switch s {
	case inventory.Expected, inventory.InService, inventory.Retired, inventory.Rejected:
		return true
	}
	return false
}

func (c *Conductor) watts(n inventory.Node) float64 {
	if n.Spec.Watts > 0 {
		return n.Spec.Watts
	}
	return c.Site.Classes[n.Spec.Class].Watts
}

// lock makes whoever changes or judges a node do so alone within this process;
// between processes the version and the lease decide.
func (c *Conductor) lock(id inventory.NodeID) (unlock func()) {
	c.mu.Lock()
	l := c.locks[id]
	if l == nil {
		l = new(sync.Mutex)
		c.locks[id] = l
	}
	c.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// Changed is closed when the orders of the node may have changed.
func (c *Conductor) Changed(node inventory.NodeID) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.changed[node]
	if ch == nil {
		ch = make(chan struct{})
		c.changed[node] = ch
	}
	return ch
}

func (c *Conductor) announce(node inventory.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.changed[node]; ch != nil {
		close(ch)
		delete(c.changed, node)
	}
}

// Live returns what is known of a node now.
func (c *Conductor) Live(node inventory.NodeID) Live {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live[node]
}

// Progress notes how far an order is. It is kept in memory only.
func (c *Conductor) Progress(a store.Agent, order string, done float64, doing string, rate float64) {
	c.seen(a.Node, func(l *Live) {
		if order == l.finished { // it was overtaken by the result
			return
		}
		l.Order, l.Done, l.Doing, l.Rate = order, done, doing, rate
	})
}

func (c *Conductor) seen(node inventory.NodeID, set func(*Live)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.live[node]
	l.LastSeen = c.Now()
	if set != nil {
		set(&l)
	}
	c.live[node] = l
}

// Levels is the power tree with what is granted.
func (c *Conductor) Levels() []power.Level { return c.Budget.Levels(c.Now()) }

// reserve counts node against the blast radius, or tells how many run.
func (c *Conductor) reserve(node inventory.NodeID) (running int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.active[node] && len(c.active) >= c.Site.MaxActive {
		return len(c.active), false
	}
	c.active[node] = true
	return len(c.active), true
}

// settled gives back what a node that no longer converts holds of the blast radius.
func (c *Conductor) settled(n inventory.Node) {
	if converting(n.State) || n.State == inventory.Approved {
		return
	}
	c.mu.Lock()
	held := c.active[n.ID]
	delete(c.active, n.ID)
	c.mu.Unlock()
	if n.State == inventory.Retired || n.State == inventory.Rejected {
		c.Budget.Release(n.ID)
	}
	if held {
		c.nudge()
	}
}

// boundary names a point between two effects.
func (c *Conductor) boundary(node inventory.NodeID, what string) {
	if c.testOnlyBoundary != nil {
		c.testOnlyBoundary(node, what)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
