package power

import (
	"time"

	"smelt/inventory"
)

// Drawn is what the whole site draws at now, in watts: what its meters show
// where they are fresh, and what is reserved where they are not.
func (b *Budget) Drawn(now time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(now)
	return watts(b.drawn(now))
}

// Ceiling is Curtail for a caller that takes by a plan of its own: nothing is
// granted above w watts, until CurtailEnd, and Advise takes nothing for it.
func (b *Budget) Ceiling(w float64, reason string) {
	b.Curtail(w, reason)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.curtail.planned = true
}

// Peak is what Learned said of node last, in watts; 0 when nothing was learned.
func (b *Budget) Peak(node inventory.NodeID) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return watts(b.learned[node])
}
