package convert_test

import (
	"strings"
	"testing"

	"smelt/inventory"
)

// TestSwitchedByHand: a machine that nothing can switch is a task; on is heard,
// off is a person's word, and until then nothing is believed.
func TestSwitchedByHand(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, Manual: map[int]bool{0: true}})
	h.inspectedAs(0)
	id := nodeID(0)
	opened := func(verb string) inventory.Task {
		t.Helper()
		tasks, err := h.s.Tasks(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if task.Open() && task.Verb == verb {
				return task
			}
		}
		t.Fatalf("no task to %s among %+v", verb, tasks)
		return inventory.Task{}
	}
	if err := h.do(id, "power", map[string]string{"verb": "off"}); err == nil || !strings.Contains(err.Error(), "a person must, by task t-") {
		t.Fatalf("off: %v", err)
	}
	if n := h.node(id); n.Power.On == "off" {
		t.Error("it counts as off before anybody said so")
	}
	task := opened("switch off")
	if !strings.Contains(task.Where, "A0") {
		t.Errorf("where: %q", task.Where)
	}
	h.must(id, "task-done", map[string]string{"task": task.ID})
	h.until(id, "is off by a person's word", func(n inventory.Node) bool { return n.Power.On == "off" && n.Power.Via == "a person" })
	if err := h.do(id, "power", map[string]string{"verb": "on"}); err == nil {
		t.Fatal("on is ok and nobody was there")
	}
	task = opened("press")
	a := h.boots(0)
	a.ok(a.enrol())
	tasks, err := h.s.Tasks(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range tasks {
		if o.ID == task.ID && o.Open() {
			t.Errorf("the machine is heard of and its task is open: %+v", o)
		}
	}
}
