package inventory

import "math"

// A Circuit is one level of the power tree: feed, panel, PDU, bank or outlet.
type Circuit struct {
	Name   string  `json:"name"`
	Parent string  `json:"parent,omitempty"`
	Kind   string  `json:"kind"` // feed panel pdu bank outlet
	Volts  float64 `json:"volts"`
	Amps   float64 `json:"amps"` // breaker rating
	Phases int     `json:"phases"`
	Derate float64 `json:"derate"` // 0.8 for continuous load (NEC 210.20(A))
	// Lines are those of a three-phase parent that a single-phase circuit hangs
	// on: L1, L2, L3, or L1-L2, L2-L3, L3-L1 between two. Empty below such a
	// parent: not known, so it counts in full on each line.
	Lines string `json:"lines,omitempty"`
	// Reserve is what draws and is no node, in watts: switches, fans, lights.
	// On three phases it is that of the line which has most of it.
	Reserve float64 `json:"reserve,omitempty"`
}

// Watts is what may be granted on this level: volts x amps x derate, times
// the square root of three on three phases (volts are then line to line).
func (c Circuit) Watts() float64 {
	w := c.Volts * c.Amps * c.Derate
	if c.Phases == 3 {
		w *= math.Sqrt(3)
	}
	return w
}

// PerLine counts milliwatts on the lines L1, L2 and L3 of a circuit; one phase
// has the first only. Whole numbers: sums of them are exact in any order.
type PerLine [3]int64

// Milliwatts rounds watts up, for what is drawn.
func Milliwatts(watts float64) int64 { return int64(math.Ceil(watts * 1000)) }

// Each is a load whose line is not known: it counts in full on every line.
func (c Circuit) Each(mw int64) PerLine {
	if c.Phases == 3 {
		return PerLine{mw, mw, mw}
	}
	return PerLine{mw}
}

// Limit is what may be granted on one line. A breaker guards the amperes of
// each pole, so a line of three phases carries volts / sqrt(3) x amps x derate
// and no more, however little the other two carry.
//
// Meters and nameplates give watts, breakers count amperes: a power factor of
// one is assumed. Supplies that correct theirs reach 0.95 and more under load
// (80 PLUS asks for 0.9 at full load, EN 61000-3-2 limits the rest); where
// older ones run, a lower derate makes up for it.
func (c Circuit) Limit() int64 { return int64(math.Floor(c.line() * c.Derate * 1000)) }

// Rating is what the breaker of one line carries without derating, in
// milliwatts.
func (c Circuit) Rating() int64 { return int64(math.Floor(c.line() * 1000)) }

func (c Circuit) line() float64 {
	if c.Phases == 3 {
		return c.Volts / math.Sqrt(3) * c.Amps
	}
	return c.Volts * c.Amps
}

// Onto is what load, which c carries, puts on the lines of its parent p.
//
// Between a line and neutral, P watts are P on that line. Between two lines, P
// watts at the voltage U draw I = P/U in both; counted at the voltage U/sqrt(3)
// that Limit has for a line, that is I x U/sqrt(3) = P/sqrt(3) on each. Such
// currents add as phasors; their plain sum, taken here, is never less.
func (c Circuit) Onto(p Circuit, load PerLine) PerLine {
	if p.Phases != 3 {
		// One leg of a split phase (120 of 240 V) draws its amperes from all of it.
		if alike(c.Volts, p.Volts) || c.Volts > p.Volts {
			return PerLine{load[0]}
		}
		return PerLine{scale(load[0], p.Volts/c.Volts)}
	}
	if c.Phases == 3 {
		if alike(c.Volts, p.Volts) {
			return load
		}
		// A transformer between them. Delta to wye, one line of the parent carries
		// two of the child's by 1/sqrt(3) each; wye to wye, one. Which two is not
		// known: twice the largest covers both.
		return p.Each(scale(max(load[0], load[1], load[2]), 2/math.Sqrt(3)))
	}
	var out PerLine
	switch on := lineOf[c.Lines]; len(on) {
	case 1:
		out[on[0]] = load[0]
	case 2:
		each := scale(load[0], 1/math.Sqrt(3))
		out[on[0]], out[on[1]] = each, each
	default:
		return p.Each(load[0])
	}
	return out
}

// LinesKnown tells whether it is known which lines of its parent p a load on c
// flows through.
func (c Circuit) LinesKnown(p Circuit) bool {
	if p.Phases == 3 && c.Phases == 3 {
		return alike(c.Volts, p.Volts)
	}
	return p.Phases != 3 || c.Lines != ""
}

// lineOf are the words of Circuit.Lines.
var lineOf = map[string][]int{
	"L1": {0}, "L2": {1}, "L3": {2},
	"L1-L2": {0, 1}, "L2-L3": {1, 2}, "L3-L1": {2, 0},
}

func scale(mw int64, by float64) int64 { return int64(math.Ceil(float64(mw) * by)) }

// alike tells whether two voltages are one by name: 230 and 240, 200 and 208.
func alike(a, b float64) bool { return math.Abs(a/b-1) < 0.15 }
