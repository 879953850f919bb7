package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// Submit stores an intent, wakes the conductor and waits for its result until
// ctx ends. store.ErrNotFound: still pending.
func (c *Conductor) Submit(ctx context.Context, i store.Intent) (store.IntentResult, error) {
	if i.At.IsZero() {
		i.At = c.Now().UTC()
	}
	if err := c.Store.AddIntent(ctx, i); err != nil {
		return store.IntentResult{}, err
	}
	c.nudge()
	for {
		changed := c.Store.Changed()
		r, err := c.Store.IntentResult(context.WithoutCancel(ctx), i.ID)
		if !errors.Is(err, store.ErrNotFound) {
			return r, err
		}
		select {
		case <-changed:
		case <-time.After(time.Second): // another process may have answered it
		case <-ctx.Done():
			return store.IntentResult{}, err
		}
	}
}

// intents carries out the first pending intent of the node that can be
// answered now.
func (t *turn) intents() error {
	list, err := t.Store.PendingIntents(t.ctx)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.Node != t.n.ID {
			continue
		}
		if err := t.intent(i); err != nil {
			return err
		}
		if t.dirty() {
			return nil
		}
	}
	return nil
}

// orphans answers the intents that name a node there is none of.
func (t *turn) orphans(id inventory.NodeID) error {
	list, err := t.Store.PendingIntents(t.ctx)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.Node != id {
			continue
		}
		r := store.IntentResult{ID: i.ID, At: t.at}
		switch {
		case i.Verb == "import":
			if err := t.imported(i); err != nil {
				r.Error = err.Error()
			} else {
				continue // answered with the node it made
			}
		case id == "" && (i.Verb == "stop" || i.Verb == "start"):
			if err := t.Stop(t.ctx, i.Verb == "stop", i.Actor, i.Params["reason"]); err != nil {
				return err
			}
			r.OK = true
		case sitePower(i):
			if err := t.orderPower(t.ctx, i); errors.Is(err, store.ErrFenced) {
				return err
			} else if err != nil {
				r.Error = err.Error()
			} else {
				r.OK = true
			}
		default:
			r.Error = fmt.Sprintf("there is no node %q: smelt node list", id)
		}
		if err := t.Store.FinishIntent(t.ctx, r); err != nil && !errors.Is(err, store.ErrUsed) {
			return err
		}
	}
	obs, err := t.Store.Unconsumed(t.ctx, id)
	if err != nil {
		return err
	}
	var ids []uint64
	for _, o := range obs {
		if o.Node == id {
			ids = append(ids, o.ID)
		}
	}
	return t.Store.Consume(t.ctx, ids...)
}

// imported makes an expected node of the spec in the intent.
func (t *turn) imported(i store.Intent) error {
	var s inventory.Spec
	if err := json.Unmarshal([]byte(i.Params["spec"]), &s); err != nil {
		return fmt.Errorf("import: spec: %w", err)
	}
	s.Name = i.Node
	n := t.turn(t.ctx, inventory.Node{ID: i.Node})
	n.add(inventory.Event{Kind: inventory.KindCreated, Actor: i.Actor, Spec: &s, To: inventory.Expected, Reason: "imported"})
	n.change.IntentsDone = []store.IntentResult{{ID: i.ID, OK: true, At: t.at}}
	return n.commit()
}

// intent carries out or refuses i. What it does not answer stays pending.
func (t *turn) intent(i store.Intent) error {
	before := t.change
	n := t.n
	refuse := func(err error) error {
		// Nothing of what was begun is kept.
		t.change, t.n, t.err = before, n, nil
		t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: i.ID, Error: err.Error(), At: t.at})
		return nil
	}
	answered, err := t.carryOut(i)
	switch {
	case err != nil:
		return refuse(err)
	case t.err != nil:
		return refuse(t.err)
	case answered:
		t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: i.ID, OK: true, At: t.at})
	}
	return nil
}

func (t *turn) carryOut(i store.Intent) (answered bool, err error) {
	act := func(e inventory.Event) (bool, error) {
		e.Actor = i.Actor
		t.add(e)
		return true, nil
	}
	reason := i.Params["reason"]
	if reason == "" {
		reason = i.Verb + " by " + i.Actor
	}
	switch i.Verb {
	case "approve", "convert", "wipe":
		a := approvalOf(i.ID, t.n.ID, i.Params)
		if a.only = i.Verb == "wipe"; a.only && a.target == "" {
			a.disks = "all" // who gives a machine away gives all of its disks away
		}
		p, err := t.plan(a)
		if err != nil {
			return false, err
		}
		ev := map[string]string{"run": p.Run, "image": p.ImageName, "target": p.Target.String()}
		if a.force != "" {
			ev["force"] = a.force
		}
		if a.only {
			ev = map[string]string{"run": p.Run, "only": "wiped to " + p.Wipe + ", then retired"}
		}
		if t.n.State == inventory.NeedsWork {
			if err := t.close(anyTask, i.Actor, "approved again"); err != nil {
				return false, err
			}
		}
		return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Approved, Plan: &p, Reason: reason, Evidence: ev})
	case "reject":
		if t.n.State == inventory.Approved {
			// Nothing was written yet: the approval is taken back.
			return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Inspected, Reason: reason})
		}
		return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Rejected, Reason: reason})
	case "leave", "reverify":
		return t.takeOut(i, reason, act)
	case "retire":
		if t.n.State == inventory.Wiping {
			return false, errors.New("it is being wiped: wait for its certificate")
		}
		if t.n.Joined && t.Join != nil {
			return t.retireMember(i, reason)
		}
		if err := t.close(anyTask, i.Actor, "retired"); err != nil {
			return false, err
		}
		t.after = append(t.after, t.endAgents)
		return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Retired, Reason: reason})
	case "hold":
		owner, by, _ := cut(i.Actor)
		return act(inventory.Event{Kind: inventory.KindHeld, Reason: reason,
			Hold: &inventory.Hold{Owner: owner, By: by, Reason: reason, At: t.at}})
	case "release":
		return act(inventory.Event{Kind: inventory.KindReleased, Reason: reason})
	case inventory.BootRescue, inventory.BootMemtest:
		return t.bootOnce(i)
	case "reinspect":
		return t.reinspect(i, act)
	case "power":
		return t.switchPower(i)
	case "bmc-audit":
		return t.bmcAudit(i)
	case "bmc-adopt":
		return t.bmcAdopt(i)
	case "bmc-order":
		return t.bmcOrder(i)
	case "shed":
		return t.shedBy(i)
	case "prove":
		return t.proveBy(i)
	case "task-done":
		return t.taskDone(i)
	case "import":
		return false, fmt.Errorf("there is a node %s already", t.n.ID)
	}
	return false, fmt.Errorf("unknown verb %q", i.Verb)
}

func cut(actor string) (kind, name string, ok bool) {
	for i := range actor {
		if actor[i] == ':' {
			return actor[:i], actor[i+1:], true
		}
	}
	return actor, "", false
}

// endAgents ends the sessions of a retired node.
func (t *turn) endAgents() {
	if err := t.Store.EndAgents(t.ctx, t.n.ID); err != nil {
		t.Log.Error("sessions of a retired node not ended", "node", t.n.ID, "err", err)
	}
}

// takeOut begins to take a node in service away from the cluster, for good or
// to prove itself again.
func (t *turn) takeOut(i store.Intent, reason string, act func(inventory.Event) (bool, error)) (bool, error) {
	if t.n.State != inventory.InService && t.n.State != inventory.ReVerifying {
		return false, fmt.Errorf("it is %s, not in service", t.n.State)
	}
	if i.Verb == "reverify" {
		return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.ReVerifying, Reason: reason})
	}
	then := inventory.Inspected
	if i.Params["then"] == inventory.Retired.String() {
		then = inventory.Retired
	}
	return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Leaving, Reason: reason, Evidence: map[string]string{"then": then.String()}})
}

// retireMember takes a node that the cluster has heard of out of its books
// first. The intent is answered once the cluster has let it go.
func (t *turn) retireMember(i store.Intent, reason string) (bool, error) {
	if err := inventory.MayMove(t.n.State, inventory.Retired); err != nil || t.n.State == inventory.Leaving {
		return false, fmt.Errorf("it belongs to a cluster: let it leave first (leave with then=retired)")
	}
	if t.busy() {
		return false, nil
	}
	if wait := t.pausing(); wait > 0 {
		t.again(wait)
		return false, nil
	}
	id, actor := i.ID, i.Actor
	t.remove(func(t *turn) {
		if err := t.close(anyTask, actor, "retired"); err != nil {
			t.err = err
			return
		}
		t.after = append(t.after, t.endAgents)
		t.add(inventory.Event{Kind: inventory.KindMoved, Actor: actor, To: inventory.Retired, Reason: reason})
		t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: id, OK: true, At: t.at})
	})
	return false, nil
}

func (t *turn) reinspect(i store.Intent, act func(inventory.Event) (bool, error)) (bool, error) {
	switch t.n.State {
	case inventory.Discovered, inventory.Inspected:
		return act(inventory.Event{Kind: inventory.KindStep, Reason: "another inspection", Evidence: map[string]string{"mark": markReinspect}})
	case inventory.NeedsWork, inventory.Retired, inventory.Rejected:
		if err := t.close(anyTask, i.Actor, "inspected again"); err != nil {
			return false, err
		}
		return act(inventory.Event{Kind: inventory.KindMoved, To: inventory.Discovered, Reason: "another inspection",
			Evidence: map[string]string{"boot": power.Network.String()}})
	}
	return false, fmt.Errorf("it is %s: only a node that is inspected or needs work is inspected again", t.n.State)
}

// taskDone closes a task. When it was the last, the node proves it.
func (t *turn) taskDone(i store.Intent) (bool, error) {
	tasks, err := t.Store.Tasks(t.ctx, t.n.ID)
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		if task.ID != i.Params["task"] {
			continue
		}
		if !task.Open() {
			return false, fmt.Errorf("task %s was done already, by %s", task.ID, task.DoneBy)
		}
		outcome := i.Params["outcome"]
		if outcome == "" {
			outcome = "done"
		}
		t.switchedByHand(task, i.Actor)
		return true, t.close(func(o inventory.Task) bool { return o.ID == task.ID }, i.Actor, outcome)
	}
	return false, fmt.Errorf("it has no task %q: smelt task list %s", i.Params["task"], t.n.ID)
}

// intentLife is how old a wish for power may be that a server finds when it starts.
const intentLife = 5 * time.Minute

// outlived refuses what a person asked of a server that ended meanwhile: nobody
// expects a machine to go off hours later, and one may have been switched and
// its answer lost.
func (c *Conductor) outlived(i store.Intent) error {
	c.mu.Lock()
	begun := c.begun
	c.mu.Unlock()
	if i.At.IsZero() || !i.At.Before(begun) || c.Now().Sub(i.At) < intentLife {
		return nil
	}
	return fmt.Errorf("it was asked for at %s, and the server ended before it was done: look, and ask again", i.At.UTC().Format(time.DateTime+" UTC"))
}

// mayTouch refuses what the hold of another kind of owner forbids: a technician's
// hands may be in the machine.
func (t *turn) mayTouch(actor string) error {
	owner, _, _ := cut(actor)
	if h := t.n.Hold; h != nil && h.Owner != owner {
		return fmt.Errorf("it is held by %s: %s; only that owner lifts it", h.Owner, h.Reason)
	}
	return nil
}

// switchPower does what an operator asks of the controller. The intent is
// answered with the outcome, not with the command.
func (t *turn) switchPower(i store.Intent) (bool, error) {
	verb := i.Params["verb"]
	if err := t.outlived(i); err != nil {
		return false, err
	}
	if err := t.mayTouch(i.Actor); err != nil {
		return false, err
	}
	v := t.Power[t.n.ID]
	if v == nil {
		return false, t.switchByHand(i, verb)
	}
	var do func(context.Context) (power.Evidence, error)
	after := power.On
	switch verb {
	case "on":
		do = v.On
	case "off":
		do, after = v.Off, power.Off
	case "softoff", "soft-off":
		node := t.n.ID
		do, after = func(ctx context.Context) (power.Evidence, error) { return t.softOff(ctx, node, v) }, power.Off
	case "cycle":
		do = func(ctx context.Context) (power.Evidence, error) { return v.Cycle(ctx, 0) }
	default:
		return false, fmt.Errorf("power verb %q: want on, off, softoff or cycle", verb)
	}
	if verb != "on" && i.Params["force"] != "yes" {
		switch t.n.State {
		case inventory.Wiping, inventory.Imaging, inventory.BurningIn, inventory.Joining, inventory.InService, inventory.ReVerifying, inventory.Leaving:
			return false, fmt.Errorf("it is %s: %s would cut that short; give force=yes", t.n.State, verb)
		}
	}
	if t.busy() {
		return false, nil // another switch is under way: after it
	}
	if verb == "on" || verb == "cycle" {
		// A machine that runs holds its grant already; a person's wish makes no room.
		if err := t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
			return false, fmt.Errorf("%w; %s", err, t.roomHint())
		}
	}
	id, actor := i.ID, i.Actor
	t.start("power "+verb, func(ctx context.Context) func(*turn) error {
		ev, err := do(ctx)
		return func(t *turn) error {
			r := store.IntentResult{ID: id, OK: err == nil, At: t.at}
			if err != nil {
				r.Error = err.Error()
				t.add(inventory.Event{Kind: inventory.KindAlarm, Actor: actor, Reason: "power " + verb + " failed: " + err.Error(), Evidence: ev.Map()})
			} else {
				t.add(inventory.Event{Kind: inventory.KindPower, Actor: actor, Reason: "power " + verb, Evidence: ev.Map(),
					Power: &inventory.PowerFact{On: after.String(), Via: ev.Controller, At: t.at}})
			}
			t.change.IntentsDone = append(t.change.IntentsDone, r)
			return nil
		}
	})
	return false, nil
}
