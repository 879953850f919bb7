package convert_test

import (
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// story are the marks and moves of a node, in order.
func (h *hall) story(id inventory.NodeID) (out []string) {
	h.t.Helper()
	events, err := h.s.NodeEvents(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range events {
		switch {
		case e.Kind == inventory.KindMoved:
			out = append(out, e.To.String())
		case e.Evidence["mark"] != "":
			out = append(out, e.Evidence["mark"])
		}
	}
	return out
}

func index(list []string, s string) int {
	for i, o := range list {
		if o == s {
			return i
		}
	}
	return -1
}

// TestKexec: a system that was started past the firmware burns in, and joins
// only after it was started from its disk.
func TestKexec(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20, start: inventory.StartKexec}, func(c *convert.Conductor, _ *store.Store) {
		c.PauseCluster(20 * time.Millisecond)
	})
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	h.reach(id, inventory.InService)
	s := h.story(id)
	order := []string{"imaging", "starting", "kexec", "burning-in", "passed", "cold", "joining"}
	for i, what := range order {
		if index(s, what) < 0 || i > 0 && index(s, what) < index(s, order[i-1]) {
			t.Errorf("%s is not where it belongs: %q", what, s)
		}
	}
	// Into the installer, and once from its disk.
	if n := h.times(id, "/power/on"); n != 2 {
		t.Errorf("it was switched on %d times, into the installer and from its disk", n)
	}
}

// TestKexecRefused: where it cannot be started past the firmware it is started
// through it, which is the proof at once.
func TestKexecRefused(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20, start: inventory.StartKexec, Faults: map[int]string{0: "kexec"}},
		func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	h.reach(id, inventory.InService)
	s := h.story(id)
	if index(s, "kexec-failed") < 0 || index(s, "passed") >= 0 || index(s, "cold") >= 0 {
		t.Errorf("%q", s)
	}
}
