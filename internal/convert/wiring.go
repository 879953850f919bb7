package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// The proof of a wiring changes the load of one machine and sees which outlets
// move: a burn-in that is paused and goes on again, or a start of a machine
// that is off anyway. An outlet is never switched to find out.

// byProof is who pauses a burn-in for a proof.
const byProof = "proof"

const (
	proofWait  = 45 * time.Second // until a PDU's outlets show a change of load; their meters average
	proofLeast = 40.0             // watts that an outlet must move to have moved
)

// An outlet of a PDU.
type outlet struct {
	pdu    string
	number int
}

func (o outlet) String() string { return fmt.Sprintf("outlet %d of %s", o.number, o.pdu) }

// fedBy lists the outlets that site.yaml says feed a node.
func (c *Conductor) fedBy(id inventory.NodeID) (out []outlet) {
	for _, p := range c.PDUs {
		for n, node := range p.Feeds {
			if node == id {
				out = append(out, outlet{p.Name, n})
			}
		}
	}
	slices.SortFunc(out, byOutlet)
	return out
}

func byOutlet(a, b outlet) int { return cmp.Or(cmp.Compare(a.pdu, b.pdu), a.number-b.number) }

// readOutlets measures every outlet of every PDU that can. Which could not be
// read is an error beside what could.
func (c *Conductor) readOutlets(ctx context.Context) (map[outlet]float64, error) {
	type answer struct {
		pdu   string
		watts map[int]float64
		err   error
	}
	answers := make(chan answer, len(c.PDUs))
	asked := 0
	for _, p := range c.PDUs {
		if p.Outlets == nil {
			continue
		}
		asked++
		go func() {
			rctx, cancel := context.WithTimeout(ctx, meterEvery)
			defer cancel()
			w, err := p.Outlets(rctx)
			answers <- answer{p.Name, w, err}
		}()
	}
	out, failed := map[outlet]float64{}, []error(nil)
	for range asked {
		a := <-answers
		if a.err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.pdu, a.err))
		}
		for n, w := range a.watts {
			if w >= 0 && w < 100e3 { // not NaN
				out[outlet{a.pdu, n}] = w
			}
		}
	}
	return out, errors.Join(failed...)
}

// moved lists the outlets whose draw followed the steps of a load: high, low,
// high again (or low, high). rise says which way the first step goes.
func moved(reads []map[outlet]float64, rise bool) (out []outlet) {
	for o := range reads[0] {
		follows, up := true, rise
		for i := 1; i < len(reads); i++ {
			was, ok1 := reads[i-1][o]
			is, ok2 := reads[i][o]
			step := is - was
			if !up {
				step = -step
			}
			follows = follows && ok1 && ok2 && step >= max(proofLeast, 0.15*max(was, is))
			up = !up
		}
		if follows {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, byOutlet)
	return out
}

// wiring compares which outlets moved with which should have.
func wiring(want, got []outlet) (verdict, words string) {
	list := func(o []outlet) string {
		var s []string
		for _, x := range o {
			s = append(s, x.String())
		}
		return strings.Join(s, " and ")
	}
	switch {
	case len(got) == 0:
		return "unclear", "no outlet moved with its load: is it fed by a PDU that does not measure?"
	case len(want) == 0:
		return "mismatch", list(got) + " moved, site.yaml names none: write it there"
	case slices.Equal(want, got):
		return "proven", list(got) + " moved, as site.yaml says"
	}
	return "mismatch", list(got) + " moved, site.yaml says " + list(want) + ": swap the cord, or correct site.yaml"
}

// proveBy proves the wiring of the node. The intent is answered when it is done.
func (t *turn) proveBy(i store.Intent) (bool, error) {
	if !slices.ContainsFunc(t.PDUs, func(p PDU) bool { return p.Outlets != nil }) {
		return false, errors.New("no PDU of this site measures its outlets: its wiring cannot be seen from here")
	}
	if t.n.Hold != nil {
		return false, fmt.Errorf("it is held by %s: %s", t.n.Hold.Owner, t.n.Hold.Reason)
	}
	if h := t.SitePower().Hold; h != nil {
		// A burn-in that is paused does not go on during it, and nothing starts.
		return false, fmt.Errorf("the power of the site is held by %s: %s; smelt power resume", h.By, h.Reason)
	}
	if t.busy() {
		return false, nil // after what goes on
	}
	run, how, err := t.proofOf()
	if err != nil {
		return false, err
	}
	id, intent := t.n.ID, i.ID
	t.note("its wiring is proven: %s", how)
	t.after = append(t.after, func() {
		t.mu.Lock()
		t.proofs[id] = true
		t.mu.Unlock()
	})
	t.start("prove", func(ctx context.Context) func(*turn) error {
		got, evidence, err := run(ctx)
		return func(t *turn) error {
			t.mu.Lock()
			delete(t.proofs, id)
			t.mu.Unlock()
			t.unsay("its wiring is proven")
			r := store.IntentResult{ID: intent, OK: err == nil, At: t.at}
			if err != nil {
				r.Error = err.Error()
			} else if err := t.proven(got, how, evidence); err != nil {
				return err
			}
			t.change.IntentsDone = append(t.change.IntentsDone, r)
			return nil
		}
	})
	return false, nil
}

type prover = func(context.Context) (got []outlet, evidence map[string]string, err error)

// proofOf chooses how the load of the node can be changed without harm.
func (t *turn) proofOf() (prover, string, error) {
	id := t.n.ID
	switch m := t.machineOf(t.n); {
	case m.work() == power.WorkBurnIn && len(t.n.Shed) == 0:
		return func(ctx context.Context) ([]outlet, map[string]string, error) { return t.provePaused(ctx, id) },
			"its burn-in is paused for a moment; the check that runs begins again", nil
	case m.on == power.Off.String() && len(t.n.Shed) == 0 && m.work() == "" && t.Power[id] != nil:
		if err := t.Budget.Grant(id, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
			return nil, "", fmt.Errorf("it is off, and cannot be started to see: %w", err)
		}
		v := t.Power[id]
		return func(ctx context.Context) ([]outlet, map[string]string, error) { return t.proveStarted(ctx, v) },
			"it was off and is switched on, and stays on", nil
	}
	return nil, "", fmt.Errorf("it is %s: its wiring is proven while it burns in under its whole load, or when it is off", t.n.State)
}

func (c *Conductor) proofPause() time.Duration {
	if c.testOnlyPause > 0 {
		return c.testOnlyPause
	}
	return proofWait
}

// provePaused pauses a burn-in and lets it go on.
func (c *Conductor) provePaused(ctx context.Context, id inventory.NodeID) ([]outlet, map[string]string, error) {
	reads := make([]map[outlet]float64, 3)
	var err error
	if reads[0], err = c.readOutlets(ctx); err != nil {
		return nil, nil, err
	}
	if err := c.take(ctx, id, inventory.Shed{Do: inventory.ShedPause, By: byProof, Why: "which outlet feeds it?"}); err != nil {
		return nil, nil, err
	}
	err = sleep(ctx, c.proofPause())
	if err == nil {
		reads[1], err = c.readOutlets(ctx)
	}
	err = errors.Join(err, c.lift(context.WithoutCancel(ctx), id, func(s inventory.Shed) bool { return s.By == byProof }, "its outlets were read"))
	if err == nil {
		err = sleep(ctx, c.proofPause())
	}
	if err == nil {
		reads[2], err = c.readOutlets(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	got := moved(reads, false)
	return got, outletEvidence(reads, append(c.fedBy(id), got...)), nil
}

// proveStarted switches a machine on that is off.
func (c *Conductor) proveStarted(ctx context.Context, v *power.Verified) ([]outlet, map[string]string, error) {
	before, err := c.readOutlets(ctx)
	if err != nil {
		return nil, nil, err
	}
	ev, err := v.On(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := sleep(ctx, c.proofPause()); err != nil {
		return nil, nil, err
	}
	after, err := c.readOutlets(ctx)
	if err != nil {
		return nil, nil, err
	}
	reads := []map[outlet]float64{before, after}
	got := moved(reads, true)
	evidence := outletEvidence(reads, got)
	maps.Copy(evidence, ev.Map())
	return got, evidence, nil
}

// outletEvidence is what the outlets that matter read.
func outletEvidence(reads []map[outlet]float64, of []outlet) map[string]string {
	out := map[string]string{}
	for _, o := range of {
		var s []string
		for _, r := range reads {
			w, ok := r[o]
			if !ok {
				w = math.NaN()
			}
			s = append(s, fmt.Sprintf("%.0f W", w))
		}
		out[o.String()] = strings.Join(s, ", ")
	}
	return out
}

// markWiring names the event that a proof of the wiring leaves.
const markWiring = "wiring"

// proven stores what a proof came to. A mismatch is work for a person.
func (t *turn) proven(got []outlet, how string, evidence map[string]string) error {
	want := t.fedBy(t.n.ID)
	verdict, words := wiring(want, got)
	evidence["wiring"], evidence["how"] = verdict, how
	t.setMark(markWiring, "wiring "+verdict+": "+words, evidence)
	if on := evidence["after"]; on == power.On.String() {
		t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: "switched on to see which outlet feeds it",
			Power: &inventory.PowerFact{On: on, Via: evidence["controller"], At: t.at}})
	}
	switch verdict {
	case "mismatch":
		t.alarm("its power cord is not where site.yaml says: "+words, evidence)
		where := got
		if len(want) > 0 {
			where = want
		}
		t.open(inventory.Task{Verb: "check", What: "its power cord", Where: where[0].String(), Why: words,
			How: "follow the cord from the machine to the PDU; then correct the cord or site.yaml, and prove it again: smelt power prove " + string(t.n.ID), Proof: "none"})
	case "proven":
		return t.close(func(task inventory.Task) bool { return task.What == "its power cord" }, system, words)
	}
	return nil
}
