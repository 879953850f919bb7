package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
)

// Actors that are no person.
const (
	system     = "system"
	theCluster = "cluster"
)

// A turn is one look at a node and what follows from it: the events, tasks,
// permit, answered intents and consumed observations that one Commit makes
// durable. A turn that changed nothing says by due when to look again.
type turn struct {
	*Conductor
	ctx    context.Context
	at     time.Time
	n      inventory.Node // after change.Events
	change store.Change
	events []inventory.Event // stored ones of the node, read when first asked for
	err    error             // the first that an event met
	after  []func()          // run once the turn is durable
	due    time.Time
}

func (c *Conductor) turn(ctx context.Context, n inventory.Node) *turn {
	return &turn{Conductor: c, ctx: ctx, at: c.Now().UTC(), n: n}
}

// add applies an event of the node. After an error further events do nothing,
// and nothing is committed.
func (t *turn) add(e inventory.Event) {
	if t.err != nil {
		return
	}
	e.Node, e.Version, e.At = t.n.ID, t.n.Version+1, t.at
	if e.Kind == inventory.KindMoved {
		e.From = t.n.State
	}
	n, err := t.n.Apply(e)
	if err != nil {
		t.err = err
		return
	}
	t.n = n
	t.change.Events = append(t.change.Events, e)
}

func (t *turn) move(to inventory.State, reason string, evidence map[string]string) {
	t.add(inventory.Event{Kind: inventory.KindMoved, Actor: system, To: to, Reason: reason, Evidence: evidence})
}

func (t *turn) alarm(reason string, evidence map[string]string) {
	t.add(inventory.Event{Kind: inventory.KindAlarm, Actor: system, Reason: reason, Evidence: evidence})
	t.Log.Warn("alarm", "node", t.n.ID, "reason", reason)
}

// note says what the node waits for inside its state; only a change is an event.
func (t *turn) note(format string, args ...any) { t.noteBy(system, format, args...) }

func (t *turn) noteBy(actor, format string, args ...any) {
	if s := fmt.Sprintf(format, args...); s != t.n.Note {
		t.add(inventory.Event{Kind: inventory.KindNote, Actor: actor, Reason: s})
	}
}

// unsay takes back a note that begins with prefix.
func (t *turn) unsay(prefix string) {
	if strings.HasPrefix(t.n.Note, prefix) {
		t.note("")
	}
}

// again asks for another look after d, for what no event announces.
func (t *turn) again(d time.Duration) {
	if at := t.at.Add(d); t.due.IsZero() || at.Before(t.due) {
		t.due = at
	}
}

func (t *turn) consume(o store.Observation) {
	t.change.Observations = append(t.change.Observations, o.ID)
}

func (t *turn) dirty() bool {
	c := t.change
	return len(c.Events)+len(c.Tasks)+len(c.IntentsDone)+len(c.Observations) > 0 || c.Permit != nil
}

// String is what the turn changes, for logs and tests.
func (t *turn) String() string {
	s := t.n.State.String()
	for _, e := range t.change.Events {
		s += " " + string(e.Kind)
		if m := e.Evidence["mark"]; m != "" {
			s += ":" + m
		}
	}
	if t.change.Permit != nil {
		s += " permit"
	}
	if len(t.change.IntentsDone) > 0 {
		s += " answer"
	}
	if len(t.change.Events) == 0 && len(t.change.Observations) > 0 {
		s += " consume"
	}
	return s
}

// commit makes the turn durable and then runs what waited for it.
func (t *turn) commit() error {
	if t.err != nil {
		return t.err
	}
	lease, err := t.leading()
	if err != nil {
		return err
	}
	t.change.Lease, t.change.Node = lease, t.n
	t.boundary(t.n.ID, "before commit: "+t.String())
	if _, err := t.Store.Commit(t.ctx, t.change); err != nil {
		return err
	}
	t.boundary(t.n.ID, "after commit: "+t.String())
	t.settled(t.n)
	t.keepRoom()
	t.remember(t.n)
	t.mu.Lock()
	t.codes.Add(t.n.ID)
	t.mu.Unlock()
	for _, f := range t.after {
		f()
	}
	t.learn(t.ctx, t.n, t.change.Events)
	t.announce(t.n.ID)
	return nil
}

// step looks at a node until there is nothing more to do now.
func (c *Conductor) step(ctx context.Context, id inventory.NodeID) error {
	unlock := c.lock(id)
	defer unlock()
	conflicts := 0
	for {
		n, err := c.Store.Node(ctx, id)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		t := c.turn(ctx, n)
		if n.Version == 0 {
			return t.orphans(id)
		}
		if err := t.decide(); err != nil {
			return err
		}
		if t.err != nil {
			return t.err
		}
		if !t.dirty() {
			for _, f := range t.after {
				f()
			}
			if !t.due.IsZero() {
				c.poke(id, t.due)
			}
			return nil
		}
		if err := t.commit(); err != nil {
			if errors.Is(err, store.ErrConflict) && conflicts < 3 {
				conflicts++ // another writer was faster: look again
				continue
			}
			return err
		}
	}
}

// decide does the next thing there is to do, one kind of thing at a time.
func (t *turn) decide() error {
	for _, next := range []func() error{t.outcome, t.intents, t.observations, t.phase} {
		if err := next(); err != nil {
			return err
		}
		if t.err != nil || t.dirty() {
			return nil
		}
	}
	return nil
}

// phase does what the state of the node asks for.
func (t *turn) phase() error {
	t.unsay(cannotGoOn)
	if t.n.Sheds(inventory.ShedOff) {
		return t.shutDown()
	}
	if busy, err := t.returns(); busy || err != nil {
		return err
	}
	if busy, err := t.once(); busy || err != nil {
		return err
	}
	if t.n.Hold != nil && acting(t.n.State) {
		t.note("held by %s: %s", t.n.Hold.Owner, t.n.Hold.Reason)
		return nil
	}
	t.unsay("held by")
	switch t.n.State {
	case inventory.Discovered:
		return t.discovered()
	case inventory.Inspected:
		return t.inspected()
	case inventory.Approved:
		return t.approved()
	case inventory.Wiping, inventory.Imaging:
		return t.writing()
	case inventory.Starting:
		return t.starting()
	case inventory.BurningIn:
		return t.burningIn()
	case inventory.Joining:
		return t.joining()
	case inventory.ReVerifying:
		return t.reVerifying()
	case inventory.Leaving:
		return t.leaving()
	case inventory.NeedsWork:
		return t.needsWork()
	case inventory.Expected, inventory.InService, inventory.Retired, inventory.Rejected:
	}
	return nil
}

// acting states are those in which a node is restarted, measured, or taken from
// or given to a cluster: a hold stops all of it.
func acting(s inventory.State) bool {
	switch s {
	case inventory.Discovered, inventory.Inspected, inventory.Approved, inventory.ReVerifying, inventory.Leaving:
		return true
	}
	return converting(s)
}

// A mark is a KindStep event that names a point inside a state which was
// passed. It is how a conductor that was killed knows where to go on.
const (
	markRestart   = "restart"   // a restart of the machine was decided
	markRestarted = "restarted" // it was carried out and confirmed
	markFailed    = "restart-failed"
	markNetwork   = "network-booted" // it asked for its boot after that
	markIgnored   = "boot-ignored"   // it did not: it is restarted again
	markReinspect = "reinspect"      // somebody asked for another inspection
	markPrepared  = "prepared"       // the cluster knows the node and holds it
	markDaemon    = "daemon"         // the cluster's daemon was started on the node
	markPassed    = "passed"         // re-verification passed
	markRefused   = "refused"        // the move into service was refused
)

func (t *turn) setMark(mark, reason string, evidence map[string]string) {
	ev := map[string]string{"mark": mark}
	for k, v := range evidence {
		ev[k] = v
	}
	t.add(inventory.Event{Kind: inventory.KindStep, Actor: system, Reason: reason, Evidence: ev})
}

// history is a run of events of one node.
type history []inventory.Event

// sinceMove returns what happened since the node entered its state, the move
// included.
func sinceMove(events []inventory.Event) history {
	for i := len(events) - 1; i >= 0; i-- {
		if k := events[i].Kind; k == inventory.KindMoved || k == inventory.KindCreated {
			return events[i:]
		}
	}
	return nil
}

// mark returns the newest event that carries the mark, or nil.
func (h history) mark(mark string) *inventory.Event {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind != inventory.KindStep {
			continue
		}
		if m := h[i].Evidence["mark"]; m == mark {
			return &h[i]
		} else if m == markIgnored && mark == markRestarted {
			return nil // another restart follows
		}
	}
	return nil
}

func (h history) count(mark string) (n int) {
	for i := range h {
		if h[i].Kind == inventory.KindStep && h[i].Evidence["mark"] == mark {
			n++
		}
	}
	return n
}

// evidence returns the newest value under key.
func (h history) evidence(key string) string {
	for i := len(h) - 1; i >= 0; i-- {
		if v := h[i].Evidence[key]; v != "" {
			return v
		}
	}
	return ""
}

// all returns the stored events of the node, and those of this turn.
func (t *turn) all() (history, error) {
	if t.events == nil {
		var err error
		if t.events, err = t.Store.NodeEvents(t.ctx, t.n.ID); err != nil {
			return nil, err
		}
	}
	return append(t.events[:len(t.events):len(t.events)], t.change.Events...), nil
}

// here returns what happened since the node entered its state.
func (t *turn) here() (history, error) {
	h, err := t.all()
	return sinceMove(h), err
}
