package convert

import (
	"errors"
	"fmt"
	"slices"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// shedBy takes something from the node because a person says so, or gives back
// what a person took, or anybody with undo=all.
func (t *turn) shedBy(i store.Intent) (bool, error) {
	do, why := i.Params["do"], i.Params["reason"]
	if do == "undo" {
		if len(t.n.Shed) == 0 {
			return false, errors.New("nothing was taken from it")
		}
		off := t.n.Sheds(inventory.ShedOff)
		t.lift(func(inventory.Shed) bool { return true }, i.Actor, "by "+i.Actor)
		if off {
			id := t.n.ID
			t.after = append(t.after, func() { t.callBack(id, "by "+i.Actor) })
		}
		return true, nil
	}
	if why == "" {
		why = "ordered by " + i.Actor
	}
	s := inventory.Shed{Do: do, By: i.Actor, Why: why, At: t.at}
	if err := t.mayTake(s); err != nil {
		return false, err
	}
	t.shed(&s, i.Actor)
	return true, nil
}

// mayTake says why something is not taken from the node, or nil.
func (t *turn) mayTake(s inventory.Shed) error {
	m := t.machineOf(t.n)
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("node %s: %w: %s", t.n.ID, errKept, fmt.Sprintf(format, args...))
	}
	switch s.Do {
	case inventory.ShedCap:
		if w := m.work(); w != power.WorkBurnIn && w != power.WorkService {
			return refuse("it is %s, and only cards that its own system drives are capped", t.n.State)
		}
	case inventory.ShedPause:
		if !burning(t.n.State) {
			return refuse("it is %s, and only a burn-in is paused", t.n.State)
		}
	case inventory.ShedOff:
		switch {
		case !m.mayShutDown():
			return refuse("it is %s%s, and shutting it down would lose work", t.n.State, heldWord(m))
		case t.Power[t.n.ID] == nil:
			return refuse("nothing here can shut it down")
		}
	default:
		return refuse("%q cannot be taken: want cap, pause or softoff", s.Do)
	}
	if t.n.Sheds(s.Do) {
		return refuse("%s was taken already", s.Do)
	}
	return nil
}

// shed takes s from the node: an event with what it drew right before.
func (t *turn) shed(s *inventory.Shed, actor string) {
	evidence := map[string]string{"do": s.Do, "by": s.By}
	if s.Circuit != "" {
		evidence["circuit"] = s.Circuit
	}
	if g, ok := t.gauge(t.n.ID); ok && g.fresh(t.at) {
		s.Watts = g.watts
		evidence["watts"] = fmt.Sprintf("%.0f", g.watts)
	}
	t.add(inventory.Event{Kind: inventory.KindShed, Actor: actor, Reason: s.String(), Evidence: evidence, Shed: append(slices.Clone(t.n.Shed), *s)})
	if s.By == byBudget {
		t.alarm("too much power is drawn: "+s.String(), evidence)
	}
	if id := t.n.ID; s.Do == inventory.ShedOff {
		t.after = append(t.after, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.called, id) // back from an earlier time, when a person was faster
		})
	}
}
