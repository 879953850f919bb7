package power_test

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"math/cmplx"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"smelt/inventory"
	"smelt/power"
)

// A machine of the model.
type machine struct {
	circuit   int
	lot       int     // its line, where it hangs on three phases
	nameplate float64 // what the site says
	most      float64 // what it draws at most: no more, where the nameplate is honest
	draws     float64 // now
	load      power.Load
}

// A reading that is on its way.
type late struct {
	node    inventory.NodeID
	circuit string
	watts   float64
	at      time.Time
}

// A schedule is one random life of a hall: what the conductor does, what
// machines draw, what meters say or do not say.
type schedule struct {
	site
	t       *rapid.T
	honest  bool // no machine draws more than its nameplate, nothing draws that is not known
	b       *power.Budget
	now     time.Time
	running map[inventory.NodeID]*machine // what the conductor has stored
	known   map[inventory.NodeID]float64  // peaks that it has stored
	stray   []float64                     // load of nobody, by circuit
	late    []late
	starts  map[string]map[inventory.NodeID]time.Time
}

const window, stale = 2 * time.Second, time.Minute

func (s *schedule) fresh() {
	b, err := power.NewBudget(s.tree, power.Rules{Window: window, Stale: stale})
	if err != nil {
		s.t.Fatal(err)
	}
	s.b = b
	for n, peak := range s.known {
		b.Learned(n, peak)
	}
	for n, m := range s.running {
		b.Restore(n, s.tree[m.circuit].Name, m.nameplate)
	}
	clear(s.starts)
}

// truly is what flows, when each machine draws so much.
func (s *schedule) truly(draws func(inventory.NodeID, *machine) float64) []flows {
	direct := make([]flows, len(s.tree))
	for i, c := range s.tree {
		for l, mw := range c.Each(1) {
			direct[i][l] = complex(float64(mw)*c.Reserve, 0) * cmplx.Pow(turn, complex(float64(l), 0))
		}
		for l, x := range s.place(c, s.lot[i], s.stray[i]) {
			direct[i][l] += x
		}
	}
	for n, m := range s.running {
		for l, x := range s.place(s.tree[m.circuit], m.lot, draws(n, m)) {
			direct[m.circuit][l] += x
		}
	}
	return s.sum(direct)
}

// total is what a meter of circuit i shows: real power, of everything below.
func (s *schedule) total(i int) (w float64) {
	within := func(j int) bool {
		for ; j >= 0; j = s.parent[j] {
			if j == i {
				return true
			}
		}
		return false
	}
	for j, c := range s.tree {
		if within(j) {
			w += s.stray[j] + c.Reserve*float64(c.Phases) // all that is reserved is drawn
		}
	}
	for _, m := range s.running {
		if within(m.circuit) {
			w += m.draws
		}
	}
	return w
}

func now(_ inventory.NodeID, m *machine) float64 { return m.draws }

func (s *schedule) node(t *rapid.T) inventory.NodeID {
	return inventory.NodeID(fmt.Sprint("n", rapid.IntRange(0, 9).Draw(t, "node")))
}

func (s *schedule) grant(t *rapid.T) {
	n := s.node(t)
	i := rapid.IntRange(0, len(s.tree)-1).Draw(t, "circuit")
	watts := rapid.Float64Range(1, 1500).Draw(t, "watts")
	if m := s.running[n]; m != nil { // a restart, where it is plugged in
		i, watts = m.circuit, m.nameplate
	}
	name := s.tree[i].Name
	if s.b.Grant(n, name, watts, s.now) != nil {
		return
	}
	if s.starts[name] == nil {
		s.starts[name] = map[inventory.NodeID]time.Time{}
	}
	for other, at := range s.starts[name] {
		if other != n && s.now.Sub(at) < window {
			t.Fatalf("%s and %s start on %s within %v", other, n, name, s.now.Sub(at))
		}
	}
	s.starts[name][n] = s.now
	m := s.running[n]
	if m == nil {
		m = &machine{circuit: i, nameplate: watts, lot: rapid.IntRange(0, 5).Draw(t, "line"), load: power.Load{Node: n, Since: s.now}}
		m.most = watts
		if peak := s.known[n]; peak > 0 {
			m.most = min(m.most, 1.1*peak)
		}
		if !s.honest && rapid.IntRange(0, 3).Draw(t, "lies") == 0 {
			m.most *= 1.6
		}
		s.running[n] = m
	}
	m.load.Work = rapid.SampledFrom([]string{power.WorkService, power.WorkConvert, power.WorkBurnIn, power.WorkIdle}).Draw(t, "work")
	m.load.Capped, m.load.Paused = false, false
	m.draws = rapid.SampledFrom([]float64{0.1, 0.5, 1}).Draw(t, "draw") * m.most
}

// survey reads every meter now.
func (s *schedule) survey() {
	for n, m := range s.running {
		s.b.Measured(n, m.draws, s.now)
	}
	f := s.truly(now)
	for i := len(s.tree) - 1; i >= 0; i-- {
		c := s.tree[i]
		if c.Phases == 3 {
			for l, name := range []string{"L1", "L2", "L3"} {
				s.b.MeasuredLine(c.Name, name, cmplx.Abs(f[i][l]), s.now)
			}
		}
		s.b.MeasuredCircuit(c.Name, s.total(i), s.now)
	}
}

func (s *schedule) check(t *rapid.T) {
	counted := map[string]float64{}
	claims := map[inventory.NodeID]float64{}
	for _, l := range s.b.Levels(s.now) {
		counted[l.Name] = l.Granted
		maps.Copy(claims, l.Holders)
	}
	for n, m := range s.running {
		if _, held := claims[n]; !held {
			t.Fatalf("%s runs and holds nothing", n)
		}
		want := m.nameplate
		if peak := s.known[n]; peak > 0 {
			want = min(want, 1.1*peak)
		}
		if claims[n] < want-1e-3 {
			t.Fatalf("%s counts %v W, and %v are reserved", n, claims[n], want)
		}
	}
	if !s.honest {
		return
	}
	if what, over := s.over(s.truly(now), derated); over {
		t.Fatalf("%s", what)
	}
	if what, over := s.over(s.truly(func(n inventory.NodeID, _ *machine) float64 { return claims[n] }), derated); over {
		t.Fatalf("granted: %s", what)
	}
}

// Rule 5: no level, and no line of one, is ever granted above its derated
// rating, and with honest nameplates none ever carries more: whatever is
// granted, released, learned, measured, measured late or not at all, and
// rebuilt after a crash. Where nameplates lie and unknown things draw, nothing
// is granted that meters show no room for, and what is too much is shed.
func TestSchedules(t *testing.T) {
	checks(t, 1000)
	rapid.Check(t, func(t *rapid.T) {
		s := &schedule{site: anySite(t), t: t, now: time.Unix(1_000_000, 0), honest: rapid.IntRange(0, 2).Draw(t, "honest") > 0,
			running: map[inventory.NodeID]*machine{}, known: map[inventory.NodeID]float64{}, starts: map[string]map[inventory.NodeID]time.Time{}}
		s.stray = make([]float64, len(s.tree))
		s.fresh()
		one := func(t *rapid.T) *machine {
			if len(s.running) == 0 {
				t.Skip("nothing runs")
			}
			return s.running[rapid.SampledFrom(slices.Sorted(maps.Keys(s.running))).Draw(t, "of")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"grant":       s.grant,
			"grant again": s.grant,
			"grant more":  s.grant,
			"release": func(t *rapid.T) {
				n := s.node(t)
				s.b.Release(n)
				delete(s.running, n)
			},
			"draw": func(t *rapid.T) {
				m := one(t)
				m.draws = rapid.SampledFrom([]float64{0, 0.1, 0.7, 1, 1}).Draw(t, "draw") * m.most
			},
			"learn": func(t *rapid.T) {
				m := one(t)
				peak := m.nameplate
				if p := s.known[m.load.Node]; p > 0 { // a later peak that is higher would make more of what is granted
					peak = min(peak, p)
				}
				peak *= rapid.Float64Range(0.3, 1).Draw(t, "peak")
				if s.known[m.load.Node] = peak; s.honest {
					m.most = min(m.nameplate, 1.1*peak)
					m.draws = min(m.draws, m.most)
				}
				s.b.Learned(m.load.Node, peak)
			},
			"measure": func(t *rapid.T) {
				m := one(t)
				s.late = append(s.late, late{node: m.load.Node, watts: m.draws, at: s.now})
			},
			"measure circuit": func(t *rapid.T) {
				i := rapid.IntRange(0, len(s.tree)-1).Draw(t, "circuit")
				s.late = append(s.late, late{circuit: s.tree[i].Name, watts: s.total(i), at: s.now})
			},
			"arrive": func(t *rapid.T) { // in any order, or never
				for _, r := range s.late {
					m := s.running[r.node]
					switch way := rapid.IntRange(0, 3).Draw(t, "way"); {
					case way == 0: // lost
					case r.circuit != "":
						s.b.MeasuredCircuit(r.circuit, r.watts, r.at)
					case way == 1:
						s.b.Measured(r.node, math.NaN(), r.at)
					case m != nil && (!s.honest || r.watts <= m.most): // else it is of an earlier life of it
						s.b.Measured(r.node, r.watts, r.at)
					}
				}
				s.late = nil
			},
			"wait": func(t *rapid.T) {
				s.now = s.now.Add(time.Duration(rapid.SampledFrom([]int{1, 900, 2000, 30_000, 400_000}).Draw(t, "ms")) * time.Millisecond)
			},
			"clock is put": func(t *rapid.T) {
				s.now = s.now.Add(time.Duration(rapid.SampledFrom([]int{-24, 24}).Draw(t, "hours")) * time.Hour)
				s.late = nil
				clear(s.starts)
			},
			"crash": func(t *rapid.T) {
				s.fresh()
				if a := s.b.Advise(s.now, s.loads()); len(a) > 0 {
					t.Fatalf("nothing is measured: %+v", a)
				}
			},
			"blackout": func(t *rapid.T) {
				loads := s.loads()
				seen := rapid.IntRange(0, len(loads)).Draw(t, "seen at once")
				s.b.Blackout(s.now, loads[:seen])
				s.b.Lost(s.now, loads[seen:])
				for _, m := range s.running {
					m.draws = 0
				}
				before := len(s.running)
				if s.grant(t); len(s.running) > before || slices.ContainsFunc(slices.Collect(maps.Values(s.running)), func(m *machine) bool { return m.draws > 0 }) {
					t.Fatal("a machine starts and nobody released it")
				}
				s.b.Released(s.now)
			},
			"stray": func(t *rapid.T) {
				if s.honest {
					t.Skip("nothing unknown draws")
				}
				s.stray[rapid.IntRange(0, len(s.tree)-1).Draw(t, "circuit")] = rapid.SampledFrom([]float64{0, 100, 2000}).Draw(t, "watts")
			},
			"all meters, then grant": func(t *rapid.T) {
				s.survey()
				before := maps.Clone(s.running)
				s.grant(t)
				for n, m := range s.running {
					if before[n] != nil {
						continue
					}
					m.draws = min(m.nameplate, m.most)
					if peak := s.known[n]; peak > 0 {
						m.draws = min(m.draws, 1.1*peak)
					}
					if what, over := s.overAbove(m); over {
						t.Fatalf("%s was granted %.0f W on %s: %s", n, m.nameplate, s.tree[m.circuit].Name, what)
					}
				}
			},
			"shed": s.shed,
			"":     s.check,
		})
	})
}

// loads is what every machine does.
func (s *schedule) loads() []power.Load {
	out := []power.Load{}
	for _, n := range slices.Sorted(maps.Keys(s.running)) {
		out = append(out, s.running[n].load)
	}
	return out
}

// legs tells whether a circuit hangs on one leg of another: a meter of watts does
// not see which.
func (s *schedule) legs() bool {
	for i, c := range s.tree {
		if p := s.parent[i]; p >= 0 && s.tree[p].Phases == 1 && c.Volts < s.tree[p].Volts {
			return true
		}
	}
	return false
}

// overAbove names a line that m draws from and that carries more than it may.
func (s *schedule) overAbove(m *machine) (string, bool) {
	direct := make([]flows, len(s.tree))
	direct[m.circuit] = s.place(s.tree[m.circuit], m.lot, 1)
	f := s.truly(now)
	for i, own := range s.sum(direct) {
		for l, x := range own {
			if cmplx.Abs(x) == 0 {
				f[i][l] = 0
			}
		}
	}
	return s.over(f, derated)
}

// shed follows every advice, and sees that it comes to an end: nothing is above
// its threshold that a machine could do something about.
func (s *schedule) shed(t *rapid.T) {
	threshold := func(c inventory.Circuit) float64 { return max(0.9, (c.Derate+1)/2) }
	for quiet := 0; quiet < 2; { // an earlier step may still take effect in the first round
		s.survey()
		loads := s.loads()
		busy := map[string]bool{} // circuits above a machine that was asked for something now
		acts := 0
		for _, a := range s.b.Advise(s.now, loads) {
			m := s.running[a.Node]
			if a.Do != power.Lift && busy[a.Circuit] {
				t.Fatalf("two steps at once on %s: %+v", a.Circuit, a)
			}
			for i := m.circuit; i >= 0 && a.Do != power.Lift; i = s.parent[i] {
				busy[s.tree[i].Name] = true
			}
			switch a.Do {
			case power.Cap:
				m.load.Capped, m.draws = true, m.draws*0.8
			case power.Pause:
				m.load.Paused, m.draws = true, m.draws*0.5
			case power.SoftOff:
				delete(s.running, a.Node)
				s.b.Release(a.Node)
			case power.Lift:
				m.load.Capped, m.load.Paused = false, false
				continue
			default:
				t.Fatalf("advice to %q", a.Do)
			}
			if acts++; s.honest {
				t.Fatalf("nothing is wrong: %+v", a)
			}
		}
		s.now = s.now.Add(2 * time.Minute)
		if quiet++; acts > 0 {
			quiet = 0
		}
	}
	what, over := s.over(s.truly(now), threshold)
	if !over || s.legs() {
		return
	}
	for n, m := range s.running { // any that is on it could still go
		for i := m.circuit; i >= 0; i = s.parent[i] {
			if what2, over := (site{tree: s.tree[i : i+1]}).over(s.truly(now)[i:i+1], threshold); over && s.tree[i].Phases == 1 {
				t.Fatalf("%s, and %s on %s is left on: %s", what2, n, s.tree[m.circuit].Name, what)
			}
		}
	}
}

// checks sets how many schedules are tried, unless the command line says so.
func checks(t *testing.T, n int) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if given {
		return
	}
	was := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", fmt.Sprint(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
}
