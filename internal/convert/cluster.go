package convert

import (
	"context"
	"errors"
	"fmt"
	"time"

	"smelt/internal/join"
	"smelt/inventory"
)

// How long the cluster is left alone: between two looks, and after an error or
// while others hold the node.
const (
	clusterPoll  = 2 * time.Second
	clusterPause = 10 * time.Second
)

// joining brings a node that passed into the cluster: known and held before
// its daemon starts, released only once the cluster sees it, and in service
// only after a piece of real work ran on it.
func (t *turn) joining() error {
	h, err := t.here()
	if err != nil {
		return err
	}
	if why := t.unproven(h); why != "" {
		return t.disown(why)
	}
	if t.Join == nil {
		t.move(inventory.InService, "this site joins no cluster", nil)
		return nil
	}
	if t.busy() {
		return nil
	}
	if wait := t.pausing(); wait > 0 {
		t.again(wait)
		return nil
	}
	if h.mark(markPrepared) == nil {
		return t.prepare()
	}
	if !h.daemon() {
		t.note("waits for its agent to start the cluster's daemon")
		return nil
	}
	t.admit()
	return nil
}

// unproven says why no cluster may have the node, or "": its PASS does not
// answer for it any more, or a move into service was refused.
func (t *turn) unproven(h history) string {
	if m := h.mark(markRefused); m != nil {
		return m.Reason
	}
	if !proven(t.n) {
		return "its PASS is not for the hardware and image it has now"
	}
	return ""
}

// disown makes sure that the cluster gives the node no work and then fails it.
func (t *turn) disown(why string) error {
	fail := func(t *turn) error {
		if t.n.Passed == nil || t.n.Hardware == nil || proven(t.n) {
			return t.fail("join", why)
		}
		return t.failChanged(t.n.Passed.Hardware)
	}
	if t.Join == nil {
		return fail(t)
	}
	if t.busy() {
		return nil
	}
	if wait := t.pausing(); wait > 0 {
		t.again(wait)
		return nil
	}
	d, id, since := t.Join, t.n.ID, t.n.Since
	t.start("hold", func(ctx context.Context) func(*turn) error {
		s, err := d.Observe(ctx, id)
		if err == nil && s.Known {
			err = d.Hold(ctx, id, why)
		}
		t.boundary(id, "held: disowned")
		return func(t *turn) error {
			switch {
			case !t.n.Since.Equal(since):
			case err != nil:
				t.noteBy(theCluster, "%s; and it must be held in %s: %v", why, d, err)
				t.pause(clusterPause)
			default:
				return fail(t)
			}
			return nil
		}
	})
	return nil
}

// mayWork asks the store, because a job is no part of a turn: what the node is
// and who holds it may have changed since the job began.
func (c *Conductor) mayWork(ctx context.Context, id inventory.NodeID) error {
	n, err := c.Store.Node(ctx, id)
	switch {
	case err != nil:
		return err
	case n.Hold != nil:
		return fmt.Errorf("held by %s: %s", n.Hold.Owner, n.Hold.Reason)
	case !proven(n):
		return errors.New("its PASS is not for the hardware and image it has now")
	}
	return nil
}

// pausing is how long to leave the cluster alone after its last answer.
func (t *turn) pausing() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked[t.n.ID].Sub(t.at)
}

func (t *turn) pause(d time.Duration) {
	if t.testOnlyPause > 0 {
		d = t.testOnlyPause
	}
	t.mu.Lock()
	t.asked[t.n.ID] = t.at.Add(d)
	t.mu.Unlock()
	t.poke(t.n.ID, t.at.Add(d))
}

func (t *turn) prepare() error {
	m, err := t.member()
	if err != nil {
		return err
	}
	d, since := t.Join, t.n.Since
	t.start("prepare", func(ctx context.Context) func(*turn) error {
		t.boundary(m.Node, "before prepare")
		err := d.Prepare(ctx, m)
		t.boundary(m.Node, "after prepare")
		return func(t *turn) error {
			if !t.n.Since.Equal(since) {
				return nil
			}
			if err != nil {
				t.noteBy(theCluster, "%s: %v", d, err)
				t.pause(clusterPause)
				return nil
			}
			t.setMark(markPrepared, d.String()+" knows it and holds it", map[string]string{"addr": m.Addr})
			return nil
		}
	})
	return nil
}

// drain takes work away from the node in the cluster, once what runs there has
// ended, and then calls done.
func (t *turn) drain(reason string, done func(*turn)) {
	d, id, since := t.Join, t.n.ID, t.n.Since
	t.start("drain", func(ctx context.Context) func(*turn) error {
		err := d.Hold(ctx, id, reason)
		var s join.Standing
		if err == nil {
			s, err = d.Observe(ctx, id)
		}
		return func(t *turn) error {
			switch {
			case !t.n.Since.Equal(since):
			case err != nil:
				t.noteBy(theCluster, "%s: %v", d, err)
				t.pause(clusterPause)
			case s.Busy:
				t.noteBy(theCluster, "waits for its jobs to end (%s)", s.Detail)
				t.pause(clusterPause)
			default:
				done(t)
			}
			return nil
		}
	})
}

// leaving takes the node out of the cluster, once what runs there has ended.
func (t *turn) leaving() error {
	h, err := t.here()
	if err != nil {
		return err
	}
	to := inventory.Inspected
	if h.evidence("then") == inventory.Retired.String() || t.n.Hardware == nil {
		to = inventory.Retired
	}
	if t.Join == nil {
		t.move(to, "this site has no cluster to leave", nil)
		return nil
	}
	if t.busy() {
		return nil
	}
	if wait := t.pausing(); wait > 0 {
		t.again(wait)
		return nil
	}
	if h.mark(markPrepared) == nil {
		t.drain("leaving", func(t *turn) { t.setMark(markPrepared, "the cluster gives it no work", nil) })
		return nil
	}
	t.remove(func(t *turn) { t.move(to, t.Join.String()+" has let it go", nil) })
	return nil
}

// remove takes the node out of the cluster's books and then calls done.
func (t *turn) remove(done func(*turn)) {
	d, id, since := t.Join, t.n.ID, t.n.Since
	t.start("remove", func(ctx context.Context) func(*turn) error {
		err := d.Remove(ctx, id)
		return func(t *turn) error {
			switch {
			case !t.n.Since.Equal(since):
			case err != nil:
				t.noteBy(theCluster, "%s: %v", d, err)
				t.pause(clusterPause)
			default:
				done(t)
			}
			return nil
		}
	})
}

// admit goes once through what is left of joining. Each call is idempotent: an
// attempt that died is made again from the start.
func (t *turn) admit() {
	d, id, since := t.Join, t.n.ID, t.n.Since
	report := t.n.Report
	t.start("admit", func(ctx context.Context) func(*turn) error {
		at := func(what string) error {
			t.boundary(id, what)
			return t.mayWork(ctx, id)
		}
		proof, why, pause := admit(ctx, d, id, "passed burn-in, report "+report, at)
		t.boundary(id, "admitted")
		return func(t *turn) error {
			if !t.n.Since.Equal(since) {
				return nil
			}
			if why != "" {
				t.noteBy(theCluster, "%s", why)
				t.pause(pause)
				return nil
			}
			t.move(inventory.InService, d.String()+" ran a job on it", map[string]string{"output": proof})
			if err := t.err; err != nil {
				t.err = nil
				t.setMark(markRefused, err.Error(), nil)
			}
			return nil
		}
	})
}

// admit returns the output of the job that ran, or why none did. Before work
// may reach the node, at is asked whether it still may have it.
func admit(ctx context.Context, d join.Driver, id inventory.NodeID, reason string, at func(string) error) (proof, why string, pause time.Duration) {
	s, err := d.Observe(ctx, id)
	switch {
	case err != nil:
		return "", fmt.Sprintf("%s: %v", d, err), clusterPause
	case !s.Known:
		return "", fmt.Sprintf("%s has lost it", d), clusterPause
	case !s.Registered:
		return "", fmt.Sprintf("waits for its daemon to register with %s (%s)", d, s.Detail), clusterPoll
	case s.Held && !s.HeldByUs:
		return "", fmt.Sprintf("somebody holds it in %s: %s", d, s.Detail), clusterPause
	}
	if s.Held {
		// The reason may have been lost when the daemon registered.
		if err := d.Hold(ctx, id, reason); err != nil {
			return "", fmt.Sprintf("%s: %v", d, err), clusterPause
		}
		if err := at("held with its reason"); err != nil {
			return "", err.Error(), clusterPoll
		}
		if err := d.Release(ctx, id); err != nil {
			return "", fmt.Sprintf("%s: %v", d, err), clusterPause
		}
	}
	out := ""
	if err = at("released"); err == nil {
		out, err = d.Verify(ctx, id)
	}
	if err != nil {
		// A node that fails its first job takes no second one from somebody else.
		if herr := d.Hold(ctx, id, "its first job failed"); herr != nil {
			err = fmt.Errorf("%w; and it could not be held: %w", err, herr)
		}
		return "", fmt.Sprintf("its first job failed: %v", err), clusterPause
	}
	if err := at("job ran"); err != nil {
		if herr := d.Hold(ctx, id, err.Error()); herr != nil {
			err = fmt.Errorf("%w; and it could not be held: %w", err, herr)
		}
		return "", err.Error(), clusterPoll
	}
	return out, "", 0
}

// daemon takes in whether the agent started the cluster's daemon.
func (t *turn) daemon(r reported) error {
	if !r.OK {
		return t.fail("join", "the cluster's daemon did not start: "+r.Error, inventory.Task{
			Verb: "check", What: "the cluster's daemon on the node", Why: r.Error, Proof: "none",
		})
	}
	t.setMark(markDaemon, "its agent started the cluster's daemon", nil)
	return nil
}
