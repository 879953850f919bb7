package convert_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/internal/convert"
	"smelt/internal/sim"
	"smelt/internal/store"
	"smelt/inventory"
)

// without is the hardware of machine i after its card is gone.
func without(i int) inventory.Hardware {
	hw := sim.Hardware(i, macOf(i), 1)
	hw.GPUs, hw.PCI = nil, nil
	return hw
}

// wroteImage brings machine 0 to starting; the result speaks for its disk.
func (h *hall) wroteImage() (d *hand, image string) {
	h.t.Helper()
	a := h.wiping(0)
	a.written("wipe")
	o := a.ordered("image")
	a.written("image")
	h.reach(a.id, inventory.Starting)
	return a.installed(o), o.Plan.Image
}

func (d *hand) says(hw inventory.Hardware, image string) {
	d.t.Helper()
	d.ok(d.c.Inspected(d.t.Context(), d.agent, convert.Inspection{Hardware: hw, Image: image, Addr: "127.0.0.1"}))
}

// names checks that a node was failed because a card is gone, and says so.
func (h *hall) lostCard(id inventory.NodeID, proof string) {
	h.t.Helper()
	n := h.reach(id, inventory.NeedsWork)
	if n.Failure.Cause != "hardware-changed" || !strings.Contains(n.Failure.Detail, "RTX 3090 (0000:01:00.0) is missing") {
		h.t.Errorf("failure %+v", n.Failure)
	}
	tasks, err := h.s.Tasks(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, task := range tasks {
		if task.Open() && task.Verb == "reseat" && strings.Contains(task.What, "RTX 3090") && task.Proof == proof {
			return
		}
	}
	h.t.Errorf("no task to reseat the card, proven by %s: %+v", proof, tasks)
}

func TestCardLostAfterApproval(t *testing.T) {
	for _, state := range []inventory.State{inventory.Starting, inventory.BurningIn} {
		t.Run(state.String(), func(t *testing.T) {
			h := newHall(t, layout{Nodes: 1, Dead: true})
			d, image := h.wroteImage()
			if state == inventory.BurningIn {
				d.says(d.hw, image)
				h.reach(d.id, inventory.BurningIn)
			}
			d.says(without(0), image)
			h.lostCard(d.id, "reinspect")
		})
	}
}

// TestReportOfSomethingElse: a PASS counts only for the node, run, image and
// hardware that it was measured on.
func TestReportOfSomethingElse(t *testing.T) {
	for what, lie := range map[string]func(*burnin.Report){
		"node":     func(r *burnin.Report) { r.Node = nodeID(7) },
		"report":   func(r *burnin.Report) { r.ID = "r0-earlier" },
		"image":    func(r *burnin.Report) { r.Image = strings.Repeat("0", 64) },
		"hardware": func(r *burnin.Report) { r.Hardware = without(0) },
	} {
		t.Run(what, func(t *testing.T) {
			h := newHall(t, layout{Nodes: 1, Dead: true})
			d, image := h.wroteImage()
			d.says(d.hw, image)
			o := d.ordered("burnin")
			r := d.report(o, burnin.Pass)
			lie(r)
			d.finish(o, convert.Result{OK: true, Report: r})
			n := h.reach(d.id, inventory.NeedsWork)
			if n.Passed != nil {
				t.Errorf("passed %+v", n.Passed)
			}
			if what == "hardware" {
				h.lostCard(d.id, "burnin")
				return
			}
			if n.Failure.Cause != "burnin-incomplete" || !strings.Contains(n.Failure.Detail, what) {
				t.Errorf("failure %+v", n.Failure)
			}
		})
	}
}

// TestCardLostWhileJoining: whatever the moment, no node whose PASS is for
// other hardware runs jobs, and it ends held in the cluster.
func TestCardLostWhileJoining(t *testing.T) {
	for _, at := range []string{"before prepare", "after prepare", "held with its reason", "released", "job ran", "admitted"} {
		t.Run(at, func(t *testing.T) {
			var once sync.Once
			h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, func(c *convert.Conductor, s *store.Store) {
				c.PauseCluster(20 * time.Millisecond)
				c.OnBoundary(func(node inventory.NodeID, what string) {
					if what != at {
						return
					}
					once.Do(func() {
						n, err := s.Node(t.Context(), node)
						if err != nil {
							t.Error(err)
							return
						}
						err = c.Inspected(t.Context(), store.Agent{Session: "0123456789abcdef", Node: node, Mode: "installed", Fence: n.Fence},
							convert.Inspection{Hardware: without(0), Image: n.Image, Addr: "127.0.0.1"})
						if err != nil {
							t.Error(err)
						}
						for n.Hardware != nil && len(n.Hardware.GPUs) > 0 { // until the conductor took it in
							if t.Context().Err() != nil {
								return
							}
							changed := s.Changed()
							if n, err = s.Node(t.Context(), node); err != nil || len(n.Hardware.GPUs) == 0 {
								return
							}
							<-changed
						}
					})
				})
			})
			id := nodeID(0)
			h.on(id)
			h.reach(id, inventory.Inspected)
			h.must(id, "approve", nil)
			h.lostCard(id, "burnin")
			s, err := h.cluster.Observe(t.Context(), id)
			if err != nil || s.Known && (!s.Held || s.Ready) {
				t.Errorf("the cluster says %+v, %v", s, err)
			}
			if at == "held with its reason" || at == "released" {
				for _, c := range h.cluster.Calls() {
					if strings.HasPrefix(c, "verify") {
						t.Error("a job ran on it")
					}
				}
			}
			events, err := h.s.NodeEvents(t.Context(), id)
			if err != nil || len(events) > 80 {
				t.Errorf("%d events, %v", len(events), err)
			}
		})
	}
}

// TestCardLostInService: the cluster gives it no more work, and it must prove
// itself as what it is now.
func TestCardLostInService(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	n := h.reach(id, inventory.InService)
	_ = h.machines[id].PowerOff(t.Context())
	err := h.c.Inspected(t.Context(), store.Agent{Session: "0123456789abcdef", Node: id, Mode: "installed", Fence: n.Fence},
		convert.Inspection{Hardware: without(0), Image: n.Image, Addr: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	h.reach(id, inventory.ReVerifying)
	h.until(id, "is held in the cluster", func(inventory.Node) bool {
		s, _ := h.cluster.Observe(t.Context(), id)
		return s.HeldByUs && !s.Ready
	})
	if a := h.alarms(id); len(a) != 1 || !strings.Contains(a[0], "is missing") {
		t.Errorf("alarms %q", a)
	}
}

// TestRuleNeedsTwoFacts: no rule approves a machine that only a MAC names.
func TestRuleNeedsTwoFacts(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, Auto: true, Bare: true})
	a := h.inspectedAs(0)
	h.until(a.id, "waits for a person", func(n inventory.Node) bool {
		return n.State == inventory.Inspected && strings.HasPrefix(n.Note, "approve by hand: its identity rests on its MAC alone")
	})
	h.must(a.id, "approve", nil)
}

// TestWeakInspection: serials that were known do not disappear unseen.
func TestWeakInspection(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, Bare: true})
	a := h.inspectedAs(0)
	h.must(a.id, "reinspect", nil)
	o := a.ordered("inspect")
	hw := sim.Hardware(0, macOf(0), 1)
	hw.Board.Serial, hw.Board.ChassisSerial, hw.Disks[0].Serial = "", "", ""
	a.ok(h.c.Inspected(t.Context(), a.agent, convert.Inspection{Order: o.ID, Hardware: hw}))
	h.until(a.id, "was inspected", func(n inventory.Node) bool { return n.Hardware.Board.Serial == "" })
	if got := h.alarms(a.id); len(got) != 1 || !strings.Contains(got[0], "replaces what was known") {
		t.Errorf("alarms %q", got)
	}
}

// TestPlanOfInstalledSystem: the system on a disk sees that disk in use.
func TestPlanOfInstalledSystem(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	d, image := h.wroteImage()
	d.says(d.hw, image)
	o := d.ordered("burnin")
	d.finish(o, convert.Result{Error: "no card answers"})
	h.reach(d.id, inventory.NeedsWork)
	if err := h.do(d.id, "approve", nil); err == nil || !strings.Contains(err.Error(), "smelt node reinspect") {
		t.Errorf("approved from what the installed system said: %v", err)
	}
}
