package convert

import (
	"context"
	"errors"
	"time"

	"smelt/inventory"
	"smelt/power"
)

const (
	restartTries = 3                // a controller that failed so often needs a human
	restartPause = 10 * time.Second // after the first failure; longer after each
	restartLimit = 15 * time.Minute // of one job with a controller
	agentAlive   = 90 * time.Second // an agent that spoke within it is there
	agentReboots = 5 * time.Minute  // how long a restart by the agent may take
)

// A job is long work on one node outside any transaction: switching its power,
// talking to the cluster. Its outcome becomes part of the node's next turn. A
// job that dies with the process is begun again from the marks.
type job struct {
	what    string
	outcome func(*turn) error // nil while it runs
}

// start begins a job once the turn is durable, unless one runs.
func (t *turn) start(what string, run func(context.Context) func(*turn) error) {
	c, ctx, id := t.Conductor, t.ctx, t.n.ID
	t.after = append(t.after, func() {
		j := &job{what: what}
		c.mu.Lock()
		if c.job[id] != nil {
			c.mu.Unlock()
			return
		}
		c.job[id] = j
		c.mu.Unlock()
		c.jobs.Go(func() {
			jctx, cancel := context.WithTimeout(ctx, restartLimit)
			defer cancel()
			out := run(jctx)
			if ctx.Err() != nil {
				// We are being stopped: what was cut short says nothing.
				out = func(*turn) error { return nil }
			}
			c.mu.Lock()
			j.outcome = out
			c.mu.Unlock()
			c.nudge()
		})
	})
}

// busy tells whether a job runs on the node.
func (t *turn) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.job[t.n.ID] != nil
}

// outcome takes in what a finished job found.
func (t *turn) outcome() error {
	t.mu.Lock()
	j := t.job[t.n.ID]
	done := j != nil && j.outcome != nil
	t.mu.Unlock()
	if !done {
		return nil
	}
	if err := j.outcome(t); err != nil {
		return err
	}
	forget := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.job[t.n.ID] == j {
			delete(t.job, t.n.ID)
		}
	}
	if t.dirty() {
		t.after = append(t.after, forget) // a commit that fails takes the outcome in again
	} else {
		forget()
	}
	return nil
}

// restart makes the machine start from dev, once for this entry of its state,
// and tells whether that was done: by its controller and confirmed, by the
// agent that was told to, or by a person who was asked to.
func (t *turn) restart(dev power.Device, why string) (bool, error) {
	h, err := t.here()
	if err != nil {
		return false, err
	}
	return t.restartSince(h, dev, why)
}

// restartSince is restart for the part h of the history.
func (t *turn) restartSince(h history, dev power.Device, why string) (bool, error) {
	if done := h.mark(markRestarted); done != nil {
		if done.Evidence["via"] == "agent" && t.at.Sub(done.At) > agentReboots {
			return true, t.pressTask(h, dev)
		}
		if done.Evidence["via"] == "agent" {
			t.again(agentReboots - t.at.Sub(done.At) + time.Second)
		}
		if done.Evidence["via"] == "controller" && dev == power.Network {
			return t.fromNetwork(h, done)
		}
		return true, nil
	}
	v, decided := t.Power[t.n.ID], h.mark(markRestart)
	if decided != nil && v == nil {
		return false, t.byHand(h, decided.At, dev)
	}
	if failed := h.mark(markFailed); failed != nil {
		at := failed.At.Add(restartPause * time.Duration(h.count(markFailed)))
		if t.at.Before(at) {
			t.note("%s failed; tries again at %s", v, at.Format(time.TimeOnly))
			t.again(at.Sub(t.at))
			return false, nil
		}
	}
	if t.busy() {
		return false, nil
	}
	if decided == nil || !t.mayStart() {
		// Each try asks anew: since the decision the site may be held, or dark.
		if err := t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
			t.note("waits for power: %v", err)
			t.again(max(t.Site.SlotWindow, time.Second))
			return false, nil
		}
		t.mu.Lock()
		t.granted[t.n.ID] = t.at
		t.mu.Unlock()
	}
	if decided == nil {
		t.setMark(markRestart, why, map[string]string{"device": dev.String()})
		return false, nil
	}
	t.note("%s restarts it: %s", v, why)
	since := t.n.Since
	t.start("restart", func(ctx context.Context) func(*turn) error {
		t.mu.Lock()
		delete(t.granted, t.n.ID)
		t.mu.Unlock()
		t.boundary(t.n.ID, "before cycle: "+why)
		ev, err := v.Cycle(ctx, dev)
		t.boundary(t.n.ID, "after cycle: "+why)
		return func(t *turn) error { return t.restarted(since, dev, ev, err) }
	})
	return false, nil
}

// mayStart tells whether power was granted for a restart that is about to begin.
func (t *turn) mayStart() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.granted[t.n.ID]
	return ok && t.at.Sub(at) < restartPause
}

// restarted takes in what a cycle came to.
func (t *turn) restarted(since time.Time, dev power.Device, ev power.Evidence, err error) error {
	evidence := ev.Map()
	here := t.n.Since.Equal(since)
	if err == nil {
		t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Evidence: evidence,
			Power: &inventory.PowerFact{On: power.On.String(), Via: ev.Controller, At: t.at}})
		if here {
			mark := map[string]string{"via": "controller", "controller": ev.Controller}
			if !ev.Started.IsZero() {
				mark["started"] = ev.Started.UTC().Format(time.RFC3339Nano)
			}
			t.setMark(markRestarted, "power-cycled, confirmed on", mark)
		}
		return nil
	}
	if !here {
		t.alarm("a power cycle failed: "+err.Error(), evidence)
		return nil
	}
	if errors.Is(err, power.ErrNeedsHuman) {
		h, herr := t.here()
		if herr != nil {
			return herr
		}
		return t.pressTask(h, dev)
	}
	if errors.Is(err, power.ErrUnsupported) {
		// It can be woken, or shut down, and not restarted.
		h, herr := t.here()
		if herr != nil {
			return herr
		}
		decided := t.at
		if m := h.mark(markRestart); m != nil {
			decided = m.At
		}
		return t.byHand(h, decided, dev)
	}
	evidence["error"] = err.Error()
	t.setMark(markFailed, err.Error(), evidence)
	h, herr := t.here()
	if herr != nil {
		return herr
	}
	if errors.Is(err, power.ErrAuth) {
		// One attempt: controllers lock an account after a few.
		return t.fail("power-credential", err.Error(), inventory.Task{
			Verb: "check", What: "the user and password of its power controller (" + ev.Controller + ")",
			Why: "it refused the credential", How: "correct the secret that site.yaml names, then mark this done", Proof: "none",
		})
	}
	if h.count(markFailed) >= restartTries {
		return t.fail("power", err.Error(), inventory.Task{
			Verb: "check", What: "its power controller (" + ev.Controller + ") and its power cable",
			Why: err.Error(), How: "smelt power status shows what it answers", Proof: "none",
		})
	}
	return nil
}

// byHand restarts a machine that nothing here can switch: the agent on it does
// it, or a person.
func (t *turn) byHand(h history, decided time.Time, dev power.Device) error {
	if live := t.Live(t.n.ID); live.Mode != "" && live.Mode != "installed" && t.at.Sub(live.LastSeen) < agentAlive {
		t.setMark(markRestarted, "its agent was told to restart it", map[string]string{"via": "agent"})
		return nil
	}
	// A process that just began has heard of no agent yet.
	t.mu.Lock()
	heard := t.begun.Add(agentAlive)
	t.mu.Unlock()
	if t.at.Before(heard) && t.at.Sub(decided) < agentAlive {
		t.note("listens whether an agent runs on it")
		t.again(min(heard.Sub(t.at), 5*time.Second))
		return nil
	}
	return t.pressTask(h, dev)
}

// pressTask asks a person to restart the machine, once for this entry of its state.
func (t *turn) pressTask(h history, dev power.Device) error {
	for i := range h {
		if h[i].Evidence["via"] == "person" {
			return nil
		}
	}
	how := "switch it off, wait five seconds, switch it on"
	if dev == power.Network {
		how += "; it must boot from the network"
	}
	id := t.open(inventory.Task{Verb: "press", What: "the power button", Why: "it must restart and nothing here can switch it", How: how, Proof: "dhcp"})
	t.setMark(markRestarted, "a person was asked to restart it", map[string]string{"via": "person", "task": id})
	t.note("a person must restart it")
	return nil
}
