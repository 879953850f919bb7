package convert_test

import (
	"errors"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

// inService brings machine 0 into service.
func inService(t *testing.T) (*hall, inventory.NodeID) {
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	h.reach(id, inventory.InService)
	return h, id
}

// TestRescueIsAVisit: the agent of the system on the disk is heard again when
// the rescue is over.
func TestRescueIsAVisit(t *testing.T) {
	h, id := inService(t)
	own := store.Agent{Session: "own", Node: id, Mode: "installed", Fence: h.node(id).Fence, Expires: time.Now().Add(time.Hour)}
	if err := h.s.PutAgent(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	h.must(id, "hold", map[string]string{"reason": "ECC errors"})
	h.must(id, "rescue", nil)
	a, late := h.boots(0), h.boots(0)
	a.ok(a.enrol())
	a.ordered("rescue")
	a.ok(a.enrol()) // its answer was lost
	if err := late.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("a second rescue began: %v", err)
	}
	h.must(id, "rescue", map[string]string{"end": "yes"})
	a.ordered("reboot")
	if b := h.onScreen(0); b.Action != pxe.Local {
		t.Errorf("then it boots %v", b.Action)
	}
	h.must(id, "release", nil)
	if n := h.node(id); n.Fence != own.Fence {
		t.Errorf("its fence is %d, its own system has %d", n.Fence, own.Fence)
	}
	if _, err := h.s.Agent(t.Context(), own.Session, time.Now()); err != nil {
		t.Errorf("its own system is not heard again: %v", err)
	}
}

// TestOnceEndsWithItsHold: what was allowed because the node was held is over
// when it is not held any more.
func TestOnceEndsWithItsHold(t *testing.T) {
	h, id := inService(t)
	h.must(id, "hold", map[string]string{"reason": "ECC errors"})
	h.must(id, "rescue", nil)
	h.must(id, "release", nil)
	if b := h.onScreen(0); b.Action != pxe.Local {
		t.Errorf("in service and not held it boots %v", b.Action)
	}
	h.until(id, "nothing is asked of it", func(n inventory.Node) bool { return n.Once == nil })

	h.must(id, "hold", map[string]string{"reason": "ECC errors"})
	h.must(id, "rescue", nil)
	a := h.boots(0)
	h.must(id, "release", nil)
	if err := a.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("an operator is let into a machine in service: %v", err)
	}
}

// TestWriteRescueAndTheStop: while the global stop is set no agent may write.
func TestWriteRescueAndTheStop(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	h.inspectedAs(0)
	h.must(nodeID(0), "rescue", map[string]string{"write": "yes"})
	a := h.boots(0)
	h.must("", "stop", map[string]string{"on": "true", "reason": "smoke"})
	if err := a.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("its disks can be written under the stop: %v", err)
	}
}
