package convert

import (
	"smelt/inventory"
	"smelt/power"
)

// draws tells whether the machine counts on its circuits: because it works, or
// because it was seen to run and nobody saw it go off. A mining rig that nobody
// converted yet loads its breaker as any other machine does.
func draws(n inventory.Node) bool {
	switch n.State {
	case inventory.Retired:
		return false // it left the site
	case inventory.Expected, inventory.Rejected:
		return n.Power.On == power.On.String()
	case inventory.Discovered, inventory.Inspected, inventory.Approved, inventory.NeedsWork:
		return n.Power.On != power.Off.String() // it asked for its boot once
	}
	return true
}

// roomHint is what an operator does about a start that the budget refused.
func (t *turn) roomHint() string {
	h := t.SitePower()
	switch {
	case h.Hold != nil:
		return "smelt power resume lifts the hold"
	case h.Blackout != nil && h.Blackout.Released.IsZero():
		return "smelt power release lets machines start again"
	case h.Curtail != nil:
		return "smelt power status shows what is given back, smelt power curtail --end ends it"
	}
	return "smelt power budget shows which circuit is full"
}

// keepRoom reserves for a machine that was found to draw without having asked,
// and gives back what one held that was switched off and waits for nothing.
// What was lost in a blackout or shut down for want of power stays reserved: it
// comes back.
func (t *turn) keepRoom() {
	n := t.n
	if draws(n) {
		if !t.Budget.Holds(n.ID) {
			t.Budget.Restore(n.ID, n.Spec.Circuit, t.watts(n))
		}
		return
	}
	if n.State == inventory.Approved || n.Power.Detail == lostPower || n.Sheds(inventory.ShedOff) {
		return
	}
	for _, e := range t.change.Events {
		if e.Power != nil { // and not at any other event: a start that was granted is still "off" until it is confirmed
			t.Budget.Release(n.ID)
			return
		}
	}
}
