package power

import (
	"slices"
	"time"

	"smelt/inventory"
)

// A reading is what a meter said last.
type reading struct {
	mw int64
	at time.Time // zero: it never said anything
}

// take notes a newer reading; one that came late says nothing of now. A clock
// that was put back does not leave the meter stale for as long.
func (r *reading) take(mw int64, at time.Time, stale time.Duration) bool {
	if at.Before(r.at) && r.at.Sub(at) <= stale {
		return false
	}
	*r = reading{mw, at}
	return true
}

// fresh tells whether the reading counts at now. One from a future further off
// than a reading may be old is as unknown as one from the past.
func (r reading) fresh(now time.Time, stale time.Duration) bool {
	age := now.Sub(r.at)
	return !r.at.IsZero() && age <= stale && age >= -stale
}

// peaks holds the highest readings of the last minutes, one a minute. They end
// with the newest reading, not with now: that a meter fell silent does not mean
// that its machine draws less.
type peaks [peakMinutes]struct{ minute, mw int64 }

const peakMinutes = 6 // five whole ones and the one that has begun

func (p *peaks) take(mw int64, at time.Time) {
	minute := at.Unix() / 60
	if p.newest() > minute+peakMinutes { // the clock was put back: what counted still counts
		mw = max(mw, p.highest())
		*p = peaks{}
	}
	switch e := &p[((minute%peakMinutes)+peakMinutes)%peakMinutes]; {
	case e.minute < minute:
		e.minute, e.mw = minute, mw
	case e.minute == minute:
		e.mw = max(e.mw, mw)
	}
}

func (p *peaks) newest() (minute int64) {
	for _, e := range p {
		minute = max(minute, e.minute)
	}
	return minute
}

func (p *peaks) highest() (top int64) {
	newest := p.newest()
	for _, e := range p {
		if e.minute > newest-peakMinutes {
			top = max(top, e.mw)
		}
	}
	return top
}

// Measured says what a machine drew at that time, in watts, measured at the
// wall or at its inputs. What is no number, or comes from a machine that holds
// no grant, is ignored: not measured.
func (b *Budget) Measured(node inventory.NodeID, w float64, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.holders[node]; h != nil && w >= 0 && w < maxWatts {
		mw := inventory.Milliwatts(w)
		h.meter.take(mw, at, b.rules.Stale)
		h.peaks.take(mw, at)
	}
}

// MeasuredCircuit says what a circuit's own meter (of a PDU, a bank) showed, in
// watts, all its lines together. What it shows beyond what is known below it is
// load that nobody told us of; it counts on this level and those above until
// the next reading.
func (b *Budget) MeasuredCircuit(circuit string, w float64, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.byName[circuit]
	if l == nil || !(w >= 0 && w < maxWatts) || !l.own.meter.take(inventory.Milliwatts(w), at, b.rules.Stale) {
		return
	}
	b.countAt(l, at)
	l.own.extra = max(0, l.own.meter.mw-l.known.total)
}

// MeasuredLine is MeasuredCircuit for one line of three phases: L1, L2 or L3.
func (b *Budget) MeasuredLine(circuit, line string, w float64, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.byName[circuit]
	i := slices.Index([]string{"L1", "L2", "L3"}, line)
	if l == nil || i < 0 || l.Phases != 3 || !(w >= 0 && w < maxWatts) || !l.own.meters[i].take(inventory.Milliwatts(w), at, b.rules.Stale) {
		return
	}
	b.countAt(l, at)
	l.own.extras[i] = max(0, l.own.meters[i].mw-l.known.line[i])
}

// metered is what a circuit's own meters say. What they show beyond what is
// known stays counted when they fall silent.
type metered struct {
	meter  reading    // all lines together
	meters [3]reading // one line each
	extra  int64      // what the meter showed beyond what was known when it did
	extras [3]int64
}

// unknown is the load that belongs to nothing known. Where only the meter of
// all lines speaks it may be on any of them: it counts on each.
func (m *metered) unknown(c inventory.Circuit) flow {
	f := flow{line: c.Each(m.extra), total: m.extra}
	var sum int64
	for i, r := range m.meters {
		if !r.at.IsZero() && r.at.After(m.meter.at.Add(-lineLag)) {
			f.line[i] = m.extras[i]
		}
		sum += m.extras[i]
	}
	f.total = max(f.total, sum)
	return f
}

// lineLag is by how much the meter of a line may be older than that of all
// lines and still know better what is on its line.
const lineLag = time.Minute

// count sums up every level.
func (b *Budget) count(now time.Time) {
	for _, l := range b.levels {
		if l.parent == nil {
			b.countAt(l, now)
		}
	}
}

// countAt sums up l: its reserve, the machines on it, what flows from the levels
// below, and what belongs to nothing known.
func (b *Budget) countAt(l *level, now time.Time) {
	reserve := inventory.Milliwatts(l.Reserve)
	l.counted = flow{l.Each(reserve), reserve}
	l.known, l.measured = l.counted, l.counted
	for node, h := range l.hangs {
		claim := b.claim(node, h)
		l.counted.add(l.Each(claim), claim)
		draws := claim
		if h.meter.fresh(now, b.rules.Stale) {
			draws = h.meter.mw
			l.measured.total += draws
			if l.Phases != 3 {
				l.measured.line[0] += draws
			}
		}
		l.known.add(l.Each(draws), draws)
	}
	for _, c := range l.below {
		b.countAt(c, now)
		l.counted.add(c.Onto(l.Circuit, c.counted.line), c.counted.total)
		l.known.add(c.Onto(l.Circuit, c.drawn.line), c.drawn.total)
		l.measured.add(c.surely(l.Circuit), c.measured.total)
	}
	u := l.own.unknown(l.Circuit)
	l.counted.add(u.line, u.total)
	l.drawn = l.known
	l.drawn.add(u.line, u.total)
	l.certain(now, b.rules.Stale)
	if l.metered(now, b.rules.Stale) {
		l.drawn.line = l.measured.line
	}
	if l.own.meter.fresh(now, b.rules.Stale) {
		l.drawn.total = l.measured.total
	}
}

// certain takes the circuit's own meters into what flows for certain.
func (l *level) certain(now time.Time, stale time.Duration) {
	if m := l.own.meter; m.fresh(now, stale) {
		l.measured.total = max(l.measured.total, m.mw)
		if l.Phases != 3 {
			l.measured.line[0] = max(l.measured.line[0], m.mw)
		}
	}
	for i, m := range l.own.meters {
		if m.fresh(now, stale) {
			l.measured.line[i] = max(l.measured.line[i], m.mw)
		}
	}
}

// metered tells whether the circuit's own meters say what is on each of its
// lines.
func (l *level) metered(now time.Time, stale time.Duration) bool {
	if l.Phases != 3 {
		return l.own.meter.fresh(now, stale)
	}
	for _, m := range l.own.meters {
		if !m.fresh(now, stale) {
			return false
		}
	}
	return true
}

// surely is what flows for certain from l on the lines of p: nothing on a line
// that is not known.
func (l *level) surely(p inventory.Circuit) inventory.PerLine {
	switch {
	case !l.LinesKnown(p):
		return inventory.PerLine{}
	case p.Phases != 3: // a transformer may be between them
		return inventory.PerLine{l.measured.line[0]}
	}
	return l.Onto(p, l.measured.line)
}

// most is what the busiest line carries for certain: a third of the total at
// least, whichever that is.
func (l *level) most() int64 {
	if l.Phases != 3 {
		return l.measured.line[0]
	}
	return max(l.measured.line[0], l.measured.line[1], l.measured.line[2], l.measured.total/3)
}

// granted is what is granted on the whole site.
func (b *Budget) granted() (sum int64) {
	for _, l := range b.levels {
		if l.parent == nil {
			sum += l.counted.total
		}
	}
	for node, h := range b.holders {
		if h.low == nil {
			sum += b.claim(node, h)
		}
	}
	return sum
}

// drawn is what the whole site draws, as far as it is known.
func (b *Budget) drawn(now time.Time) (sum int64) {
	for _, l := range b.levels {
		if l.parent == nil {
			sum += l.drawn.total
		}
	}
	for node, h := range b.holders {
		if h.low == nil {
			sum += b.draws(node, h, now)
		}
	}
	return sum
}

// Drawn is what the whole site draws at now, in watts: what its meters show
// where they are fresh, and what is reserved where they are not.
func (b *Budget) Drawn(now time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(now)
	return watts(b.drawn(now))
}

// draws is what node draws, as far as it is known.
func (b *Budget) draws(node inventory.NodeID, h *holder, now time.Time) int64 {
	if h.meter.fresh(now, b.rules.Stale) {
		return h.meter.mw
	}
	return b.claim(node, h)
}
