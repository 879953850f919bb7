package power_test

import (
	"fmt"
	"strings"
	"testing"

	"smelt/inventory"
	"smelt/power"
)

// One PDU of 3680 W: limit 2944, sheds above 3312.
var small = []inventory.Circuit{circuit("panel", "", 230, 99, 1), circuit("pdu-1", "panel", 230, 16, 1), circuit("pdu-2", "panel", 230, 16, 1)}

func loads() []power.Load {
	return []power.Load{
		{Node: "svc", Work: power.WorkService, Since: at(-5000)},
		{Node: "old", Work: power.WorkBurnIn, Since: at(-900)},
		{Node: "new", Work: power.WorkBurnIn, Since: at(-100)},
		{Node: "nap", Work: power.WorkIdle, Since: at(-50)},
		{Node: "far", Work: power.WorkBurnIn, Since: at(-1)},
	}
}

func advice(b *power.Budget, when float64, l []power.Load) string {
	var out []string
	for _, a := range b.Advise(at(when), l) {
		out = append(out, a.Do+" "+string(a.Node))
	}
	return strings.Join(out, ", ")
}

func smallHall(t *testing.T) *power.Budget {
	b := budget(t, small, power.Rules{})
	for _, n := range []inventory.NodeID{"svc", "old", "new", "nap"} {
		b.Restore(n, "pdu-1", 700)
	}
	b.Restore("far", "pdu-2", 700)
	b.Restore("gone", "pdu-2", 700)
	return b
}

// Above 90 % load goes, in order, one step at a time, until it is back at the
// limit; an advice without effect is given twice.
func TestShed(t *testing.T) {
	b := smallHall(t)
	l := loads()
	when := 0.0
	step := func(watts float64, later float64, want string) {
		t.Helper()
		when += later
		b.MeasuredCircuit("pdu-1", watts, at(when))
		if got := advice(b, when, l); got != want {
			t.Errorf("at %v s with %v W: %q, want %q", when, watts, got, want)
		}
	}
	step(3312, 0, "") // 90 %, not above
	step(3313, 10, "cap new")
	step(3313, 10, "") // it has 30 s
	if s := level(t, b, "pdu-1", at(when)); s.State != power.LevelShedding || level(t, b, "panel", at(when)).State != power.LevelOK {
		t.Errorf("%+v", s)
	}
	step(3313, 20, "cap new") // not followed
	l[2].Capped = true
	step(3200, 30, "cap old") // below 90 %: on to the limit
	l[1].Capped = true
	step(3100, 30, "cap svc")
	step(3100, 30, "cap svc")
	step(3100, 30, "pause new") // svc does not follow
	l[2].Paused = true
	step(3000, 30, "pause old")
	l[1].Paused = true
	step(3000, 30, "soft-off nap") // what does nothing first
	step(3000, 100, "")            // it has two minutes
	b.Release("nap")
	l = append(l[:3], l[4:]...)
	step(3000, 20, "soft-off new")
	step(2944, 10, "")
	if s := level(t, b, "pdu-1", at(when)); s.State == power.LevelShedding {
		t.Errorf("it still sheds at its limit: %+v", s)
	}
	step(3300, 200, "") // not above 90 % again
}

// What is not measured now causes no step.
func TestShedOnlyWhatIsMeasured(t *testing.T) {
	b := smallHall(t)
	b.Restore("svc", "pdu-1", 3000) // 5100 W are reserved
	if got := advice(b, 0, loads()); got != "" {
		t.Errorf("%q on reservations", got)
	}
	b.Measured("svc", 3000, at(0))
	if got := advice(b, 0, loads()); got != "" {
		t.Errorf("%q: 3000 W are measured, the rest is not", got)
	}
	b.Measured("old", 400, at(0))
	if got := advice(b, 61, loads()); got != "" {
		t.Errorf("%q on stale readings", got)
	}
	b.Measured("svc", 3000, at(62))
	b.Measured("old", 400, at(62))
	if got := advice(b, 62, loads()); got != "cap new" {
		t.Errorf("%q with 3400 W measured", got)
	}
	b = smallHall(t)
	b.MeasuredCircuit("pdu-1", 3600, at(0))
	if got := advice(b, 61, loads()); got != "" {
		t.Errorf("%q on a stale meter", got)
	}
}

// A load whose line is not known is on every line for a grant, and on none for
// a step.
func TestShedLines(t *testing.T) {
	b := budget(t, []inventory.Circuit{circuit("feed", "", 400, 16, 3), // 3695 W a line, sheds above 3325
		on("L1", circuit("pdu-1", "feed", 230, 16, 1)), on("L2", circuit("pdu-2", "feed", 230, 16, 1)), circuit("pdu-3", "feed", 230, 16, 1)}, power.Rules{})
	b.Restore("one", "pdu-1", 1000)
	b.Restore("two", "pdu-2", 1000)
	b.Restore("any", "pdu-3", 2000)
	l := []power.Load{{Node: "one", Work: power.WorkBurnIn, Since: at(0)}, {Node: "two", Work: power.WorkBurnIn, Since: at(1)}, {Node: "any", Work: power.WorkBurnIn, Since: at(2)}}
	for _, n := range []inventory.NodeID{"one", "two"} {
		b.Measured(n, 2000, at(0))
	}
	b.Measured("any", 2000, at(0))
	if got := advice(b, 0, l); got != "" { // 4000 W on one line, if any is on it
		t.Errorf("%q: it is not known that one line has too much", got)
	}
	b.MeasuredLine("feed", "L1", 3400, at(1))
	if got := advice(b, 1, l); got != "cap any" { // the newest that may be on L1
		t.Errorf("%q with too much on L1", got)
	}
	l[2].Capped = true
	b.MeasuredLine("feed", "L1", 3400, at(31))
	if got := advice(b, 31, l); got != "cap one" {
		t.Errorf("%q with too much on L1: two is on L2", got)
	}
	b.MeasuredCircuit("feed", 3*3400, at(62))
	if got := advice(b, 62, l); got == "" {
		t.Error("a third of it is too much for any line")
	}
}

// Over its limit for a minute a circuit takes no more, until it was well below
// for a minute.
func TestStop(t *testing.T) {
	b := budget(t, small, power.Rules{})
	b.Restore("a", "pdu-1", 100)
	look := func(watts, when float64, want string) {
		t.Helper()
		b.Measured("a", 100, at(when))
		b.MeasuredCircuit("pdu-1", watts, at(when))
		b.Advise(at(when), nil)
		says(t, fmt.Sprintf("%v W at %v s", watts, when), b.Grant("x", "pdu-1", 1, at(when)), want)
		b.Release("x")
	}
	look(2900, 0, "")
	look(2950, 10, "has 0 of 2944 W free") // no room, in any case
	look(2900, 60, "")
	look(2950, 70, "has 0 of 2944 W free")
	look(2950, 131, "drew more than the 2944 W")
	look(2900, 140, "drew more than the 2944 W") // below, not well below
	look(2700, 150, "drew more")
	look(2700, 209, "drew more")
	if l := level(t, b, "pdu-1", at(209)); l.State != power.LevelFull || level(t, b, "panel", at(209)).State != power.LevelOK {
		t.Errorf("%+v", l)
	}
	look(2700, 210, "")
}

// What was taken is given back when its circuits have been well for five
// minutes and have room for all of it, one on a circuit at a time.
func TestLift(t *testing.T) {
	b := smallHall(t)
	l := loads()
	l[0].Capped, l[1].Capped, l[2].Paused = true, true, true
	b.Restore("hog", "pdu-1", 500) // 3300 W: more than the limit
	if got := advice(b, 0, l) + advice(b, 299, l) + advice(b, 301, l); got != "" {
		t.Errorf("%q while more is granted than the limit", got)
	}
	b.Release("hog")
	if got := advice(b, 302, l) + advice(b, 362, l) + advice(b, 661, l); got != "" {
		t.Errorf("%q too soon", got)
	}
	if got := advice(b, 662, l); got != "lift svc" {
		t.Errorf("%q, want what is in service first", got)
	}
	l[0].Capped = false
	if got := advice(b, 663, l); got != "" {
		t.Errorf("%q within the window", got)
	}
	if got := advice(b, 664, l); got != "lift old" {
		t.Errorf("%q, want the oldest", got)
	}
}

// A curtailment asks as many at once as are needed, leaves services on, and
// gives back what there is room for.
func TestCurtailSheds(t *testing.T) {
	b := smallHall(t)
	b.Release("gone")
	l := loads()
	measure := func(when, watts float64) {
		for _, x := range l {
			b.Measured(x.Node, watts, at(when))
		}
	}
	advice(b, 0, l) // circuits are well from here
	measure(400, 600)
	b.Curtail(2800, "grid") // of 3000
	if got := advice(b, 400, l); got != "cap far, cap new" {
		t.Errorf("%q, want two times 150 W", got)
	}
	if got := advice(b, 420, l); got != "" {
		t.Errorf("%q before it can be seen", got)
	}
	b.Curtail(1000, "grid, more")
	for i := range l {
		l[i].Capped = l[i].Work != power.WorkIdle
	}
	measure(440, 500) // 2500
	if got := advice(b, 440, l); got != "pause far, pause new, pause old" {
		t.Errorf("%q, want every burn-in", got)
	}
	for i := range l {
		l[i].Paused = l[i].Work == power.WorkBurnIn
	}
	measure(480, 300) // 1500
	if got := advice(b, 480, l); got != "soft-off nap, soft-off far" {
		t.Errorf("%q", got)
	}
	b.Curtail(0, "grid, all")
	b.Release("nap")
	b.Release("far")
	l = l[:3]
	measure(620, 300)
	if got := advice(b, 620, l); got != "soft-off new, soft-off old" {
		t.Errorf("%q: services stay on", got)
	}
	b.Release("new")
	b.Release("old")
	l = l[:1]
	measure(1200, 300)
	if got := advice(b, 1200, l); got != "" {
		t.Errorf("%q while curtailed", got)
	}
	b.CurtailEnd()
	if got := advice(b, 1200, l); got != "lift svc" {
		t.Errorf("%q when it is over", got)
	}
}
