package convert

import (
	"encoding/json"
	"fmt"
	"slices"

	"smelt/internal/store"
	"smelt/inventory"
)

// observations takes in what was seen of the node since the last turn. What
// says nothing about the state the node is in now is consumed unheard.
func (t *turn) observations() error {
	list, err := t.Store.Unconsumed(t.ctx, t.n.ID)
	if err != nil {
		return err
	}
	if t.n.Hold != nil && (converting(t.n.State) || t.n.State == inventory.ReVerifying) {
		return nil // kept until the hold is lifted
	}
	for _, o := range list {
		switch o.Kind {
		case sawBoot:
			err = t.booted(o)
		case sawInspection:
			err = t.inspection(o)
		case sawResult:
			err = t.result(o)
		default:
			t.consume(o)
		}
		if err != nil {
			return fmt.Errorf("observation %d (%s): %w", o.ID, o.Kind, err)
		}
		if t.err != nil || len(t.change.Events) > 0 {
			return nil // the rest is looked at in the light of what changed
		}
	}
	return nil
}

// booted takes in a boot request.
func (t *turn) booted(o store.Observation) error {
	t.consume(o)
	if t.n.State == inventory.Expected {
		t.move(inventory.Discovered, "it asked to boot from the network", nil)
	}
	return nil
}

// inspection takes in what an agent found.
func (t *turn) inspection(o store.Observation) error {
	if t.n.State == inventory.Starting {
		// Kept until the restart is confirmed: see mayConvert.
		if h, err := t.here(); err != nil || h.mark(markRestarted) == nil && !h.kexecs() {
			return err
		}
	}
	t.consume(o)
	var f found
	if err := json.Unmarshal(o.Data, &f); err != nil {
		t.Log.Error("unreadable inspection dropped", "node", t.n.ID, "err", err)
		return nil
	}
	if f.Fence != t.n.Fence {
		return nil // of an earlier boot
	}
	hw := t.shape(t.n, f.Hardware)
	if id := inventory.Identify(t.n.Spec, t.n.Hardware, hw); id.Match == inventory.Contradicted {
		t.alarm("an inspection was refused: "+id.Err().Error(), map[string]string{"addr": f.Addr})
		return nil
	}
	switch f.Mode {
	case modeInspect:
		return t.inspectedBy(f, hw)
	case modeInstalled:
		return t.installedSays(f, hw)
	}
	return nil // an agent that converts was held against its plan when it enrolled
}

func (t *turn) take(f found, hw inventory.Hardware) {
	if was := t.n.Hardware; was != nil && was.Digest() != hw.Digest() {
		if id := inventory.Identify(t.n.Spec, was, hw); id.Match != inventory.Confirmed {
			detail, _ := changes(was, hw)
			t.alarm("an inspection replaces what was known of it: "+detail+"; "+id.Err().Error(), map[string]string{
				"addr": f.Addr, "board": was.Board.Serial + " > " + hw.Board.Serial, "chassis": was.Board.ChassisSerial + " > " + hw.Board.ChassisSerial,
			})
		}
	}
	ev := map[string]string{"mode": f.Mode}
	if f.Addr != "" {
		ev["addr"] = f.Addr
	}
	t.add(inventory.Event{Kind: inventory.KindInspected, Actor: "agent", Hardware: &hw, Salvage: f.Salvage, Evidence: ev})
}

// installedSays takes in what the system on the node's own disk says of itself.
func (t *turn) installedSays(f found, hw inventory.Hardware) error {
	if t.n.State == inventory.Starting {
		if t.n.Plan == nil {
			return t.fail("wrong-image", fmt.Sprintf("it started image %.12s, and there is no plan", f.Image))
		}
		if f.Image != t.n.Plan.Image {
			return t.fail("wrong-image", fmt.Sprintf("it started image %.12s, the plan says %.12s", f.Image, t.n.Plan.Image))
		}
		t.take(f, hw)
		if !asApproved(t.n) {
			return t.failChanged(t.n.Plan.Hardware)
		}
		if err := t.close(pressed, "agent", "it started"); err != nil {
			return err
		}
		t.add(inventory.Event{Kind: inventory.KindMoved, Actor: system, To: inventory.BurningIn, Image: f.Image,
			Reason: "it started from " + t.place(), Evidence: map[string]string{"addr": f.Addr, "start": f.Start}})
		return nil
	}
	if h, err := t.passedOnce(); err != nil {
		return err
	} else if h != nil && t.n.Hardware.Digest() == hw.Digest() && t.provesCold(f, h) {
		return nil
	}
	if t.n.Hardware != nil && t.n.Hardware.Digest() == hw.Digest() {
		return nil
	}
	was := t.n.Hardware
	t.take(f, hw)
	detail, _ := changes(was, hw)
	switch {
	case t.n.State == inventory.BurningIn && !asApproved(t.n):
		return t.failChanged(t.n.Plan.Hardware)
	case t.n.State == inventory.InService && !proven(t.n):
		t.alarm("in service, "+detail, nil)
		// The cluster gives it no new work from there on: see reVerifying.
		t.move(inventory.ReVerifying, detail, nil)
	case t.n.Passed != nil:
		t.alarm("its hardware is not what passed burn-in any more: "+detail, nil)
	}
	return nil
}

// result takes in the end of an order.
func (t *turn) result(o store.Observation) error {
	var r reported
	if err := json.Unmarshal(o.Data, &r); err != nil {
		t.Log.Error("unreadable result dropped", "node", t.n.ID, "err", err)
		t.consume(o)
		return nil
	}
	t.consume(o)
	if r.Fence == t.n.Fence && (r.Mode == modeRAM || r.Order == rejoinID(t.n)) {
		return t.loaded(r)
	}
	if r.Fence == t.n.Fence && r.Order == kexecID(t.n) {
		t.kexeced(r)
		return nil
	}
	if r.Order == rescueID(t.n) {
		if !r.OK {
			t.alarm("nobody can log in to it: "+r.Error, nil)
		}
		return nil
	}
	if r.Fence != t.n.Fence || r.Order != orderID(t.n) {
		return nil // of an earlier boot or an earlier entry into this state
	}
	switch {
	case t.n.State == inventory.Wiping && r.Mode == modeConvert:
		return t.written(r, orderWipe, inventory.Imaging)
	case t.n.State == inventory.Imaging && r.Mode == modeConvert:
		return t.written(r, orderImage, inventory.Starting)
	case (t.n.State == inventory.BurningIn || t.n.State == inventory.ReVerifying) && r.Mode == modeInstalled:
		return t.judge(r)
	case t.n.State == inventory.Joining && r.Mode == modeInstalled:
		return t.daemon(r)
	}
	return nil
}

// inspectedAfter returns the inspection that came after e, or nil.
func inspectedAfter(h history, e *inventory.Event) *inventory.Event {
	i := slices.IndexFunc(h, func(o inventory.Event) bool {
		return o.Kind == inventory.KindInspected && o.Version > e.Version
	})
	if i < 0 {
		return nil
	}
	return &h[i]
}
