package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// tendEvery is how often the power of the hall is looked at.
const tendEvery = 3 * time.Second

// Who takes something from a node, beside people.
const (
	byBudget  = "budget"
	byCurtail = "curtailment"
)

// tend looks after the power of the hall until ctx ends: what is over its
// limits gives way, what was taken is given back, a blackout is noticed and
// recovered from, a curtailment is met.
func (c *Conductor) tend(ctx context.Context) error {
	for {
		if err := c.tendOnce(ctx); err != nil && ctx.Err() == nil {
			if errors.Is(err, store.ErrFenced) {
				return nil // keepLease ends the process's lead
			}
			c.Log.Error("power of the hall", "err", err)
		}
		if sleep(ctx, min(tendEvery, c.meterPace())) != nil {
			return nil
		}
	}
}

func (c *Conductor) tendOnce(ctx context.Context) error {
	if _, err := c.leading(); err != nil {
		return err
	}
	c.noteStates(ctx)
	return errors.Join(c.seeBlackout(ctx), c.obeyBudget(ctx), c.tendCurtail(ctx), c.switchBack(ctx))
}

// loads is what every machine does, as the budget needs to know it.
func (c *Conductor) loads() (out []power.Load) {
	for _, m := range c.machines() {
		if m.work() != "" && !m.sheds(inventory.ShedOff) {
			out = append(out, m.load())
		}
	}
	return out
}

func (m machine) load() power.Load {
	return power.Load{Node: m.id, Work: m.work(), Since: m.since, Capped: m.sheds(inventory.ShedCap), Paused: m.sheds(inventory.ShedPause)}
}

// shedWords are the budget's advices in the words of a node.
var shedWords = map[string]string{power.Cap: inventory.ShedCap, power.Pause: inventory.ShedPause, power.SoftOff: inventory.ShedOff}

// obeyBudget takes from nodes what the budget says must go, and gives back what
// it says there is room for.
func (c *Conductor) obeyBudget(ctx context.Context) error {
	var failed []error
	for _, a := range c.Budget.Advise(c.Now(), c.loads()) {
		var err error
		if a.Do == power.Lift {
			err = c.lift(ctx, a.Node, func(s inventory.Shed) bool { return s.By == byBudget }, a.Why)
		} else {
			err = c.take(ctx, a.Node, inventory.Shed{Do: shedWords[a.Do], By: byBudget, Circuit: a.Circuit, Why: a.Why})
		}
		if errors.Is(err, errKept) {
			c.Log.Info("power advice not followed", "node", a.Node, "do", a.Do, "why", err)
		} else if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// errKept: what should give way does not, for a good reason.
var errKept = errors.New("not taken")

// take takes something from a node, as an event with evidence and an alarm.
func (c *Conductor) take(ctx context.Context, id inventory.NodeID, s inventory.Shed) error {
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil {
		return err
	}
	t := c.turn(ctx, n)
	s.At = t.at
	if err := t.mayTake(s); err != nil {
		return err
	}
	t.shed(&s, system)
	if err := t.commit(); err != nil {
		return err
	}
	c.poke(id, c.Now())
	return nil
}

func heldWord(m machine) string {
	if m.held {
		return " and held"
	}
	return ""
}

// lift gives the caps and pauses that match back to a node, the last first.
func (c *Conductor) lift(ctx context.Context, id inventory.NodeID, match func(inventory.Shed) bool, why string) error {
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil {
		return err
	}
	t := c.turn(ctx, n)
	t.lift(match, system, why)
	if !t.dirty() {
		return nil
	}
	if err := t.commit(); err != nil {
		return err
	}
	c.poke(id, c.Now())
	return nil
}

// lift is an event for each thing that is given back. What was shut down is
// given back by being on again: see shutDown.
func (t *turn) lift(match func(inventory.Shed) bool, actor, why string) {
	for {
		i := lastShed(t.n.Shed, func(s inventory.Shed) bool { return s.Do != inventory.ShedOff && match(s) })
		if i < 0 || t.err != nil {
			return
		}
		s := t.n.Shed[i]
		t.add(inventory.Event{Kind: inventory.KindShed, Actor: actor, Reason: "given back: " + s.Do + ": " + why,
			Evidence: map[string]string{"undo": s.Do, "after": t.at.Sub(s.At).Round(time.Second).String()},
			Shed:     slices.Delete(slices.Clone(t.n.Shed), i, i+1)})
	}
}

// lastShed is the index of the newest one that matches, or -1.
func lastShed(list []inventory.Shed, match func(inventory.Shed) bool) int {
	for i := len(list) - 1; i >= 0; i-- {
		if match(list[i]) {
			return i
		}
	}
	return -1
}

// shutDown is the step of a node that was shut down for want of power: nothing
// else happens to it until it is on again.
func (t *turn) shutDown() error {
	if t.busy() {
		return nil
	}
	i := lastShed(t.n.Shed, func(s inventory.Shed) bool { return s.Do == inventory.ShedOff })
	s, v := t.n.Shed[i], t.Power[t.n.ID]
	drop := func(t *turn, why string) {
		if i := lastShed(t.n.Shed, func(s inventory.Shed) bool { return s.Do == inventory.ShedOff }); i >= 0 {
			t.add(inventory.Event{Kind: inventory.KindShed, Actor: system, Reason: why, Shed: slices.Delete(slices.Clone(t.n.Shed), i, i+1)})
		}
	}
	if v == nil {
		drop(t, "nothing here can switch it any more")
		return nil
	}
	if t.n.Hold != nil { // whoever holds it may have his hands in it, now that it is off
		t.note("held by %s: %s; and %s", t.n.Hold.Owner, t.n.Hold.Reason, s)
		return nil
	}
	if t.n.Power.On != power.Off.String() || t.n.Power.At.Before(s.At) {
		t.note("%s", s)
		t.start("shut down", func(ctx context.Context) func(*turn) error {
			t.boundary(t.n.ID, "before shut down")
			ev, err := t.softOff(ctx, t.n.ID, v)
			t.boundary(t.n.ID, "after shut down")
			return func(t *turn) error {
				if err != nil {
					// Never by force, and never an outlet.
					t.alarm("it was asked to shut down and did not: "+err.Error(), ev.Map())
					drop(t, "it did not shut down: it is left on")
					return nil
				}
				t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: "shut down: " + s.Why, Evidence: ev.Map(),
					Power: &inventory.PowerFact{On: power.Off.String(), Via: ev.Controller, At: t.at}})
				return nil
			}
		})
		return nil
	}
	t.mu.Lock()
	why, back := t.called[t.n.ID]
	t.mu.Unlock()
	if !back {
		t.note("%s", s)
		return nil
	}
	return t.switchOn("given back: "+why, func(t *turn, err error) {
		t.mu.Lock()
		delete(t.called, t.n.ID)
		t.mu.Unlock()
	})
}

// switchOn starts a machine that is off, within the budget and verified. done
// runs in the turn that takes in what came of it.
func (t *turn) switchOn(why string, done func(*turn, error)) error {
	v := t.Power[t.n.ID]
	if err := t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
		t.note("is to be switched on (%s): %v", why, err)
		t.again(max(t.Site.SlotWindow, time.Second))
		return nil
	}
	dev := power.Network
	if startsItsSystem(t.n) {
		dev = t.device()
	}
	t.start("switch on", func(ctx context.Context) func(*turn) error {
		t.boundary(t.n.ID, "before switch on")
		// A machine that is on, whoever switched it on, is left alone.
		state, err := v.State(ctx)
		ev := power.Evidence{Verb: "look", Controller: v.String(), Before: state.String(), After: state.String(), Polls: 1}
		switch {
		case err != nil:
		case state == power.Off:
			ev, err = v.Cycle(ctx, dev)
		case state != power.On:
			err = fmt.Errorf("%s does not say whether it is on: nothing was done", v)
		}
		t.boundary(t.n.ID, "after switch on")
		return func(t *turn) error {
			if err != nil {
				t.alarm("it could not be switched on ("+why+"): "+err.Error(), ev.Map())
			} else {
				t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: "switched on: " + why, Evidence: ev.Map(),
					Power: &inventory.PowerFact{On: power.On.String(), Via: ev.Controller, At: t.at}})
				t.unsay("is to be switched on")
			}
			done(t, err)
			return nil
		}
	})
	return nil
}

// offFor is how long a machine that an overload shut down stays off at least:
// longer than what it took to measure that the overload is over.
const offFor = 10 * time.Minute

// givenAtOnce is how many machines get back in one go what a curtailment took:
// the supply should see a ramp and no step.
const givenAtOnce = 16

// softly tells what a curtailment took and left on.
func softly(s inventory.Shed) bool { return s.By == byCurtail && s.Do != inventory.ShedOff }

// switchBack gives back what a curtailment took that is over, and lets machines
// that were shut down come back: then, or some time after an overload. Each of
// them asks the budget as for any start.
func (c *Conductor) switchBack(ctx context.Context) error {
	h, now := c.SitePower(), c.Now()
	given := 0
	for _, m := range c.machines() {
		c.mu.Lock()
		proves := c.proofs[m.id]
		c.mu.Unlock()
		if lastShed(m.shed, func(s inventory.Shed) bool { return s.By == byProof }) >= 0 && !proves {
			// Whoever began that proof died in it.
			if err := c.lift(ctx, m.id, func(s inventory.Shed) bool { return s.By == byProof }, "its proof was cut short"); err != nil {
				return err
			}
		}
		if h.Curtail == nil && lastShed(m.shed, softly) >= 0 && given < givenAtOnce {
			given++
			if err := c.lift(ctx, m.id, softly, "the curtailment is over"); err != nil {
				return err
			}
		}
		i := lastShed(m.shed, func(s inventory.Shed) bool { return s.Do == inventory.ShedOff })
		if i < 0 {
			continue
		}
		switch s := m.shed[i]; {
		case s.By == byCurtail && h.Curtail == nil:
			c.callBack(m.id, "the curtailment is over")
		case s.By == byBudget && now.Sub(s.At) >= offFor:
			c.callBack(m.id, "there may be room again")
		}
	}
	return nil
}

// callBack makes the next step of a machine that was shut down switch it on.
func (c *Conductor) callBack(id inventory.NodeID, why string) {
	c.mu.Lock()
	_, called := c.called[id]
	c.called[id] = why
	c.mu.Unlock()
	if !called {
		c.poke(id, c.Now())
	}
}

// gauge is what is measured of a machine.
func (c *Conductor) gauge(id inventory.NodeID) (gauge, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.gauges[id]
	if g == nil {
		return gauge{}, false
	}
	return *g, true
}
