package power

import (
	"fmt"
	"time"

	"smelt/inventory"
)

// What a level does about new load, in Level.State.
const (
	LevelOK       = "ok"
	LevelFull     = "full"     // it takes no more
	LevelHeld     = "held"     // nothing starts on the site: held, or after a blackout
	LevelShedding = "shedding" // some of its load must go
)

// Level is one circuit, what is granted on it and what it draws, in watts.
type Level struct {
	inventory.Circuit
	Granted  float64                      `json:"granted"`           // reserved, of machines and else, and unknown
	Limit    float64                      `json:"limit"`             // derated rating, all lines together
	Free     float64                      `json:"free"`              // for a machine that hangs on it directly
	Measured float64                      `json:"measured"`          // what it draws at least, as far as fresh readings tell
	Unknown  float64                      `json:"unknown,omitempty"` // measured, and of nothing known
	Metered  bool                         `json:"metered,omitempty"` // a fresh reading of its own meter is in Measured
	State    string                       `json:"state"`             // ok full held shedding
	Why      string                       `json:"why,omitempty"`     // when it is not ok
	PerLine  []Line                       `json:"perLine,omitempty"` // of three phases
	Holders  map[inventory.NodeID]float64 `json:"holders,omitempty"`
}

// Line is one line of three phases, in watts. A load whose line is not known
// is granted on each.
type Line struct {
	Name     string  `json:"name"` // L1 L2 L3
	Granted  float64 `json:"granted"`
	Limit    float64 `json:"limit"`
	Measured float64 `json:"measured"`
}

// Levels lists the tree as it is at now, parents first.
func (b *Budget) Levels(now time.Time) []Level {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(now)
	b.watch(now)
	holders := map[*level]map[inventory.NodeID]float64{}
	for node, h := range b.holders {
		for l := h.low; l != nil; l = l.parent {
			if holders[l] == nil {
				holders[l] = map[inventory.NodeID]float64{}
			}
			holders[l][node] = watts(b.claim(node, h))
		}
	}
	out := make([]Level, 0, len(b.levels))
	for _, l := range b.levels {
		m := l.own.meter.fresh(now, b.rules.Stale)
		v := Level{
			Circuit: l.Circuit, Granted: watts(l.counted.total), Limit: l.Watts(), Measured: watts(l.measured.total),
			Unknown: watts(l.own.unknown(l.Circuit).total), Metered: m, Holders: holders[l],
		}
		top := max(l.counted.line[0], l.counted.line[1], l.counted.line[2])
		v.Free = max(0, watts(l.limit-top))
		if l.Phases == 3 {
			for i := range l.counted.line {
				v.Metered = v.Metered || l.own.meters[i].fresh(now, b.rules.Stale)
				v.PerLine = append(v.PerLine, Line{fmt.Sprintf("L%d", i+1), watts(l.counted.line[i]), watts(l.limit), watts(l.measured.line[i])})
			}
		}
		v.State, v.Why = b.state(l, top)
		out = append(out, v)
	}
	return out
}

// state is what l does about new load, and why; top is what its busiest line
// has granted.
func (b *Budget) state(l *level, top int64) (state, why string) {
	switch {
	case l.sheds:
		return LevelShedding, fmt.Sprintf("a line carries %.0f of its %.0f W", watts(l.most()), watts(l.rating))
	case l.stopped:
		return LevelFull, fmt.Sprintf("it drew more than %.0f W for %v", watts(l.limit), overFor)
	case top >= l.limit:
		return LevelFull, fmt.Sprintf("%.0f of %.0f W are granted on a line", watts(top), watts(l.limit))
	case b.held != "":
		return LevelHeld, b.held
	case b.dark != nil && b.dark.released.IsZero():
		return LevelHeld, b.dark.String()
	}
	return LevelOK, ""
}
