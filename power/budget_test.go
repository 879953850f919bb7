package power_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/inventory"
	"smelt/power"
)

func circuit(name, parent string, volts, amps float64, phases int) inventory.Circuit {
	kind, _, _ := strings.Cut(name, "-")
	return inventory.Circuit{Name: name, Parent: parent, Kind: kind, Volts: volts, Amps: amps, Phases: phases, Derate: 0.8}
}

func on(lines string, c inventory.Circuit) inventory.Circuit {
	c.Lines = lines
	return c
}

var tree = []inventory.Circuit{
	circuit("bank-1", "pdu-1", 230, 16, 1),         // 2944 W
	circuit("bank-2", "pdu-1", 230, 16, 1),         // 2944 W
	on("L1", circuit("pdu-1", "feed", 230, 25, 1)), // 4600 W
	circuit("feed", "", 400, 32, 3),                // 5912 W on each line
	on("L2", circuit("pdu-2", "feed", 230, 99, 1)), // 18216 W: more than its line
}

func budget(t *testing.T, tree []inventory.Circuit, r power.Rules) *power.Budget {
	t.Helper()
	b, err := power.NewBudget(tree, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// says holds an error against the words it must have; "" wants none.
func says(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: error %v, want %q", what, err, want)
	}
}

func at(seconds float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func TestBudget(t *testing.T) {
	now := at(0)
	b := budget(t, tree, power.Rules{})
	for i, step := range []struct {
		node    inventory.NodeID
		circuit string
		watts   float64
		later   time.Duration
		says    string // in the error; "" for none
	}{
		{"a", "bank-1", 1500, 0, ""},
		{"b", "bank-1", 100, 0, "a started on bank bank-1 within 2s"},
		{"b", "bank-2", 100, 0, ""}, // another circuit, another slot
		{"a", "bank-1", 1400, 0, ""},
		{"c", "bank-1", 1545, 2 * time.Second, "bank-1 has 1544 of 2944 W free, 1545 are needed"},
		{"c", "bank-1", 1544, 0, ""},
		{"b", "bank-2", 1657, 2 * time.Second, "pdu-1 has 1656 of 4600 W free"},
		{"b", "bank-2", 1656, 0, ""},
		{"d", "pdu-2", 5913, 0, "feed L2 has 5912 of 5912 W free, 5913 are needed"},
		{"d", "pdu-2", math.NaN(), 0, "not negative"},
		{"d", "pdu-2", -1, 0, "not negative"},
		{"d", "pdu-2", math.Inf(1), 0, "not negative"},
		{"d", "pdu-9", 1, 0, "not in the site"},
		{"d", "", 1e9, 0, ""},
		{"a", "pdu-2", 1400, 0, ""}, // moved
		{"e", "bank-1", 1288, 2 * time.Second, ""},
	} {
		now = now.Add(step.later)
		err := b.Grant(step.node, step.circuit, step.watts, now)
		says(t, fmt.Sprint("step ", i), err, step.says)
		if room := strings.Contains(step.says, "free") || strings.Contains(step.says, "started"); errors.Is(err, power.ErrNoRoom) != room {
			t.Errorf("step %d: error %v is about room: %v", i, err, room)
		}
	}
	b.Release("c")
	b.Release("c")
	b.Release("nobody")
	const want = "feed 4344/17736 3; pdu-2 1400/18216 1; pdu-1 2944/4600 2; bank-1 1288/2944 1; bank-2 1656/2944 1; "
	if got := levels(b, now); got != want {
		t.Errorf("levels\n%s, want\n%s", got, want)
	}
}

func levels(b *power.Budget, now time.Time) (s string) {
	for _, l := range b.Levels(now) {
		s += fmt.Sprintf("%s %.0f/%.0f %d; ", l.Name, l.Granted, l.Limit, len(l.Holders))
	}
	return s
}

func level(t *testing.T, b *power.Budget, name string, now time.Time) power.Level {
	t.Helper()
	for _, l := range b.Levels(now) {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no level %s", name)
	return power.Level{}
}

func TestRestore(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	b.Restore("a", "bank-1", 2000)
	b.Restore("b", "bank-1", 2000) // what runs, runs
	b.Restore("gone", "pdu-9", 100)
	says(t, "beside an overrun", b.Grant("c", "bank-1", 1, at(0)), "has 0 of")
	b.Release("a")
	says(t, "a restore takes no start slot", b.Grant("c", "bank-1", 900, at(0)), "")
	b.Restore("b", "bank-2", math.NaN())
	says(t, "beside a machine whose draw is not known", b.Grant("d", "bank-2", 1, at(0)), "bank-2 has 0 of 2944")
}

// Each line of three phases is a breaker's pole of its own.
func TestLines(t *testing.T) {
	for name, c := range map[string]struct {
		lines        string
		volts, watts float64 // of what was granted before
		says         string  // of 2000 W more on L1 of a line of 5912 W
	}{
		"the same line":                 {"L1", 230, 3913, "feed L1 has 1999 of 5912 W free"},
		"the same line, exact":          {"L1", 230, 3912, ""},
		"another line":                  {"L2", 230, 5912, ""},
		"a line not known":              {"", 230, 3913, "feed L1 has 1999 of"},
		"between it and another":        {"L1-L2", 400, 6800, "feed L1 has 1986 of"}, // 6800 / sqrt(3) = 3926
		"between, from the end":         {"L3-L1", 400, 6800, "feed L1 has 1986 of"},
		"between, exact":                {"L1-L2", 400, 6775, ""},
		"between the others":            {"L2-L3", 400, 9000, ""},
		"a line not known, lower volts": {"", 120, 3913, "feed L1 has 1999 of"},
	} {
		b := budget(t, []inventory.Circuit{circuit("feed", "", 400, 32, 3), on("L1", circuit("pdu-1", "feed", 230, 99, 1)),
			on(c.lines, circuit("pdu-2", "feed", c.volts, 99, 1))}, power.Rules{})
		if err := b.Grant("before", "pdu-2", c.watts, at(0)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		says(t, name, b.Grant("x", "pdu-1", 2000, at(0)), c.says)
	}

	// Three phases below three phases: the same lines, unless a transformer mixes them.
	for volts, want := range map[float64]string{400: "L1 2000, L2 0, L3 0", 208: "L1 2309, L2 2309, L3 2309"} {
		b := budget(t, []inventory.Circuit{circuit("feed", "", 400, 63, 3), circuit("panel", "feed", volts, 63, 3),
			on("L1", circuit("pdu-1", "panel", volts/math.Sqrt(3), 32, 1))}, power.Rules{})
		if err := b.Grant("a", "pdu-1", 2000, at(0)); err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, l := range level(t, b, "feed", at(0)).PerLine {
			got = append(got, fmt.Sprintf("%s %.0f", l.Name, l.Granted))
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("below %v V: %s, want %s", volts, s, want)
		}
	}

	// 120 V from one leg of 240 V: its amperes count, not its watts.
	b := budget(t, []inventory.Circuit{circuit("panel", "", 240, 30, 1), circuit("pdu-1", "panel", 120, 30, 1)}, power.Rules{})
	says(t, "one leg", b.Grant("a", "pdu-1", 2881, at(0)), "pdu-1 has 2880 of 2880")
	if says(t, "one leg", b.Grant("a", "pdu-1", 2880, at(0)), ""); level(t, b, "panel", at(0)).Free != 0 {
		t.Errorf("24 A of 24 A are drawn and %v W are free", level(t, b, "panel", at(0)).Free)
	}
}

func TestReserve(t *testing.T) {
	few := slices.Clone(tree)
	few[2].Reserve, few[3].Reserve = 600, 1000
	b := budget(t, few, power.Rules{})
	says(t, "bank", b.Grant("a", "bank-1", 2944, at(0)), "")
	says(t, "pdu", b.Grant("b", "bank-2", 1057, at(0)), "pdu-1 has 1056 of 4600 W free")
	says(t, "feed", b.Grant("c", "pdu-2", 4913, at(0)), "feed L2 has 4912 of 5912 W free")
}

func TestLearned(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	holds := func(what string, want float64) {
		t.Helper()
		if got := level(t, b, "bank-1", at(0)).Holders["a"]; got != want {
			t.Errorf("%s: %v W count, want %v", what, got, want)
		}
	}
	_ = b.Grant("a", "bank-1", 2000, at(0))
	holds("nameplate", 2000)
	b.Learned("a", math.NaN())
	b.Learned("a", -5)
	b.Learned("a", 0)
	holds("no number", 2000)
	b.Learned("a", 1000)
	holds("learned", 1100)
	b.Learned("a", 1950)
	holds("1.1 times above an honest nameplate", 2000)
	b.Learned("a", 2100)
	holds("a nameplate that was too small", 2310)
	b.Learned("a", 1000)
	b.Release("a")
	_ = b.Grant("a", "bank-1", 2000, at(0))
	holds("learned before", 1100)
	b.Measured("a", 1500, at(0))
	holds("never below measured", 1500)
	b.Restore("a", "bank-1", 2000)
	holds("restored where it was", 1500)
}

// A reading never lowers what is reserved; one above it counts, for five
// minutes of readings.
func TestMeasured(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	_ = b.Grant("a", "bank-1", 1000, at(0))
	counts := func(when, want float64) {
		t.Helper()
		if got := level(t, b, "bank-1", at(when)).Granted; got != want {
			t.Errorf("at %v s %v W count, want %v", when, got, want)
		}
	}
	b.Measured("a", 200, at(0))
	b.Measured("nobody", 1e6, at(0))
	for _, w := range []float64{math.NaN(), math.Inf(1), -1, 1e12} {
		b.Measured("a", w, at(1))
	}
	counts(1, 1000)
	b.Measured("a", 1400, at(10))
	counts(10, 1400)
	b.Measured("a", 900, at(40))
	counts(40, 1400)
	counts(4000, 1400) // no reading since says that it draws less
	b.Measured("a", 1300, at(200))
	b.Measured("a", 1350, at(130)) // late
	counts(200, 1400)
	b.Measured("a", 900, at(420))
	counts(420, 1350)
	b.Measured("a", 900, at(900))
	counts(900, 1000)
	says(t, "beside it", b.Grant("b", "bank-1", 1945, at(900)), "has 1944 of")
}

// What a circuit's own meter shows beyond what is known is load of nobody.
func TestUnknownLoad(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	_ = b.Grant("a", "bank-1", 1000, at(0))
	b.MeasuredCircuit("bank-1", 900, at(1)) // a is not measured: it may be all of this
	if l := level(t, b, "bank-1", at(1)); l.Unknown != 0 || l.Measured != 900 || !l.Metered {
		t.Errorf("%+v", l)
	}
	b.Measured("a", 300, at(2))
	b.MeasuredCircuit("bank-1", 900, at(3))
	b.MeasuredCircuit("bank-1", math.NaN(), at(3))
	b.MeasuredCircuit("bank-9", 900, at(3))
	l := level(t, b, "bank-1", at(3))
	if l.Unknown != 600 || l.Granted != 1600 {
		t.Errorf("%+v", l)
	}
	says(t, "on the level", b.Grant("b", "bank-1", 1345, at(3)), "bank-1 has 1344 of 2944 W free, 1345 are needed; it measures 600 W that belong to nothing known")
	says(t, "above it", b.Grant("c", "bank-2", 2944, at(3)), "")
	b.MeasuredCircuit("pdu-1", 3844, at(3)) // 300 + 600 + 2944: it knows them
	if l := level(t, b, "pdu-1", at(3)); l.Unknown != 0 || l.Granted != 1600+2944 {
		t.Errorf("%+v", l)
	}
	if l := level(t, b, "bank-1", at(9999)); l.Unknown != 600 {
		t.Errorf("%v W are unknown when the meter falls silent", l.Unknown)
	}
	b.MeasuredCircuit("bank-1", 100, at(2)) // late
	if l := level(t, b, "bank-1", at(4)); l.Unknown != 600 {
		t.Errorf("%v W are unknown after a late reading", l.Unknown)
	}
	b.Measured("a", 300, at(10))
	b.MeasuredCircuit("bank-1", 310, at(10))
	if l := level(t, b, "bank-1", at(10)); l.Unknown != 10 || l.Granted != 1010 {
		t.Errorf("%+v", l)
	}

	// On three phases: on any line, unless the lines have meters.
	b = budget(t, tree, power.Rules{})
	_ = b.Grant("a", "pdu-2", 1000, at(0))
	b.Measured("a", 1000, at(0))
	b.MeasuredCircuit("feed", 2500, at(1))
	lines := func(want string) {
		t.Helper()
		got := ""
		for _, l := range level(t, b, "feed", at(1)).PerLine {
			got += fmt.Sprintf("%.0f ", l.Granted)
		}
		if got != want {
			t.Errorf("granted on the lines: %s, want %s", got, want)
		}
	}
	lines("1500 2500 1500 ")
	b.MeasuredLine("feed", "L1", 0, at(1))
	b.MeasuredLine("feed", "L2", 1300, at(1))
	b.MeasuredLine("feed", "L3", 1200, at(1))
	b.MeasuredLine("feed", "L4", 9999, at(1))
	b.MeasuredLine("pdu-2", "L1", 9999, at(1))
	lines("0 1300 1200 ")
}

// What a circuit draws is what its own meter shows, and what is reserved on it
// where that is silent: so load of nobody shows above it.
func TestDrawn(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	_ = b.Grant("a", "bank-1", 2000, at(0)) // not measured
	_ = b.Grant("z", "", 300, at(0))
	draws := func(when, want float64) {
		t.Helper()
		if got := b.Drawn(at(when)); got != want {
			t.Errorf("at %v s %v W are drawn, want %v", when, got, want)
		}
	}
	draws(0, 2300)
	b.MeasuredCircuit("bank-1", 500, at(1))
	draws(1, 800)
	b.MeasuredCircuit("pdu-1", 1200, at(1))
	draws(1, 1500)
	if l := level(t, b, "pdu-1", at(1)); l.Unknown != 700 || l.Granted != 2700 {
		t.Errorf("%+v", l)
	}
	b.Measured("z", 100, at(1))
	draws(1, 1300)
	draws(90, 3000) // 2000 + 700 + 300
}

// A clock that is put back or far ahead stops nothing for good.
func TestClocks(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	says(t, "ahead", b.Grant("a", "bank-1", 100, at(1e6)), "")
	says(t, "put back", b.Grant("b", "bank-1", 100, at(0)), "within 2s")
	says(t, "a window later", b.Grant("b", "bank-1", 100, at(2)), "")
	b.Measured("a", 3000, at(1e6))
	if l := level(t, b, "bank-1", at(3)); l.Measured != 0 || l.Granted != 3100 {
		t.Errorf("a reading of the future: %+v", l)
	}
	b.Measured("a", 50, at(3))
	if l := level(t, b, "bank-1", at(3)); l.Measured != 50 || l.Granted != 3100 {
		t.Errorf("a reading of now: %+v", l)
	}
	b.Measured("a", 50, at(363))
	if l := level(t, b, "bank-1", at(363)); l.Granted != 200 {
		t.Errorf("%v W count six minutes later", l.Granted)
	}
	b.Measured("a", 50, at(-86_400)) // what counted no more does not count again
	if l := level(t, b, "bank-1", at(-86_400)); l.Granted != 200 {
		t.Errorf("%v W count after the clock was put back", l.Granted)
	}
}

func TestHoldAndCurtail(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	b.Hold("fire drill")
	err := b.Grant("a", "bank-1", 100, at(0))
	if says(t, "held", err, "power for a: no machine is started now: held: fire drill"); !errors.Is(err, power.ErrHeld) {
		t.Error(err)
	}
	says(t, "held, without a circuit", b.Grant("z", "", 100, at(0)), "fire drill")
	if l := level(t, b, "feed", at(0)); l.State != power.LevelHeld || l.Why != "fire drill" {
		t.Errorf("%+v", l)
	}
	b.Resume()
	says(t, "resumed", b.Grant("a", "bank-1", 1000, at(0)), "")
	says(t, "without a circuit", b.Grant("z", "", 500, at(0)), "")
	b.Curtail(2000, "grid")
	says(t, "curtailed", b.Grant("c", "bank-2", 501, at(0)), "curtailed to 2000 W (grid): 500 W are free, 501 are needed")
	says(t, "curtailed", b.Grant("c", "bank-2", 500, at(0)), "")
	b.CurtailEnd()
	says(t, "not curtailed", b.Grant("c", "bank-2", 501, at(0)), "")
}

func TestNewBudgetRefuses(t *testing.T) {
	good := circuit("feed", "", 230, 16, 1)
	with := func(f func(*inventory.Circuit)) []inventory.Circuit {
		c := good
		f(&c)
		return []inventory.Circuit{c}
	}
	pdu := func(name, parent string) inventory.Circuit { return circuit("pdu-"+name, "pdu-"+parent, 230, 16, 1) }
	for name, c := range map[string]struct {
		tree []inventory.Circuit
		says string
	}{
		"no parent":       {[]inventory.Circuit{pdu("a", "b")}, `circuit "pdu-a": its parent "pdu-b" does not exist`},
		"itself":          {[]inventory.Circuit{pdu("a", "a")}, "pdu-a <- pdu-a"},
		"ring":            {[]inventory.Circuit{pdu("a", "b"), pdu("b", "c"), pdu("c", "a")}, "circuits feed each other: pdu-a <- pdu-b <- pdu-c <- pdu-a"},
		"below a ring":    {[]inventory.Circuit{pdu("x", "a"), pdu("a", "b"), pdu("b", "a")}, "pdu-a <- pdu-b <- pdu-a"},
		"twice":           {[]inventory.Circuit{good, good}, "twice"},
		"missing breaker": {[]inventory.Circuit{good, circuit("pdu-a", "", 230, 16, 1)}, "pdu pdu-a has no parent, and the tree has feeds"},
		"upside down":     {[]inventory.Circuit{pdu("a", ""), circuit("panel", "pdu-a", 230, 16, 1)}, "does not exist"},
		"panel below pdu": {[]inventory.Circuit{circuit("pdu-a", "", 230, 16, 1), circuit("panel", "pdu-a", 230, 16, 1)}, "panel panel is fed by a pdu, pdu-a"},
		"3 below 1":       {[]inventory.Circuit{good, circuit("pdu-a", "feed", 400, 16, 3)}, "three phases below feed, which has one"},
		"line of nothing": {with(func(c *inventory.Circuit) { c.Lines = "L1" }), "has no parent whose line L1"},
		"no such line":    {with(func(c *inventory.Circuit) { c.Lines = "L5" }), `lines "L5"`},
		"no name":         {with(func(c *inventory.Circuit) { c.Name = "" }), "no name"},
		"no kind":         {with(func(c *inventory.Circuit) { c.Kind = "" }), `kind "": want one of feed, panel`},
		"no amps":         {with(func(c *inventory.Circuit) { c.Amps = 0 }), "amps is 0; it must be above 0; write what stands on its breaker"},
		"negative amps":   {with(func(c *inventory.Circuit) { c.Amps = -16 }), "amps is -16"},
		"NaN volts":       {with(func(c *inventory.Circuit) { c.Volts = math.NaN() }), "volts is NaN"},
		"derate 80":       {with(func(c *inventory.Circuit) { c.Derate = 80 }), "at most 1"},
		"derate 0":        {with(func(c *inventory.Circuit) { c.Derate = 0 }), "at most 1"},
		"two phases":      {with(func(c *inventory.Circuit) { c.Phases = 2 }), "2 phases"},
		"a sun":           {with(func(c *inventory.Circuit) { c.Amps = 1e300 }), "no rating"},
		"NaN reserve":     {with(func(c *inventory.Circuit) { c.Reserve = math.NaN() }), "reserve is NaN"},
		"all reserved":    {with(func(c *inventory.Circuit) { c.Reserve = 2944 }), "reserve on feed and below it is 2944 W on a line, of 2944 W"},
		"empty is ok":     {nil, ""},
	} {
		_, err := power.NewBudget(c.tree, power.Rules{})
		says(t, name, err, c.says)
	}
	if _, err := power.NewBudget(nil, power.Rules{Window: -1}); err == nil {
		t.Error("a negative window is taken")
	}
}

// The budget is told things and asked from many places at once.
func TestConcurrentUse(t *testing.T) {
	b := budget(t, tree, power.Rules{})
	var wg sync.WaitGroup
	for i := range 8 {
		n := inventory.NodeID(fmt.Sprint("n", i))
		wg.Go(func() {
			for s := range 50 {
				when := at(float64(s))
				_ = b.Grant(n, "bank-1", 500, when)
				b.Measured(n, 100, when)
				b.MeasuredCircuit("pdu-1", 900, when)
				b.Advise(when, []power.Load{{Node: n, Work: power.WorkIdle}})
				if l := b.Levels(when); l[0].Granted > l[0].Limit {
					t.Errorf("%+v", l[0])
				}
				b.Blackout(when, nil)
				b.Released(when)
				b.Waiting()
				b.Release(n)
			}
		})
	}
	wg.Wait()
}

func BenchmarkBudget(b *testing.B) {
	var hall []inventory.Circuit
	feed := circuit("feed", "", 400, 4000, 3)
	hall = append(hall, feed)
	for p := range 100 {
		pdu := circuit(fmt.Sprint("pdu-", p), "feed", 400, 63, 3)
		hall = append(hall, pdu)
		for k := range 6 {
			hall = append(hall, on([]string{"L1", "L2", "L3"}[k%3], circuit(fmt.Sprintf("bank-%d-%d", p, k), pdu.Name, 230, 32, 1)))
		}
	}
	x, err := power.NewBudget(hall, power.Rules{})
	if err != nil {
		b.Fatal(err)
	}
	loads := []power.Load{}
	for i := range 2000 {
		n := inventory.NodeID(fmt.Sprint("n", i))
		x.Restore(n, fmt.Sprintf("bank-%d-%d", i%100, i/100%6), 800)
		loads = append(loads, power.Load{Node: n, Work: power.WorkService, Since: at(float64(i))})
	}
	for name, f := range map[string]func(int){
		"grant":         func(i int) { _ = x.Grant("n5", "bank-5-0", 800, at(float64(i)*3)) },
		"measured":      func(i int) { x.Measured("n5", 700, at(float64(i))) },
		"measured PDU":  func(i int) { x.MeasuredCircuit("pdu-5", 9000, at(float64(i))) },
		"measured feed": func(i int) { x.MeasuredCircuit("feed", 9e5, at(float64(i))) },
		"advise":        func(i int) { x.Advise(at(float64(i)), loads) },
		"levels":        func(i int) { x.Levels(at(float64(i))) },
	} {
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				f(i)
			}
		})
	}
}
