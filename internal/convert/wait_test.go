package convert_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

func quick(c *convert.Conductor, _ *store.Store) { c.PauseCluster(50 * time.Millisecond) }

// TestSwitchedOffByAPerson: what somebody switched off stays off until
// somebody switches it on.
func TestSwitchedOffByAPerson(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, quick)
	a := h.wiping(0)
	h.must(a.id, "power", map[string]string{"verb": "off", "force": "yes"})
	ons := h.times(a.id, "/power/on")
	h.until(a.id, "says who switched it off", func(n inventory.Node) bool {
		return strings.Contains(n.Note, "operator:anna switched it off")
	})
	if on, _ := h.machines[a.id].State(t.Context()); on || h.times(a.id, "/power/on") != ons {
		t.Error("it was switched on again by itself")
	}
	h.must(a.id, "power", map[string]string{"verb": "on"})
	h.installer(0).written("wipe")
	h.reach(a.id, inventory.Imaging)
}

// TestHoldStopsEverything: a held node is not taken from the cluster, and is
// ordered to do nothing.
func TestHoldStopsEverything(t *testing.T) {
	for verb, state := range map[string]inventory.State{"reverify": inventory.ReVerifying, "leave": inventory.Leaving} {
		t.Run(verb, func(t *testing.T) {
			h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, quick)
			id := nodeID(0)
			h.on(id)
			h.reach(id, inventory.Inspected)
			h.must(id, "approve", nil)
			h.reach(id, inventory.InService)
			h.must(id, "hold", map[string]string{"reason": "customer data"})
			before := len(h.cluster.Calls())
			h.must(id, verb, nil)
			h.until(id, "waits for the holder", func(n inventory.Node) bool {
				return n.State == state && strings.HasPrefix(n.Note, "held by operator")
			})
			n := h.node(id)
			o, err := h.c.Order(t.Context(), store.Agent{Session: "x", Node: id, Mode: "installed", Fence: n.Fence})
			if err != nil || o.Kind != "wait" || !strings.Contains(o.Why, "held by") {
				t.Errorf("order %s (%s), %v", o.Kind, o.Why, err)
			}
			if calls := h.cluster.Calls()[before:]; len(calls) != 0 {
				t.Errorf("the cluster was asked to %q", calls)
			}
			h.must(id, "release", nil)
			if verb == "leave" {
				h.reach(id, inventory.Inspected)
				return
			}
			h.until(id, "is in service again", func(n inventory.Node) bool { return n.State == inventory.InService })
		})
	}
}

// TestRefusedProof: a node whose tasks are done and which cannot go back to
// where it failed is looked at anew.
func TestRefusedProof(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	a.finish(a.ordered("wipe"), convert.Result{Error: "it hangs"})
	n := h.reach(a.id, inventory.NeedsWork)
	b := h.boots(0)
	b.hw = without(0)
	b.ok(b.enrol())
	b.ok(h.c.Inspected(t.Context(), b.agent, convert.Inspection{Hardware: b.hw}))
	h.until(a.id, "was inspected", func(n inventory.Node) bool { return len(n.Hardware.GPUs) == 0 })
	for _, id := range n.Failure.Tasks {
		h.must(a.id, "task-done", map[string]string{"task": id})
	}
	h.reach(a.id, inventory.Discovered)
}

// TestErrorBecomesNote: an error that stays is told where people look.
func TestErrorBecomesNote(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	d, image := h.wroteImage()
	d.says(d.hw, image)
	o := d.ordered("burnin")
	err := h.s.Observe(t.Context(), store.Observation{Node: d.id, Kind: "result", Key: "x", At: time.Now(),
		Data: fmt.Appendf(nil, `{"order":%q,"kind":"burnin","ok":true,"fence":%d,"mode":"installed","reportBlob":"nothing"}`, o.ID, d.agent.Fence)})
	if err != nil {
		t.Fatal(err)
	}
	h.until(d.id, "says why it cannot go on", func(n inventory.Node) bool { return strings.HasPrefix(n.Note, "cannot go on: ") })
}

// TestMissedInstaller: an agent that may only inspect does not keep a machine
// from its conversion for ever.
func TestMissedInstaller(t *testing.T) {
	for _, state := range []inventory.State{inventory.Approved, inventory.Wiping} {
		t.Run(state.String(), func(t *testing.T) {
			h := newHall(t, layout{Nodes: 1, Dead: true})
			if state == inventory.Wiping {
				h.wiping(0)
			} else {
				h.inspectedAs(0)
				h.must(nodeID(0), "approve", nil)
				h.until(nodeID(0), "was restarted", func(n inventory.Node) bool { return strings.Contains(n.Note, "waits for the installer") })
			}
			h.must(nodeID(0), "hold", map[string]string{"reason": "customer data"})
			a := h.boots(0)
			if a.mode != "inspect" {
				t.Fatalf("held, it boots %q", a.mode)
			}
			a.ok(a.enrol())
			if o := a.order(); o.Kind != "wait" {
				t.Errorf("held, it is told to %s", o.Kind)
			}
			h.must(a.id, "release", nil)
			a.ordered("reboot")
			h.installer(0).written("wipe")
		})
	}
}

// TestReportBeyondTheBound: it counts as none instead of coming for ever.
func TestReportBeyondTheBound(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	d, image := h.wroteImage()
	d.says(d.hw, image)
	o := d.ordered("burnin")
	r := d.report(o, burnin.Pass)
	for range 100 {
		r.Results = append(r.Results, r.Results[0])
	}
	d.finish(o, convert.Result{OK: true, Report: r})
	if n := h.reach(d.id, inventory.NeedsWork); n.Failure.Cause != "burnin-incomplete" || !strings.Contains(n.Failure.Detail, "cannot be taken") {
		t.Errorf("failure %+v", n.Failure)
	}
}

// TestTalkativeAgent: what it says is cut before it becomes history.
func TestTalkativeAgent(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	o := a.ordered("wipe")
	a.ok(h.c.UsePermit(t.Context(), a.agent, a.permit(o).ID))
	ev := map[string]string{}
	for i := range 1000 {
		ev[fmt.Sprintf("%04d", i)] = strings.Repeat("x", 10000)
	}
	long := inventory.Wiped{Disk: o.Plan.Target, Level: o.Plan.Wipe, Method: strings.Repeat("m", 10000)}
	for range 1000 {
		long.Notes = append(long.Notes, strings.Repeat("n", 10000))
	}
	a.finish(o, convert.Result{OK: true, Evidence: ev, Wiped: []inventory.Wiped{long}})
	h.reach(a.id, inventory.Imaging)
	blobs, err := h.s.Blobs(t.Context(), a.id, "certificates/")
	a.ok(err)
	for _, b := range blobs {
		b, err := h.s.Blob(t.Context(), a.id, b.Name)
		a.ok(err)
		if len(b.Data) > 512<<10 {
			t.Errorf("%s has %d bytes", b.Name, len(b.Data))
		}
	}
	a.finish(a.ordered("image"), convert.Result{Error: strings.Repeat("ä", 10000), Cause: strings.Repeat("y", 10000)})
	n := h.reach(a.id, inventory.NeedsWork)
	if len(n.Failure.Detail) > 4200 || len(n.Failure.Cause) > 200 {
		t.Errorf("detail has %d bytes, cause %d", len(n.Failure.Detail), len(n.Failure.Cause))
	}
	events, err := h.s.NodeEvents(t.Context(), a.id)
	a.ok(err)
	for _, e := range events {
		for _, v := range e.Evidence {
			if len(e.Evidence) > 32 || len(v) > 4096 {
				t.Fatalf("event %d has %d entries, one of %d bytes", e.Version, len(e.Evidence), len(v))
			}
		}
	}
}

// TestInstalledSessionLife: a node that was off for weeks is still let in.
func TestInstalledSessionLife(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	a.written("wipe")
	o := a.ordered("image")
	weeks := time.Now().Add(29 * 24 * time.Hour)
	if o.Handoff.Expires.Before(weeks) {
		t.Errorf("the handoff is over at %v", o.Handoff.Expires)
	}
	stored, err := h.s.Agent(t.Context(), hashOf(o.Handoff.Session), weeks)
	a.ok(err)
	s, err := h.c.Renew(t.Context(), stored)
	a.ok(err)
	if s.Expires.Before(weeks) {
		t.Errorf("renewed until %v", s.Expires)
	}
	if ram, err := h.c.Renew(t.Context(), a.agent); err != nil || ram.Expires.After(weeks) {
		t.Errorf("a RAM system has a session until %v, %v", ram.Expires, err)
	}
}

// TestSimulatedCardsAreNotOffered: no job could use them.
func TestSimulatedCardsAreNotOffered(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	h.inspectedAs(0)
	n := h.node(nodeID(0))
	if len(n.Hardware.GPUs) != 1 || !n.Hardware.GPUs[0].Simulated {
		t.Fatalf("cards %+v", n.Hardware.GPUs)
	}
	if m, err := h.c.Member(n); err != nil || len(m.GPUs) != 0 || m.CPUs == 0 {
		t.Errorf("the cluster is told %+v, %v", m, err)
	}
}
