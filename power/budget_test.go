package power_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"smelt/inventory"
	"smelt/power"
)

func circuit(name, parent string, volts, amps float64, phases int) inventory.Circuit {
	return inventory.Circuit{Name: name, Parent: parent, Kind: "pdu", Volts: volts, Amps: amps, Phases: phases, Derate: 0.8}
}

var tree = []inventory.Circuit{
	circuit("bank-1", "pdu-1", 230, 16, 1), // 2944 W
	circuit("bank-2", "pdu-1", 230, 16, 1), // 2944 W
	circuit("pdu-1", "feed", 230, 25, 1),   // 4600 W
	circuit("feed", "", 400, 32, 3),        // 17735 W
	circuit("pdu-2", "feed", 230, 100, 1),  // 18400 W: more than the feed
}

func TestBudget(t *testing.T) {
	now := time.Unix(1000, 0)
	b, err := power.NewBudget(tree, 1, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		node    inventory.NodeID
		circuit string
		watts   float64
		later   time.Duration
		says    string // in the error; "" for none
	}{
		{"a", "bank-1", 1500, 0, ""},
		{"b", "bank-1", 100, 0, "1 started on pdu bank-1"},
		{"b", "bank-2", 100, 0, ""}, // another circuit, another slot
		{"a", "bank-1", 1400, 0, ""},
		{"c", "bank-1", 1545, 2 * time.Second, "bank-1 has 1544 of 2944 W free, 1545 are needed"},
		{"c", "bank-1", 1544, 0, ""},
		{"b", "bank-2", 1657, 2 * time.Second, "pdu-1 has 1656 of 4600 W free"},
		{"b", "bank-2", 1656, 0, ""},
		{"d", "pdu-2", 18000, 0, "feed has 13136 of 17736 W free"},
		{"d", "pdu-2", math.NaN(), 0, "not negative"},
		{"d", "pdu-2", -1, 0, "not negative"},
		{"d", "pdu-2", math.Inf(1), 0, "not negative"},
		{"d", "pdu-9", 1, 0, "not in the site"},
		{"d", "", 1e9, 0, ""},
		{"a", "pdu-2", 1400, 0, ""}, // moved
		{"e", "bank-1", 1400, 2 * time.Second, ""},
	} {
		now = now.Add(step.later)
		err := b.Grant(step.node, step.circuit, step.watts, now)
		if step.says == "" && err != nil || step.says != "" && (err == nil || !strings.Contains(err.Error(), step.says)) {
			t.Fatalf("step %d: error %v, want %q", i, err, step.says)
		}
		if room := strings.Contains(step.says, "free") || strings.Contains(step.says, "started"); errors.Is(err, power.ErrNoRoom) != room {
			t.Errorf("step %d: error %v is about room: %v", i, err, room)
		}
	}
	b.Release("c")
	b.Release("c")
	b.Release("nobody")
	got := ""
	for _, l := range b.Levels() {
		got += fmt.Sprintf("%s %.0f/%.0f %d; ", l.Name, l.Granted, l.Limit, len(l.Holders))
	}
	const want = "feed 4456/17736 3; pdu-1 3056/4600 2; pdu-2 1400/18400 1; bank-1 1400/2944 1; bank-2 1656/2944 1; "
	if got != want {
		t.Errorf("levels\n%s, want\n%s", got, want)
	}
}

func TestRestore(t *testing.T) {
	b, err := power.NewBudget(tree, 1, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	b.Restore("a", "bank-1", 2000)
	b.Restore("b", "bank-1", 2000) // what runs, runs
	b.Restore("gone", "pdu-9", 100)
	if err := b.Grant("c", "bank-1", 1, now); !errors.Is(err, power.ErrNoRoom) || !strings.Contains(err.Error(), "has 0 of") {
		t.Errorf("beside an overrun: %v", err)
	}
	b.Release("a")
	if err := b.Grant("c", "bank-1", 900, now); err != nil {
		t.Errorf("a restore took a start slot: %v", err)
	}
	b.Restore("b", "bank-2", math.NaN())
	if err := b.Grant("d", "bank-2", 1, now); !errors.Is(err, power.ErrNoRoom) {
		t.Errorf("beside a machine whose draw is not known: %v", err)
	}
}

func TestNewBudgetRefuses(t *testing.T) {
	good := circuit("a", "", 230, 16, 1)
	with := func(f func(*inventory.Circuit)) []inventory.Circuit {
		c := good
		f(&c)
		return []inventory.Circuit{c}
	}
	for name, c := range map[string]struct {
		tree  []inventory.Circuit
		slots int
		says  string
	}{
		"no parent":   {[]inventory.Circuit{circuit("a", "b", 230, 16, 1)}, 1, `parent "b" does not exist`},
		"itself":      {[]inventory.Circuit{circuit("a", "a", 230, 16, 1)}, 1, "above itself"},
		"ring":        {[]inventory.Circuit{circuit("a", "b", 230, 16, 1), circuit("b", "c", 230, 16, 1), circuit("c", "a", 230, 16, 1)}, 1, "above itself"},
		"twice":       {[]inventory.Circuit{good, good}, 1, "twice"},
		"no name":     {with(func(c *inventory.Circuit) { c.Name = "" }), 1, "no name"},
		"no amps":     {with(func(c *inventory.Circuit) { c.Amps = 0 }), 1, "above 0"},
		"NaN volts":   {with(func(c *inventory.Circuit) { c.Volts = math.NaN() }), 1, "above 0"},
		"derate 80":   {with(func(c *inventory.Circuit) { c.Derate = 80 }), 1, "at most 1"},
		"derate 0":    {with(func(c *inventory.Circuit) { c.Derate = 0 }), 1, "at most 1"},
		"two phases":  {with(func(c *inventory.Circuit) { c.Phases = 2 }), 1, "2 phases"},
		"a sun":       {with(func(c *inventory.Circuit) { c.Amps = 1e300 }), 1, "no rating"},
		"no slots":    {[]inventory.Circuit{good}, 0, "at least one start"},
		"empty is ok": {nil, 1, ""},
	} {
		_, err := power.NewBudget(c.tree, c.slots, time.Second)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: error %v, want %q", name, err, c.says)
		}
	}
}

// Rule 5: no level is ever granted above its derated rating, whatever is
// granted, released, asked again or rebuilt after a crash, and no circuit
// starts more machines within the window than it may.
func TestNoLevelIsEverOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var circuits []inventory.Circuit
		for i := range rapid.IntRange(1, 8).Draw(t, "circuits") {
			c := circuit(fmt.Sprint("c", i), "", rapid.Float64Range(1, 400).Draw(t, "volts"), rapid.Float64Range(0.1, 100).Draw(t, "amps"), rapid.SampledFrom([]int{1, 3}).Draw(t, "phases"))
			if i > 0 && rapid.Bool().Draw(t, "child") {
				c.Parent = fmt.Sprint("c", rapid.IntRange(0, i-1).Draw(t, "parent"))
			}
			circuits = append(circuits, c)
		}
		slots := rapid.IntRange(1, 3).Draw(t, "slots")
		const window = 2 * time.Second
		fresh := func() *power.Budget {
			b, err := power.NewBudget(circuits, slots, window)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		type grant struct {
			circuit string
			watts   float64
		}
		b, now := fresh(), time.Unix(0, 0)
		stored := map[inventory.NodeID]grant{} // what the conductor has committed
		starts := map[string]map[inventory.NodeID]time.Time{}
		node := rapid.Custom(func(t *rapid.T) inventory.NodeID {
			return inventory.NodeID(fmt.Sprint("n", rapid.IntRange(0, 9).Draw(t, "node")))
		})
		t.Repeat(map[string]func(*rapid.T){
			"grant": func(t *rapid.T) {
				n := node.Draw(t, "n")
				g := grant{rapid.SampledFrom(circuits).Draw(t, "circuit").Name, rapid.Float64Range(0, 5000).Draw(t, "watts")}
				if b.Grant(n, g.circuit, g.watts, now) != nil {
					return
				}
				stored[n] = g
				if starts[g.circuit] == nil {
					starts[g.circuit] = map[inventory.NodeID]time.Time{}
				}
				starts[g.circuit][n] = now
				recent := 0
				for _, at := range starts[g.circuit] {
					if now.Sub(at) < window {
						recent++
					}
				}
				if recent > slots {
					t.Fatalf("%d starts on %s within %v, %d may", recent, g.circuit, window, slots)
				}
			},
			"release": func(t *rapid.T) {
				n := node.Draw(t, "n")
				b.Release(n)
				delete(stored, n)
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"crash": func(t *rapid.T) {
				b = fresh()
				clear(starts)
				for n, g := range stored {
					b.Restore(n, g.circuit, g.watts)
				}
			},
			"": func(t *rapid.T) {
				parent := map[string]string{}
				for _, c := range circuits {
					parent[c.Name] = c.Parent
				}
				for _, l := range b.Levels() {
					sum := 0.0 // counted anew, from what is stored
					for _, g := range stored {
						for c := g.circuit; c != ""; c = parent[c] {
							if c == l.Name {
								sum += g.watts
							}
						}
					}
					if sum > l.Circuit.Watts()+1e-6 || l.Granted > l.Circuit.Watts() {
						t.Fatalf("%s: %v W are granted (it says %v), the derated rating is %v", l.Name, sum, l.Granted, l.Circuit.Watts())
					}
					if math.Abs(sum-l.Granted) > 0.02 {
						t.Fatalf("%s: %v W are granted, it says %v", l.Name, sum, l.Granted)
					}
				}
			},
		})
	})
}
