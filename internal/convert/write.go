package convert

import (
	"fmt"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// approved waits for room in the blast radius, then for power, then restarts
// the machine into the installer. Its enrolment moves it on.
func (t *turn) approved() error {
	if err := t.n.Convertible(); err != nil {
		t.note("waits: %v", err)
		return nil
	}
	if t.Stopped() {
		t.note("waits: the global stop is set")
		return nil
	}
	if n, ok := t.reserve(t.n.ID); !ok {
		t.note("waits for its turn: %d conversions run at once", n)
		t.again(10 * time.Second)
		return nil
	}
	into := "the installer"
	if t.n.Plan.Root == inventory.RootRAM {
		into = "its system in memory"
	}
	done, err := t.restart(power.Network, "into "+into)
	if done && err == nil && !t.dirty() {
		t.note("waits for %s to start on it", into)
	}
	return err
}

// writing waits for the agent, which asks for its order; what it reports comes
// as an observation.
func (t *turn) writing() error {
	if err := t.n.Convertible(); err != nil {
		t.note("waits: %v", err)
		return nil
	}
	if t.Stopped() {
		t.note("waits: the global stop is set")
		return nil
	}
	t.unsay("waits: ")
	return t.watch(power.Network)
}

// written takes in the end of a destructive order.
func (t *turn) written(r reported, action string, next inventory.State) error {
	if !r.OK {
		if len(r.Wiped) > 0 {
			// What was done to each disk is history, also where it was not enough.
			t.add(inventory.Event{Kind: inventory.KindStep, Actor: "agent", Reason: action + " failed", Evidence: r.Evidence})
		}
		return t.fail(causeOf(r), fmt.Sprintf("%s: %s", action, r.Error), t.writeTask(r))
	}
	// Nobody is believed who says it is done and never asked to begin.
	used, err := t.Store.Permits(t.ctx, t.n.ID)
	if err != nil {
		return err
	}
	var permit *store.PermitUse
	for i, p := range used {
		if !p.Used.IsZero() && p.Action == action && p.Plan == t.n.Plan.Digest && p.Fence == t.n.Fence {
			permit = &used[i]
		}
	}
	if permit == nil {
		return t.fail("permit", "the agent reports "+action+" as done but never used a permit for it")
	}
	ev := map[string]string{}
	for k, v := range r.Evidence {
		ev[k] = v
	}
	if action == orderWipe {
		if why := short(*t.n.Plan, r.Wiped); why != "" {
			r.Error = why
			return t.fail("level", why, t.writeTask(r))
		}
		id, err := t.certify(*permit, r.Wiped)
		if err != nil {
			return err
		}
		t.add(inventory.Event{Kind: inventory.KindStep, Actor: system, Reason: "wipe certificate " + id, Evidence: map[string]string{"certificate": id}})
	}
	if t.n.Plan.WipeOnly {
		next = inventory.Retired
		t.after = append(t.after, t.endAgents)
	}
	t.move(next, action+" done and verified by the agent", ev)
	return nil
}

func causeOf(r reported) string {
	if r.Cause == "" {
		return "other"
	}
	return r.Cause
}

// causeFrozen is an agent's word for a drive whose erase the firmware of the
// machine locked when it started.
const causeFrozen = "frozen"

// thaw is what a person can do about it.
const thaw = "Leave the machine on: it waits. Unplug the power and the data cable of the drive for ten seconds, plug them in again, and say that it is done. " +
	"If the machine was switched off meanwhile, do it again once it waits. For good: turn off the security freeze lock of drives in the firmware's setup."

// writeTask is what a person can do about a failed write.
func (t *turn) writeTask(r reported) inventory.Task {
	disk := "its disk"
	if t.n.Plan != nil {
		disk = t.n.Plan.Target.String()
		for _, w := range r.Wiped { // the one that it stopped at is the last
			if !w.Reaches(t.n.Plan.Wipe) {
				disk = w.Disk.String()
			}
		}
	}
	task := inventory.Task{Why: r.Error, Proof: "none"}
	switch r.Cause {
	case "disk":
		task.Verb, task.What, task.Proof = "replace", disk, "reinspect"
	case "level":
		task.Verb, task.What = "check", disk+": wipe it in another way (smelt node approve --wipe), or take it out and destroy it"
	case causeFrozen:
		task.Verb, task.What, task.How = "plug", disk, thaw
	case "foreign-data", "identity":
		task.Verb, task.What, task.Proof = "check", disk+": it is not what was approved", "reinspect"
	case "verify":
		task.Verb, task.What = "check", "the image "+t.n.Plan.ImageName+" (smelt image verify)"
	case "network":
		task.Verb, task.What = "check", "its network cable and switch port"
	default:
		task.Verb, task.What = "check", "the machine"
	}
	return task
}

// starting restarts the machine from its own disk and waits for the installed
// system to report.
func (t *turn) starting() error {
	if restart, err := t.kexec(); !restart || err != nil {
		return err
	}
	done, err := t.restart(t.device(), "from "+t.place())
	if err != nil || !done || t.dirty() {
		return err
	}
	if t.n.Note == "" {
		t.note("waits for the installed system to report")
		return nil
	}
	return t.watch(t.device())
}
