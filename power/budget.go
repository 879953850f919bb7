package power

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	"smelt/inventory"
)

// Budget grants sustained watts and start slots on every level of the power
// tree. It is pure bookkeeping: after a restart the conductor rebuilds it from
// stored state by granting again what already runs (Restore).
type Budget struct {
	slots  int
	window time.Duration

	mu     sync.Mutex
	levels []*level // parents first
	byName map[string]*level
	where  map[inventory.NodeID]*level // lowest level of each grant
}

// A level counts in whole milliwatts, so that sums are exact in any order.
type level struct {
	inventory.Circuit
	parent  *level
	limit   int64
	holders map[inventory.NodeID]int64
	starts  map[inventory.NodeID]time.Time // starts on this circuit itself
}

func (l *level) granted() (sum int64) {
	for _, w := range l.holders {
		sum += w
	}
	return sum
}

// maxWatts keeps sums far from the end of int64.
const maxWatts = 1e10

func milliwatts(w float64) int64 { return int64(math.Ceil(w * 1000)) }

func watts(mw int64) float64 { return float64(mw) / 1000 }

// ErrNoRoom is why a Grant is refused that may be granted later.
var ErrNoRoom = errors.New("no room in the power budget")

// NewBudget checks the tree: every parent exists, no cycle, positive ratings.
// slots is how many machines may start on one lowest circuit within window.
func NewBudget(tree []inventory.Circuit, slots int, window time.Duration) (*Budget, error) {
	if slots < 1 || window < 0 {
		return nil, fmt.Errorf("power budget: %d starts in %v: want at least one start and no negative time", slots, window)
	}
	b := &Budget{slots: slots, window: window, byName: map[string]*level{}, where: map[inventory.NodeID]*level{}}
	for _, c := range tree {
		if err := rated(c); err != nil {
			return nil, fmt.Errorf("power budget: circuit %q: %w", c.Name, err)
		}
		if b.byName[c.Name] != nil {
			return nil, fmt.Errorf("power budget: circuit %q is there twice", c.Name)
		}
		b.byName[c.Name] = &level{
			Circuit: c, limit: int64(math.Floor(c.Watts() * 1000)),
			holders: map[inventory.NodeID]int64{}, starts: map[inventory.NodeID]time.Time{},
		}
	}
	for _, c := range tree {
		if c.Parent == "" {
			continue
		}
		p := b.byName[c.Parent]
		if p == nil {
			return nil, fmt.Errorf("power budget: circuit %q: its parent %q does not exist", c.Name, c.Parent)
		}
		b.byName[c.Name].parent = p
	}
	depth := map[int][]*level{}
	for _, c := range tree {
		d := 0
		for l := b.byName[c.Name].parent; l != nil; l = l.parent {
			if d++; d > len(tree) {
				return nil, fmt.Errorf("power budget: circuit %q is above itself", c.Name)
			}
		}
		depth[d] = append(depth[d], b.byName[c.Name])
	}
	for d := 0; d < len(tree); d++ {
		b.levels = append(b.levels, depth[d]...)
	}
	return b, nil
}

func rated(c inventory.Circuit) error {
	switch {
	case c.Name == "":
		return errors.New("it has no name")
	case !(c.Volts > 0 && c.Amps > 0): // NaN is not
		return fmt.Errorf("%v V and %v A: want both above 0", c.Volts, c.Amps)
	case !(c.Derate > 0 && c.Derate <= 1):
		return fmt.Errorf("derating %v: want above 0 and at most 1", c.Derate)
	case c.Phases != 1 && c.Phases != 3:
		return fmt.Errorf("%d phases: want 1 or 3", c.Phases)
	case !(c.Watts() < maxWatts):
		return fmt.Errorf("%v W is no rating", c.Watts())
	}
	return nil
}

// Grant reserves watts for node on circuit and all levels above, and a start
// slot at now. The error says which level has no room and how much is free;
// granting again to the same node replaces its grant. A node without a circuit
// ("") is always granted.
func (b *Budget) Grant(node inventory.NodeID, circuit string, w float64, now time.Time) error {
	if !(w >= 0 && w < maxWatts) {
		return fmt.Errorf("power for %s: %v W: want a number that is not negative", node, w)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	low, ok := b.byName[circuit]
	if circuit != "" && !ok {
		return fmt.Errorf("power for %s: circuit %q is not in the site", node, circuit)
	}
	need := milliwatts(w)
	for l := low; l != nil; l = l.parent {
		// What the node holds here now is given back by the new grant.
		if free := l.limit - l.granted() + l.holders[node]; need > free {
			return fmt.Errorf("power for %s: %w: %s %s has %.0f of %.0f W free, %.0f are needed",
				node, ErrNoRoom, l.Kind, l.Name, max(0, watts(free)), watts(l.limit), w)
		}
	}
	if low != nil {
		if err := b.start(low, node, now); err != nil {
			return fmt.Errorf("power for %s: %w", node, err)
		}
	}
	b.hold(node, low, need)
	return nil
}

// start takes a start slot on l. Asking again for the same node moves its slot.
func (b *Budget) start(l *level, node inventory.NodeID, now time.Time) error {
	maps.DeleteFunc(l.starts, func(_ inventory.NodeID, at time.Time) bool { return now.Sub(at) >= b.window })
	delete(l.starts, node)
	if len(l.starts) >= b.slots {
		return fmt.Errorf("%w: %d started on %s %s within %v, which is all that may", ErrNoRoom, len(l.starts), l.Kind, l.Name, b.window)
	}
	l.starts[node] = now
	return nil
}

func (b *Budget) hold(node inventory.NodeID, low *level, mw int64) {
	b.release(node)
	if low == nil {
		return
	}
	b.where[node] = low
	for l := low; l != nil; l = l.parent {
		l.holders[node] = mw
	}
}

// Restore reserves without asking for a start slot or room: what runs, runs. A
// number of watts that is none reserves all of the circuit, so that nothing is
// granted beside a machine whose draw is not known.
func (b *Budget) Restore(node inventory.NodeID, circuit string, w float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	low := b.byName[circuit]
	switch {
	case low == nil:
		b.release(node)
	case !(w >= 0 && w < maxWatts):
		b.hold(node, low, low.limit)
	default:
		b.hold(node, low, milliwatts(w))
	}
}

// Release gives back what node holds. Its start slot stays taken: the start
// happened.
func (b *Budget) Release(node inventory.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(node)
}

func (b *Budget) release(node inventory.NodeID) {
	for l := b.where[node]; l != nil; l = l.parent {
		delete(l.holders, node)
	}
	delete(b.where, node)
}

// Level is one circuit and what is granted on it, in watts.
type Level struct {
	inventory.Circuit
	Granted float64                      `json:"granted"`
	Limit   float64                      `json:"limit"`
	Holders map[inventory.NodeID]float64 `json:"holders,omitempty"`
}

// Levels lists the tree, parents first.
func (b *Budget) Levels() []Level {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Level, 0, len(b.levels))
	for _, l := range b.levels {
		holders := make(map[inventory.NodeID]float64, len(l.holders))
		for n, mw := range l.holders {
			holders[n] = watts(mw)
		}
		out = append(out, Level{Circuit: l.Circuit, Granted: watts(l.granted()), Limit: watts(l.limit), Holders: holders})
	}
	return out
}
