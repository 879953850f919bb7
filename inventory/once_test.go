package inventory

import (
	"testing"
	"time"
)

// inMemory is ready with a plan that writes no disk.
func inMemory(s State) Node {
	n := ready(s)
	p := *n.Plan
	p.Disks, p.Target, p.Root = nil, DiskID{}, RootRAM
	p = p.Seal()
	n.Plan = &p
	return n
}

// A plan that names no disk opens no way to one, and one that names disks opens
// no way past writing them.
func TestPlanInMemory(t *testing.T) {
	n := inMemory(Approved)
	if err := n.Plan.Check(); err != nil {
		t.Fatal(err)
	}
	got, err := move(n, Starting)
	if err != nil || got.Root != RootRAM || got.Image != "" || got.Passed != nil {
		t.Errorf("started as %+v, %v", got, err)
	}
	for _, to := range []State{Wiping, Imaging} {
		if _, err := move(n, to); err == nil {
			t.Errorf("approved without a disk, and %s: %v", to, err)
		}
		if err := inMemory(to).Convertible(); err == nil {
			t.Errorf("a node that is %s without a disk may be written", to)
		}
	}
	if _, err := move(ready(Approved), Starting); err == nil {
		t.Error("a disk that was never written is started")
	}
	for what, spoil := range map[string]func(*Node){
		"protected": func(n *Node) { n.Spec.Protect = true },
		"held":      func(n *Node) { n.Hold = &Hold{Owner: "operator", Reason: "mine"} },
		"a disk":    func(n *Node) { p := *n.Plan; p.Target = DiskID{Serial: "S1", Size: 5}; p = p.Seal(); n.Plan = &p },
		"nowhere":   func(n *Node) { p := *n.Plan; p.Root = "tape"; p = p.Seal(); n.Plan = &p },
		"unsealed":  func(n *Node) { p := *n.Plan; p.Start = StartKexec; n.Plan = &p },
	} {
		n := inMemory(Approved)
		spoil(&n)
		if _, err := move(n, Starting); err == nil {
			t.Errorf("%s: started", what)
		}
	}
	// Where it runs follows from the plan of each conversion.
	back, err := move(ready(Imaging), Starting)
	if err != nil || back.Root != "" {
		t.Errorf("written to a disk it runs from %q, %v", back.Root, err)
	}
}

func TestOnce(t *testing.T) {
	ask := func(n Node, o Once) (Node, error) {
		return n.Apply(Event{Node: n.ID, Version: n.Version + 1, At: at, Actor: "operator:anna", Kind: KindOnce, Once: &o})
	}
	rescue := Once{Boot: BootRescue, By: "operator:anna", Asked: at, Until: at.Add(time.Hour)}
	free := map[State]bool{Discovered: true, Inspected: true, NeedsWork: true, Retired: true, Rejected: true}
	held := map[State]bool{BurningIn: true, Joining: true, InService: true, ReVerifying: true, Leaving: true}
	for _, s := range States() {
		n := ready(s)
		n.Joined = s == InService
		got, err := ask(n, rescue)
		if (err == nil) != free[s] {
			t.Errorf("%s: %v", s, err)
		}
		if err != nil {
			same(t, "a refused wish", got, n)
		}
		n.Hold = &Hold{Owner: "operator", Reason: "looks at it"}
		if _, err := ask(n, rescue); (err == nil) != (free[s] || held[s]) {
			t.Errorf("%s and held: %v", s, err)
		}
	}
	for what, spoil := range map[string]func(*Node, *Once){
		"another boot":      func(_ *Node, o *Once) { o.Boot = "convert" },
		"nobody":            func(_ *Node, o *Once) { o.By = "" },
		"over":              func(_ *Node, o *Once) { o.Until = at },
		"without end":       func(_ *Node, o *Once) { o.Until = at.Add(MaxOnce + 1) },
		"memtest writes":    func(_ *Node, o *Once) { o.Boot, o.Write = BootMemtest, true },
		"protected":         func(n *Node, o *Once) { o.Write, n.Spec.Protect = true, true },
		"failed in cluster": func(n *Node, _ *Once) { n.Joined = true },
	} {
		n, o := ready(NeedsWork), rescue
		spoil(&n, &o)
		if _, err := ask(n, o); err == nil {
			t.Errorf("%s: granted", what)
		}
	}
	write := rescue
	write.Write = true
	for what, spoil := range map[string]func(*Node){
		"rejected":       func(n *Node) { n.State = Rejected },
		"another's hold": func(n *Node) { n.Hold = &Hold{Owner: "technician", Reason: "my hands are in it"} },
	} {
		n := ready(NeedsWork)
		spoil(&n)
		if _, err := ask(n, write); err == nil {
			t.Errorf("%s: its disks may be written", what)
		}
		if _, err := ask(n, rescue); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	got, err := ask(ready(Inspected), write)
	if err != nil || got.MayBootOnce(at) != nil {
		t.Fatalf("%v, %v", err, got.MayBootOnce(at))
	}
	if got.Spec.Protect = true; got.MayBootOnce(at) == nil {
		t.Error("protected since, and its disks may be written")
	}
	n, err := ask(ready(Inspected), rescue)
	if err != nil {
		t.Fatal(err)
	}
	over, err := n.Apply(Event{Node: n.ID, Version: n.Version + 1, At: at, Actor: "system", Kind: KindOnce})
	if err != nil || over.Once != nil {
		t.Errorf("over: %+v, %v", over.Once, err)
	}
	if _, err := over.Apply(Event{Node: n.ID, Version: over.Version + 1, At: at, Actor: "system", Kind: KindOnce}); err == nil {
		t.Error("ended twice")
	}
	if n, err = move(n, Approved); err != nil || n.Once != nil {
		t.Errorf("approved and still to boot %+v, %v", n.Once, err)
	}
}
