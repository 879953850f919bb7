package convert_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/internal/convert"
	"smelt/internal/sim"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/pxe"
)

func TestPermitIsOneUse(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	o := a.ordered("wipe")
	if again := a.order(); again.ID != o.ID || string(again.Permit.Payload) != string(o.Permit.Payload) {
		t.Errorf("asked twice: %s and %s", o.ID, again.ID)
	}
	p := a.permit(o)
	if len(p.Disks) != 1 || p.Disks[0].Serial != "SIM-D00000" || p.Agent != convert.Fingerprint(a.key) {
		t.Errorf("permit %+v", p)
	}
	a.ok(h.c.UsePermit(t.Context(), a.agent, p.ID))
	if err := h.c.UsePermit(t.Context(), a.agent, p.ID); !errors.Is(err, store.ErrUsed) {
		t.Errorf("used twice: %v", err)
	}
	next := a.order()
	if next.ID != o.ID || a.permit(next).ID == p.ID {
		t.Errorf("after its use: order %s with permit %s", next.ID, a.permit(next).ID)
	}
	if err := h.c.UsePermit(t.Context(), a.agent, "00"); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("a permit that nobody issued: %v", err)
	}
}

func TestHoldAndStop(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	p := a.permit(a.ordered("wipe"))
	refused := func(why string) {
		t.Helper()
		if err := h.c.UsePermit(t.Context(), a.agent, p.ID); !errors.Is(err, convert.ErrRefused) || !strings.Contains(err.Error(), why) {
			t.Errorf("permit used: %v; want a refusal that says %q", err, why)
		}
		if o := a.order(); o.Kind != "wait" || o.Permit != nil {
			t.Errorf("order %s with permit %v", o.Kind, o.Permit)
		}
		if b := h.boots(0); b.mode != "inspect" {
			t.Errorf("it boots %q", b.mode)
		}
	}
	h.must(a.id, "hold", map[string]string{"reason": "customer data"})
	refused("customer data")
	// Only the owner's kind lifts it.
	r, err := h.c.Submit(t.Context(), store.Intent{ID: "x", Node: a.id, Verb: "release", Actor: "technician:bob"})
	if err != nil || r.OK {
		t.Errorf("a technician lifted an operator's hold: %+v, %v", r, err)
	}
	h.must(a.id, "release", nil)
	a.ordered("wipe")

	a.ok(h.c.Stop(t.Context(), true, "operator:anna", "smoke"))
	refused("global stop")
	a.ok(h.c.Stop(t.Context(), false, "operator:anna", "clear"))
	a.ok(h.c.UsePermit(t.Context(), a.agent, a.permit(a.ordered("wipe")).ID))
}

func TestFence(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	old := h.wiping(0)
	o := old.ordered("wipe")
	p := old.permit(o)
	a := h.installer(0) // the machine lost power and came back
	if a.agent.Fence <= old.agent.Fence {
		t.Fatalf("fence %d after %d", a.agent.Fence, old.agent.Fence)
	}
	if err := h.c.UsePermit(t.Context(), old.agent, p.ID); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("the earlier boot used its permit: %v", err)
	}
	if err := h.c.UsePermit(t.Context(), a.agent, p.ID); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("the later boot used the permit of the earlier: %v", err)
	}
	if o := old.order(); o.Kind != "wait" {
		t.Errorf("the earlier boot is told to %s", o.Kind)
	}
	// Its result says nothing about this boot.
	old.finish(o, convert.Result{OK: true})
	now := a.ordered("wipe")
	if now.ID != o.ID || now.Fence != a.agent.Fence {
		t.Errorf("the later boot got order %s with fence %d", now.ID, now.Fence)
	}
	a.written("wipe")
	h.reach(a.id, inventory.Imaging)
}

func TestNobodyIsBelieved(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	a.finish(a.ordered("wipe"), convert.Result{OK: true})
	n := h.reach(a.id, inventory.NeedsWork)
	if n.Failure.Cause != "permit" || n.Failure.Step != inventory.Wiping {
		t.Errorf("failure %+v", n.Failure)
	}
}

func TestEnrolment(t *testing.T) {
	h := newHall(t, layout{Nodes: 2, Dead: true})
	refused := func(a *hand, what string) {
		t.Helper()
		before := len(h.alarms(a.id))
		if err := a.enrol(); !errors.Is(err, convert.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
		if got := h.alarms(a.id); len(got) != before+1 {
			t.Errorf("%s: alarms %q", what, got)
		}
	}
	a := h.inspectedAs(0)
	a.ok(a.enrol()) // its answer was lost: the same agent asks again
	if f := h.node(a.id).Fence; f != a.agent.Fence || f != 1 {
		t.Errorf("fence %d, the agent has %d", f, a.agent.Fence)
	}
	thief := *a
	thief.key, _, _ = ed25519.GenerateKey(rand.Reader)
	refused(&thief, "a nonce used by another agent")

	other := h.boots(0)
	other.hw = sim.Hardware(1, macOf(1), 1)
	refused(other, "the nonce of another machine")

	twin := h.boots(0)
	twin.hw = sim.Hardware(1, macOf(0), 1) // same address, other board and disks
	refused(twin, "another machine with the same address")

	stale := h.boots(0)
	fresh := h.boots(0)
	fresh.ok(fresh.enrol())
	if err := stale.enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("the nonce of an earlier boot: %v", err)
	}
	if err := (&hand{hall: h, nonce: "nonsense", key: a.key}).enrol(); !errors.Is(err, convert.ErrRefused) {
		t.Errorf("an invented nonce: %v", err)
	}

	// Other hardware than was approved: a person looks first.
	h.must(nodeID(0), "approve", nil)
	for err := convert.ErrNotYet; !errors.Is(err, convert.ErrRefused); {
		c := h.boots(0)
		c.hw.GPUs, c.hw.PCI = nil, nil
		if c.mode == "convert" {
			if err = c.enrol(); err == nil {
				t.Fatal("it enrolled with other hardware")
			}
		}
	}
	if n := h.reach(nodeID(0), inventory.NeedsWork); n.Failure.Cause != "hardware-changed" {
		t.Errorf("failure %+v", n.Failure)
	}
}

func TestRenew(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.inspectedAs(0)
	first, err := h.c.Renew(t.Context(), a.agent)
	a.ok(err)
	// Its answer was lost: the old session still counts, and renews again.
	old, err := h.s.Agent(t.Context(), a.agent.Session, time.Now())
	a.ok(err)
	second, err := h.c.Renew(t.Context(), old)
	a.ok(err)
	if second.Token == first.Token || second.Mode != "inspect" {
		t.Errorf("renewed as %+v", second)
	}
	if _, err := h.s.Agent(t.Context(), first.Agent.Session, time.Now()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the session nobody got still counts: %v", err)
	}
	now, err := h.s.Agent(t.Context(), second.Agent.Session, time.Now())
	a.ok(err)
	if _, err = h.c.Order(t.Context(), now); err != nil {
		t.Error(err)
	}
	if _, err := h.c.Renew(t.Context(), now); err != nil {
		t.Error(err)
	}
	if _, err := h.s.Agent(t.Context(), a.agent.Session, time.Now()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the session before the last still counts: %v", err)
	}
}

func TestInstalledSystem(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 2, Dead: true}, func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(20 * time.Millisecond) })
	for i, image := range []string{"right", "wrong"} {
		a := h.wiping(i)
		a.written("wipe")
		o := a.ordered("image")
		if again := a.order(); again.Handoff.Session != o.Handoff.Session || !again.Handoff.Expires.Equal(o.Handoff.Expires) {
			t.Error("asked twice, the handoff differs")
		}
		a.written("image")
		h.reach(a.id, inventory.Starting)
		d := a.installed(o)
		what := convert.Inspection{Hardware: d.hw, Image: o.Plan.Image, Addr: "10.0.0.9"}
		if image == "wrong" {
			what.Image = strings.Repeat("0", 64)
		}
		d.ok(h.c.Inspected(t.Context(), d.agent, what))
		if image == "wrong" {
			if n := h.reach(a.id, inventory.NeedsWork); n.Failure.Cause != "wrong-image" {
				t.Errorf("failure %+v", n.Failure)
			}
			continue
		}
		h.reach(a.id, inventory.BurningIn)
		burn(t, h, d)
	}
}

// burn holds what a report says against what the server knows, and the cluster
// against what it is told.
func burn(t *testing.T, h *hall, d *hand) {
	t.Helper()
	report := d.report
	o := d.ordered("burnin")
	if o.Subject == nil || o.Subject.Sim == nil || o.Profile.Name != "sim" {
		t.Errorf("order %+v", o)
	}
	d.finish(o, convert.Result{OK: true, Report: report(o, burnin.Fail)})
	n := h.reach(d.id, inventory.NeedsWork)
	if n.Passed != nil || n.Report != o.Report || len(n.Failure.Tasks) == 0 {
		t.Fatalf("after a failed burn-in: report %q, passed %v, failure %+v", n.Report, n.Passed, n.Failure)
	}
	// Every task done: it proves it by burning in again.
	for _, id := range n.Failure.Tasks {
		h.must(d.id, "task-done", map[string]string{"task": id})
		if err := h.do(d.id, "task-done", map[string]string{"task": id}); err == nil {
			t.Error("a task was done twice")
		}
	}
	h.reach(d.id, inventory.BurningIn)
	second := d.ordered("burnin")
	if second.Report == o.Report || second.ID == o.ID {
		t.Errorf("the second run is %s, report %s", second.ID, second.Report)
	}
	d.finish(second, convert.Result{OK: true, Report: report(second, burnin.Pass)})
	n = h.reach(d.id, inventory.Joining)
	if n.Passed == nil || n.Passed.Report != second.Report || !n.Passed.Simulated {
		t.Errorf("passed %+v", n.Passed)
	}
	b, err := h.s.Blob(t.Context(), d.id, "reports/"+second.Report+".json")
	d.ok(err)
	filed, err := burnin.ParseJSON(strings.NewReader(string(b.Data)))
	d.ok(err)
	if filed.Node != d.id || !filed.Lab || filed.Profile.Name != "sim" || filed.HWDigest != n.Hardware.Digest() || filed.Image != n.Image || filed.Verdict.Answer != burnin.PASS {
		t.Errorf("filed %+v", filed)
	}
	if _, err := h.s.Blob(t.Context(), d.id, "reports/"+second.Report+".html"); err != nil {
		t.Error(err)
	}

	// Somebody else's hold in the cluster stays theirs.
	j := d.ordered("join")
	h.cluster.Register(d.id)
	h.cluster.HoldForeign(d.id, "bad fan, Anna")
	d.finish(j, convert.Result{OK: true})
	h.until(d.id, "waits for the holder", func(n inventory.Node) bool { return strings.Contains(n.Note, "somebody holds it") })
	if s, _ := h.cluster.Observe(t.Context(), d.id); !strings.Contains(s.Detail, "Anna") {
		t.Errorf("the foreign hold became %q", s.Detail)
	}
	h.cluster.HoldForeign(d.id, "")
	h.reach(d.id, inventory.InService)

	// A member of the cluster proves itself again, held meanwhile.
	for _, verb := range []string{"retire", "approve", "reinspect", "reject"} {
		if err := h.do(d.id, verb, nil); err == nil {
			t.Errorf("%s of a node in service was carried out", verb)
		}
	}
	h.must(d.id, "reverify", nil)
	third := d.ordered("burnin")
	if s, _ := h.cluster.Observe(t.Context(), d.id); !s.HeldByUs || s.Ready {
		t.Errorf("during re-verification the cluster says %+v", s)
	}
	d.finish(third, convert.Result{OK: true, Report: report(third, burnin.Pass)})
	if n := h.reach(d.id, inventory.InService); n.Passed.Report != third.Report {
		t.Errorf("in service with report %s, want %s", n.Passed.Report, third.Report)
	}

	// And leaves it: only then may its disks be touched again.
	h.must(d.id, "leave", nil)
	if n := h.reach(d.id, inventory.Inspected); n.Joined {
		t.Error("it left and is still a member")
	}
	if s, _ := h.cluster.Observe(t.Context(), d.id); s.Known {
		t.Errorf("it left and the cluster says %+v", s)
	}
	h.must(d.id, "retire", nil)
	h.reach(d.id, inventory.Retired)
}

// report is what an honest agent measured, but for the words that are not its
// own to say.
func (d *hand) report(o convert.Order, status burnin.Status) *burnin.Report {
	r := &burnin.Report{ID: o.Report, Node: d.id, Lab: false, Hardware: d.hw, HWDigest: "x", Image: d.node(d.id).Image, Agent: "test",
		Profile: burnin.Profile{Name: "nothing"}, Started: time.Now(), Finished: time.Now()}
	for _, c := range o.Profile.Checks {
		res := burnin.Result{ID: c.ID, Status: status, Reason: "test", Work: 1, WorkUnit: "round", Simulated: true, Took: time.Second}
		if status == burnin.Fail {
			res.Findings = []burnin.Finding{{Item: "GPU 0000:01:00.0", Name: "present", Limit: ">= 1", Status: burnin.Fail, Cause: "gpu-lost", Fix: "reseat the GPU"}}
		}
		r.Results = append(r.Results, res)
	}
	return r
}

func TestPowerThatFails(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	h.setFault(nodeID(0), power.ErrAuth)
	h.inspectedAs(0)
	h.must(nodeID(0), "approve", nil)
	n := h.reach(nodeID(0), inventory.NeedsWork)
	if n.Failure.Cause != "power-credential" || len(n.Failure.Tasks) != 1 {
		t.Errorf("failure %+v", n.Failure)
	}
	asked := 0
	for _, path := range []string{"state", "on", "off", "boot"} {
		asked += h.times(nodeID(0), "/power/"+path)
	}
	if asked != 1 {
		t.Errorf("a refused credential was tried %d times", asked)
	}
	// The credential is corrected: the step that failed is repeated.
	h.setFault(nodeID(0), nil)
	h.must(nodeID(0), "task-done", map[string]string{"task": n.Failure.Tasks[0]})
	h.installer(0).written("wipe")
	h.reach(nodeID(0), inventory.Imaging)
}

func TestPowerCut(t *testing.T) {
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, func(c *convert.Conductor, _ *store.Store) { c.PauseCluster(100 * time.Millisecond) })
	a := h.wiping(0)
	m := h.machines[a.id]
	if on, _ := m.State(t.Context()); !on {
		t.Fatal("it was never switched on")
	}
	_ = m.PowerOff(t.Context()) // the hall is dark, and nobody told the server
	h.until(a.id, "is switched on again", func(inventory.Node) bool {
		on, _ := m.State(t.Context())
		return on
	})
	h.installer(0).written("wipe")
	h.reach(a.id, inventory.Imaging)
}

func TestBlastRadiusAndBudget(t *testing.T) {
	for _, l := range []layout{
		{Nodes: 4, Max: 1},
		{Nodes: 4, Max: 4, Feed: 6}, // 1104 W: room for one machine of 1000 W
	} {
		t.Run(fmt.Sprintf("max %d feed %.0f", l.Max, l.Feed), func(t *testing.T) {
			l.Dead = true
			h := newHall(t, l)
			for i := range l.Nodes {
				h.inspectedAs(i)
				h.must(nodeID(i), "approve", nil)
			}
			first := h.installerOf(0, l.Nodes)
			for i := range l.Nodes {
				id := nodeID(i)
				if id == first.id {
					continue
				}
				h.until(id, "waits for its turn", func(n inventory.Node) bool {
					return n.State == inventory.Approved && strings.HasPrefix(n.Note, "waits for")
				})
				if b := h.boots(i); b.mode != "inspect" {
					t.Errorf("%s boots %q before its turn", id, b.mode)
				}
			}
		})
	}
}

func TestRefusedIntents(t *testing.T) {
	h := newHall(t, layout{Nodes: 2, Dead: true, Protect: map[int]bool{1: true}})
	h.inspectedAs(0)
	h.inspectedAs(1)
	for _, tt := range []struct {
		i      int
		params map[string]string
		want   string
	}{
		{0, map[string]string{"image": "nothing"}, `image "nothing"`},
		{0, map[string]string{"profile": "nothing"}, `profile "nothing"`},
		{0, map[string]string{"wipe": "gently"}, `wipe "gently"`},
		{0, map[string]string{"target": "nothing"}, `"nothing"`},
		{0, map[string]string{"hardware": "0000"}, "not what was looked at"},
		{1, nil, "protected"},
	} {
		if err := h.do(nodeID(tt.i), "approve", tt.params); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("approve %v: %v; want %q", tt.params, err, tt.want)
		}
	}
	if n := h.node(nodeID(0)); n.State != inventory.Inspected || n.Plan != nil {
		t.Errorf("it is %s with plan %v", n.State, n.Plan)
	}
	for _, tt := range []struct{ verb, want string }{
		{"fly", "unknown verb"}, {"power", "power verb"}, {"task-done", "no task"}, {"release", "not held"}, {"import", "already"},
	} {
		if err := h.do(nodeID(0), tt.verb, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.verb, err, tt.want)
		}
	}
	if err := h.do("nobody", "hold", nil); err == nil || !strings.Contains(err.Error(), "no node") {
		t.Errorf("hold of nobody: %v", err)
	}
	h.must("srv-9", "import", map[string]string{"spec": `{"position":"B1","macs":["52:54:00:00:99:99"]}`})
	if n := h.node("srv-9"); n.State != inventory.Expected || n.Spec.Position != "B1" {
		t.Errorf("imported %+v", n)
	}
}

func TestReinspect(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.inspectedAs(0)
	if o := a.order(); o.Kind != "wait" {
		t.Fatalf("order %s", o.Kind)
	}
	h.must(a.id, "reinspect", nil)
	o := a.ordered("inspect") // the agent is there: nothing is restarted
	if n := h.times(a.id, "/power/off"); n != 0 {
		t.Errorf("it was switched off %d times", n)
	}
	// A card is gone: the node needs work.
	less := a.hw
	less.GPUs, less.PCI = nil, nil
	a.ok(h.c.Inspected(t.Context(), a.agent, convert.Inspection{Order: o.ID, Hardware: less}))
	n := h.reach(a.id, inventory.NeedsWork)
	if n.Failure.Cause != "triage" || len(n.Failure.Tasks) == 0 || n.Verdict.Answer == "convert" {
		t.Fatalf("failure %+v, verdict %+v", n.Failure, n.Verdict)
	}
	// The technician fits it and starts the machine, which proves it by itself.
	b := h.boots(0)
	b.ok(b.enrol())
	b.ok(h.c.Inspected(t.Context(), b.agent, convert.Inspection{Hardware: b.hw}))
	h.reach(a.id, inventory.Inspected)
	tasks, err := h.s.Tasks(t.Context(), a.id)
	b.ok(err)
	for _, task := range tasks {
		if task.Open() {
			t.Errorf("task %s is still open", task)
		}
	}
}

func TestBootTable(t *testing.T) {
	h := newHall(t, layout{Nodes: 0})
	hw := sim.Hardware(0, macOf(0), 1)
	disk := hw.Disks[0].DiskID
	plan := inventory.Plan{Run: "r", Image: "i", Hardware: hw.Digest(), Disks: []inventory.DiskID{disk}, Target: disk}.Seal()
	hold := &inventory.Hold{Owner: "operator", Reason: "x"}
	for s, want := range map[inventory.State]string{
		inventory.Expected: "inspect", inventory.Discovered: "inspect", inventory.Inspected: "inspect",
		inventory.Approved: "inspect", // nobody ordered its restart
		inventory.Wiping:   "convert", inventory.Imaging: "convert",
		inventory.Starting: "", inventory.BurningIn: "", inventory.Joining: "", inventory.InService: "",
		inventory.ReVerifying: "", inventory.Leaving: "", inventory.Retired: "", inventory.Rejected: "",
		inventory.NeedsWork: "inspect",
	} {
		n := inventory.Node{ID: "x", State: s, Plan: &plan, Hardware: &hw}
		if got, err := h.c.BootMode(n); err != nil || got != want {
			t.Errorf("%s boots %q, %v; want %q (%v)", s, got, err, want, n.Convertible())
		}
		for what, n := range map[string]inventory.Node{
			"held":      {ID: "x", State: s, Plan: &plan, Hardware: &hw, Hold: hold},
			"protected": {ID: "x", State: s, Plan: &plan, Hardware: &hw, Spec: inventory.Spec{Protect: true}},
			"planless":  {ID: "x", State: s, Hardware: &hw},
		} {
			if got, err := h.c.BootMode(n); err != nil || got == "convert" {
				t.Errorf("%s and %s, it boots %q, %v", s, what, got, err)
			}
		}
	}
}

func TestUnknownMachine(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	m := pxe.Machine{MAC: pxe.MAC{0x52, 0x54, 0, 9, 9, 9}, Stage: pxe.AskAddress}
	b, err := h.c.Boot(t.Context(), m)
	if err != nil || b.Action != pxe.Kernel || strings.Contains(strings.Join(b.Args, " "), "nonce") {
		t.Fatalf("an address was answered with %+v, %v", b, err)
	}
	n := h.node("new-525400090909")
	if n.State != inventory.Discovered || n.Spec.Name != "" {
		t.Errorf("met as %+v", n)
	}
	// site.yaml names the machine later: the name outweighs the meeting.
	h.must("srv-9", "import", map[string]string{"spec": `{"macs":["52:54:00:09:09:09"]}`})
	if _, err := h.c.Boot(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	h.reach("srv-9", inventory.Discovered)
	h.reach("new-525400090909", inventory.Rejected)
}

// TestBootPath: a class may insist on how its firmware boots, and a machine that
// our RAM system does not run on waits instead of trying it.
func TestBootPath(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, boot: pxe.Shim})
	m := pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskAddress}
	if b, err := h.c.Boot(t.Context(), m); err != nil || b.Action != pxe.Kernel || b.Path != pxe.Shim {
		t.Errorf("%+v, %v", b, err)
	}
	m.Arch = pxe.ARM64
	for _, m.Stage = range []pxe.Stage{pxe.AskAddress, pxe.AskScript} {
		if b, err := h.c.Boot(t.Context(), m); err != nil || b.Action != pxe.Hold || !strings.Contains(b.Why, "64-bit ARM") {
			t.Errorf("%v on ARM: %+v, %v", m.Stage, b, err)
		}
	}
}

func TestChoose(t *testing.T) {
	disk := func(serial string, size int64, change func(*inventory.Disk)) inventory.Disk {
		d := inventory.Disk{DiskID: inventory.DiskID{Serial: serial, Path: "pci-" + serial, Size: size}, Bus: "sata"}
		if change != nil {
			change(&d)
		}
		return d
	}
	usb := disk("usb-01", 900, func(d *inventory.Disk) { d.Bus = "usb" })
	removable := disk("card-01", 900, func(d *inventory.Disk) { d.Removable = true })
	busy := disk("busy-01", 900, func(d *inventory.Disk) { d.InUse = true })
	small, large := disk("small-01", 100, nil), disk("large-01", 200, nil)
	zfs := disk("zfs-01", 300, func(d *inventory.Disk) { d.Signatures = []string{"gpt", "zfs_member"} })
	nvme := disk("nvme-01", 80, func(d *inventory.Disk) { d.Bus, d.Model = "nvme", "Samsung SSD 980" })
	twin := disk("usb-01", 900, func(d *inventory.Disk) { d.Bus, d.Path = "usb", "pci-twin" })
	nameless := inventory.Disk{DiskID: inventory.DiskID{Size: 900}, Bus: "sata"}
	luks := disk("luks-01", 300, func(d *inventory.Disk) { d.Signatures = []string{"crypto_LUKS"} })
	all := []inventory.Disk{usb, removable, nameless, small, large}
	for _, tt := range []struct {
		name  string
		disks []inventory.Disk
		a     convert.Approval
		size  int64
		want  string // serials wiped, the target first; or part of the error after "!"
	}{
		{"in use", append([]inventory.Disk{busy}, all...), convert.Approval{}, 50, "!in use"},
		{"in use among all", append([]inventory.Disk{busy}, all...), convert.Approval{Target: "small-01", Disks: "all"}, 50, "!in use"},
		{"in use and named", append([]inventory.Disk{busy}, all...), convert.Approval{Target: "busy-01"}, 50, "!in use"},
		{"in use and another named", append([]inventory.Disk{busy}, all...), convert.Approval{Target: "small-01"}, 50, "small-01"},
		{"encrypted", []inventory.Disk{luks, small}, convert.Approval{}, 50, "!carries crypto_LUKS"},
		{"largest internal", all, convert.Approval{}, 50, "large-01"},
		{"order does not matter", []inventory.Disk{large, small}, convert.Approval{}, 50, "large-01"},
		{"named", all, convert.Approval{Target: "small-01"}, 50, "small-01"},
		{"named by path", all, convert.Approval{Target: "pci-small-01"}, 50, "small-01"},
		{"all", all, convert.Approval{Disks: "all"}, 50, "large-01 small-01"},
		{"usb when it is named", all, convert.Approval{Target: "usb-01"}, 50, "usb-01"},
		{"removable when it is named", all, convert.Approval{Target: "card-01"}, 50, "card-01"},
		{"named usb among all", all, convert.Approval{Target: "usb-01", Disks: "all"}, 50, "usb-01 large-01 small-01"},
		{"nobody's name", all, convert.Approval{Target: "x"}, 50, "!no disk that could be written is named"},
		{"two of that name", []inventory.Disk{usb, twin, small}, convert.Approval{Target: "usb-01"}, 50, "!several disks"},
		{"one of two by its path", []inventory.Disk{usb, twin, small}, convert.Approval{Target: "pci-twin"}, 50, "usb-01"},
		{"rule: smallest", all, convert.Approval{Rule: inventory.DiskRule{Smallest: true}}, 50, "small-01"},
		{"rule: smallest that is large enough", all, convert.Approval{Rule: inventory.DiskRule{Smallest: true}}, 150, "large-01"},
		{"rule: smallest, none is large enough", all, convert.Approval{Rule: inventory.DiskRule{Smallest: true}}, 500, "!the image needs"},
		{"rule: bus", []inventory.Disk{large, nvme}, convert.Approval{Rule: inventory.DiskRule{Bus: "nvme"}}, 50, "nvme-01"},
		{"rule: bus that is not there", all, convert.Approval{Rule: inventory.DiskRule{Bus: "nvme"}}, 50, "!no nvme disk"},
		{"rule: model", []inventory.Disk{large, nvme}, convert.Approval{Rule: inventory.DiskRule{Model: "SAMSUNG"}}, 50, "nvme-01"},
		{"rule: usb", all, convert.Approval{Rule: inventory.DiskRule{Bus: "usb"}}, 50, "usb-01"},
		{"rule and all", []inventory.Disk{large, nvme}, convert.Approval{Disks: "all", Rule: inventory.DiskRule{Bus: "nvme"}}, 50, "nvme-01 large-01"},
		{"named against the rule", []inventory.Disk{large, nvme}, convert.Approval{Target: "large-01", Rule: inventory.DiskRule{Bus: "nvme"}}, 50, "large-01"},
		{"only usb", []inventory.Disk{usb}, convert.Approval{}, 50, "!no internal disk"},
		{"too small", all, convert.Approval{}, 500, "!the image needs"},
		{"foreign data", []inventory.Disk{zfs, small}, convert.Approval{}, 50, "!carries zfs_member"},
		{"foreign data that is allowed", []inventory.Disk{zfs, small}, convert.Approval{Allow: []string{"zfs_member"}}, 50, "zfs-01"},
		{"foreign data elsewhere", []inventory.Disk{zfs, small}, convert.Approval{Target: "small-01"}, 50, "small-01"},
		{"foreign data among all", []inventory.Disk{zfs, small}, convert.Approval{Target: "small-01", Disks: "all"}, 50, "!carries zfs_member"},
	} {
		target, wipe, err := convert.Choose(tt.disks, tt.a, tt.size)
		if want, fails := strings.CutPrefix(tt.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) || len(wipe) != 0 {
				t.Errorf("%s: %v, %v; want %q", tt.name, wipe, err, want)
			}
			continue
		}
		got := []string{target.Serial}
		for _, d := range wipe {
			if d.Serial != target.Serial {
				got = append(got, d.Serial)
			}
		}
		if s := strings.Join(got, " "); err != nil || s != tt.want {
			t.Errorf("%s: %s, %v; want %s", tt.name, s, err, tt.want)
		}
	}
}

func TestVerdictTasks(t *testing.T) {
	for fix, want := range map[string]string{
		"move GPU RTX 3090 from riser 1 (x1) to an x16 slot":  "move GPU RTX 3090 from riser 1 (x1) to an x16 slot at riser 1",
		"seat GPU RTX 3090 in riser 1 again: it uses 1 lane":  "reseat GPU RTX 3090 in riser 1 again at riser 1",
		"inspect it again: its PCI bus could not be read":     "check pcie-link at riser 1",
		"replace GPU RTX 3090 in riser 1: the card itself is": "replace GPU RTX 3090 in riser 1 at riser 1",
	} {
		tasks := convert.VerdictTasks(inventory.Verdict{Target: "x", Reasons: []inventory.Reason{
			{Item: "ram", OK: true, Fix: "none"}, {Item: "pcie-link", Fix: fix, Where: "riser 1"},
		}})
		if len(tasks) != 1 || tasks[0].String() != want || tasks[0].How != fix || tasks[0].Proof != "reinspect" {
			t.Errorf("%s: %v", fix, tasks)
		}
	}
}

// Made-up machines beyond what a hall can have cost nothing that stays.
func TestTooManyUnknown(t *testing.T) {
	defer convert.SetMaxUnknown(3)()
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
	boot := func(i int) pxe.Action {
		t.Helper()
		b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC{2, 9, 0, 0, byte(i >> 8), byte(i)}, Stage: pxe.AskAddress})
		if err != nil {
			t.Fatal(err)
		}
		return b.Action
	}
	for i := range 3 {
		if a := boot(i); a != pxe.Kernel {
			t.Fatalf("machine %d: %v", i, a)
		}
	}
	locks := h.c.Locks()
	for i := range 300 {
		if a := boot(3 + i); a != pxe.Ignore {
			t.Fatalf("made-up machine %d: %v", i, a)
		}
	}
	if n := h.c.Locks() - locks; n > 1 {
		t.Errorf("300 made-up machines left %d locks", n)
	}
	if a := boot(1); a != pxe.Kernel {
		t.Errorf("one that was met before: %v", a)
	}
	defer convert.SetMaxUnknown(4)()
	w.pass(time.Minute)
	if a := boot(400); a != pxe.Kernel {
		t.Errorf("a machine, once there is room again: %v", a)
	}
}
