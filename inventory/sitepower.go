package inventory

import (
	"slices"
	"time"
)

// SitePower is what was decided about the power of the whole site. It is
// stored, and outlives every controller.
type SitePower struct {
	Hold     *PowerHold   `json:"hold,omitempty"`
	Blackout *Blackout    `json:"blackout,omitempty"`
	Curtail  *Curtailment `json:"curtail,omitempty"`
	// LastCurtail is the one before: how it went.
	LastCurtail *Curtailment `json:"lastCurtail,omitempty"`
	// Windows is, for each window of site.yaml, the beginning of the last one that
	// was curtailed for: each is once, whoever ends it and whatever came between.
	Windows map[string]time.Time `json:"windows,omitempty"`
}

// A PowerHold lets no machine start and no burn-in begin another check. What
// runs goes on.
type PowerHold struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// A Blackout is the loss of power of many machines at once, and the way back:
// nothing starts until a person releases it, then one after the other.
type Blackout struct {
	At         time.Time `json:"at"`
	By         string    `json:"by"` // system, or who said so
	Why        string    `json:"why"`
	Lost       []NodeID  `json:"lost,omitempty"`    // were on and are to come back, in this order
	Back       []NodeID  `json:"back,omitempty"`    // of them: on again, confirmed
	Failed     []NodeID  `json:"failed,omitempty"`  // of them: a person must look
	Released   time.Time `json:"released,omitzero"` //
	ReleasedBy string    `json:"releasedBy,omitempty"`
}

// Waits tells whether a machine is still to come back.
func (b *Blackout) Waits(id NodeID) bool {
	return slices.Contains(b.Lost, id) && !slices.Contains(b.Back, id) && !slices.Contains(b.Failed, id)
}

// Over tells whether every machine is back, or waits for a person.
func (b *Blackout) Over() bool {
	return !b.Released.IsZero() && len(b.Back)+len(b.Failed) >= len(b.Lost)
}

// Past tells whether it is history: everybody is back, and was for a day.
func (b *Blackout) Past(now time.Time) bool {
	return b.Over() && len(b.Failed) == 0 && (len(b.Lost) == 0 || now.Sub(b.Released) > 24*time.Hour)
}

// A Curtailment gives power back to whoever sells it, for a while.
type Curtailment struct {
	By    string    `json:"by"` // operator:NAME, or the window of site.yaml
	Why   string    `json:"why"`
	Watts float64   `json:"watts"` // to give back
	At    time.Time `json:"at"`
	Due   time.Time `json:"due"`            // given back by then
	Until time.Time `json:"until,omitzero"` // ends by itself; zero: when somebody ends it
	// Base is what all measured machines drew when it began, in watts, and
	// Draw what they draw now, as measured at Seen. Given is the difference.
	Base  float64       `json:"base"`
	Draw  float64       `json:"draw"`
	Seen  time.Time     `json:"seen,omitzero"`
	Met   time.Time     `json:"met,omitzero"` // first measured to be given back
	Late  bool          `json:"late,omitempty"`
	Steps []CurtailStep `json:"steps,omitempty"`
	// Unmeasured is how many machines were on and not measured when it began.
	Unmeasured int `json:"unmeasured,omitempty"`
}

// Given is what was given back, as measured last, in watts.
func (c *Curtailment) Given() float64 {
	if c.Seen.IsZero() {
		return 0
	}
	return max(0, c.Base-c.Draw)
}

// A CurtailStep is what one machine gives.
type CurtailStep struct {
	Node  NodeID  `json:"node"`
	Do    string  `json:"do"`    // ShedCap, ShedPause, ShedOff
	Watts float64 `json:"watts"` // expected
	// Taken: it was taken, or must not be. What a person gives back is not taken
	// again.
	Taken bool `json:"taken,omitempty"`
}
