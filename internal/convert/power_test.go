package convert_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/convert"
	"smelt/internal/sim"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/care"
	"smelt/power/powertest"
)

// A plant is a conductor that the test moves by hand: with a clock of its own,
// machines that are switched by fakes, and meters that say what the test wants.
type plant struct {
	t     *testing.T
	c     *convert.Conductor
	st    *store.Store
	now   time.Time
	fakes map[inventory.NodeID]*powertest.Fake
	conf  convert.Config
	nodes []inventory.NodeID
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) // a Monday

// plantOf has one PDU of amps at 230 V and a node in each of the states.
func plantOf(t *testing.T, amps float64, states ...inventory.State) *plant {
	t.Helper()
	st, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "smelt.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	img, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{t: t, st: st, now: noon, fakes: map[inventory.NodeID]*powertest.Fake{}}
	site := convert.Site{Name: "plant", Lab: true, Server: "https://127.0.0.1:1",
		Classes:  map[string]convert.Class{"rig": {Name: "rig", Profile: "sim", Watts: 1000}},
		Profiles: map[string]burnin.Profile{"sim": {Name: "sim", Version: 1, Limit: time.Minute, Checks: []burnin.Spec{{ID: burnin.CPU, Required: true, Deadline: time.Minute}}}},
		Circuits: []inventory.Circuit{{Name: "pdu", Kind: "pdu", Volts: 230, Amps: amps, Phases: 1, Derate: 0.8}}}
	switches := map[inventory.NodeID]*power.Verified{}
	for i, state := range states {
		id := nodeID(i)
		p.nodes = append(p.nodes, id)
		p.fakes[id] = new(powertest.Fake)
		p.fakes[id].Turn(true)
		switches[id] = power.Verify(p.fakes[id], power.Limits{Reach: time.Second, Poll: time.Millisecond, Dwell: time.Millisecond, Spacing: time.Nanosecond, Soft: time.Second})
		spec := inventory.Spec{Name: id, Position: inventory.Position(fmt.Sprintf("A%d", i)), Class: "rig", Circuit: "pdu", Watts: 1000, MACs: []inventory.MAC{macOf(i)}}
		site.Specs = append(site.Specs, spec)
		p.put(i, spec, state)
	}
	p.conf = convert.Config{Site: site, Store: st, Images: img, Power: switches, SiteKey: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Owner: "test",
		Now: func() time.Time { return p.now }, Log: testLog()}
	p.restart()
	return p
}

// restart is another process: all that is in memory is lost.
func (p *plant) restart() {
	p.t.Helper()
	budget, err := power.NewBudget(p.conf.Site.Circuits, power.Rules{Window: time.Nanosecond, PanelWindow: time.Nanosecond})
	if err != nil {
		p.t.Fatal(err)
	}
	p.conf.Budget = budget
	c, err := convert.New(p.conf)
	if err != nil {
		p.t.Fatal(err)
	}
	p.c = c
	if err := c.Lead(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// put writes the story of a node that reached a state.
func (p *plant) put(i int, spec inventory.Spec, to inventory.State) {
	p.t.Helper()
	hw := sim.Hardware(i, macOf(i), 1)
	const image = "0badcafe"
	digest := hw.Digest()
	id := nodeID(i)
	events := []inventory.Event{
		{Kind: inventory.KindCreated, To: inventory.Discovered, Spec: &spec},
		{Kind: inventory.KindInspected, Hardware: &hw},
		{Kind: inventory.KindPower, Power: &inventory.PowerFact{On: "on", Via: "fake", At: noon.Add(-time.Hour)}},
		{Kind: inventory.KindMoved, To: inventory.Inspected, Reason: "test"},
	}
	if to != inventory.Inspected {
		plan := inventory.Plan{Run: "r" + string(id), Hardware: digest, Image: image, ImageName: "ai-node", Profile: "sim", Root: inventory.RootRAM}
		plan = plan.Seal()
		events = append(events, inventory.Event{Kind: inventory.KindMoved, To: inventory.Approved, Plan: &plan, Reason: "test"},
			inventory.Event{Kind: inventory.KindMoved, To: inventory.Starting, Reason: "test"})
	}
	if to == inventory.Approved {
		events = events[:len(events)-1]
	}
	if to == inventory.BurningIn || to == inventory.InService {
		events = append(events, inventory.Event{Kind: inventory.KindMoved, To: inventory.BurningIn, Image: image, Reason: "test"})
	}
	if to == inventory.InService {
		events = append(events, inventory.Event{Kind: inventory.KindReport, Report: "rep", Passed: &inventory.Passed{Report: "rep", Hardware: digest, Image: image, Profile: "sim", At: noon}},
			inventory.Event{Kind: inventory.KindMoved, To: inventory.Joining, Reason: "test"},
			inventory.Event{Kind: inventory.KindMoved, To: inventory.InService, Reason: "test"})
	}
	var n inventory.Node
	var err error
	for j := range events {
		e := &events[j]
		e.Node, e.Version, e.Actor, e.At = id, uint64(j+1), "system", noon.Add(-time.Hour+time.Duration(i)*time.Minute)
		if n, err = n.Apply(*e); err != nil {
			p.t.Fatal(err)
		}
	}
	if n.State != to {
		p.t.Fatalf("node %s is %s, want %s", id, n.State, to)
	}
	if _, err := p.st.Commit(p.t.Context(), store.Change{Node: n, Events: events}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plant) node(i int) inventory.Node {
	p.t.Helper()
	n, err := p.st.Node(p.t.Context(), nodeID(i))
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// tick lets time pass, says what every machine draws and looks after the hall.
func (p *plant) tick(d time.Duration, draws func(inventory.Node) float64) {
	p.t.Helper()
	p.now = p.now.Add(d)
	for i, id := range p.nodes {
		state, _ := p.fakes[id].State(p.t.Context())
		p.c.Sampled(id, state, draws(p.node(i)), p.now)
	}
	if err := p.c.Tend(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// steps lets every node do what there is to do, jobs included.
func (p *plant) steps() {
	p.t.Helper()
	for _, id := range p.nodes {
		if err := p.c.Step(p.t.Context(), id); err != nil {
			p.t.Fatal(err)
		}
	}
	p.c.Jobs()
	for _, id := range p.nodes {
		if err := p.c.Step(p.t.Context(), id); err != nil {
			p.t.Fatal(err)
		}
	}
}

// order asks the site for something, as the API does.
func (p *plant) order(verb string, params map[string]string) error {
	p.t.Helper()
	return p.c.OrderPower(p.t.Context(), store.Intent{ID: verb, Verb: "power-" + verb, Actor: "operator:anna", Params: params})
}

// honest is what a machine draws: idle 150 W, burning in or in service 900 W.
func honest(n inventory.Node) float64 { return drawing(900)(n) }

func drawing(full float64) func(inventory.Node) float64 {
	return func(n inventory.Node) float64 {
		switch {
		case n.Sheds(inventory.ShedOff) && n.Power.On == "off", n.Power.On == "off":
			return 0
		case n.Sheds(inventory.ShedPause), n.State == inventory.Inspected:
			return 150
		case n.Sheds(inventory.ShedCap):
			return 150 + (full-150)*0.6
		}
		return full
	}
}

func (p *plant) sum(draws func(inventory.Node) float64) (w float64) {
	for i := range p.nodes {
		w += draws(p.node(i))
	}
	return w
}

// Machines that draw far more than their nameplates say are shed before the
// breaker trips, never by force, and come back in the end.
func TestShed(t *testing.T) {
	p := plantOf(t, 32, inventory.BurningIn, inventory.BurningIn, inventory.InService, inventory.InService, inventory.Inspected)
	const rating = 230 * 32.0
	greedy := drawing(2000) // 4 x 2000 + 150 on 7360 W
	over := time.Duration(0)
	for range 40 {
		p.tick(5*time.Second, greedy)
		p.steps()
		if p.sum(greedy) > rating {
			over += 5 * time.Second
		}
	}
	// A breaker carries 1.13 times its rating for an hour (IEC 60898-1, table 7).
	if sum := p.sum(greedy); sum > 0.9*rating || over > 90*time.Second {
		t.Errorf("%.0f W of %.0f W are drawn in the end, for %s too much", sum, rating, over)
	}
	shed, off := 0, 0
	for i := range p.nodes {
		n := p.node(i)
		shed += len(n.Shed)
		if n.State == inventory.InService && n.Sheds(inventory.ShedOff) {
			t.Errorf("%s in service was shut down", n.ID)
		}
		if calls := strings.Join(p.fakes[n.ID].Calls(), " "); strings.Contains(calls, "set off") {
			t.Errorf("%s was switched off by force: %s", n.ID, calls)
		}
		if n.Sheds(inventory.ShedOff) {
			off++
		}
	}
	if shed == 0 {
		t.Fatal("nothing was shed")
	}
	t.Logf("%d things taken, %d machines shut down, over the rating for %s", shed, off, over)
	before := fmt.Sprint(p.sheds())
	p.restart() // what was taken is known to the next process
	if after := fmt.Sprint(p.sheds()); after != before {
		t.Errorf("after a restart %s, before %s", after, before)
	}
	// Their cards are swapped: there is room for everybody again.
	for i := 0; i < 200 && len(p.sheds()) > 0; i++ {
		p.tick(10*time.Second, honest)
		p.steps()
	}
	if left := p.sheds(); len(left) > 0 {
		t.Errorf("not given back: %v", left)
	}
	for i := range p.nodes {
		if n := p.node(i); n.Power.On != "on" {
			t.Errorf("%s is %s in the end", n.ID, n.Power.On)
		}
	}
}

func (p *plant) sheds() (out []string) {
	for i := range p.nodes {
		for _, s := range p.node(i).Shed {
			out = append(out, string(nodeID(i))+" "+s.Do+" "+s.By)
		}
	}
	return out
}

// A machine that runs and was never converted loads its breaker too: it counts
// from when it is seen, also after a restart, until it is switched off.
func TestFoundOn(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected, inventory.Inspected) // 2944 W, 2 x 1000 W
	full := func(when string) {
		t.Helper()
		if err := p.c.Budget.Grant("other", "pdu", 1000, p.now); !errors.Is(err, power.ErrNoRoom) {
			t.Errorf("%s: a third machine of 1000 W is granted on 2944 W: %v", when, err)
			p.c.Budget.Release("other")
		}
	}
	full("at the start")
	p.restart()
	full("after a restart")
	p.ask(0, "power", map[string]string{"verb": "off"})
	if n := p.node(0); n.Power.On != "off" {
		t.Fatalf("it is %s", n.Power.On)
	}
	if err := p.c.Budget.Grant("other", "pdu", 1000, p.now); err != nil {
		t.Errorf("one is off: %v", err)
	}
	p.c.Budget.Release("other")
	// Somebody presses its button: it is found on, and counts again.
	p.fakes[nodeID(0)].Turn(true)
	for range 3 {
		p.tick(20*time.Second, honest)
	}
	if n := p.node(0); n.Power.On != "on" {
		t.Fatalf("it is %s", n.Power.On)
	}
	full("switched on by hand")
}

// Whoever asks why nothing is known of a machine is told.
func TestNotRead(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected)
	for _, tt := range []struct {
		err  error
		want string
	}{{errors.New("no route to host"), "no route to host"}, {nil, ""}} {
		p.c.Saw(power.Sample{Node: nodeID(0), State: power.Unknown, Readings: power.Readings{Watts: math.NaN()}, Err: tt.err, At: p.now})
		if m := p.c.HallPower().Machines[0]; m.ReadError != tt.want {
			t.Errorf("%v: %q", tt.err, m.ReadError)
		}
	}
}

// What switches a machine is not always a BMC: only those are listed.
func TestOnlyBMCs(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected, inventory.Inspected)
	p.conf.Care = map[inventory.NodeID]care.Device{nodeID(1): {}}
	p.restart()
	if list, err := p.c.BMCs(t.Context()); err != nil || len(list) != 1 || list[0].Node != nodeID(1) || list[0].Via == "" {
		t.Errorf("%+v, error %v", list, err)
	}
}

// The boot order is put right, and looked at again; the event says what is now.
func TestBootOrder(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected)
	if r := p.ask(0, "bmc-order", map[string]string{"first": "floppy"}); r.OK || !strings.Contains(r.Error, "want network or disk") {
		t.Errorf("answer %+v", r)
	}
	if r := p.ask(0, "bmc-order", map[string]string{"first": "disk"}); !r.OK {
		t.Fatalf("answer %+v", r)
	}
	events, err := p.st.NodeEvents(t.Context(), nodeID(0))
	if err != nil {
		t.Fatal(err)
	}
	if last := events[len(events)-1]; last.Evidence["order"] != "disk network" || last.Actor != "operator:anna" {
		t.Errorf("event %+v", last)
	}
	if list, err := p.c.BMCs(t.Context()); err != nil || len(list) != 1 || list[0].Audit.At.IsZero() {
		t.Errorf("it was not looked at again: %+v, error %v", list, err)
	}
	p.fakes[nodeID(0)].SetScript(powertest.Script{After: errors.New("503")})
	if r := p.ask(0, "bmc-order", map[string]string{"first": "disk"}); r.OK || !strings.Contains(r.Error, "503") {
		t.Errorf("answer %+v", r)
	}
}

// The RAM system hears no power button: its agent is told, and the controller
// sees that the machine is off. Without an agent nothing is claimed.
func TestSoftOffInRAM(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected, inventory.Inspected)
	for _, id := range p.nodes {
		p.fakes[id].SetScript(powertest.Script{Deaf: true})
	}
	agent := store.Agent{Session: "s", Node: nodeID(0), Mode: "inspect", Fence: p.node(0).Fence}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	order := func() convert.Order {
		o, err := p.c.Order(ctx, agent)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		return o
	}
	order() // it speaks
	off := make(chan struct{})
	go func() {
		defer close(off)
		for ctx.Err() == nil {
			changed := p.c.Changed(agent.Node)
			if o := order(); o.Kind == "off" {
				p.fakes[agent.Node].Turn(false)
				if err := p.c.Finished(ctx, agent, convert.Result{Order: o.ID, Kind: o.Kind, OK: true}); err != nil {
					t.Error(err)
				}
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}()
	if r := p.ask(0, "power", map[string]string{"verb": "softoff"}); !r.OK {
		t.Errorf("answer %+v", r)
	}
	cancel()
	<-off
	if n := p.node(0); n.Power.On != "off" {
		t.Errorf("it is %s", n.Power.On)
	}
	if r := p.ask(1, "power", map[string]string{"verb": "softoff"}); r.OK || p.node(1).Power.On != "on" {
		t.Errorf("nobody told it, and the answer is %+v", r)
	}
}

// A start that is refused says what the operator does next.
func TestRefusedStart(t *testing.T) {
	p := plantOf(t, 6, inventory.Inspected) // 1104 W: one machine
	refused := func(want string) {
		t.Helper()
		if r := p.ask(0, "power", map[string]string{"verb": "cycle", "force": "yes"}); r.OK || !strings.Contains(r.Error, want) {
			t.Errorf("answer %+v, want %q", r, want)
		}
	}
	if err := p.order("hold", map[string]string{"reason": "busbar"}); err != nil {
		t.Fatal(err)
	}
	refused("held: busbar; smelt power resume")
	if err := p.order("resume", nil); err != nil {
		t.Fatal(err)
	}
	p.c.Budget.Restore("other", "pdu", 1000)
	refused("are needed; smelt power budget")
	if err := p.order("blackout", map[string]string{"reason": "dark"}); err != nil {
		t.Fatal(err)
	}
	refused("; smelt power release")
}

// What runs counts on its circuits in the next process, where site.yaml says that
// the machine hangs now, and not as a conversion.
func TestRunsOnInTheNextProcess(t *testing.T) {
	p := plantOf(t, 8, inventory.InService, inventory.Inspected)
	p.conf.Site.Circuits = append(p.conf.Site.Circuits, inventory.Circuit{Name: "other", Kind: "pdu", Volts: 230, Amps: 16, Phases: 1, Derate: 0.8})
	for i := range p.conf.Site.Specs { // both were plugged in elsewhere
		p.conf.Site.Specs[i].Circuit = "other"
	}
	p.restart()
	if l := p.c.Levels(); l[0].Granted != 0 || l[1].Granted != 2000 {
		t.Errorf("granted %v W on the old circuit and %v W on the new one", l[0].Granted, l[1].Granted)
	}

	p = plantOf(t, 100, inventory.InService, inventory.Approved, inventory.Approved, inventory.Approved)
	p.conf.Site.MaxActive = 1
	p.restart()
	p.steps()
	waits := 0
	for i := range p.nodes {
		if n := p.node(i); strings.Contains(n.Note, "waits for its turn") {
			waits++
		}
	}
	if waits != 2 {
		t.Errorf("of three that are approved, %d wait for the one conversion that may run", waits)
	}
}

// A server that starts reads the meters of circuits before it grants anything:
// what flows there may belong to nobody that it knows.
func TestMetersBeforeGrants(t *testing.T) {
	p := plantOf(t, 16, inventory.Inspected)
	slow := make(chan struct{})
	p.conf.PDUs = []convert.PDU{{Name: "pdu", Circuits: func(ctx context.Context) ([]convert.CircuitReading, error) {
		select {
		case <-slow:
		case <-ctx.Done():
		}
		return []convert.CircuitReading{{Circuit: "pdu", Watts: 2900 + 1000}}, nil
	}}}
	budget, err := power.NewBudget(p.conf.Site.Circuits, power.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	p.conf.Budget = budget
	c, err := convert.New(p.conf) // of the same owner: it takes the lease over
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	intent := store.Intent{ID: "on", Node: nodeID(0), Verb: "power", Actor: "operator:anna", At: p.now, Params: map[string]string{"verb": "cycle"}}
	answer := make(chan store.IntentResult, 1)
	go func() {
		r, _ := c.Submit(ctx, intent)
		answer <- r
	}()
	select {
	case r := <-answer:
		t.Fatalf("answered %+v before the meters did", r)
	case <-c.Ready():
		t.Fatal("ready before the meters were read")
	case <-time.After(300 * time.Millisecond):
	}
	close(slow)
	if r := <-answer; !strings.Contains(r.Error, "belong to nothing known") {
		t.Errorf("answered %+v", r)
	}
}

// What a lying meter says causes nothing.
func TestLyingMeters(t *testing.T) {
	for _, tt := range []struct {
		name string
		lie  float64
		word string
	}{
		{"no number", math.NaN(), ""}, {"negative", -50, "-50 W"}, {"infinite", math.Inf(1), "no machine"}, {"absurd", 4e6, "no machine"}, {"ten times its nameplate", 10000, "four times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plantOf(t, 16, inventory.BurningIn, inventory.InService)
			for range 60 {
				p.tick(3*time.Second, func(n inventory.Node) float64 {
					if n.State == inventory.BurningIn {
						return tt.lie
					}
					return 800
				})
				p.steps()
			}
			if got := p.sheds(); len(got) > 0 {
				t.Errorf("it shed %v", got)
			}
			m := p.c.HallPower().Machines[0]
			if (tt.word == "") != (m.Lie == "") || !strings.Contains(m.Lie, tt.word) || !m.WattsAt.IsZero() {
				t.Errorf("its reading is %+v", m)
			}
			// What is not measured counts as reserved.
			if l := p.c.Levels()[0]; l.Granted < 2000 {
				t.Errorf("%.0f W are granted", l.Granted)
			}
		})
	}
}

// A site that is held starts nothing and lets burn-ins end their check, also
// after a restart, until it is resumed.
func TestHold(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.Inspected)
	if err := p.order("resume", nil); err == nil {
		t.Error("what is not held was resumed")
	}
	if err := p.order("hold", map[string]string{"reason": "people at the busbar"}); err != nil {
		t.Fatal(err)
	}
	if err := p.order("hold", map[string]string{"reason": "again"}); err == nil || !strings.Contains(err.Error(), "busbar") {
		t.Errorf("held twice: %v", err)
	}
	p.restart()
	if l := p.c.Load(p.node(0)); l.Pause != inventory.PauseAfter {
		t.Errorf("its load is %+v", l)
	}
	if err := p.c.Budget.Grant(nodeID(1), "pdu", 100, p.now); !errors.Is(err, power.ErrHeld) {
		t.Errorf("granted while held: %v", err)
	}
	if err := p.order("resume", nil); err != nil {
		t.Fatal(err)
	}
	p.restart()
	if l := p.c.Load(p.node(0)); l != (inventory.Load{}) {
		t.Errorf("after resume its load is %+v", l)
	}
	if err := p.c.Budget.Grant(nodeID(1), "pdu", 100, p.now); err != nil {
		t.Error(err)
	}
}

// What was asked of a server that ended is not done hours later: the machine may
// be at work again, and the blackout that is released another one.
func TestOldWishes(t *testing.T) {
	p := plantOf(t, 100, inventory.Inspected)
	ask := func(id string, node inventory.NodeID, verb string, params map[string]string) {
		if err := p.st.AddIntent(t.Context(), store.Intent{ID: id, Node: node, Verb: verb, Actor: "operator:anna", At: p.now, Params: params}); err != nil {
			t.Fatal(err)
		}
	}
	ask("old", nodeID(0), "power", map[string]string{"verb": "off"})
	ask("hold", "", "power-hold", map[string]string{"reason": "people at the busbar"})
	ask("old site", "", "power-resume", nil)
	p.now = p.now.Add(2 * time.Hour)
	p.restart()
	if err := p.c.Step(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	p.steps()
	if !p.fakes[nodeID(0)].On() {
		t.Error("it was switched off two hours later")
	}
	for _, id := range []string{"old", "old site"} {
		if r, err := p.st.IntentResult(t.Context(), id); err != nil || !strings.Contains(r.Error, "ask again") {
			t.Errorf("%s: %+v, %v", id, r, err)
		}
	}
	if h := p.c.SitePower().Hold; h == nil || h.Reason != "people at the busbar" {
		t.Errorf("held: %+v", h)
	}
}

// A restart that was decided before the hold does not go on behind it: not after
// a failure, and not in the next process.
func TestHoldStopsARestart(t *testing.T) {
	p := plantOf(t, 100, inventory.Starting)
	p.fakes[nodeID(0)].SetScript(powertest.Script{Ignore: true})
	p.steps() // told once to switch off
	if err := p.order("hold", map[string]string{"reason": "people at the busbar"}); err != nil {
		t.Fatal(err)
	}
	p.fakes[nodeID(0)].SetScript(powertest.Script{})
	try := func() (sets int) {
		for range 3 {
			p.now = p.now.Add(time.Minute)
			p.steps()
		}
		return strings.Count(strings.Join(p.fakes[nodeID(0)].Calls(), " "), "set ") - 1
	}
	if sets := try(); sets > 0 {
		t.Errorf("it was switched %d times while the site is held", sets)
	}
	p.restart()
	if sets := try(); sets > 0 {
		t.Errorf("it was switched %d times by the next process while the site is held", sets)
	}
	if n := p.node(0); !strings.Contains(n.Note, "busbar") {
		t.Errorf("its note is %q", n.Note)
	}
	if err := p.order("resume", nil); err != nil {
		t.Fatal(err)
	}
	if sets := try(); sets != 2 {
		t.Errorf("it was switched %d times after the hold, want off and on", sets)
	}
}

// Curtailment pauses, caps and shuts down in that order, says honestly what it
// cannot, survives a restart, and gives everything back.
func TestCurtail(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.BurningIn, inventory.InService, inventory.Inspected)
	for range 5 {
		p.tick(20*time.Second, honest)
	}
	base := p.sum(honest)
	for _, tt := range []struct{ watts, within, want string }{
		{"100000", "10m", "cannot give back 100000 W"}, {"-5", "10m", "above 0"}, {"NaN", "10m", "above 0"}, {"1000", "5s", "the quickest takes"},
	} {
		if err := p.order("curtail", map[string]string{"watts": tt.watts, "within": tt.within}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s W within %s: %v", tt.watts, tt.within, err)
		}
	}
	if got := p.sheds(); len(got) > 0 {
		t.Fatalf("a refused curtailment took %v", got)
	}
	// One burn-in is enough for 500 W: the newest.
	if err := p.order("curtail", map[string]string{"watts": "500", "within": "10m", "until": noon.Add(2 * time.Hour).Format(time.RFC3339), "reason": "grid"}); err != nil {
		t.Fatal(err)
	}
	if got := p.sheds(); !slices.Equal(got, []string{"rig-01 pause curtailment"}) {
		t.Errorf("it took %v", got)
	}
	if err := p.order("curtail", map[string]string{"watts": "500", "within": "10m"}); err == nil {
		t.Error("curtailed twice")
	}
	p.restart()
	for range 5 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	cur := p.c.SitePower().Curtail
	if cur == nil || cur.Met.IsZero() || cur.Late || cur.Given() < 500 || base-p.sum(honest) < 500 {
		t.Errorf("after a restart it is %+v", cur)
	}
	// Nothing is admitted that would take it back.
	if err := p.c.Budget.Grant("other", "pdu", 300, p.now); !errors.Is(err, power.ErrNoRoom) {
		t.Errorf("granted while curtailed: %v", err)
	}
	p.now = noon.Add(2*time.Hour + time.Minute)
	for range 10 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if got := p.sheds(); len(got) > 0 || p.c.SitePower().Curtail != nil {
		t.Errorf("after its end: %v, %+v", got, p.c.SitePower().Curtail)
	}
	if last := p.c.SitePower().LastCurtail; last == nil || last.Given() < 500 {
		t.Errorf("the last one is %+v", last)
	}
	if got := p.sum(honest); got != base {
		t.Errorf("%.0f W are drawn in the end, %.0f before", got, base)
	}
}

// All that a site has is given where it is asked for: burn-ins, then cards in
// service, then idle machines; nobody in service is shut down.
func TestCurtailAll(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.InService, inventory.Inspected)
	for range 5 {
		p.tick(20*time.Second, honest)
	}
	can := p.c.CanGive(0, 20*time.Minute)
	if len(can.Steps) != 3 || can.Steps[0].Do != inventory.ShedPause || can.Steps[1].Do != inventory.ShedCap || can.Steps[2].Do != inventory.ShedOff {
		t.Fatalf("it could %+v", can.Steps)
	}
	if err := p.order("curtail", map[string]string{"watts": fmt.Sprint(can.Watts - 1), "within": "20m"}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if n := p.node(2); n.Power.On != "off" || !n.Sheds(inventory.ShedOff) {
		t.Errorf("the idle machine is %s, %v", n.Power.On, n.Shed)
	}
	if calls := strings.Join(p.fakes[nodeID(2)].Calls(), " "); strings.Contains(calls, "set off") || !strings.Contains(calls, "soft off") {
		t.Errorf("it was shut down by %s", calls)
	}
	if n := p.node(1); !n.Sheds(inventory.ShedCap) || n.Power.On != "on" {
		t.Errorf("the machine in service has %v", n.Shed)
	}
	if err := p.order("curtail-end", nil); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if got := p.sheds(); len(got) > 0 || p.node(2).Power.On != "on" {
		t.Errorf("after its end: %v, %s", got, p.node(2).Power.On)
	}
}

// A window of site.yaml curtails once, and whoever ends it by hand is not
// overruled.
func TestCurtailSchedule(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.BurningIn)
	p.conf.Site.Curtail = []convert.CurtailWindow{{Name: "evening", Days: []time.Weekday{time.Monday}, From: 12*time.Hour + 10*time.Minute, To: 13 * time.Hour, Watts: 700, Within: 5 * time.Minute}}
	p.restart()
	for range 12 { // four minutes
		p.tick(20*time.Second, honest)
	}
	if p.c.SitePower().Curtail != nil {
		t.Fatal("it began too early")
	}
	for range 30 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	cur := p.c.SitePower().Curtail
	if cur == nil || cur.By != "schedule:evening" || !cur.Until.Equal(noon.Add(time.Hour)) || cur.Met.IsZero() {
		t.Fatalf("in the window it is %+v", cur)
	}
	if err := p.order("curtail-end", nil); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if p.c.SitePower().Curtail != nil {
		t.Error("it began again although somebody ended it")
	}
	// Another one that comes between does not make it forgotten.
	if err := p.order("curtail", map[string]string{"watts": "500", "within": "10m"}); err != nil {
		t.Fatal(err)
	}
	if err := p.order("curtail-end", nil); err != nil {
		t.Fatal(err)
	}
	p.restart()
	for range 10 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if c := p.c.SitePower().Curtail; c != nil {
		t.Errorf("it began again after another one: %+v", c)
	}
}

// A server that starts within a window looks at its meters first: nameplates
// are no power that could be given back.
func TestCurtailScheduleAtStart(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.BurningIn)
	p.conf.Site.Curtail = []convert.CurtailWindow{{Name: "noon", From: 12 * time.Hour, To: 13 * time.Hour, Watts: 700, Within: 5 * time.Minute}}
	p.restart()
	if err := p.c.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := p.c.SitePower().Curtail; c != nil {
		t.Errorf("before anything is measured: %+v", c)
	}
	for range 5 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if c := p.c.SitePower().Curtail; c == nil || len(c.Steps) == 0 || c.Base != 1800 || len(p.sheds()) == 0 {
		t.Errorf("it is %+v, and took %v", c, p.sheds())
	}
}

// say lets a person ask something of machine i.
func (p *plant) say(i int, actor, verb string, params map[string]string) error {
	p.t.Helper()
	intent := store.Intent{ID: fmt.Sprint(verb, p.now), Node: nodeID(i), Verb: verb, Actor: actor, At: p.now, Params: params}
	if err := p.st.AddIntent(p.t.Context(), intent); err != nil {
		p.t.Fatal(err)
	}
	p.steps()
	r, err := p.st.IntentResult(p.t.Context(), intent.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	p.now = p.now.Add(time.Second)
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return nil
}

// What a person gives back is not taken again by the next process.
func TestCurtailUndone(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.InService)
	for range 5 {
		p.tick(20*time.Second, honest)
	}
	if err := p.order("curtail", map[string]string{"watts": "500", "within": "10m"}); err != nil {
		t.Fatal(err)
	}
	if err := p.say(0, "operator:anna", "shed", map[string]string{"do": "undo"}); err != nil {
		t.Fatal(err)
	}
	p.restart()
	p.tick(time.Second, honest)
	if got := p.sheds(); len(got) > 0 {
		t.Errorf("taken again: %v", got)
	}
}

// A machine that may come back and finds no room waits quietly: it says so once.
func TestWaitsForRoomQuietly(t *testing.T) {
	p := plantOf(t, 100, inventory.Inspected)
	for range 5 {
		p.tick(20*time.Second, honest)
	}
	if err := p.order("curtail", map[string]string{"watts": "100", "within": "20m"}); err != nil {
		t.Fatal(err)
	}
	p.steps()
	for _, verb := range []string{"curtail-end", "hold"} {
		if err := p.order(verb, map[string]string{"reason": "no start now"}); err != nil {
			t.Fatal(err)
		}
	}
	p.tick(20*time.Second, honest)
	before := p.node(0).Version
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.c.Step(ctx, nodeID(0)); err != nil {
		t.Errorf("its step does not end: %v", err)
	}
	if n := p.node(0); n.Version > before+2 || !strings.Contains(n.Note, "no start now") {
		t.Errorf("%d events, note %q", n.Version-before, n.Note)
	}
}

// A machine that a curtailment shut down and somebody holds stays off: his hands
// may be in it. Nobody else switches it by hand either.
func TestHeldStaysOff(t *testing.T) {
	p := plantOf(t, 100, inventory.Inspected)
	for range 5 {
		p.tick(20*time.Second, honest)
	}
	if err := p.order("curtail", map[string]string{"watts": "100", "within": "20m"}); err != nil {
		t.Fatal(err)
	}
	p.steps()
	if n := p.node(0); n.Power.On != "off" {
		t.Fatalf("it is %s", n.Power.On)
	}
	if err := p.say(0, "technician:bo", "hold", map[string]string{"reason": "changing its fan"}); err != nil {
		t.Fatal(err)
	}
	if err := p.order("curtail-end", nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if err := p.say(0, "operator:anna", "power", map[string]string{"verb": "on"}); err == nil || !strings.Contains(err.Error(), "changing its fan") {
		t.Errorf("an operator switches it on: %v", err)
	}
	if p.fakes[nodeID(0)].On() {
		t.Error("it was started while it is held")
	}
	if err := p.say(0, "technician:bo", "release", nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if !p.fakes[nodeID(0)].On() {
		t.Error("it is not given back after the hold")
	}
	// Taken by a next curtailment, it stays off, whoever gave it back the last time.
	if err := p.order("curtail", map[string]string{"watts": "100", "within": "20m"}); err != nil {
		t.Fatal(err)
	}
	p.steps()
	if err := p.order("curtail-end", nil); err != nil {
		t.Fatal(err)
	}
	if err := p.order("hold", map[string]string{"reason": "no start now"}); err != nil {
		t.Fatal(err)
	}
	p.tick(20*time.Second, honest) // called back, and it may not start
	p.fakes[nodeID(0)].Turn(true)  // a person presses its button
	for range 3 {
		p.tick(20*time.Second, honest)
	}
	if err := p.order("resume", nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.tick(20*time.Second, honest)
	}
	if err := p.order("curtail", map[string]string{"watts": "100", "within": "20m"}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if p.fakes[nodeID(0)].On() {
		t.Error("it came back while the site curtails")
	}
}

// After a blackout nothing starts without release, then what had work comes
// back, service first, each verified; who was off on purpose stays off.
func TestBlackout(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.InService, inventory.InService, inventory.InService, inventory.Inspected)
	for range 3 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	for _, f := range p.fakes {
		f.Turn(false)
	}
	dark := func(inventory.Node) float64 { return 0 }
	for range 6 {
		p.tick(20*time.Second, dark)
		p.steps()
	}
	b := p.c.SitePower().Blackout
	if b == nil || !b.Released.IsZero() || len(b.Lost) != 4 {
		t.Fatalf("the blackout is %+v", b)
	}
	p.restart()
	for range 30 { // however long
		p.tick(time.Minute, dark)
		p.steps()
	}
	for id, f := range p.fakes {
		if calls := strings.Join(f.Calls(), " "); strings.Contains(calls, "set on") {
			t.Errorf("%s was started without release: %s", id, calls)
		}
	}
	if err := p.c.Budget.Grant("other", "pdu", 1, p.now); !errors.Is(err, power.ErrHeld) {
		t.Errorf("granted before release: %v", err)
	}
	if err := p.order("release", nil); err != nil {
		t.Fatal(err)
	}
	p.fakes[nodeID(3)].SetScript(powertest.Script{Ignore: true}) // it says ok and does not start
	for range 40 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if b := p.c.SitePower().Blackout; b != nil {
		t.Errorf("it is not over: %+v", b)
	}
	for i, want := range []string{"on", "on", "on", "off", "off"} {
		if n := p.node(i); n.Power.On != want {
			t.Errorf("%s (%s) is %s, want %s", n.ID, n.State, n.Power.On, want)
		}
	}
	alarms := 0
	events, err := p.st.NodeEvents(t.Context(), nodeID(3))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Kind == inventory.KindAlarm {
			alarms++
		}
	}
	if alarms != 1 {
		t.Errorf("%d alarms of the machine that did not start", alarms)
	}
}

// Who is seen to be dark only after the blackout was noticed has a place in the
// order all the same: in a hall of hundreds that is most of them.
func TestBlackoutSeenBitByBit(t *testing.T) {
	p := plantOf(t, 100, inventory.BurningIn, inventory.BurningIn, inventory.BurningIn, inventory.InService, inventory.InService)
	for range 3 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	off := func(nodes ...int) {
		for _, i := range nodes {
			p.fakes[nodeID(i)].Turn(false)
		}
		for range 3 {
			p.tick(5*time.Second, honest)
			p.steps()
		}
	}
	off(0, 1, 2)
	if b := p.c.SitePower().Blackout; b == nil || len(b.Lost) != 3 {
		t.Fatalf("the blackout is %+v", b)
	}
	off(3)
	if got := fmt.Sprint(p.c.Budget.Waiting()); got != "[rig-03 rig-00 rig-01 rig-02]" {
		t.Errorf("they wait in the order %s", got)
	}
	if err := p.order("release", nil); err != nil {
		t.Fatal(err)
	}
	off(4) // and after the release
	if got := fmt.Sprint(p.c.Budget.Waiting()); !strings.Contains(got, "rig-04") && p.node(4).Power.On != "on" {
		t.Errorf("the last one is %s, and they wait in the order %s", p.node(4).Power.On, got)
	}
}

// What trips a breaker once trips it again when all start: power that is lost
// again on the way back is another blackout, which a person releases.
func TestBlackoutAgain(t *testing.T) {
	p := plantOf(t, 100, inventory.InService, inventory.InService, inventory.InService, inventory.InService)
	for range 3 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	turn := func(nodes ...int) {
		for _, i := range nodes {
			p.fakes[nodeID(i)].Turn(false)
		}
		for range 3 {
			p.tick(20*time.Second, honest)
		}
	}
	turn(0, 1, 2, 3)
	first := p.c.SitePower().Blackout
	if first == nil {
		t.Fatal("no blackout")
	}
	if err := p.order("release", nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := p.c.Step(t.Context(), nodeID(i)); err != nil {
			t.Fatal(err)
		}
		p.c.Jobs()
		if err := p.c.Step(t.Context(), nodeID(i)); err != nil {
			t.Fatal(err)
		}
		p.tick(5*time.Second, honest)
	}
	if b := p.c.SitePower().Blackout; b == nil || len(b.Back) != 3 {
		t.Fatalf("on the way back it is %+v", b)
	}
	turn(0, 1, 2)
	b := p.c.SitePower().Blackout
	if b == nil || !b.Released.IsZero() || !b.At.After(first.At) || len(b.Lost) != 4 {
		t.Errorf("after the second time it is %+v", b)
	}
	for range 30 {
		p.tick(time.Minute, honest)
		p.steps()
	}
	for i := range 3 {
		if calls := strings.Join(p.fakes[nodeID(i)].Calls(), " "); strings.Count(calls, "set on") > 1 {
			t.Errorf("%s was started again without release: %s", nodeID(i), calls)
		}
	}
}

// One machine that goes off is no blackout; a whole circuit is.
func TestDarkness(t *testing.T) {
	p := plantOf(t, 100, inventory.InService, inventory.InService, inventory.InService, inventory.InService, inventory.InService)
	for range 3 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	p.fakes[nodeID(0)].Turn(false)
	for range 6 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if b := p.c.SitePower().Blackout; b != nil {
		t.Errorf("one machine of five: %+v", b)
	}
	if n := p.node(0); n.Power.On != "off" || !strings.Contains(n.Power.Detail, "nobody") {
		t.Errorf("its power is %+v", n.Power)
	}
}

// Whatever an emergency stop leaves, a person says so, and machines that never
// lost power are not touched by the way back.
func TestSaidBlackout(t *testing.T) {
	p := plantOf(t, 100, inventory.InService, inventory.InService)
	for range 3 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if err := p.order("blackout", map[string]string{"reason": "emergency stop"}); err != nil {
		t.Fatal(err)
	}
	p.fakes[nodeID(0)].Turn(false)
	p.tick(20*time.Second, honest)
	if err := p.order("release", nil); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		p.tick(20*time.Second, honest)
		p.steps()
	}
	if b := p.c.SitePower().Blackout; b != nil {
		t.Errorf("it is not over: %+v", b)
	}
	if calls := strings.Join(p.fakes[nodeID(1)].Calls(), " "); strings.Contains(calls, "set") {
		t.Errorf("a machine that was on was switched: %s", calls)
	}
	if p.node(0).Power.On != "on" {
		t.Errorf("the other one is %s", p.node(0).Power.On)
	}
}
