package inventory

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
	Lines   string  `json:"lines,omitempty"`
	Reserve float64 `json:"reserve,omitempty"` // watts drawn by what is no node: switches, fans, lights
}

// Watts is what may be granted on this level: volts x amps x derate, times
// the square root of three on three phases (volts are then line to line).
func (c Circuit) Watts() float64 {
	w := c.Volts * c.Amps * c.Derate
	if c.Phases == 3 {
		w *= 1.7320508075688772
	}
	return w
}
