package power_test

import (
	"errors"
	"fmt"
	"testing"

	"smelt/inventory"
	"smelt/power"
)

// After a blackout nothing starts without release, then in order: what was in
// service, then what was converted, the oldest first, one on a panel at a time.
func TestBlackout(t *testing.T) {
	b := budget(t, []inventory.Circuit{circuit("feed", "", 400, 99, 3), circuit("panel-1", "feed", 400, 99, 3), circuit("panel-2", "feed", 400, 99, 3),
		on("L1", circuit("pdu-1", "panel-1", 230, 99, 1)), on("L2", circuit("pdu-2", "panel-1", 230, 99, 1)), on("L1", circuit("pdu-3", "panel-2", 230, 99, 1))}, power.Rules{})
	where := map[inventory.NodeID]string{"idle": "pdu-1", "burn": "pdu-1", "new": "pdu-2", "old": "pdu-1", "other": "pdu-3", "loose": ""}
	for node, c := range where {
		b.Restore(node, c, 1000)
	}
	b.Blackout(at(0), []power.Load{
		{Node: "idle", Work: power.WorkIdle, Since: at(-900)},
		{Node: "burn", Work: power.WorkBurnIn, Since: at(-800)},
		{Node: "new", Work: power.WorkService, Since: at(-10)},
		{Node: "old", Work: power.WorkService, Since: at(-500)},
		{Node: "other", Work: power.WorkConvert, Since: at(-1)},
		{Node: "loose", Work: power.WorkConvert, Since: at(-2)},
	})
	start := func(node inventory.NodeID, when float64) error {
		c, ok := where[node]
		if !ok {
			c = "pdu-1"
		}
		return b.Grant(node, c, 1000, at(when))
	}
	if got := fmt.Sprint(b.Waiting()); got != "[old new burn idle other loose]" {
		t.Errorf("they wait in the order %s", got)
	}
	err := start("old", 1)
	if says(t, "before release", err, "nothing starts before a person releases it"); !errors.Is(err, power.ErrHeld) {
		t.Error(err)
	}
	b.Released(at(60))
	says(t, "out of turn", start("new", 60), "it is the turn of old on panel panel-1")
	says(t, "who did not run before", start("stranger", 60), "it is the turn of old on panel panel-1")
	says(t, "first", start("old", 61), "")
	says(t, "another panel", start("other", 61), "")
	says(t, "on no circuit", start("loose", 61), "")
	says(t, "too early", start("new", 70), "one machine starts on panel panel-1 in 10s")
	says(t, "second", start("new", 71), "")
	// burn has no room: idle does not wait for it.
	b.Restore("hog", "pdu-1", 99*230*0.8-1500)
	says(t, "no room", start("burn", 81), "no room in the power budget: pdu pdu-1 has")
	b.Restore("hog", "pdu-1", 10)
	says(t, "passes it", start("idle", 81), "")
	says(t, "may come late", start("burn", 91), "")
	if b.Waiting() != nil {
		t.Errorf("%v wait", b.Waiting())
	}
	says(t, "it is over", start("stranger", 94), "")
	says(t, "no panel window any more", start("new", 94), "")
}

// A machine that does not come when it is its turn keeps nobody waiting for long.
func TestBlackoutPassesOver(t *testing.T) {
	b := budget(t, []inventory.Circuit{circuit("feed", "", 230, 99, 1)}, power.Rules{})
	var was []power.Load
	for i := range 4 {
		n := inventory.NodeID(fmt.Sprint("n", i))
		b.Restore(n, "feed", 100)
		was = append(was, power.Load{Node: n, Work: power.WorkService, Since: at(float64(i))})
	}
	b.Blackout(at(10), was)
	b.Released(at(20))
	b.Release("n1") // it was retired
	says(t, "its turn begins", b.Grant("n2", "feed", 100, at(20)), "turn of n0 on feed feed")
	says(t, "it is waited for", b.Grant("n2", "feed", 100, at(29)), "turn of n0")
	says(t, "it is passed", b.Grant("n2", "feed", 100, at(30)), "")
	says(t, "it comes", b.Grant("n0", "feed", 100, at(40)), "")
	says(t, "the next", b.Grant("n3", "feed", 100, at(50)), "")
	if b.Waiting() != nil {
		t.Errorf("%v wait", b.Waiting())
	}
}

// Machines that are seen to be dark later than others take their places in the
// order, before the release and after it, and also when nobody was waited for
// any more.
func TestLost(t *testing.T) {
	b := budget(t, []inventory.Circuit{circuit("feed", "", 230, 99, 1)}, power.Rules{})
	load := func(n inventory.NodeID, work string, since float64) []power.Load {
		b.Restore(n, "feed", 100)
		return []power.Load{{Node: n, Work: work, Since: at(since)}}
	}
	b.Blackout(at(10), load("burn", power.WorkBurnIn, 1))
	b.Lost(at(20), load("new", power.WorkService, 3))
	says(t, "before the release", b.Grant("new", "feed", 100, at(21)), "nothing starts before a person releases it")
	b.Released(at(30))
	says(t, "the first", b.Grant("new", "feed", 100, at(30)), "")
	b.Lost(at(31), append(load("old", power.WorkService, 2), load("burn", power.WorkBurnIn, 1)...))
	if got := fmt.Sprint(b.Waiting()); got != "[old burn]" {
		t.Errorf("they wait in the order %s", got)
	}
	says(t, "the pace is kept", b.Grant("old", "feed", 100, at(39)), "one machine starts on feed feed in 10s")
	says(t, "the second", b.Grant("old", "feed", 100, at(40)), "")
	says(t, "the third", b.Grant("burn", "feed", 100, at(50)), "")
	if b.Waiting() != nil {
		t.Errorf("%v wait", b.Waiting())
	}
	b.Lost(at(55), append(load("late", power.WorkBurnIn, 4), load("later", power.WorkBurnIn, 5)...))
	says(t, "out of turn", b.Grant("later", "feed", 100, at(56)), "it is the turn of late")
	says(t, "in turn", b.Grant("late", "feed", 100, at(56)), "")
	says(t, "one at a time", b.Grant("later", "feed", 100, at(60)), "one machine starts on feed feed in 10s")
}
