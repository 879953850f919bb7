package convert

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// open opens a task. Its id follows from the node, the entry into its state
// and the work, so that opening it twice is one task.
func (t *turn) open(task inventory.Task) string {
	task.Node, task.Opened = t.n.ID, t.at
	place := string(t.n.Spec.Position)
	if place == "" {
		place = "node " + string(t.n.ID)
	}
	switch {
	case task.Where == "":
		task.Where = place
	case !strings.Contains(task.Where, place):
		task.Where = place + ", " + task.Where
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%s\x00%s\x00%s", t.n.ID, t.n.Since.UnixNano(), task.Verb, task.What, task.Where))
	task.ID = "t-" + hex.EncodeToString(sum[:6])
	if slices.ContainsFunc(t.change.Tasks, func(o inventory.Task) bool { return o.ID == task.ID }) {
		return task.ID
	}
	t.change.Tasks = append(t.change.Tasks, task)
	t.add(inventory.Event{Kind: inventory.KindTask, Actor: system, Task: task.ID, Reason: "opened: " + task.String()})
	return task.ID
}

// close ends the open tasks that match, with what came of them.
func (t *turn) close(match func(inventory.Task) bool, by, outcome string) error {
	tasks, err := t.Store.Tasks(t.ctx, t.n.ID)
	if err != nil {
		return err
	}
	for _, task := range tasks {
		if !task.Open() || !match(task) {
			continue
		}
		task.DoneAt, task.DoneBy, task.Outcome = t.at, by, outcome
		t.change.Tasks = append(t.change.Tasks, task)
		t.add(inventory.Event{Kind: inventory.KindTask, Actor: by, Task: task.ID, Reason: "done: " + outcome})
	}
	return nil
}

func anyTask(inventory.Task) bool { return true }

// pressed are the tasks that a machine proves by starting.
func pressed(task inventory.Task) bool { return task.Proof == "dhcp" }

// fail moves the node to needs-work with what a person can do about it; with
// no task at all, to look.
func (t *turn) fail(cause, detail string, tasks ...inventory.Task) error {
	if len(tasks) == 0 {
		tasks = []inventory.Task{{Verb: "check", What: "the machine", Why: detail, Proof: "none"}}
	}
	if err := t.close(pressed, system, "no longer needed"); err != nil {
		return err
	}
	f := inventory.Failure{Step: t.n.State, Cause: cause, Detail: detail}
	for _, task := range tasks {
		if id := t.open(task); !slices.Contains(f.Tasks, id) {
			f.Tasks = append(f.Tasks, id)
		}
	}
	reason := cause
	if detail != "" {
		reason += ": " + detail
	}
	t.add(inventory.Event{Kind: inventory.KindMoved, Actor: system, To: inventory.NeedsWork, Reason: reason, Failure: &f})
	return nil
}

// needsWork waits until every task of the failure is done, then lets the
// machine prove it.
func (t *turn) needsWork() error {
	if t.n.Failure == nil || len(t.n.Failure.Tasks) == 0 {
		return nil
	}
	tasks, err := t.Store.Tasks(t.ctx, t.n.ID)
	if err != nil {
		return err
	}
	open, proofs := 0, map[string]bool{}
	for _, task := range tasks {
		if !slices.Contains(t.n.Failure.Tasks, task.ID) {
			continue
		}
		proofs[task.Proof] = true
		if task.Open() {
			open++
		}
	}
	if open > 0 || len(proofs) == 0 {
		return nil
	}
	if t.n.Hold != nil {
		t.note("its tasks are done; held by %s: %s", t.n.Hold.Owner, t.n.Hold.Reason)
		return nil
	}
	if v := t.Power[t.n.ID]; v != nil && t.n.State == inventory.NeedsWork && strings.HasPrefix(t.n.Failure.Cause, "power") {
		// A person looked at the controller: it may be spoken to again.
		t.after = append(t.after, v.Reset)
	}
	to, evidence := t.proof(proofs)
	if to == inventory.Wiping {
		if n, ok := t.reserve(t.n.ID); !ok {
			t.note("its tasks are done; waits for its turn: %d conversions run at once", n)
			t.again(10 * time.Second)
			return nil
		}
	}
	t.move(to, "its tasks are done: it must prove it", evidence)
	if why := t.err; why != nil && to != inventory.Discovered {
		// What the node was when it failed is not what it is now: look again.
		t.err = nil
		t.move(inventory.Discovered, "its tasks are done, but "+why.Error(), map[string]string{"boot": power.Network.String()})
	}
	return nil
}

// proof is where a node goes whose tasks are done: to the step that shows
// whether they helped.
func (t *turn) proof(proofs map[string]bool) (inventory.State, map[string]string) {
	inspect := map[string]string{"boot": power.Network.String()}
	switch {
	case proofs["reinspect"]:
		return inventory.Discovered, inspect
	case t.n.Failure.Cause == causeFrozen && t.n.Failure.Step == inventory.Wiping && t.n.Plan != nil:
		// Not by way of a restart, which would freeze the drive again: the agent
		// that waits there goes on.
		return inventory.Wiping, nil
	case proofs["burnin"] && t.n.Image != "":
		return inventory.BurningIn, nil
	case t.n.Plan == nil:
		return inventory.Discovered, inspect
	}
	switch s := t.n.Failure.Step; s {
	case inventory.Approved, inventory.Wiping, inventory.Imaging:
		// From the start of the run: a power cycle, a new permit, a new wipe.
		return inventory.Approved, nil
	case inventory.Starting, inventory.BurningIn, inventory.Joining:
		return s, nil
	}
	return inventory.Discovered, inspect
}
