package power

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"smelt/inventory"
)

// What a machine does, in a Load.
const (
	WorkService = "service"
	WorkConvert = "convert"
	WorkBurnIn  = "burnin"
	WorkIdle    = "idle"
)

// What an Advice says to do.
const (
	Cap     = "cap"      // lower the power limit of its GPUs
	Pause   = "pause"    // pause its burn-in, without losing what is done
	SoftOff = "soft-off" // ask its operating system to shut down
	Lift    = "lift"     // there is room again: end its cap and its pause
)

// A Load is what a machine that holds a grant does. Capped and Paused tell what
// was done to it because of an Advice.
type Load struct {
	Node   inventory.NodeID
	Work   string    // service, convert, burnin, idle
	Since  time.Time // when it began
	Capped bool
	Paused bool
}

// Advice is one step out of an overload, or back after it. No advice ever is
// to cut an outlet: that is for a person.
type Advice struct {
	Circuit string // whose overload; "" for the whole site (curtailment) and for Lift
	Node    inventory.NodeID
	Do      string
	Why     string
}

const (
	overFor   = time.Minute     // over its limit so long, a circuit takes no more; well below it so long, it does again
	liftAfter = 5 * time.Minute // all circuits of a machine are well so long before its cap is lifted
	triesEach = 2               // an advice without effect is given so often
)

// effect is how long an advice may take until meters show what it did.
var effect = map[string]time.Duration{Cap: 30 * time.Second, Pause: 30 * time.Second, SoftOff: 2 * time.Minute}

// watched is what was seen of a circuit over time.
type watched struct {
	over    time.Time // since when it draws more than its limit; zero: it does not
	under   time.Time // since when it is well below
	calm    time.Time // since when nothing was wrong
	stopped bool      // it takes no more
	sheds   bool      // some of its load must go
	acted   time.Time // the last advice below it
	takes   time.Duration
	lifted  time.Time
}

// The marks of a circuit on one line. At derate 0.8 some load goes above 90 %
// of the rating until it is back at 80 %; where another derate leaves less room
// or none above the limit, half of what it leaves.
func (l *level) shedAbove() int64 { return max(l.rating/10*9, (l.limit+l.rating)/2) }
func (l *level) shedUntil() int64 { return min(l.limit, l.shedAbove()-l.rating/20) }

// watch notes which circuits are over their limits, and since when. What was
// counted must be of now.
func (b *Budget) watch(now time.Time) {
	for _, l := range b.levels {
		// Reservations do not swing: what is made of them needs to be at the limit
		// again, what a meter shows well below it.
		drawn, well := max(l.drawn.line[0], l.drawn.line[1], l.drawn.line[2]), l.limit
		if l.metered(now, b.rules.Stale) {
			well -= l.rating / 20
		}
		if since(&l.over, now, drawn > l.limit) >= overFor {
			l.stopped = true
		}
		if since(&l.under, now, drawn <= well) >= overFor {
			l.stopped = false
		}
		if most := l.most(); most > l.shedAbove() {
			l.sheds = true
		} else if most <= l.shedUntil() {
			l.sheds = false
		}
		since(&l.calm, now, !l.stopped && !l.sheds && drawn <= l.limit)
	}
}

// since keeps in from since when a condition holds, and tells for how long.
func since(from *time.Time, now time.Time, holds bool) time.Duration {
	if !holds {
		*from = time.Time{}
		return -1
	}
	if from.IsZero() || now.Before(*from) {
		*from = now
	}
	return now.Sub(*from)
}

// settled tells whether the last advice on the circuit had time to take effect.
func (l *level) settled(now time.Time) bool {
	if now.Before(l.acted) {
		l.acted = now
	}
	return l.acted.IsZero() || now.Sub(l.acted) >= l.takes
}

// Advise says what to do now, given what every machine does. On a circuit that
// carries more than 90 % of its rating for certain: cap the GPUs of one machine,
// then pause the newest burn-in, then shut the least needed machine down; one
// step at a time, each with time to take effect, until it is back at its limit.
// What is only reserved, or was measured too long ago, causes no step.
//
// Ask every few seconds. An advice that is not followed is given again, then
// another one.
func (b *Budget) Advise(now time.Time, loads []Load) []Advice {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(now)
	b.watch(now)
	loads = slices.DeleteFunc(slices.Clone(loads), func(l Load) bool { return b.holders[l.Node] == nil })
	slices.SortStableFunc(loads, func(x, y Load) int { // the newest first
		return cmp.Or(y.Since.Compare(x.Since), strings.Compare(string(x.Node), string(y.Node)))
	})
	var out []Advice
	for _, l := range slices.Backward(b.levels) { // what is shed below helps above
		if !l.sheds || !l.settled(now) {
			continue
		}
		for _, do := range []string{Cap, Pause, SoftOff} {
			if c := b.candidates(do, loads, l); len(c) > 0 {
				out = append(out, Advice{l.Name, c[0].Node, do,
					fmt.Sprintf("%s %s carries %.0f W of its %.0f W on a line", l.Kind, l.Name, watts(l.most()), watts(l.rating))})
				b.acted(c[0].Node, do, now)
				break
			}
		}
	}
	out = append(out, b.giveBack(now, loads)...)
	return append(out, b.lift(now, loads)...)
}

// groups are the works that a step may be done to, in their order.
var groups = map[string][]string{
	Cap:     {WorkBurnIn, WorkService},
	Pause:   {WorkBurnIn},
	SoftOff: {WorkIdle, WorkBurnIn, WorkConvert, WorkService},
}

// candidates are the machines that a step is still open for, on what l has too
// much of (nil: on the whole site), the first to be asked first.
func (b *Budget) candidates(do string, loads []Load, l *level) []Load {
	var out []Load
	for _, work := range groups[do] {
		for _, x := range loads {
			h := b.holders[x.Node]
			done := do == Cap && x.Capped || do == Pause && x.Paused || h.tried[do] >= triesEach
			if x.Work == work && !done && (l == nil || h.feeds(l)) {
				out = append(out, x)
			}
		}
	}
	return out
}

// feeds tells whether h draws from a line of l that has too much.
func (h *holder) feeds(l *level) bool {
	for at, load := range h.path(1000) {
		if at != l {
			continue
		}
		named := false
		for i, mw := range l.measured.line {
			if mw > l.shedUntil() {
				if named = true; load[i] > 0 {
					return true
				}
			}
		}
		return !named
	}
	return false
}

// acted notes an advice on every circuit above the machine.
func (b *Budget) acted(node inventory.NodeID, do string, now time.Time) {
	h := b.holders[node]
	if h.tried == nil {
		h.tried = map[string]int{}
	}
	h.tried[do]++
	for l := h.low; l != nil; l = l.parent {
		l.acted, l.takes = now, effect[do]
	}
}

// curtailment is an order to give back power.
type curtailment struct {
	ceiling int64
	why     string
	acted   time.Time
	takes   time.Duration
	planned bool // the caller takes by a plan of its own
}

// Curtail lets the whole site have at most so many watts, until CurtailEnd:
// nothing is granted above them, and Advise says what to cap, pause and shut
// down until no more are drawn. Machines in service are capped and not shut
// down for it. A number that is none is a ceiling of zero.
func (b *Budget) Curtail(w float64, reason string) { b.ceiling(w, reason, false) }

// Ceiling is Curtail for a caller that takes by a plan of its own: nothing is
// granted above w watts, until CurtailEnd, and Advise takes nothing for it.
func (b *Budget) Ceiling(w float64, reason string) { b.ceiling(w, reason, true) }

func (b *Budget) ceiling(w float64, reason string, planned bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.curtail = &curtailment{why: reason, planned: planned}
	if w >= 0 && w < maxWatts {
		b.curtail.ceiling = int64(w * 1000)
	}
}

// CurtailEnd ends a Curtail: Advise lifts what it had capped and paused.
func (b *Budget) CurtailEnd() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.curtail = nil
}

// saves is the share of a machine's draw that a step is expected to give back:
// only to know how many machines to ask at once.
var saves = map[string]int64{Cap: 25, Pause: 60, SoftOff: 100}

// giveBack is what a curtailment asks for: as many machines at once as seem
// enough.
func (b *Budget) giveBack(now time.Time, loads []Load) (out []Advice) {
	c := b.curtail
	if c == nil || c.planned {
		return nil
	}
	if now.Before(c.acted) {
		c.acted = now
	}
	more := b.drawn(now) - c.ceiling
	if more <= 0 || !c.acted.IsZero() && now.Sub(c.acted) < c.takes {
		return nil
	}
	why := fmt.Sprintf("curtailed to %.0f W (%s), %.0f W more are drawn", watts(c.ceiling), c.why, watts(more))
	for _, do := range []string{Cap, Pause, SoftOff} {
		for _, x := range b.candidates(do, loads, nil) {
			if more <= 0 || do == SoftOff && x.Work == WorkService {
				break
			}
			more -= b.draws(x.Node, b.holders[x.Node], now) * saves[do] / 100
			out = append(out, Advice{"", x.Node, do, why})
			b.acted(x.Node, do, now)
			c.acted, c.takes = now, effect[do]
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// lift is who may have again what was taken: machines whose circuits have been
// well for a while and have room for all that they may draw, one on a lowest
// circuit in a window. What was in service first.
func (b *Budget) lift(now time.Time, loads []Load) (out []Advice) {
	var regained int64
	slices.Reverse(loads) // the oldest first
	slices.SortStableFunc(loads, func(x, y Load) int { return cmp.Compare(precedence[x.Work], precedence[y.Work]) })
	for _, x := range loads {
		h := b.holders[x.Node]
		if b.well(h, now) {
			clear(h.tried)
		} else {
			continue
		}
		if !x.Capped && !x.Paused {
			continue
		}
		claim := b.claim(x.Node, h)
		more := claim - b.draws(x.Node, h, now)
		if c := b.curtail; c != nil && b.drawn(now)+regained+more > c.ceiling {
			continue
		}
		if l := h.low; l != nil {
			if now.Before(l.lifted) {
				l.lifted = now
			}
			if !l.lifted.IsZero() && now.Sub(l.lifted) < b.rules.Window {
				continue
			}
			l.lifted = now
		}
		regained += more
		out = append(out, Advice{"", x.Node, Lift, "there is room for it again"})
	}
	return out
}

// well tells whether every circuit of h has been calm for a while and has room
// for all that is granted.
func (b *Budget) well(h *holder, now time.Time) bool {
	for l, load := range h.path(1000) {
		if l.calm.IsZero() || now.Sub(l.calm) < liftAfter || !l.settled(now) {
			return false
		}
		for i, mw := range load {
			if mw > 0 && l.counted.line[i] > l.limit {
				return false
			}
		}
	}
	return true
}
