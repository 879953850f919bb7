package power

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"time"

	"smelt/inventory"
)

// Budget grants sustained watts on every level of the power tree, and start
// slots against inrush. It knows what machines may draw (nameplates, then
// learned peaks), what they and the circuits were measured to draw, and says
// what to shed where that is too much.
//
// It is pure bookkeeping without goroutines; the time is told to it. Nothing of
// it is stored: after a restart the conductor rebuilds it by Restore, of what
// runs. What is not known counts as reserved. docs/decisions/0020-power-budget.md
// says why the sums are as they are.
//
// It is safe for concurrent use.
type Budget struct {
	rules Rules

	mu      sync.Mutex
	levels  []*level // parents first
	byName  map[string]*level
	holders map[inventory.NodeID]*holder
	learned map[inventory.NodeID]int64 // peak at burn-in
	held    string                     // why nothing is granted; "" while it is
	curtail *curtailment               // nil: none
	dark    *dark                      // nil: no blackout to recover from
}

// Rules are the paces and limits of a Budget. The zero value of a field means
// its default.
type Rules struct {
	Window      time.Duration // one machine starts on a lowest circuit in this time; 2 s
	PanelWindow time.Duration // after a blackout, one machine starts on a panel in this time; 10 s
	Stale       time.Duration // a reading older than this is missing; 60 s
}

// A level is one circuit and what flows through it. It counts in whole
// milliwatts, so that sums are exact in any order.
type level struct {
	inventory.Circuit
	parent *level
	below  []*level
	hangs  map[inventory.NodeID]*holder // the machines directly on it
	limit  int64                        // of each line
	rating int64                        // of each line, without derating
	pace   *level                       // where one machine starts at a time after a blackout
	last   time.Time                    // start on this circuit itself
	by     inventory.NodeID

	own metered // what its own meters say

	counted  flow // what is granted: nothing is, above limit
	known    flow // what flows below its own meter; a machine that is not measured counts as reserved
	drawn    flow // what flows by its own meter where that is fresh, else what is known and what is not
	measured flow // what flows for certain: at least this

	watched
}

// flow is what flows through a circuit: on each line, and in total. A load
// whose line is not known is on each line and once in the total.
type flow struct {
	line  inventory.PerLine
	total int64
}

func (f *flow) add(l inventory.PerLine, total int64) {
	for i := range f.line {
		f.line[i] += l[i]
	}
	f.total += total
}

// A holder is a machine that was granted power.
type holder struct {
	low       *level // nil: no circuit of the site feeds it
	nameplate int64  // whole: not known
	meter     reading
	peaks     peaks
	tried     map[string]int // how often an advice was given since its circuits were well
}

// whole stands for a nameplate that nobody knows: all of its circuit.
const whole = -1

// maxWatts keeps sums far from the end of int64.
const maxWatts = 1e10

func watts(mw int64) float64 { return float64(mw) / 1000 }

// Why a Grant is refused that may be granted later.
var (
	ErrNoRoom = errors.New("no room in the power budget")
	ErrHeld   = errors.New("no machine is started now") // held, or after a blackout nobody released
)

// NewBudget checks the tree: ratings are numbers above 0, every parent exists,
// no circle, lines fit. The error says what is wrong with which circuit.
func NewBudget(tree []inventory.Circuit, r Rules) (*Budget, error) {
	if r.Window < 0 || r.PanelWindow < 0 || r.Stale < 0 {
		return nil, fmt.Errorf("power budget: %v: want no negative time", r)
	}
	for _, d := range []struct {
		of   *time.Duration
		when time.Duration
	}{{&r.Window, 2 * time.Second}, {&r.PanelWindow, 10 * time.Second}, {&r.Stale, time.Minute}} {
		if *d.of == 0 {
			*d.of = d.when
		}
	}
	if found := inventory.CheckCircuits(tree); len(found) > 0 {
		f := found[0]
		err := fmt.Errorf("power budget: circuit %q: %s", tree[f.Circuit].Name, f.Problem)
		if f.Hint != "" {
			err = fmt.Errorf("%w; %s", err, f.Hint)
		}
		return nil, err
	}
	b := &Budget{rules: r, byName: map[string]*level{}, holders: map[inventory.NodeID]*holder{}, learned: map[inventory.NodeID]int64{}}
	for _, c := range inventory.ParentsFirst(tree) {
		l := &level{Circuit: c, parent: b.byName[c.Parent], hangs: map[inventory.NodeID]*holder{}, limit: c.Limit(), rating: c.Rating()}
		l.pace = l
		if p := l.parent; p != nil {
			p.below = append(p.below, l)
			if c.Kind != "panel" {
				l.pace = p.pace
			}
		}
		b.byName[c.Name] = l
		b.levels = append(b.levels, l)
	}
	return b, nil
}

// Grant reserves watts (its nameplate) for node on circuit and all levels
// above, and takes a start slot at now. Where a peak was learned, that counts
// in place of the nameplate. The error says which level has no room and how
// much is free, or what else it waits for; granting again to the same node
// replaces its grant. A node without a circuit ("") finds room everywhere.
func (b *Budget) Grant(node inventory.NodeID, circuit string, w float64, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.grant(node, circuit, w, now); err != nil {
		return fmt.Errorf("power for %s: %w", node, err)
	}
	return nil
}

func (b *Budget) grant(node inventory.NodeID, circuit string, w float64, now time.Time) error {
	if !(w >= 0 && w < maxWatts) {
		return fmt.Errorf("%v W: want a number that is not negative", w)
	}
	low, ok := b.byName[circuit]
	if circuit != "" && !ok {
		return fmt.Errorf("circuit %q is not in the site", circuit)
	}
	if b.held != "" {
		return fmt.Errorf("%w: held: %s", ErrHeld, b.held)
	}
	if err := b.turn(node, low, now); err != nil {
		return err
	}
	if err := b.slot(node, low, now); err != nil {
		return err
	}
	b.count(now)
	b.watch(now)
	was := b.holders[node]
	h := &holder{low: low, nameplate: inventory.Milliwatts(w)}
	h.keep(was)
	b.put(node, h)
	b.count(now)
	if err := b.room(node, h); err != nil {
		b.put(node, was)
		b.passOver(node)
		return err
	}
	b.started(node, low, now)
	return nil
}

// put makes h what node holds; nil: nothing.
func (b *Budget) put(node inventory.NodeID, h *holder) {
	if was := b.holders[node]; was != nil && was.low != nil {
		delete(was.low.hangs, node)
	}
	if h == nil {
		delete(b.holders, node)
		return
	}
	b.holders[node] = h
	if h.low != nil {
		h.low.hangs[node] = h
	}
}

// keep takes over what was measured of the machine where it was.
func (h *holder) keep(was *holder) {
	if was != nil && was.low == h.low {
		h.meter, h.peaks = was.meter, was.peaks
	}
}

// room tells whether what was counted, h with it, is within every limit above h.
func (b *Budget) room(node inventory.NodeID, h *holder) error {
	need := b.claim(node, h)
	if c := b.curtail; c != nil {
		if sum := b.granted(); sum > c.ceiling {
			return fmt.Errorf("%w: curtailed to %.0f W (%s): %.0f W are free, %.0f are needed",
				ErrNoRoom, watts(c.ceiling), c.why, max(0, watts(c.ceiling-sum+need)), watts(need))
		}
	}
	for l, load := range h.path(need) {
		if l.stopped {
			return fmt.Errorf("%w: %s %s drew more than the %.0f W of its limit and is not well below them yet", ErrNoRoom, l.Kind, l.Name, watts(l.limit))
		}
		for i, mw := range load {
			if mw > 0 && l.counted.line[i] > l.limit {
				return l.full(i, mw)
			}
		}
	}
	return nil
}

// path walks from the lowest circuit of h up, with what mw of h put on the
// lines of each.
func (h *holder) path(mw int64) iter.Seq2[*level, inventory.PerLine] {
	return func(yield func(*level, inventory.PerLine) bool) {
		if h.low == nil {
			return
		}
		load := h.low.Each(mw)
		for l := h.low; yield(l, load) && l.parent != nil; l = l.parent {
			load = l.Onto(l.parent.Circuit, load)
		}
	}
}

// full says that line i has no room for mw, which is counted in.
func (l *level) full(i int, mw int64) error {
	where, why := fmt.Sprintf("%s %s", l.Kind, l.Name), ""
	if l.Phases == 3 {
		where += fmt.Sprintf(" L%d", i+1)
	}
	if u := l.own.unknown(l.Circuit).line[i]; u > 0 {
		why = fmt.Sprintf("; it measures %.0f W that belong to nothing known", watts(u))
	}
	return fmt.Errorf("%w: %s has %.0f of %.0f W free, %.0f are needed%s",
		ErrNoRoom, where, max(0, watts(l.limit-l.counted.line[i]+mw)), watts(l.limit), watts(mw), why)
}

// Restore reserves without asking for a start slot or room: what runs, runs. A
// number of watts that is none reserves all of the circuit, so that nothing is
// granted beside a machine whose draw is not known.
func (b *Budget) Restore(node inventory.NodeID, circuit string, w float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := &holder{low: b.byName[circuit], nameplate: whole}
	if w >= 0 && w < maxWatts {
		h.nameplate = inventory.Milliwatts(w)
	}
	h.keep(b.holders[node])
	b.put(node, h)
}

// Holds tells whether something is reserved for node.
func (b *Budget) Holds(node inventory.NodeID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.holders[node] != nil
}

// Release gives back what node holds, also its place in the order after a
// blackout. Its start slot stays taken: the start happened.
func (b *Budget) Release(node inventory.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(node, nil)
	b.leaveQueue(node)
}

// Hold refuses every grant on the site, with this reason, until Resume.
func (b *Budget) Hold(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held = reason; reason == "" {
		b.held = "no reason given"
	}
}

// Resume ends a Hold.
func (b *Budget) Resume() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = ""
}

// Learned says what node drew at most during burn-in, in watts. From then on
// 1.1 times that is reserved in place of its nameplate, where it is less: a peak
// of another day, with warmer fans, is a little higher. A peak above the
// nameplate says that the nameplate is wrong: then 1.1 times it is reserved,
// too. What is no positive number is ignored.
func (b *Budget) Learned(node inventory.NodeID, peak float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if peak > 0 && peak < maxWatts {
		b.learned[node] = inventory.Milliwatts(peak)
	}
}

// Peak is what Learned said of node last, in watts; 0 when nothing was learned.
func (b *Budget) Peak(node inventory.NodeID) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return watts(b.learned[node])
}

// reserved is what node is expected to draw at most.
func (b *Budget) reserved(node inventory.NodeID, h *holder) int64 {
	name := h.nameplate
	if name == whole && h.low != nil {
		name = h.low.limit
	}
	peak := b.learned[node]
	switch again := int64(math.Ceil(float64(peak) * 1.1)); {
	case peak == 0:
		return max(name, 0)
	case h.nameplate != whole && peak <= name:
		return min(name, again)
	default:
		return again
	}
}

// claim is what node counts as: its reservation, and what it was measured to
// draw where that is more.
func (b *Budget) claim(node inventory.NodeID, h *holder) int64 {
	return max(b.reserved(node, h), h.peaks.highest(), h.meter.mw)
}
