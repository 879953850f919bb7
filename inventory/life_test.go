package inventory

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var at = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func TestTableIsWhole(t *testing.T) {
	for _, s := range States() {
		w, ok := Table[s]
		if !ok {
			t.Errorf("%s is not in the table", s)
			continue
		}
		if w.For == "" || w.Actor == "" {
			t.Errorf("%s: waits for %q, by %q", s, w.For, w.Actor)
		}
		terminal := s == Retired || s == Rejected
		if w.Terminal() != terminal {
			t.Errorf("%s: terminal is %t", s, w.Terminal())
		}
		if !terminal && (w.Deadline <= 0 || w.Try == "") {
			t.Errorf("%s: deadline %s, next thing to try %q", s, w.Deadline, w.Try)
		}
		for i, n := range w.Next {
			if _, ok := Table[n]; !ok || n == s || slices.Contains(w.Next[:i], n) {
				t.Errorf("%s leads to %s", s, n)
			}
		}
	}
	if len(Table) != len(States()) {
		t.Errorf("%d states in the table, %d in all", len(Table), len(States()))
	}
}

func reachable(from State) map[State]bool {
	seen := map[State]bool{from: true}
	for todo := []State{from}; len(todo) > 0; todo = todo[1:] {
		for _, n := range Table[todo[0]].Next {
			if !seen[n] {
				seen[n] = true
				todo = append(todo, n)
			}
		}
	}
	return seen
}

func TestEveryStateIsOnAWay(t *testing.T) {
	begin := reachable(Expected)
	for _, s := range States() {
		if !begin[s] {
			t.Errorf("%s cannot be reached", s)
		}
		if end := reachable(s); !end[Retired] && !end[InService] && !end[Rejected] {
			t.Errorf("%s leads nowhere", s)
		}
		if to := reachable(s); !to[Retired] {
			t.Errorf("a node that is %s can never be retired", s)
		}
	}
}

// Nothing is destroyed before approval, on any way through the table.
func TestDestructionFollowsApproval(t *testing.T) {
	for _, s := range States() {
		for _, n := range Table[s].Next {
			if (n == Wiping || n == Imaging) && s != Approved && s != Wiping && s != NeedsWork {
				t.Errorf("%s leads to %s", s, n)
			}
		}
	}
}

func TestOnlyListedMoves(t *testing.T) {
	for _, from := range States() {
		for _, to := range append(States(), 0, 99) {
			n := ready(from)
			if from == Wiping && to == Retired {
				n.Plan = wipeOnly(n)
			}
			if from == Approved && to == Starting {
				n = inMemory(from) // without a disk there is nothing to write
			}
			e := Event{Node: "rig-1", Version: n.Version + 1, At: at, Actor: "system", Kind: KindMoved, To: to, Reason: "test", Failure: &Failure{Cause: "test"}}
			got, err := n.Apply(e)
			if listed := slices.Contains(Table[from].Next, to); listed != (err == nil) {
				t.Errorf("%s to %s: listed %t, got error %v", from, to, listed, err)
			}
			if err != nil {
				same(t, "a refused move", got, n)
				continue
			}
			if got.State != to || !got.Since.Equal(at) || got.Deadline.IsZero() != Table[to].Terminal() {
				t.Errorf("%s to %s: %s since %s until %s", from, to, got.State, got.Since, got.Deadline)
			}
		}
	}
}

// ready is a node that has all a move may ask for.
func ready(s State) Node {
	hw := &Hardware{Board: Board{Serial: "ZM16AS012345"}, Disks: []Disk{{DiskID: DiskID{Serial: "S3X0NB0K812345", Size: 1000}, Name: "sda"}}}
	disk := hw.Disks[0].DiskID
	plan := Plan{Run: "run-1", Image: "abc", Disks: []DiskID{disk}, Target: disk, Hardware: hw.Digest()}.Seal()
	return Node{ID: "rig-1", Version: 7, State: s, Since: at, Hardware: hw, Plan: &plan, Image: "abc",
		Passed: &Passed{Report: "r", Hardware: hw.Digest(), Image: "abc"}}
}

// wipeOnly is the plan of n without an image.
func wipeOnly(n Node) *Plan {
	p := *n.Plan
	p.Image, p.WipeOnly = "", true
	p = p.Seal()
	return &p
}

// A node is wiped to get an image, or to be retired, as its plan has it.
func TestWipeOnly(t *testing.T) {
	for _, tt := range []struct {
		from, to State
		only, ok bool
	}{
		{Inspected, Approved, true, true},
		{Approved, Wiping, true, true},
		{Wiping, Retired, true, true},
		{Wiping, NeedsWork, true, true},
		{Wiping, Imaging, true, false},
		{NeedsWork, Imaging, true, false},
		{Wiping, Retired, false, false},
		{Wiping, Imaging, false, true},
	} {
		n := ready(tt.from)
		if tt.only {
			n.Plan = wipeOnly(n)
		}
		if _, err := move(n, tt.to); (err == nil) != tt.ok {
			t.Errorf("%s to %s, wipe only %t: %v", tt.from, tt.to, tt.only, err)
		}
	}
	n := ready(Approved)
	p := *n.Plan
	p.WipeOnly = true // and an image
	if p = p.Seal(); p.Check() == nil {
		t.Error("a plan to wipe only names an image")
	}
}

func move(n Node, to State) (Node, error) {
	return n.Apply(Event{Node: n.ID, Version: n.Version + 1, At: at, Actor: "system", Kind: KindMoved, To: to, Reason: "test", Failure: &Failure{Cause: "test"}})
}

// Each guard of a destructive step, alone, stops it at every entrance.
func TestGuardsOfDestruction(t *testing.T) {
	spoil := map[string]func(*Node){
		"protected":       func(n *Node) { n.Spec.Protect = true },
		"held":            func(n *Node) { n.Hold = &Hold{Owner: "cluster", Reason: "jobs run"} },
		"not approved":    func(n *Node) { n.Plan = nil },
		"in a cluster":    func(n *Node) { n.Joined = true },
		"never inspected": func(n *Node) { n.Hardware = nil },
		"another disk": func(n *Node) {
			n.Hardware = &Hardware{Disks: []Disk{{DiskID: DiskID{Serial: "OTHER-1234", Size: 1000}}}}
		},
		"plan changed":      func(n *Node) { p := *n.Plan; p.Wipe = "secure"; n.Plan = &p },
		"plan without disk": func(n *Node) { p := *n.Plan; p.Disks = nil; p = p.Seal(); n.Plan = &p },
		"image to a disk the plan does not wipe": func(n *Node) {
			p := *n.Plan
			p.Target = DiskID{Serial: "OTHER-1234", Size: 1000}
			p = p.Seal()
			n.Plan = &p
		},
		"nameless disk": func(n *Node) {
			p := *n.Plan
			p.Disks, p.Target = []DiskID{{Serial: "0123456789", Size: 1000}}, DiskID{Serial: "0123456789", Size: 1000}
			p = p.Seal()
			n.Plan = &p
		},
		"one disk named twice": func(n *Node) {
			p := *n.Plan
			p.Disks = append(p.Disks, p.Disks[0])
			p = p.Seal()
			n.Plan = &p
		},
	}
	for _, way := range [][2]State{{Approved, Wiping}, {Wiping, Imaging}, {NeedsWork, Wiping}, {NeedsWork, Imaging}, {Inspected, Approved}, {NeedsWork, Approved}} {
		if _, err := move(ready(way[0]), way[1]); err != nil {
			t.Fatalf("%s to %s with nothing against it: %v", way[0], way[1], err)
		}
		for name, f := range spoil {
			n := ready(way[0])
			f(&n)
			if _, err := move(n, way[1]); err == nil {
				t.Errorf("%s to %s although %s", way[0], way[1], name)
			}
		}
	}
	for _, s := range States() {
		err := ready(s).Convertible()
		if allowed := s == Approved || s == Wiping || s == Imaging; allowed != (err == nil) {
			t.Errorf("Convertible while %s: %v", s, err)
		}
	}
}

func TestPassIsForThisHardwareAndImage(t *testing.T) {
	for name, f := range map[string]func(*Node){
		"no PASS":           func(n *Node) { n.Passed = nil },
		"other hardware":    func(n *Node) { n.Hardware = &Hardware{} },
		"other image":       func(n *Node) { n.Image = "def" },
		"no image, no PASS": func(n *Node) { n.Image = ""; n.Passed.Image = "" },
		"not inspected":     func(n *Node) { n.Hardware = nil },
	} {
		for _, way := range [][2]State{{BurningIn, Joining}, {Joining, InService}, {ReVerifying, InService}, {NeedsWork, Joining}} {
			n := ready(way[0])
			f(&n)
			if _, err := move(n, way[1]); err == nil {
				t.Errorf("%s: %s to %s", name, way[0], way[1])
			}
		}
	}
	// What begins a new test ends the old answer.
	for _, way := range [][2]State{{Starting, BurningIn}, {InService, ReVerifying}, {Approved, Wiping}} {
		if n, err := move(ready(way[0]), way[1]); err != nil || n.Passed != nil {
			t.Errorf("%s to %s: %v, PASS %v", way[0], way[1], err, n.Passed)
		}
	}
}

// A node that failed in its cluster is not wiped before it left.
func TestFailedMemberMustLeave(t *testing.T) {
	n := ready(BurningIn)
	hw, plan := n.Hardware, n.Plan
	step := func(to State) {
		t.Helper()
		var err error
		if n, err = move(n, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []State{Joining, InService, NeedsWork, BurningIn, NeedsWork} {
		step(s)
	}
	refused := func() {
		t.Helper()
		e := Event{Node: n.ID, Version: n.Version + 1, At: at, Actor: "operator:anna", Kind: KindMoved, To: Approved, Reason: "again", Plan: plan}
		if _, err := n.Apply(e); err == nil {
			t.Fatalf("approved while a member (state %s)", n.State)
		}
	}
	refused()
	step(Inspected) // a detour does not help
	refused()
	step(NeedsWork)
	step(Leaving)
	step(Inspected)
	n, err := n.Apply(Event{Node: n.ID, Version: n.Version + 1, At: at, Actor: "operator:anna", Kind: KindMoved, To: Approved, Reason: "again", Plan: plan})
	if err != nil || n.Hardware.Digest() != hw.Digest() {
		t.Fatal(err)
	}
}

// An approval is for one plan: coming back to inspected ends it.
func TestApprovalDoesNotOutliveInspection(t *testing.T) {
	for _, from := range []State{Approved, NeedsWork} {
		n, err := move(ready(from), Inspected)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := move(n, Approved); err == nil {
			t.Errorf("from %s: approved without a plan", from)
		}
	}
}

func TestHolds(t *testing.T) {
	n := ready(Approved)
	apply := func(e Event) error {
		e.Node, e.Version, e.At = n.ID, n.Version+1, at
		m, err := n.Apply(e)
		if err == nil {
			n = m
		}
		return err
	}
	hold := func(owner string) Event {
		return Event{Kind: KindHeld, Actor: owner + ":x", Hold: &Hold{Owner: owner, Reason: "mine"}}
	}
	for _, c := range []struct {
		what string
		e    Event
		ok   bool
	}{
		{"nobody's hold", Event{Kind: KindHeld, Actor: "operator:x", Hold: &Hold{Reason: "x"}}, false},
		{"hold without reason", Event{Kind: KindHeld, Actor: "operator:x", Hold: &Hold{Owner: "operator"}}, false},
		{"release of no hold", Event{Kind: KindReleased, Actor: "cluster"}, false},
		{"hold", hold("cluster"), true},
		{"hold over another's", hold("operator"), false},
		{"own hold anew", hold("cluster"), true},
		{"release by another kind", Event{Kind: KindReleased, Actor: "operator:anna"}, false},
		{"release by a name like the owner", Event{Kind: KindReleased, Actor: "clusters:x"}, false},
		{"release by the owner's kind", Event{Kind: KindReleased, Actor: "cluster:slurm"}, true},
	} {
		if err := apply(c.e); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestStaleEvents(t *testing.T) {
	n := ready(Approved)
	for _, v := range []uint64{0, 6, 7, 9} {
		_, err := n.Apply(Event{Node: n.ID, Version: v, At: at, Actor: "system", Kind: KindNote})
		if !errors.Is(err, ErrStale) {
			t.Errorf("version %d on 7: %v", v, err)
		}
	}
	_, err := n.Apply(Event{Node: n.ID, Version: 8, At: at, Actor: "system", Kind: KindMoved, From: Wiping, To: Wiping, Reason: "x"})
	if err == nil {
		t.Error("an event that leaves another state was applied")
	}
	e := Event{Node: n.ID, Version: 8, At: at, Actor: "system", Kind: KindMoved, To: Wiping, Reason: "x", Deadline: &at}
	if _, err := n.Apply(e); err == nil {
		t.Error("a deadline that is over at once was accepted")
	}
}

// A NIC that moved to another machine labels that one only.
func TestInspectionCorrectsLabels(t *testing.T) {
	a, b, c := MAC{2, 0, 0, 0, 0, 1}, MAC{2, 0, 0, 0, 0, 2}, MAC{2, 0, 0, 0, 0, 3}
	n := Node{ID: "rig-1", Version: 1, State: Discovered, Spec: Spec{MACs: []MAC{a}}, MACs: []MAC{a, b}}
	seen := func(macs ...MAC) []MAC {
		hw := &Hardware{}
		for _, m := range macs {
			hw.NICs = append(hw.NICs, NIC{MAC: m})
		}
		m, err := n.Apply(Event{Node: "rig-1", Version: 2, At: at, Actor: "agent", Kind: KindInspected, Hardware: hw})
		if err != nil {
			t.Fatal(err)
		}
		return m.MACs
	}
	same(t, "labels", seen(a, c), []MAC{a, c})
	same(t, "labels when no NIC could be read", seen(), []MAC{a, b})
}

func TestDigest(t *testing.T) {
	base := func() Hardware {
		return Hardware{
			Board: Board{Serial: "ZM16AS012345"}, CPU: CPU{Model: "Celeron G3930"}, Memory: Memory{Total: 16<<30 - 300<<20},
			Disks: []Disk{{DiskID: DiskID{Serial: "A1", Size: 1}, Name: "sda"}, {DiskID: DiskID{Serial: "B2", Size: 1}, Name: "sdb"}},
			NICs:  []NIC{{MAC: MAC{2, 0, 0, 0, 0, 1}}, {MAC: MAC{2, 0, 0, 0, 0, 2}}},
			GPUs:  []GPU{{PCI: PCI{Address: "0000:01:00.0", Device: "2204"}}, {PCI: PCI{Address: "0000:02:00.0", Device: "2204"}}},
		}
	}
	want := base().Digest()
	for name, f := range map[string]func(*Hardware){
		"disks found in another order": func(h *Hardware) { slices.Reverse(h.Disks); h.Disks[0].Name, h.Disks[1].Name = "sda", "sdb" },
		"NICs in another order":        func(h *Hardware) { slices.Reverse(h.NICs) },
		"GPUs in another order":        func(h *Hardware) { slices.Reverse(h.GPUs) },
		"link down":                    func(h *Hardware) { h.NICs[0].Link = !h.NICs[0].Link },
		"idle PCIe link":               func(h *Hardware) { h.GPUs[0].Link.CurrentSpeed = 2.5 },
		"another kernel":               func(h *Hardware) { h.Memory.Total -= 90 << 20 },
		"a stick":                      func(h *Hardware) { h.Disks = append(h.Disks, Disk{Removable: true, DiskID: DiskID{Serial: "USB1"}}) },
		"disk signatures":              func(h *Hardware) { h.Disks[0].Signatures = []string{"gpt"} },
	} {
		h := base()
		f(&h)
		if h.Digest() != want {
			t.Errorf("%s: another digest", name)
		}
	}
	for name, f := range map[string]func(*Hardware){
		"board":       func(h *Hardware) { h.Board.Serial = "ZM16AS099999" },
		"CPU":         func(h *Hardware) { h.CPU.Model = "Core i5" },
		"half memory": func(h *Hardware) { h.Memory.Total /= 2 },
		"disk":        func(h *Hardware) { h.Disks[1].Serial = "C3" },
		"disk gone":   func(h *Hardware) { h.Disks = h.Disks[:1] },
		"GPU gone":    func(h *Hardware) { h.GPUs = h.GPUs[:1] },
		"GPU":         func(h *Hardware) { h.GPUs[0].UUID = "GPU-1" },
		"NIC":         func(h *Hardware) { h.NICs[0].MAC[5] = 9 },
		"DIMM":        func(h *Hardware) { h.Memory.DIMMs = []DIMM{{Size: 8 << 30}} },
	} {
		h := base()
		f(&h)
		if h.Digest() == want {
			t.Errorf("%s: the same digest", name)
		}
	}
	h := base()
	h.Digest()
	same(t, "hardware after Digest", h, base())
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// TestLife drives nodes with drawn events, sensible and senseless, and holds
// what must be true after every one.
func TestLife(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var n Node
		var history []Event
		for range rapid.IntRange(1, 80).Draw(r, "events") {
			e := drawEvent(r, n)
			before := mustJSON(n)
			got, err := n.Apply(e)
			if mustJSON(n) != before {
				r.Fatalf("%s changed its receiver", e.Kind)
			}
			if err != nil {
				if mustJSON(got) != before {
					r.Fatalf("refused %s (%v) changed the node", e.Kind, err)
				}
				continue
			}
			holds(r, n, e, got)
			history = append(history, e)
			n = got
		}
		// Events travel as JSON; the fold of what arrives is the same node.
		var again Node
		for i, e := range history {
			var f Event
			if err := json.Unmarshal([]byte(mustJSON(e)), &f); err != nil {
				r.Fatal(err)
			}
			if f.Version != uint64(i+1) {
				r.Fatalf("event %d has version %d", i+1, f.Version)
			}
			var err error
			if again, err = again.Apply(f); err != nil {
				r.Fatal(err)
			}
		}
		if mustJSON(again) != mustJSON(n) {
			r.Fatalf("replay differs:\n%s\n%s", mustJSON(again), mustJSON(n))
		}
	})
}

func holds(r *rapid.T, before Node, e Event, n Node) {
	if n.Version != before.Version+1 {
		r.Fatalf("version %d follows %d", n.Version, before.Version)
	}
	if n.Fence < before.Fence {
		r.Fatalf("the fence fell from %d to %d", before.Fence, n.Fence)
	}
	if _, ok := Table[n.State]; !ok || n.Deadline.IsZero() != Table[n.State].Terminal() {
		r.Fatalf("%s until %s", n.State, n.Deadline)
	}
	if n.State != before.State && e.Kind != KindMoved && e.Kind != KindCreated {
		r.Fatalf("%s moved it from %s to %s", e.Kind, before.State, n.State)
	}
	if (n.State == NeedsWork) != (n.Failure != nil) {
		r.Fatalf("%s with failure %v", n.State, n.Failure)
	}
	if before.State == n.State {
		return
	}
	switch n.State {
	case Approved, Wiping, Imaging:
		if n.Plan == nil || n.Hold != nil || n.Spec.Protect || n.Joined || n.Hardware == nil || n.Plan.Hardware != n.Hardware.Digest() {
			r.Fatalf("%s with plan %v, hold %v, protected %t, joined %t", n.State, n.Plan, n.Hold, n.Spec.Protect, n.Joined)
		}
		if n.State == Imaging && n.Plan.WipeOnly {
			r.Fatalf("%s with a plan to wipe it and no more", n.State)
		}
	case Joining, InService:
		if n.Passed == nil || n.Image == "" || n.Passed.Image != n.Image || n.Passed.Hardware != n.Hardware.Digest() {
			r.Fatalf("%s with PASS %v on image %q", n.State, n.Passed, n.Image)
		}
	}
	if before.State == InService && n.State != ReVerifying && n.State != Leaving && n.State != NeedsWork {
		r.Fatalf("in-service became %s", n.State)
	}
}

// drawEvent draws an event that often fits n and often does not.
func drawEvent(r *rapid.T, n Node) Event {
	e := Event{Node: "rig-1", Version: n.Version + 1, At: at, Actor: rapid.SampledFrom([]string{"system", "operator:anna", "cluster"}).Draw(r, "actor"), Reason: "drawn"}
	if n.Version == 0 && rapid.IntRange(0, 9).Draw(r, "begin") > 0 {
		e.Kind, e.To = KindCreated, rapid.SampledFrom([]State{Expected, Discovered}).Draw(r, "as")
		return e
	}
	e.Kind = rapid.SampledFrom([]Kind{
		KindMoved, KindMoved, KindMoved, KindMoved, KindMoved, KindMoved, KindInspected, KindInspected, KindReport, KindReport,
		KindHeld, KindReleased, KindFence, KindSpec, KindNote, KindPower, KindTriaged, KindTask, KindAlarm, KindStep, KindCreated, "unheard-of",
	}).Draw(r, "kind")
	if rapid.IntRange(0, 19).Draw(r, "stale") == 0 {
		e.Version += 2
	}
	e.To = rapid.SampledFrom(append(States(), 0)).Draw(r, "to")
	if next := n.Waits().Next; len(next) > 0 && rapid.IntRange(0, 9).Draw(r, "listed") > 0 {
		e.To = next[0] // the way in
		if rapid.IntRange(0, 2).Draw(r, "astray") == 0 {
			e.To = rapid.SampledFrom(next).Draw(r, "next")
		}
	}
	e.Fence = uint64(rapid.IntRange(0, 4).Draw(r, "fence"))
	if rapid.IntRange(0, 9).Draw(r, "facts") == 0 {
		return e
	}
	disk := DiskID{Serial: fmt.Sprintf("DISK-%d", rapid.IntRange(1, 2).Draw(r, "disk")), Size: 1000}
	hw := &Hardware{Disks: []Disk{{DiskID: disk}}, NICs: []NIC{{MAC: MAC{2, 0, 0, 0, 0, byte(rapid.IntRange(1, 2).Draw(r, "mac"))}}}}
	plan := Plan{Run: "run-1", Image: "abc", Disks: []DiskID{disk}, Target: disk, Hardware: hw.Digest()}
	e.Passed = &Passed{Report: "rep", Hardware: hw.Digest(), Image: "abc", At: at}
	if n.Hardware != nil && rapid.IntRange(0, 3).Draw(r, "fits") > 0 {
		d := n.Hardware.Disks[0].DiskID
		plan.Disks, plan.Target, plan.Hardware = []DiskID{d}, d, n.Hardware.Digest()
		e.Passed.Hardware = plan.Hardware
	}
	if rapid.IntRange(0, 4).Draw(r, "only") == 0 {
		plan.Image, plan.WipeOnly = "", true
	}
	plan = plan.Seal()
	owner, _, _ := cutActor(e.Actor)
	e.Hardware, e.Plan, e.Report, e.Image = hw, &plan, "rep", "abc"
	e.Hold = &Hold{Owner: owner, Reason: "look first", At: at}
	e.Failure = &Failure{Cause: "drawn"}
	e.Power, e.Verdict = &PowerFact{On: "on", At: at}, &Verdict{Target: "lab", Answer: "convert", Reasons: []Reason{}}
	e.Spec = &Spec{Protect: rapid.IntRange(0, 4).Draw(r, "protect") == 0, MACs: []MAC{{2, 0, 0, 0, 0, 1}}}
	return e
}

func mustJSON(v any) string {
	if n, ok := v.(Node); ok && n.Version == 0 {
		return "" // no node yet: no state to write
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
