package convert_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

// onScreen is what machine i gets when its loader asks.
func (h *hall) onScreen(i int) pxe.Boot {
	h.t.Helper()
	b, err := h.c.Boot(h.t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(i)), Stage: pxe.AskScript, Leased: true})
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// TestRescue: asked for, it is the next boot and only that one; its agent may
// do nothing else, and is sent home when the time is over.
func TestRescue(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	id := nodeID(0)
	h.inspectedAs(0)
	h.must(id, "rescue", map[string]string{"for": "1h", "reason": "odd noises"})
	if err := h.do(id, "memtest", nil); err == nil || !strings.Contains(err.Error(), "--end") {
		t.Errorf("two wishes at once: %v", err)
	}
	if err := h.do(id, "approve", nil); err == nil || !strings.Contains(err.Error(), "rescue") {
		t.Errorf("approved under somebody's hands: %v", err)
	}
	a := h.boots(0)
	if a.mode != "rescue" {
		t.Fatalf("it boots %q", a.mode)
	}
	late := h.boots(0) // its loader asked twice
	a.ok(a.enrol())
	if n := h.node(id); n.Once == nil || n.Once.Began.IsZero() || n.Once.By != "operator:anna" || n.Once.Write {
		t.Errorf("while it runs: %+v", n.Once)
	}
	if err := late.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("a second rescue began: %v", err)
	}
	o := a.ordered("rescue")
	if o.Once == nil || o.Permit != nil || o.Handoff != nil {
		t.Errorf("order %+v", o)
	}
	a.ok(h.c.Inspected(t.Context(), a.agent, convert.Inspection{Hardware: a.hw})) // it says what it is; nothing follows
	if mode, err := h.c.BootMode(h.node(id)); mode != "inspect" || err != nil {
		t.Errorf("its next start: %q, %v", mode, err)
	}
	if b := h.boots(0); b.mode != "inspect" {
		t.Errorf("its next start is %q", b.mode)
	}
	a.ok(h.c.Finished(t.Context(), a.agent, convert.Result{Order: o.ID, Kind: "rescue", Cause: "network", Error: "no tools"}))
	h.until(id, "an alarm that nobody can log in", func(inventory.Node) bool {
		return slices.ContainsFunc(h.alarms(id), func(s string) bool { return strings.Contains(s, "no tools") })
	})
	h.must(id, "rescue", map[string]string{"end": "yes"})
	if o := a.ordered("reboot"); o.Once != nil {
		t.Errorf("then %+v", o)
	}
	if err := h.do(id, "rescue", map[string]string{"end": "yes"}); err == nil {
		t.Error("ended twice")
	}
	h.must(id, "approve", nil)
}

func TestRescueOfTheRightMachine(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, Bare: true})
	id := nodeID(0)
	h.inspectedAs(0)
	h.must(id, "rescue", map[string]string{"write": "yes"})
	a := h.boots(0)
	a.hw.Board, a.hw.Disks = inventory.Board{}, nil
	if err := a.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("disks of a machine known by its address alone can be written: %v", err)
	}
	h.must(id, "rescue", map[string]string{"end": "yes"})
	stale := h.boots(0) // an inspection
	h.must(id, "rescue", nil)
	a = h.boots(0)
	a.hw.Board, a.hw.Disks = inventory.Board{}, nil
	a.ok(a.enrol()) // looking does no harm
	if err := stale.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("an earlier boot took over: %v", err)
	}
}

// TestMemtest: it is served to one start; a loader that asks again meanwhile is
// the same start. When it is over the machine is restarted.
func TestMemtest(t *testing.T) {
	w := new(watch)
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, func(c *convert.Conductor, _ *store.Store) { c.Now = w.now })
	id := nodeID(0)
	h.inspectedAs(0)
	if err := h.do(id, "memtest", map[string]string{"for": "1s"}); err == nil {
		t.Error("a memory test of a second")
	}
	if err := h.do(id, "memtest", map[string]string{"for": "9000h"}); err == nil {
		t.Error("a memory test of a year")
	}
	h.must(id, "memtest", map[string]string{"for": "2h"})
	b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskScript})
	if err != nil || b.Action != pxe.Program || !h.node(id).Once.Began.IsZero() {
		t.Errorf("somebody who says its address: %v %+v", b.Action, h.node(id).Once)
	}
	for range 2 {
		if b := h.onScreen(0); b.Action != pxe.Program || b.BIOS != "memtest.bin" || b.EFI != "memtest.efi" {
			t.Errorf("it gets %+v", b)
		}
	}
	w.pass(10 * time.Minute)
	if b := h.onScreen(0); b.Action != pxe.Kernel {
		t.Errorf("the start after it gets %v", b.Action)
	}
	cycles := h.times(id, "/power/on")
	w.pass(2 * time.Hour)
	h.c.Look(id)
	h.until(id, "the test is over", func(n inventory.Node) bool { return n.Once == nil })
	h.until(id, "it was restarted", func(inventory.Node) bool { return h.times(id, "/power/on") > cycles })
}

// TestOnceInService: nobody takes a machine from its jobs without a hold.
func TestOnceInService(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	h.reach(id, inventory.InService)
	for _, verb := range []string{"rescue", "memtest"} {
		if err := h.do(id, verb, nil); err == nil || !strings.Contains(err.Error(), "hold it first") {
			t.Errorf("%s in service: %v", verb, err)
		}
	}
	h.must(id, "hold", map[string]string{"reason": "ECC errors"})
	h.must(id, "memtest", nil)
	if b := h.onScreen(0); b.Action != pxe.Program {
		t.Errorf("held it boots %v", b.Action)
	}
	if n := h.node(id); n.State != inventory.InService {
		t.Errorf("it became %s", n.State)
	}
}
