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
