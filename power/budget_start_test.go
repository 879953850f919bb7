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
