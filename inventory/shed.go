package inventory

import (
	"fmt"
	"slices"
	"time"
)

// What may be taken from a node for want of power, mildest first. An outlet is
// never cut.
const (
	ShedCap   = "cap"     // its cards draw less
	ShedPause = "pause"   // its burn-in waits
	ShedOff   = "softoff" // its system was asked to shut down
)

// A Shed is one thing that was taken from a node for want of power. Those of a
// node are a stack: what was taken last is given back first.
type Shed struct {
	Do      string    `json:"do"` // ShedCap, ShedPause, ShedOff
	By      string    `json:"by"` // budget, curtailment, operator:NAME
	Circuit string    `json:"circuit,omitempty"`
	Why     string    `json:"why"`
	At      time.Time `json:"at"`
	Watts   float64   `json:"watts,omitempty"` // what the node drew right before; 0 when nobody knows
}

func (s Shed) String() string {
	words := map[string]string{ShedCap: "its cards are capped", ShedPause: "its burn-in is paused", ShedOff: "it was shut down"}
	return fmt.Sprintf("%s by %s since %s: %s", words[s.Do], s.By, s.At.UTC().Format("2006-01-02 15:04:05 UTC"), s.Why)
}

// Sheds tells whether do was taken from n.
func (n Node) Sheds(do string) bool {
	return slices.ContainsFunc(n.Shed, func(s Shed) bool { return s.Do == do })
}

// shed replaces what was taken from n.
func (n Node) shed(list []Shed) (Node, error) {
	for _, s := range list {
		switch s.Do {
		case ShedCap, ShedPause, ShedOff:
		default:
			return n, fmt.Errorf("%q cannot be taken from a node", s.Do)
		}
		if s.By == "" || s.Why == "" || s.At.IsZero() {
			return n, fmt.Errorf("%s without who, when and why", s.Do)
		}
	}
	n.Shed = slices.Clone(list)
	return n, nil
}

// give drops what a node in its state has no use for.
func (n Node) give(drop func(do string) bool) Node {
	if slices.ContainsFunc(n.Shed, func(s Shed) bool { return drop(s.Do) }) {
		n.Shed = slices.DeleteFunc(slices.Clone(n.Shed), func(s Shed) bool { return drop(s.Do) })
	}
	if len(n.Shed) == 0 {
		n.Shed = nil
	}
	return n
}

// shedMoved is n after a move: a burn-in that is over is not paused, and a
// system that is not there has no cap.
func (n Node) shedMoved() Node {
	return n.give(func(do string) bool {
		switch n.State {
		case BurningIn, ReVerifying:
			return false
		case Joining, InService, Leaving:
			return do == ShedPause
		}
		return do != ShedOff
	})
}

// A Load is how much a machine may draw while it does its order.
type Load struct {
	// Pause holds the burn-in: PauseNow ends the check that runs and does it
	// again later, PauseAfter lets it end first. What passed stays passed.
	Pause string `json:"pause,omitempty"`
	// Cap is the share of its default power limit that each card may draw,
	// above 0 and below 1; 0 is no cap.
	Cap float64 `json:"cap,omitempty"`
}

// The ways to hold a burn-in.
const (
	PauseNow   = "now"
	PauseAfter = "after"
)

// String is short and the same for the same load; "" is full load.
func (l Load) String() string {
	s := l.Pause
	if l.Cap > 0 && l.Cap < 1 {
		s += fmt.Sprintf("<%.2f", l.Cap)
	}
	return s
}
