package convert

import (
	"slices"
	"time"

	"smelt/inventory"
	"smelt/inventory/triage"
	"smelt/power"
)

// discovered waits for an inspection. A machine that is sent back here by a
// technician's proof is started again; one that just asked to boot is not.
func (t *turn) discovered() error {
	h, err := t.here()
	if err != nil || len(h) == 0 || h[0].Evidence["boot"] == "" {
		return err
	}
	if t.inspecting() {
		return nil // the agent in its memory looks again: no restart is needed
	}
	_, err = t.restartSince(h, power.Network, "inspection")
	return err
}

// inspected waits for approval, by a person or by the rule of its class.
func (t *turn) inspected() error {
	h, err := t.here()
	if err != nil {
		return err
	}
	if m := h.mark(markReinspect); m != nil && inspectedAfter(h, m) == nil {
		if t.inspecting() {
			return nil
		}
		// What happened before the wish, a restart for another reason, does not answer it.
		_, err := t.restartSince(h[indexOf(h, m):], power.Network, "inspection")
		return err
	}
	if !t.ruled(h) {
		return nil
	}
	// A person may look at the rack; a rule knows only what the machine says.
	if id := inventory.Identify(t.n.Spec, nil, *t.n.Hardware); id.Match != inventory.Confirmed {
		t.note("approve by hand: %s; its class is approved by rule, but only for a machine that site.yaml names by two facts", restsOn(id))
		return nil
	}
	plan, err := t.plan(approval{run: "r" + stamp(t.n.Since) + "-" + string(t.n.ID)})
	if err != nil {
		t.note("its class is approved by rule, but: %v", err)
		t.again(time.Minute)
		return nil
	}
	t.add(inventory.Event{Kind: inventory.KindMoved, Actor: system, To: inventory.Approved, Plan: &plan,
		Reason: "class " + t.n.Spec.Class + " is approved by rule"})
	return nil
}

// restsOn says how little an identity that is not confirmed rests on.
func restsOn(id inventory.Identity) string {
	switch {
	case id.Match == inventory.Contradicted:
		return id.Err().Error()
	case len(id.Agree) == 0:
		return "its identity rests on nothing"
	case id.Agree[0].Name == "nic-macs":
		return "its identity rests on its MAC alone"
	}
	return "its identity rests on its " + id.Agree[0].Name + " alone"
}

// ruled tells whether a rule approves the node. It does so once for each
// inspection that led here: who takes the approval back is not overruled.
func (t *turn) ruled(h history) bool {
	return len(h) > 0 && (h[0].From == inventory.Discovered || h[0].From == inventory.NeedsWork) &&
		slices.Contains(t.Site.AutoOK, t.n.Spec.Class) && t.n.Hold == nil && !t.n.Spec.Protect &&
		t.n.Hardware != nil && t.n.Verdict != nil && t.n.Verdict.Answer == triage.Convert
}

func indexOf(h history, e *inventory.Event) int {
	return slices.IndexFunc(h, func(o inventory.Event) bool { return o.Version == e.Version })
}

// inspecting tells whether an inspection agent speaks from the machine now.
func (t *turn) inspecting() bool {
	live := t.Live(t.n.ID)
	return live.Mode == modeInspect && t.at.Sub(live.LastSeen) < agentAlive
}

// inspectedBy takes in what the inspection system found: hardware, verdict, and
// the state that follows from it.
func (t *turn) inspectedBy(f found, hw inventory.Hardware) error {
	switch t.n.State {
	case inventory.Expected:
		t.move(inventory.Discovered, "its agent reports", nil)
	case inventory.Discovered, inventory.Inspected, inventory.NeedsWork:
	default:
		return nil
	}
	t.take(f, hw)
	v := t.verdict(hw)
	t.add(inventory.Event{Kind: inventory.KindTriaged, Actor: system, Verdict: &v, Reason: "verdict: " + v.Answer})
	if err := t.close(pressed, "agent", "it started"); err != nil {
		return err
	}
	fit := v.Answer == triage.Convert
	switch {
	case t.n.State == inventory.NeedsWork && !fit, t.n.State == inventory.Inspected && fit:
		return nil
	case t.n.State == inventory.NeedsWork && !t.inspectionProves():
		return nil
	case t.n.State == inventory.NeedsWork:
		if err := t.close(anyTask, "agent", "proven by inspection"); err != nil {
			return err
		}
		t.move(inventory.Inspected, "inspection shows that it is fit now", nil)
	case t.n.State == inventory.Discovered:
		t.move(inventory.Inspected, "inspected; verdict: "+v.Answer, nil)
	}
	if fit || t.err != nil {
		return nil
	}
	tasks := verdictTasks(v)
	if len(tasks) == 0 {
		return nil // nothing that work at the rack would change: a person decides
	}
	return t.fail("triage", "verdict "+v.Answer+" for "+v.Target, tasks...)
}

// inspectionProves tells whether an inspection answers for the failure: only
// what inspection found can inspection clear.
func (t *turn) inspectionProves() bool {
	f := t.n.Failure
	return f != nil && (f.Step == inventory.Inspected || f.Step == inventory.Discovered)
}

// shape is hardware as this site sees it: slots get the labels of the class,
// and on a lab site devices become the cards they stand for, labelled simulated.
func (c *Conductor) shape(n inventory.Node, hw inventory.Hardware) inventory.Hardware {
	hw.GPUs = slices.Clone(hw.GPUs)
	for i := range hw.GPUs {
		hw.GPUs[i].Simulated = false // for us to say
	}
	if c.Site.Lab {
		for _, s := range c.Site.StandsFor[n.ID] {
			standIn(&hw, s)
		}
	}
	slots := c.Site.Classes[n.Spec.Class].Slots
	for i := range hw.GPUs {
		g := &hw.GPUs[i]
		if l := slots[g.Address]; l != "" {
			g.Slot = l
		} else if g.Port != nil && slots[g.Port.Address] != "" {
			g.Slot = slots[g.Port.Address]
		}
	}
	return hw
}
