package main

import (
	"fmt"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// A phase is what a machine does for a while after it was switched on.
type phase int

const (
	off phase = iota
	starting
	posting
	booting
	working
	nPhases
)

// phases are how long each takes, in seconds, and the share of its nameplate
// that a machine draws. In its first 40 ms it draws 3 to 5 times its current,
// which no meter sees: inrush below. For some seconds after that, fans run at
// full speed and disks spin up.
var phases = [nPhases]struct {
	name  string
	share float64
	takes int
}{
	off:      {"off", 0, 0},
	starting: {"start", 1.5, 3},
	posting:  {"POST", 0.45, 75}, // and up to 60 s more, by machine
	booting:  {"boot", 0.6, 40},
	working:  {"work", 0.9, 0},
}

const (
	machines   = 500
	nameplate  = 1200.0 // W
	inrush     = 4      // times the current of the nameplate
	seconds    = 37 * 60
	dark       = 60  // the hall goes dark
	back       = 120 // power is back
	release    = 180 // an operator lets machines start
	neverComes = 6   // machines that the blackout broke
)

// never is the start of a machine that is off.
const never = -1 << 30

// A machine of the hall.
type machine struct {
	id    inventory.NodeID
	bank  int // its circuit
	panel int
	work  string
	since time.Time
	dead  bool
	on    int // second of its start, or never
	post  int // seconds
}

// at is what the machine does at that second.
func (m *machine) at(now int) phase {
	if m.on == never {
		return off
	}
	t := now - m.on
	if t < 0 {
		return off
	}
	for p := starting; p < working; p++ {
		takes := phases[p].takes
		if p == posting {
			takes = m.post
		}
		if t < takes {
			return p
		}
		t -= takes
	}
	return working
}

// mean is what its BMC reports: the mean of the last ten seconds, in watts.
func (m *machine) mean(now int) (w float64) {
	for s := now - 9; s <= now; s++ {
		w += phases[m.at(s)].share * nameplate / 10
	}
	return w
}

// hall is 1 feed, 3 panels, 21 PDUs with 6 banks each, and 4 machines a bank.
func hall() (tree []inventory.Circuit, parent []int, ms []*machine) {
	add := func(up int, c inventory.Circuit) int {
		if c.Derate = 0.8; up >= 0 {
			c.Parent = tree[up].Name
		}
		tree, parent = append(tree, c), append(parent, up)
		return len(tree) - 1
	}
	feed := add(-1, inventory.Circuit{Name: "feed", Kind: "feed", Volts: 400, Amps: 1250, Phases: 3, Reserve: 6000})
	for p := range 3 {
		panel := add(feed, inventory.Circuit{Name: fmt.Sprintf("panel-%d", p+1), Kind: "panel", Volts: 400, Amps: 400, Phases: 3})
		for u := range 7 {
			pdu := add(panel, inventory.Circuit{Name: fmt.Sprintf("pdu-%d%d", p+1, u+1), Kind: "pdu", Volts: 400, Amps: 63, Phases: 3})
			for k := range 6 {
				bank := add(pdu, inventory.Circuit{Name: fmt.Sprintf("bank-%d%d%d", p+1, u+1, k+1), Kind: "bank", Volts: 230, Amps: 32, Phases: 1, Lines: []string{"L1", "L2", "L3"}[k%3]})
				for range 4 {
					if len(ms) == machines {
						break
					}
					ms = append(ms, newMachine(len(ms), bank, p))
				}
			}
		}
	}
	return tree, parent, ms
}

// newMachine makes machine i: by number, so that every run is the same.
func newMachine(i, bank, panel int) *machine {
	mix := i * 7919 % 500 // a permutation: 7919 is prime to 500
	m := &machine{id: inventory.NodeID(fmt.Sprintf("n%03d", i)), bank: bank, panel: panel, post: phases[posting].takes + mix%61, since: begin.Add(-time.Duration(mix) * time.Hour)}
	switch {
	case mix < 300:
		m.work = power.WorkService
	case mix < 350:
		m.work = power.WorkConvert
	case mix < 450:
		m.work = power.WorkBurnIn
	default:
		m.work = power.WorkIdle
	}
	m.dead = mix%83 == 7 && mix/83 < neverComes
	return m
}

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func clock(second int) time.Time { return begin.Add(time.Duration(second) * time.Second) }

// A start is when a machine was switched on.
type start struct {
	second int
	panel  int
	work   string
}

// A result is what a hall did.
type result struct {
	draw    [][nPhases]float64 // W in each second, by phase
	starts  []start
	peak    float64        // W after power is back
	above   map[string]int // circuit -> seconds with a line above its limit
	rated   map[string]int // circuit -> seconds with a line above its rating
	rush    float64        // most starts at once on a panel, as a share of its rating on a line
	running int            // second at which every machine that starts works
	advised int
}

// simulate lets a hall go dark and come back: in the order of the budget, or by
// itself, because machines and outlets are set to start with the mains.
func simulate(ordered bool) (result, error) {
	tree, parent, ms := hall()
	r := result{above: map[string]int{}, rated: map[string]int{}}
	b, err := power.NewBudget(tree, power.Rules{})
	if err != nil {
		return r, err
	}
	byID := map[inventory.NodeID]*machine{}
	var was []power.Load
	for _, m := range ms {
		m.on = -1000 // it works
		byID[m.id] = m
		b.Restore(m.id, tree[m.bank].Name, nameplate)
		was = append(was, power.Load{Node: m.id, Work: m.work, Since: m.since})
	}
	switchOn := func(m *machine, s int) {
		m.on = s
		r.starts = append(r.starts, start{s, m.panel, m.work})
	}
	for s := range seconds {
		switch {
		case s == dark:
			for _, m := range ms {
				m.on = never
			}
			b.Blackout(clock(s), was)
		case s == back && !ordered:
			for _, m := range ms {
				if !m.dead {
					switchOn(m, s)
				}
			}
		case s == release && ordered:
			b.Released(clock(s))
		}
		if ordered && s >= back {
			for _, id := range b.Waiting() {
				if m := byID[id]; !m.dead && b.Grant(id, tree[m.bank].Name, nameplate, clock(s)) == nil {
					switchOn(m, s)
				}
			}
		}
		r.see(s, tree, parent, ms)
		if ordered && s%10 == 0 {
			for _, m := range ms {
				b.Measured(m.id, m.mean(s), clock(s))
			}
			r.advised += len(b.Advise(clock(s), was))
		}
	}
	return r, nil
}

// see notes what flows in a second.
func (r *result) see(s int, tree []inventory.Circuit, parent []int, ms []*machine) {
	var draw [nPhases]float64
	flow := make([]inventory.PerLine, len(tree))
	rush := make([]inventory.PerLine, len(tree))
	all := true
	for _, m := range ms {
		p := m.at(s)
		w := phases[p].share * nameplate
		draw[p] += w
		flow[m.bank][0] += inventory.Milliwatts(w)
		if s > back && !m.dead && p != working {
			all = false
		}
		if m.on == s {
			w = inrush * nameplate
		}
		rush[m.bank][0] += inventory.Milliwatts(w)
	}
	r.draw = append(r.draw, draw)
	if s < back {
		return
	}
	sum := 0.0
	for _, w := range draw {
		sum += w
	}
	r.peak = max(r.peak, sum)
	if all && s > back && r.running == 0 {
		r.running = s
	}
	for i := len(tree) - 1; i >= 0; i-- {
		c := tree[i]
		for l, mw := range c.Each(inventory.Milliwatts(c.Reserve)) {
			flow[i][l] += mw
			rush[i][l] += mw
		}
		top := max(flow[i][0], flow[i][1], flow[i][2])
		if top > c.Limit() {
			r.above[c.Name]++
		}
		if top > c.Rating() {
			r.rated[c.Name]++
		}
		if c.Kind == "panel" {
			r.rush = max(r.rush, float64(max(rush[i][0], rush[i][1], rush[i][2]))/float64(c.Rating()))
		}
		if parent[i] < 0 {
			continue
		}
		for l, mw := range c.Onto(tree[parent[i]], flow[i]) {
			flow[parent[i]][l] += mw
		}
		for l, mw := range c.Onto(tree[parent[i]], rush[i]) {
			rush[parent[i]][l] += mw
		}
	}
}
