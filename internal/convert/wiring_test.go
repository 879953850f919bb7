package convert_test

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// prove asks for a proof of machine i and returns what was answered.
func (p *plant) prove(i int) store.IntentResult {
	p.t.Helper()
	return p.ask(i, "prove", nil)
}

// ask asks for something about machine i, as the API does, and returns what was
// answered.
func (p *plant) ask(i int, verb string, params map[string]string) store.IntentResult {
	p.t.Helper()
	intent := store.Intent{ID: verb + "-" + p.now.String(), Node: nodeID(i), Verb: verb, Params: params, Actor: "operator:anna", At: p.now}
	if err := p.st.AddIntent(p.t.Context(), intent); err != nil {
		p.t.Fatal(err)
	}
	p.steps()
	r, err := p.st.IntentResult(p.t.Context(), intent.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	p.now = p.now.Add(time.Minute)
	return r
}

// wire puts two PDUs in front of the machines: machine i really hangs on
// outlet real[i] of pdu-a, and site.yaml says said[i].
func (p *plant) wire(real, said map[int]int, lie func(map[int]float64)) {
	feeds := map[int]inventory.NodeID{}
	for i, o := range said {
		feeds[o] = nodeID(i)
	}
	outlets := func(ctx context.Context) (map[int]float64, error) {
		w := map[int]float64{8: 500, 9: math.NaN()} // a switch, and an outlet without a meter
		for i, o := range real {
			n, err := p.st.Node(ctx, nodeID(i))
			if err != nil {
				return nil, err
			}
			w[o] = honest(n)
			if s, err := p.fakes[n.ID].State(ctx); err == nil && s.String() == "off" {
				w[o] = 0
			} else if n.Power.On == "off" {
				w[o] = 150
			}
		}
		if lie != nil {
			lie(w)
		}
		return w, nil
	}
	p.conf.PDUs = []convert.PDU{{Name: "pdu-a", Outlets: outlets, Feeds: feeds}, {Name: "pdu-b"}}
	p.restart()
	p.c.PauseCluster(time.Millisecond)
}

func (p *plant) wiring(i int) (verdict, reason string) {
	p.t.Helper()
	events, err := p.st.NodeEvents(p.t.Context(), nodeID(i))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range events {
		if e.Evidence["mark"] == "wiring" {
			verdict, reason = e.Evidence["wiring"], e.Reason
		}
	}
	return verdict, reason
}

// Which outlet moves is compared with site.yaml; a mismatch is work for a
// person, and no outlet is ever switched.
func TestProve(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.BurningIn, inventory.InService)
	p.wire(map[int]int{0: 3, 1: 7, 2: 5}, map[int]int{0: 3, 1: 4, 2: 5}, nil)
	if r := p.prove(0); !r.OK {
		t.Fatalf("refused: %s", r.Error)
	}
	if v, why := p.wiring(0); v != "proven" {
		t.Errorf("machine 0: %s (%s)", v, why)
	}
	if r := p.prove(1); !r.OK {
		t.Fatalf("refused: %s", r.Error)
	}
	if v, why := p.wiring(1); v != "mismatch" || !strings.Contains(why, "outlet 7 of pdu-a moved, site.yaml says outlet 4 of pdu-a") {
		t.Errorf("machine 1: %s (%s)", v, why)
	}
	tasks, err := p.st.Tasks(t.Context(), nodeID(1))
	if err != nil || len(tasks) != 1 || !tasks[0].Open() || tasks[0].What != "its power cord" {
		t.Errorf("tasks %+v, %v", tasks, err)
	}
	if r := p.prove(2); r.OK || !strings.Contains(r.Error, "in-service") {
		t.Errorf("a machine in service: %+v", r)
	}
	for i := range p.nodes {
		n := p.node(i)
		if len(n.Shed) > 0 || n.Power.On != "on" {
			t.Errorf("%s is left with %v, %s", n.ID, n.Shed, n.Power.On)
		}
		if calls := strings.Join(p.fakes[n.ID].Calls(), " "); strings.Contains(calls, "set") {
			t.Errorf("%s was switched: %s", n.ID, calls)
		}
	}
	// The cord is swapped: the next proof closes the task.
	p.wire(map[int]int{0: 3, 1: 4, 2: 5}, map[int]int{0: 3, 1: 4, 2: 5}, nil)
	p.prove(1)
	if tasks, _ := p.st.Tasks(t.Context(), nodeID(1)); len(tasks) != 1 || tasks[0].Open() {
		t.Errorf("after the swap: %+v", tasks)
	}
}

// A proof changes a load: it waits while the power of the site is held.
func TestProveHeld(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn)
	p.wire(map[int]int{0: 3}, map[int]int{0: 3}, nil)
	if err := p.order("hold", map[string]string{"reason": "people at the busbar"}); err != nil {
		t.Fatal(err)
	}
	if r := p.prove(0); r.OK || !strings.Contains(r.Error, "busbar") {
		t.Errorf("answered %+v", r)
	}
}

// Meters that say nothing, or move by themselves, prove nothing.
func TestProveUnclear(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn)
	p.wire(map[int]int{0: 3}, map[int]int{0: 3}, func(w map[int]float64) { clear(w) })
	p.prove(0)
	if v, why := p.wiring(0); v != "unclear" {
		t.Errorf("no reading at all: %s (%s)", v, why)
	}
	// Outlet 6 falls with the machine and does not come back: another one that ended.
	n := 0
	p.wire(map[int]int{0: 3}, map[int]int{0: 3}, func(w map[int]float64) {
		w[6] = []float64{900, 100, 100}[min(n, 2)]
		n++
	})
	p.prove(0)
	if v, why := p.wiring(0); v != "proven" {
		t.Errorf("with a stranger beside it: %s (%s)", v, why)
	}
	p.conf.PDUs = nil
	p.restart()
	if r := p.prove(0); r.OK || !strings.Contains(r.Error, "no PDU") {
		t.Errorf("without PDUs: %+v", r)
	}
}

// A proof that dies with its controller leaves nothing paused.
func TestProveCutShort(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn)
	p.wire(map[int]int{0: 3}, map[int]int{0: 3}, nil)
	n := p.node(0)
	e := inventory.Event{Node: n.ID, Version: n.Version + 1, At: p.now, Actor: "system", Kind: inventory.KindShed,
		Shed: []inventory.Shed{{Do: inventory.ShedPause, By: "proof", Why: "which outlet feeds it?", At: p.now}}}
	n, err := n.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.st.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	p.restart()
	p.tick(time.Second, honest)
	if got := p.sheds(); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}
