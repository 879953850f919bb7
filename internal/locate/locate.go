// Package locate makes a machine findable at the rack: it lights what its
// controller can light, asks the agent that runs on it to blink a drive light
// and to write on its screen, says what a person must look for, and ends it.
//
// Nothing that gives a machine power is ever touched: an outlet may show its
// own light, it is not switched. A light that was lit is remembered on disk, so
// that a server that was killed puts it out when it comes back; what the agent
// does ends by the agent's own clock.
package locate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// Times of a Locator.
const (
	usual     = 10 * time.Minute // when nobody says how long
	longest   = 4 * time.Hour
	answer    = 8 * time.Second // for the agent to say what it does
	refresh   = 2 * time.Minute // a light that goes out by itself (IPMI: 255 s at most) is lit again
	offAgain  = 30 * time.Second
	offTries  = 20
	lightTime = 45 * time.Second // for a controller to answer
)

// Ways to be found, the best first.
const (
	Light  = "light" // of the controller: chassis LED, outlet light
	Fan    = "fan"
	Disk   = "disk-light"
	Screen = "screen"
)

// A Way is one thing that was tried.
type Way struct {
	Way   string `json:"way"`
	Look  string `json:"look,omitempty"`  // what a person must look for
	Error string `json:"error,omitempty"` // why it cannot be used
}

// Locating is what makes one machine findable now.
type Locating struct {
	ID    string           `json:"id"`
	Node  inventory.NodeID `json:"node"`
	By    string           `json:"by"`
	Since time.Time        `json:"since"`
	Until time.Time        `json:"until"`
	Ways  []Way            `json:"ways"` // those that are used first, the best first
	Lit   bool             `json:"lit"`  // the controller's light is on, or may be

	over  bool // taken back: the agent is told to stop
	quiet bool
	tries int
	lit   time.Time
}

// Used tells whether anything can be seen of it.
func (l Locating) Used() bool { return len(l.Ways) > 0 && l.Ways[0].Error == "" }

// Request asks for a machine to be found.
type Request struct {
	Node  inventory.Node
	For   time.Duration // 0: ten minutes
	By    string        // actor
	Agent bool          // one speaks for the machine now
}

// Order is what the agent of a machine is to do.
type Order struct {
	ID    string
	For   time.Duration // 0: stop
	Quiet bool          // nothing that its work could feel: the screen alone
}

// Config of a Locator. Every field is needed unless it says otherwise.
type Config struct {
	Dir    string // remembers lights over restarts; made if missing
	Power  map[inventory.NodeID]*power.Verified
	Record func(ctx context.Context, node inventory.NodeID, actor, reason string, evidence map[string]string) error
	Log    *slog.Logger
}

// Locator is a task: Run, Ready, String.
type Locator struct {
	Config
	ready chan struct{}
	wake  chan struct{}

	mu     sync.Mutex
	active map[inventory.NodeID]*Locating
	said   map[string]chan []Way // by id: the agent's answer
}

// New makes the folder and reads what an earlier process lit.
func New(c Config) (*Locator, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("locate: %w", err)
	}
	l := &Locator{Config: c, ready: make(chan struct{}), wake: make(chan struct{}, 1), active: map[inventory.NodeID]*Locating{}, said: map[string]chan []Way{}}
	files, err := filepath.Glob(filepath.Join(c.Dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("locate: %w", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("locate: %w", err)
		}
		var x Locating
		if json.Unmarshal(b, &x) != nil || x.Node == "" {
			os.Remove(f) // half written: nothing had been lit yet
			continue
		}
		l.active[x.Node] = &x
	}
	return l, nil
}

func (l *Locator) String() string { return "locator" }

// Ready is closed at once.
func (l *Locator) Ready() <-chan struct{} { return l.ready }

// Run ends what is over and keeps lights lit that go out by themselves.
func (l *Locator) Run(ctx context.Context) error {
	close(l.ready)
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := map[inventory.NodeID]bool{}
	done := make(chan inventory.NodeID)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := time.Now()
		l.mu.Lock()
		for id, x := range l.active {
			if busy[id] {
				continue
			}
			over := x.over || !now.Before(x.Until)
			again := x.Lit && !over && now.Sub(x.lit) >= refresh
			if !over && !again {
				continue
			}
			busy[id] = true
			wg.Go(func() {
				if over {
					l.end(ctx, id)
				} else {
					l.relight(ctx, id)
				}
				select {
				case done <- id:
				case <-ctx.Done():
				}
			})
		}
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-l.wake:
		case id := <-done:
			delete(busy, id)
		case <-ctx.Done():
			return nil
		}
	}
}

// Start makes a machine findable, and says by what once that is known.
func (l *Locator) Start(ctx context.Context, r Request) (Locating, error) {
	if r.For == 0 {
		r.For = usual
	}
	if r.For < time.Second || r.For > longest {
		return Locating{}, fmt.Errorf("for %v: want 1s to %v", r.For, longest)
	}
	now, id := time.Now(), r.Node.ID
	x := &Locating{ID: string(id) + "-" + strconv.FormatInt(now.UnixMicro(), 36), Node: id, By: r.By, Since: now, Until: now.Add(r.For), quiet: busy(r.Node.State)}
	v := l.Power[id]
	x.Lit = v != nil // it may be, from here on
	if err := l.keep(x); err != nil {
		return Locating{}, fmt.Errorf("locate %s: %w", id, err)
	}
	said := make(chan []Way, 1)
	l.mu.Lock()
	if was := l.active[id]; was != nil {
		x.Lit = x.Lit || was.Lit
	}
	l.active[id] = x
	l.said[x.ID] = said
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.said, x.ID)
	}()
	// Committing it wakes the agent's question for orders.
	if err := l.Record(ctx, id, r.By, "is being looked for", map[string]string{"locate": x.ID, "until": x.Until.UTC().Format(time.RFC3339)}); err != nil {
		return Locating{}, fmt.Errorf("locate %s: %w", id, err)
	}
	type lit struct {
		Way
		maybe bool
	}
	light := make(chan lit, 1)
	go func() {
		w, maybe := l.light(ctx, v, r.Node)
		light <- lit{w, maybe}
	}()
	var ways []Way
	if r.Agent {
		select {
		case ways = <-said:
		case <-time.After(answer):
			ways = []Way{{Way: Screen, Error: "its agent did not answer within " + answer.String()}}
		case <-ctx.Done():
		}
	} else {
		ways = []Way{{Way: Screen, Error: "no agent speaks for it now"}}
	}
	led := <-light
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active[id] != x {
		return *x, nil // somebody else looks for it by now
	}
	x.Lit, x.lit = led.maybe, time.Now()
	x.Ways = order(append([]Way{led.Way}, ways...), r.Node)
	evidence := map[string]string{"locate": x.ID}
	for _, w := range x.Ways {
		evidence[w.Way] = w.Look + w.Error
	}
	reason := "shows itself: nothing of it can"
	if x.Used() {
		reason = "shows itself: " + x.Ways[0].Look
	}
	out := *x
	l.after(ctx, x, reason, evidence)
	return out, nil
}

// after stores what came of a request. l.mu is held.
func (l *Locator) after(ctx context.Context, x *Locating, reason string, evidence map[string]string) {
	if err := l.keep(x); err != nil {
		l.Log.Error("what is lit is not remembered over a restart", "node", x.Node, "err", err)
	}
	if err := l.Record(ctx, x.Node, "system", reason, evidence); err != nil {
		l.Log.Error("what makes it findable is not noted", "node", x.Node, "err", err)
	}
}

// busy states are those in which a node works: what could slow its disks or
// cards down is left alone.
func busy(s inventory.State) bool {
	switch s {
	case inventory.Expected, inventory.Discovered, inventory.Inspected, inventory.Approved, inventory.NeedsWork, inventory.Retired, inventory.Rejected:
		return false
	}
	return true
}

// order puts what is used before what is not, and otherwise the best first.
func order(ways []Way, n inventory.Node) []Way {
	var out []Way
	for _, used := range []bool{true, false} {
		for _, name := range []string{Light, Fan, Disk, Screen} {
			for _, w := range ways {
				if w.Way == name && (w.Error == "") == used {
					w.Look = strings.ReplaceAll(w.Look, "PLACE", Place(n))
					out = append(out, w)
				}
			}
		}
	}
	return out
}

// Place is where a machine is, for people.
func Place(n inventory.Node) string {
	if p := string(n.Spec.Position); p != "" {
		return p
	}
	return string(n.ID)
}

// Otherwise says how to find a machine that nothing can be lit of.
func Otherwise(n inventory.Node) string {
	var by []string
	if p := string(n.Spec.Position); p != "" {
		by = append(by, "its place "+p)
	}
	if n.Hardware != nil && n.Hardware.Board.Serial != "" {
		by = append(by, "the serial number of its board, "+n.Hardware.Board.Serial)
	}
	if len(n.MACs) > 0 {
		by = append(by, "the MAC address "+n.MACs[0].String()+" (on a sticker, or at the switch)")
	}
	if len(by) == 0 {
		return "nothing is known of its place: look for it at the switch"
	}
	return "find it by " + strings.Join(by, ", ")
}

// light lights what the controller has. maybe tells whether something may be
// lit: a command that failed may have worked all the same.
func (l *Locator) light(ctx context.Context, v *power.Verified, n inventory.Node) (w Way, maybe bool) {
	if v == nil {
		return Way{Way: Light, Error: "it has no controller"}, false
	}
	// Who asked may go away; a light that was lit is to be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lightTime)
	defer cancel()
	name, err := v.Identify(ctx, true)
	if errors.Is(err, power.ErrUnsupported) {
		return Way{Way: Light, Error: v.String() + " has no light"}, false
	}
	if err != nil {
		return Way{Way: Light, Error: err.Error()}, true
	}
	return Way{Way: Light, Look: fmt.Sprintf("the %s of %s is lit or blinks", name, Place(n))}, true
}

func (l *Locator) relight(ctx context.Context, id inventory.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, lightTime)
	defer cancel()
	_, err := l.Power[id].Identify(ctx, true)
	if err != nil {
		l.Log.Warn("its light is not kept lit", "node", id, "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.active[id]; x != nil {
		x.lit = time.Now()
	}
}

// Stop ends it now. It is no error when nothing is lit.
func (l *Locator) Stop(id inventory.NodeID, by string) {
	l.mu.Lock()
	if x := l.active[id]; x != nil {
		x.over, x.By = true, by
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// end puts the light out. A light that cannot be put out is tried again, and in
// the end somebody is told.
func (l *Locator) end(ctx context.Context, id inventory.NodeID) {
	l.mu.Lock()
	x := l.active[id]
	lit, by := x.Lit, "system"
	if x.over {
		by = x.By
	}
	l.mu.Unlock()
	reason := "is no longer looked for"
	if v := l.Power[id]; lit && v != nil {
		limited, cancel := context.WithTimeout(ctx, lightTime)
		_, err := v.Identify(limited, false)
		cancel()
		if ctx.Err() != nil {
			return // the next process does it
		}
		if err != nil && !errors.Is(err, power.ErrUnsupported) {
			l.mu.Lock()
			x.tries++
			again := x.tries < offTries
			if again {
				x.Until, x.over = time.Now().Add(offAgain), false
			}
			l.mu.Unlock()
			if again {
				l.Log.Warn("its light is not out, trying again", "node", id, "err", err)
				return
			}
			reason = "is no longer looked for, but its light may be lit: " + err.Error()
		}
	}
	// Recording it also wakes the agent, which is told to stop.
	if err := l.Record(ctx, id, by, reason, map[string]string{"locate": x.ID}); err != nil && ctx.Err() == nil {
		l.Log.Error("the end of a search is not noted", "node", id, "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active[id] == x {
		delete(l.active, id)
	}
	if err := os.Remove(l.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.Log.Error("locate", "err", err)
	}
}

// Now is what makes a machine findable, nil when nothing does.
func (l *Locator) Now(id inventory.NodeID) *Locating {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.active[id]
	if x == nil || x.over || !time.Now().Before(x.Until) {
		return nil
	}
	out := *x
	return &out
}

// Order is what the agent of a machine is to do, if it has not begun it: done is
// the ID of the last one it took.
func (l *Locator) Order(id inventory.NodeID, done string) *Order {
	x := l.Now(id)
	switch {
	case x == nil && (done == "" || strings.HasSuffix(done, stopped)):
		return nil
	case x == nil:
		return &Order{ID: done + stopped}
	case x.ID == done:
		return nil
	}
	return &Order{ID: x.ID, For: time.Until(x.Until), Quiet: x.quiet}
}

// stopped at the end of an ID says that the search was taken back.
const stopped = ".stop"

// Shown takes in what the agent of a machine says that it does about the order id.
func (l *Locator) Shown(node inventory.NodeID, id string, ways []Way) {
	l.mu.Lock()
	said := l.said[id]
	if x := l.active[node]; x == nil || x.ID != id {
		said = nil
	}
	l.mu.Unlock()
	if said != nil {
		select {
		case said <- ways:
		default:
		}
	}
}

func (l *Locator) file(id inventory.NodeID) string { return filepath.Join(l.Dir, string(id)+".json") }

// keep remembers x, whole or not at all.
func (l *Locator) keep(x *Locating) error {
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(l.Dir, ".locate-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), l.file(x.Node))
}
