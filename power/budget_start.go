package power

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"smelt/inventory"
)

// What a machine draws in its first tens of milliseconds is three to five times
// what it draws later, and no meter that is polled sees it: so machines start
// one after the other. (Inrush of 20 to 40 ms: Server Technology PRO4X manual.)

// slot tells whether node may start on low now: one does within the window.
func (b *Budget) slot(node inventory.NodeID, low *level, now time.Time) error {
	if low == nil || low.last.IsZero() || low.by == node {
		return nil
	}
	if now.Before(low.last) { // the clock was put back
		low.last = now
	}
	if now.Sub(low.last) < b.rules.Window {
		return fmt.Errorf("%w: %s started on %s %s within %v, and one may", ErrNoRoom, low.by, low.Kind, low.Name, b.rules.Window)
	}
	return nil
}

// started takes the start slots of node.
func (b *Budget) started(node inventory.NodeID, low *level, now time.Time) {
	b.leaveQueue(node)
	if low != nil {
		low.last, low.by = now, node
	}
	if b.dark != nil {
		b.dark.last[low.paced()] = now
		b.light()
	}
}

// paced is the panel of l, where one machine starts at a time after a blackout:
// the feed where there is no panel.
func (l *level) paced() *level {
	if l == nil {
		return nil
	}
	return l.pace
}

// dark is a blackout, and the way back from it.
type dark struct {
	began    time.Time
	released time.Time             // zero: nobody did
	queue    map[*level][]*waiting // by panel, in the order of their starts
	last     map[*level]time.Time  // the last start on a panel
}

func (d *dark) String() string {
	return fmt.Sprintf("after the blackout of %s nothing starts before a person releases it", d.began.Format("15:04"))
}

// A waiting machine ran before the blackout.
type waiting struct {
	Load
	turn   time.Time // since when it is the first; zero: it is not
	passed bool      // it did not come when it was its turn, or had no room: it keeps nobody waiting
}

// precedence is who starts first after a blackout.
var precedence = map[string]int{WorkService: 0, WorkConvert: 1, WorkBurnIn: 1, WorkIdle: 2}

// Blackout says that power was lost at now and which machines ran. From then on
// nothing is granted until Released; what they held stays reserved, because
// some of them may start by themselves when power is back. Said again, it
// begins anew.
func (b *Budget) Blackout(now time.Time, was []Load) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dark = &dark{began: now, queue: map[*level][]*waiting{}, last: map[*level]time.Time{}}
	b.wait(was)
}

// Lost adds machines to the blackout that were seen to be without power later
// than others: they come when they would have come. At now, after a blackout
// that nobody was waited for any more, the order begins again with them.
func (b *Budget) Lost(now time.Time, was []Load) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dark == nil {
		b.dark = &dark{began: now, released: now, queue: map[*level][]*waiting{}, last: map[*level]time.Time{}}
	}
	b.wait(was)
}

// wait puts machines in the order of the blackout.
func (b *Budget) wait(was []Load) {
	for _, l := range was {
		var low *level
		if h := b.holders[l.Node]; h != nil {
			low = h.low
		}
		p := low.paced()
		q := b.dark.queue[p]
		if !slices.ContainsFunc(q, func(w *waiting) bool { return w.Node == l.Node }) {
			b.dark.queue[p] = append(q, &waiting{Load: l})
		}
	}
	for _, q := range b.dark.queue {
		slices.SortStableFunc(q, func(x, y *waiting) int {
			return cmp.Or(cmp.Compare(precedence[x.Work], precedence[y.Work]), x.Since.Compare(y.Since), strings.Compare(string(x.Node), string(y.Node)))
		})
	}
}

// Released lets machines start again after a Blackout: those that were in
// service, then those that were converted, the oldest first, one on a panel
// each PanelWindow. Who is not ready when it is its turn is passed over and may
// start whenever it asks; machines that did not run before come last.
func (b *Budget) Released(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dark != nil {
		b.dark.released = now
	}
	b.light()
}

// Waiting lists the machines that ran before a blackout and did not start yet,
// in the order of their starts on each panel; nil when there was none.
func (b *Budget) Waiting() []inventory.NodeID {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dark == nil {
		return nil
	}
	out := []inventory.NodeID{}
	panels := append(slices.Clone(b.levels), nil)
	for _, p := range panels {
		for _, w := range b.dark.queue[p] {
			out = append(out, w.Node)
		}
	}
	return out
}

// turn tells whether node may start on low now, after a blackout.
func (b *Budget) turn(node inventory.NodeID, low *level, now time.Time) error {
	b.light()
	d := b.dark
	if d == nil {
		return nil
	}
	if d.released.IsZero() {
		return fmt.Errorf("%w: %s", ErrHeld, d)
	}
	p, where := low.paced(), "the site"
	if p != nil {
		where = p.Kind + " " + p.Name
	}
	if last, ok := d.last[p]; ok {
		if now.Before(last) {
			d.last[p] = now
		}
		if now.Sub(last) < b.rules.PanelWindow {
			return fmt.Errorf("%w: after a blackout one machine starts on %s in %v", ErrNoRoom, where, b.rules.PanelWindow)
		}
	}
	for _, w := range d.queue[p] {
		switch {
		case w.Node == node:
			w.passed = false
			return nil
		case w.passed:
			continue
		case w.turn.IsZero() || now.Before(w.turn):
			w.turn = now
		}
		if now.Sub(w.turn) < b.rules.PanelWindow {
			return fmt.Errorf("%w: after a blackout it is the turn of %s on %s", ErrNoRoom, w.Node, where)
		}
		w.passed = true
	}
	return nil
}

// passOver lets a machine that had no room keep nobody waiting.
func (b *Budget) passOver(node inventory.NodeID) {
	if b.dark == nil {
		return
	}
	for _, q := range b.dark.queue {
		for _, w := range q {
			if w.Node == node {
				w.passed = true
			}
		}
	}
}

func (b *Budget) leaveQueue(node inventory.NodeID) {
	if b.dark == nil {
		return
	}
	for p, q := range b.dark.queue {
		b.dark.queue[p] = slices.DeleteFunc(q, func(w *waiting) bool { return w.Node == node })
	}
}

// light ends the order of a blackout when nobody is waited for any more.
func (b *Budget) light() {
	if b.dark == nil || b.dark.released.IsZero() {
		return
	}
	for _, q := range b.dark.queue {
		for _, w := range q {
			if !w.passed {
				return
			}
		}
	}
	b.dark = nil
}
