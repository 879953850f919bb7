package convert_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// inMemory is a site whose class runs from memory.
func inMemory(l layout) layout {
	l.root, l.Nodes = inventory.RootRAM, max(l.Nodes, 1)
	return l
}

// loader boots machine 0 until it gets its system.
func (h *hall) loader() *hand {
	h.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		changed := h.s.Changed()
		if a := h.boots(0); a.mode == "ram" {
			err := a.enrol()
			if err == nil {
				return a
			}
			if !errors.Is(err, convert.ErrNotYet) {
				h.t.Fatal(err)
			}
		}
		select {
		case <-changed:
		case <-deadline:
			h.t.Fatalf("it never got its system: %+v", h.node(nodeID(0)))
		}
	}
}

// TestRunsInMemory: a machine whose class says root: ram goes from approval to
// service without a permit and without a write, comes up the same way after
// each power cut with nobody approving it again, and is then a member of its
// cluster again.
func TestRunsInMemory(t *testing.T) {
	h := newHallWith(t, inMemory(layout{Max: 1, Feed: 20}), func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	n := h.reach(id, inventory.InService)
	if n.Root != inventory.RootRAM || n.Image == "" || n.Fence == 0 {
		t.Errorf("in service it is %+v", n)
	}
	if d := h.daemons(id); d != 1 {
		t.Errorf("its daemon was started %d times", d)
	}
	for cut := range 2 {
		fence := h.node(id).Fence
		_ = h.machines[id].PowerOff(t.Context())
		h.on(id)
		h.until(id, "its system is loaded again", func(n inventory.Node) bool { return n.Fence > fence })
		h.until(id, "its daemon is started again", func(inventory.Node) bool { return h.daemons(id) == cut+2 })
		if n := h.node(id); n.State != inventory.InService || n.Image == "" {
			t.Errorf("after power cut %d it is %s", cut, n.State)
		}
	}
	if w := h.machines[id].Writes(); len(w) != 0 {
		t.Errorf("%d writes to its disks", len(w))
	}
	if p, err := h.s.Permits(t.Context(), id); err != nil || len(p) != 0 {
		t.Errorf("%d permits, %v", len(p), err)
	}
	if a := h.alarms(id); len(a) != 0 {
		t.Errorf("alarms: %q", a)
	}
	h.must(id, "leave", nil)
	h.reach(id, inventory.Inspected)
	if mode, err := h.c.BootMode(h.node(id)); mode != "inspect" || err != nil {
		t.Errorf("out of service it boots %q, %v", mode, err)
	}
}

// daemons is how often a daemon was started on the node, as its history has it.
func (h *hall) daemons(id inventory.NodeID) (n int) {
	h.t.Helper()
	events, err := h.s.NodeEvents(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range events {
		if e.Evidence["mark"] == "daemon" {
			n++
		}
	}
	return n
}

func TestPlanInMemory(t *testing.T) {
	h := newHall(t, inMemory(layout{Dead: true}))
	a := h.boots(0)
	a.hw.Memory.Total = 512 << 20 // no room for anything beside the image
	a.hw.Disks = nil
	a.ok(a.enrol())
	a.ok(h.c.Inspected(t.Context(), a.agent, convert.Inspection{Hardware: a.hw}))
	h.until(a.id, "inspected", func(n inventory.Node) bool { return n.Verdict != nil })
	for _, r := range h.node(a.id).Verdict.Reasons {
		if r.Item == "disk" && !r.OK {
			t.Errorf("triage wants a disk: %+v", r)
		}
	}
	err := h.do(a.id, "approve", map[string]string{"force": "test"})
	if err == nil || !strings.Contains(err.Error(), "MiB of memory") {
		t.Errorf("approved with too little memory: %v", err)
	}
}

// TestLoadsTheRightMachine: what the system in memory is given is as good as
// what a disk holds, so it is handed out only to a machine that is known.
func TestLoadsTheRightMachine(t *testing.T) {
	h := newHall(t, inMemory(layout{Nodes: 2, Dead: true}))
	h.inspectedAs(0)
	h.must(nodeID(0), "approve", nil)
	a := h.loader()
	n := h.reach(a.id, inventory.Starting)
	o := a.ordered("ram")
	if o.Image != n.Plan.Image || o.Permit != nil || o.Handoff == nil || o.Fence != a.agent.Fence {
		t.Errorf("order %+v", o)
	}
	if again := a.order(); again.ID != o.ID || *again.Handoff != *o.Handoff {
		t.Errorf("asked twice: %+v and %+v", o, again)
	}
	if _, err := h.s.Agent(t.Context(), hashOf(o.Handoff.Session), time.Now()); err != nil {
		t.Errorf("the session of its system: %v", err)
	}

	stranger := h.boots(0)
	stranger.hw.Board.Serial, stranger.hw.Board.ChassisSerial = "SOMEBODY", "ELSE-12345"
	if err := stranger.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("another board got its system: %v", err)
	}
	unsure := h.boots(0)
	unsure.hw.Board, unsure.hw.Disks = inventory.Board{}, nil
	if err := unsure.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("a machine known by its address alone got its system: %v", err)
	}

	// A later start replaces the earlier one and its session.
	b := h.loader()
	if next := b.ordered("ram"); next.ID == o.ID || next.Handoff.Session == o.Handoff.Session {
		t.Errorf("the next start got order %s again", o.ID)
	}
	if _, err := h.s.Agent(t.Context(), hashOf(o.Handoff.Session), time.Now()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the session of the earlier start lives: %v", err)
	}
	if o := a.order(); o.Kind != "wait" {
		t.Errorf("the earlier start is told to %s", o.Kind)
	}
	// An image that does not verify is nobody's system.
	b.finish(b.ordered("ram"), convert.Result{Cause: "verify", Error: "chunk 3"})
	n = h.reach(a.id, inventory.NeedsWork)
	if n.Failure.Cause != "verify" || n.Failure.Step != inventory.Starting {
		t.Errorf("failure %+v", n.Failure)
	}
	if o := b.order(); o.Kind != "wait" || o.Handoff != nil {
		t.Errorf("then it is told to %s", o.Kind)
	}
	if mode, err := h.c.BootMode(n); mode != "ram" || err != nil {
		t.Errorf("it boots %q, %v", mode, err)
	}
}
