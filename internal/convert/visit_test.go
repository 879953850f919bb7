package convert_test

import (
	"context"
	"errors"
	"strings"
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

// TestRestartOutlivesTheServer: a server that dies between off and on leaves no
// machine off, and none in its memory test: the next one restarts it.
func TestRestartOutlivesTheServer(t *testing.T) {
	l := layout{Dir: t.TempDir(), Nodes: 1, Dead: true}
	var err error
	if l.Listen, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	wd, err := newWorld(&l, 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer wd.close()
	id := nodeID(0)
	// dies at the restart that f brings about
	during := func(dies bool, f func(h *hall)) {
		t.Helper()
		h := &hall{world: wd, t: t, l: l}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := make(chan struct{})
		begin := func(c *convert.Conductor, _ *store.Store) {
			if dies {
				c.OnBoundary(func(_ inventory.NodeID, what string) {
					if strings.HasPrefix(what, "before cycle") {
						<-asked
						cancel()
					}
				})
			}
		}
		ended, up := make(chan error, 1), make(chan struct{})
		go func() {
			ended <- serve(ctx, l, testLog(), begin, func(c *convert.Conductor, s *store.Store) { h.c, h.s = c, s; close(up) })
		}()
		select {
		case <-up:
			<-h.c.Ready()
			f(h)
			close(asked)
		case err := <-ended:
			t.Fatal(err)
		}
		if dies {
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Second):
				t.Error("nothing was restarted")
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	during(true, func(h *hall) {
		h.inspectedAs(0)
		h.must(id, "memtest", map[string]string{"restart": "yes"})
	})
	during(false, func(h *hall) {
		h.until(id, "restarted for it", func(n inventory.Node) bool { return !n.Once.Restart })
		if b := h.onScreen(0); b.Action != pxe.Program {
			t.Errorf("it boots %v", b.Action)
		}
	})
	during(true, func(h *hall) { h.must(id, "memtest", map[string]string{"end": "yes"}) })
	during(false, func(h *hall) {
		on := h.times(id, "/power/on")
		h.until(id, "restarted out of it", func(n inventory.Node) bool { return n.Once == nil })
		if h.times(id, "/power/on") == on {
			t.Error("it is in its memory test for ever")
		}
	})
}

// TestAgentsSetNoMarks: how far a node is, its agent cannot say.
func TestAgentsSetNoMarks(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	o := a.ordered("wipe")
	a.ok(h.c.UsePermit(t.Context(), a.agent, a.permit(o).ID))
	a.finish(o, convert.Result{Error: "bad", Cause: "disk", Evidence: map[string]string{"mark": "daemon", "start": "disk", "took": "1s"},
		Wiped: []inventory.Wiped{{Disk: o.Plan.Disks[0]}}})
	h.reach(a.id, inventory.NeedsWork)
	events, err := h.s.NodeEvents(t.Context(), a.id)
	if err != nil {
		t.Fatal(err)
	}
	kept := false
	for _, e := range events {
		if e.Evidence["mark"] == "daemon" || e.Evidence["start"] != "" {
			t.Errorf("forged: %+v", e)
		}
		kept = kept || e.Evidence["took"] == "1s"
	}
	if !kept {
		t.Error("its other evidence is lost")
	}
}
