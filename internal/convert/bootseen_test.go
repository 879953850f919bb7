package convert_test

import (
	"strings"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// waits is a hall whose machines may take d from power-on to their first word.
func waits(d time.Duration) func(*convert.Conductor, *store.Store) {
	return func(c *convert.Conductor, _ *store.Store) { c.Site.BootWait = d }
}

// marked waits for a step of the node that carries the mark.
func (h *hall) marked(id inventory.NodeID, mark string) inventory.Event {
	h.t.Helper()
	var found inventory.Event
	h.until(id, "is marked "+mark, func(inventory.Node) bool {
		events, err := h.s.NodeEvents(h.t.Context(), id)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range events {
			if e.Evidence["mark"] == mark {
				found = e
			}
		}
		return found.Kind != ""
	})
	return found
}

// TestBootSeen: a machine that asks for its boot after it was started is not
// started again.
func TestBootSeen(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, waits(time.Hour))
	h.inspectedAs(0)
	ons := h.times(nodeID(0), "/power/on")
	h.must(nodeID(0), "approve", nil)
	h.marked(nodeID(0), "restarted")
	h.boots(0)
	if e := h.marked(nodeID(0), "network-booted"); e.Evidence["after"] == "" {
		t.Errorf("evidence %v", e.Evidence)
	}
	if n := h.times(nodeID(0), "/power/on") - ons; n != 1 {
		t.Errorf("it was started %d times", n)
	}
	h.installer(0).written("wipe")
}

// TestBootIgnored: one that does not ask is started once more, and then a person
// looks at its firmware.
func TestBootIgnored(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, waits(200*time.Millisecond))
	h.inspectedAs(0)
	ons, boots := h.times(nodeID(0), "/power/on"), h.times(nodeID(0), "/power/boot")
	h.must(nodeID(0), "approve", nil)
	n := h.reach(nodeID(0), inventory.NeedsWork)
	if n.Failure.Cause != "boot-once-ignored" || !strings.Contains(n.Failure.Detail, "started 2 times") || len(n.Failure.Tasks) != 1 {
		t.Errorf("failure %+v", n.Failure)
	}
	if a, b := h.times(nodeID(0), "/power/on")-ons, h.times(nodeID(0), "/power/boot")-boots; a != 2 || b != 2 {
		t.Errorf("it was started %d times, told what to boot %d times; want 2 and 2", a, b)
	}
	if e := h.marked(nodeID(0), "boot-ignored"); e.Evidence["quirks"] != "boot-once-ignored" || e.Evidence["controller"] == "" {
		t.Errorf("evidence %v", e.Evidence)
	}
	tasks, err := h.s.Tasks(t.Context(), nodeID(0))
	if err != nil || len(tasks) != 1 || !strings.Contains(tasks[0].How, "Secure Boot") || !strings.Contains(tasks[0].How, "boot order") {
		t.Errorf("tasks %+v, %v", tasks, err)
	}
	// Nothing was written, and an installer that comes late is not let in.
	if a := h.boots(0); a.mode == "convert" {
		t.Error("a node that needs work boots the installer")
	}
	h.must(nodeID(0), "task-done", map[string]string{"task": n.Failure.Tasks[0]})
	h.installer(0).written("wipe")
}

// TestBootFromDisk: a machine whose installed agent speaks did not boot from the
// network; nobody waits for the time to pass.
func TestBootFromDisk(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, waits(time.Hour))
	h.inspectedAs(0)
	ons := h.times(nodeID(0), "/power/on")
	h.must(nodeID(0), "approve", nil)
	h.marked(nodeID(0), "restarted")
	if _, err := h.c.Order(t.Context(), store.Agent{Session: "old", Node: nodeID(0), Mode: "installed"}); err != nil {
		t.Fatal(err)
	}
	h.c.Look(nodeID(0))
	if e := h.marked(nodeID(0), "boot-ignored"); !strings.Contains(e.Reason, "on its disk") {
		t.Errorf("%+v", e)
	}
	h.until(nodeID(0), "is started again", func(inventory.Node) bool { return h.times(nodeID(0), "/power/on")-ons == 2 })
	h.installer(0).written("wipe")
}

// TestToldByController: an order that no state asks for reaches the agent once,
// and nobody when nobody waits for it.
func TestTellAgent(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.inspectedAs(0)
	if at, by := h.c.Heard(a.id); at.IsZero() || by == "" {
		t.Errorf("heard at %v by %q", at, by)
	}
	said := make(chan error, 1)
	go func() { said <- h.c.Tell(t.Context(), a.id, "off") }()
	o := a.ordered("off")
	if o.Fence != h.node(a.id).Fence || !strings.HasPrefix(o.ID, "told/off/") {
		t.Errorf("order %+v", o)
	}
	a.finish(o, convert.Result{OK: true})
	if err := <-said; err != nil {
		t.Error(err)
	}
	if o := a.order(); o.Kind == "off" {
		t.Error("it is told again")
	}
	if n := h.node(a.id); n.State != inventory.Inspected {
		t.Errorf("the node is %s", n.State)
	}
	// An agent of an earlier boot does not hear it.
	old := *a
	old.agent.Fence = 0
	go func() { said <- h.c.Tell(t.Context(), a.id, "reboot") }()
	if o := old.order(); o.Kind == "reboot" {
		t.Error("an agent of an earlier boot was told")
	}
	a.finish(a.ordered("reboot"), convert.Result{OK: true})
	if err := <-said; err != nil {
		t.Error(err)
	}
	if err := h.c.Tell(t.Context(), a.id, "wipe"); err == nil {
		t.Error("it was told to wipe")
	}
}
