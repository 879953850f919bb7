package convert_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// hall is a running server with its world, in this process.
type hall struct {
	*world
	t *testing.T
	c *convert.Conductor
	s *store.Store
	l layout
}

func newHall(t *testing.T, l layout) *hall {
	t.Helper()
	return newHallWith(t, l, nil)
}

func newHallWith(t *testing.T, l layout, begin func(*convert.Conductor, *store.Store)) *hall {
	t.Helper()
	l.Dir = t.TempDir()
	var err error
	if l.Listen, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	if l.BMC != nil {
		cert, pin, err := agentCertificate()
		if err != nil {
			t.Fatal(err)
		}
		if l.agents, err = freeAddr(); err != nil {
			t.Fatal(err)
		}
		l.cert, l.pin = &cert, pin
	}
	w, err := newWorld(&l, 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if l.BMC != nil {
		if err := w.bmcs(&l); err != nil {
			t.Fatal(err)
		}
	}
	h := &hall{world: w, t: t, l: l}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	up := make(chan struct{})
	go func() {
		ended <- serve(ctx, l, testLog(), begin, func(c *convert.Conductor, s *store.Store) { h.c, h.s = c, s; close(up) })
	}()
	t.Cleanup(func() {
		w.close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	select {
	case <-up:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	<-h.c.Ready()
	return h
}

func (h *hall) node(id inventory.NodeID) inventory.Node {
	h.t.Helper()
	n, err := h.s.Node(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// reach waits until the node is in a state.
func (h *hall) reach(id inventory.NodeID, want inventory.State) inventory.Node {
	h.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		changed := h.s.Changed()
		n := h.node(id)
		if n.State == want {
			return n
		}
		select {
		case <-changed:
		case <-deadline:
			events, _ := h.s.NodeEvents(h.t.Context(), id)
			for _, e := range events {
				h.t.Logf("%3d %s %s>%s %s %v", e.Version, e.Kind, e.From, e.To, e.Reason, e.Evidence)
			}
			h.t.Fatalf("node %s is %s (%s), machine: %s; want %s", id, n.State, n.Note, h.machines[id].Doing(), want)
		}
	}
}

func (h *hall) do(id inventory.NodeID, verb string, params map[string]string) error {
	h.t.Helper()
	r, err := h.c.Submit(h.t.Context(), store.Intent{ID: verb + string(id) + time.Now().String(), Node: id, Verb: verb, Actor: "operator:anna", Params: params})
	if err != nil {
		h.t.Fatal(err)
	}
	if !r.OK {
		return errors.New(r.Error)
	}
	return nil
}

func (h *hall) must(id inventory.NodeID, verb string, params map[string]string) {
	h.t.Helper()
	if err := h.do(id, verb, params); err != nil {
		h.t.Fatalf("%s %s: %v", verb, id, err)
	}
}

func (h *hall) on(id inventory.NodeID) {
	_ = h.machines[id].PowerOn(h.t.Context())
}

func TestConversion(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Max: 1, Feed: 20})
	id := nodeID(0)
	if n := h.node(id); n.State != inventory.Expected {
		t.Fatalf("it begins as %s", n.State)
	}
	h.on(id)
	h.reach(id, inventory.Inspected)
	if w := h.machines[id].Writes(); len(w) != 0 {
		t.Fatalf("written before approval: %v", w)
	}
	h.must(id, "approve", nil)
	n := h.reach(id, inventory.InService)
	if n.Passed == nil || !n.Passed.Simulated || n.Image == "" {
		t.Errorf("in service with %+v, image %q", n.Passed, n.Image)
	}
	w := h.machines[id].Writes()
	if len(w) != 2 || w[0].Action != "wipe" || w[1].Action != "image" || w[0].Permit == w[1].Permit {
		t.Errorf("writes: %+v", w)
	}
}

// TestConversionOverTheWire converts machines behind Redfish BMCs whose agents
// believe only the pinned key.
func TestConversionOverTheWire(t *testing.T) {
	h := newHall(t, layout{Nodes: 2, BMC: map[inventory.NodeID]bmcAt{}, Auto: true, Faults: map[int]string{1: "gpu-lost"}})
	h.on(nodeID(0))
	h.on(nodeID(1))
	h.reach(nodeID(0), inventory.InService)
	n := h.reach(nodeID(1), inventory.NeedsWork)
	if n.Failure.Cause != "burnin-repair" || n.Failure.Step != inventory.BurningIn {
		t.Errorf("failure %+v", n.Failure)
	}
	tasks, err := h.s.Tasks(t.Context(), n.ID)
	if err != nil || len(tasks) == 0 || tasks[0].Verb != "reseat" || tasks[0].Proof != "burnin" {
		t.Errorf("tasks %+v, %v", tasks, err)
	}
}
