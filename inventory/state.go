package inventory

import (
	"fmt"
	"time"
)

// State is where a node is in its life. The zero value is no state.
type State int

// The states, in the order of a conversion.
const (
	_ State = iota
	Expected
	Discovered
	Inspected
	Approved
	Wiping
	Imaging
	Starting
	BurningIn
	Joining
	InService
	ReVerifying
	Leaving
	NeedsWork
	Retired
	Rejected
)

var stateNames = map[State]string{
	Expected: "expected", Discovered: "discovered", Inspected: "inspected",
	Approved: "approved", Wiping: "wiping", Imaging: "imaging", Starting: "starting",
	BurningIn: "burning-in", Joining: "joining", InService: "in-service",
	ReVerifying: "re-verifying", Leaving: "leaving", NeedsWork: "needs-work",
	Retired: "retired", Rejected: "rejected",
}

func (s State) String() string {
	if n, ok := stateNames[s]; ok {
		return n
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// ParseState is the inverse of String.
func ParseState(s string) (State, error) {
	for st, n := range stateNames {
		if n == s {
			return st, nil
		}
	}
	return 0, fmt.Errorf("unknown state %q", s)
}

// States lists every state in the order of a conversion.
func States() []State {
	out := make([]State, 0, len(stateNames))
	for s := Expected; s <= Rejected; s++ {
		out = append(out, s)
	}
	return out
}

// MarshalText writes the word that people see; an invalid state is an error.
func (s State) MarshalText() ([]byte, error) {
	if _, ok := stateNames[s]; !ok {
		return nil, fmt.Errorf("inventory: marshal of invalid state %d", int(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (s *State) UnmarshalText(b []byte) error {
	v, err := ParseState(string(b))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// Waiting is one row of the transition table: what a node in a state waits
// for, who must act, how long that may take, and where it may go.
type Waiting struct {
	For      string        // what it waits for, for people
	Actor    string        // operator, system, agent, technician, cluster, nobody
	Deadline time.Duration // past it the node lists as stuck; 0 only in terminal states
	Next     []State       // where it may go
	Try      string        // the next thing to try once it is stuck
}

// Terminal states wait for nothing and have no deadline.
func (w Waiting) Terminal() bool { return w.Deadline == 0 }

// Table is the life of a node. It is data: Apply obeys it, the picture in
// docs/lifecycle.svg is drawn from it, and a test checks that every state that
// is not terminal has a deadline and something to try.
var Table = map[State]Waiting{
	Expected: {
		For: "the machine to appear on the network", Actor: "technician", Deadline: 14 * 24 * time.Hour,
		Next: []State{Discovered, Retired},
		Try:  "check cable and power at its position, then its boot order: network first",
	},
	Discovered: {
		For: "inspection", Actor: "agent", Deadline: 30 * time.Minute,
		Next: []State{Inspected, Rejected, NeedsWork},
		Try:  "power-cycle it and watch its screen: it should load the inspection system",
	},
	Inspected: {
		For: "approval", Actor: "operator", Deadline: 14 * 24 * time.Hour,
		Next: []State{Approved, NeedsWork, Retired, Rejected},
		Try:  "approve or reject it: smelt node approve NODE",
	},
	Approved: {
		For: "a power grant, a start slot, and its boot into the installer", Actor: "system", Deadline: 2 * time.Hour,
		Next: []State{Wiping, Starting, NeedsWork, Inspected}, // Starting: a plan that writes no disk
		Try:  "smelt power status; smelt node console NODE",
	},
	Wiping: {
		For: "the agent to erase its disks", Actor: "agent", Deadline: 24 * time.Hour,
		Next: []State{Imaging, NeedsWork, Retired},
		Try:  "smelt node console NODE; a power-cycle is safe, the wipe starts again",
	},
	Imaging: {
		For: "the agent to write the image", Actor: "agent", Deadline: 2 * time.Hour,
		Next: []State{Starting, NeedsWork},
		Try:  "smelt node console NODE; a power-cycle is safe, writing resumes",
	},
	Starting: {
		For: "the installed system to report from its own disk, or from its memory", Actor: "agent", Deadline: 30 * time.Minute,
		Next: []State{BurningIn, NeedsWork},
		Try:  "look at its screen: it should boot from its own disk, or from the network where its class says root: ram",
	},
	BurningIn: {
		For: "burn-in to finish", Actor: "agent", Deadline: 26 * time.Hour,
		Next: []State{Joining, NeedsWork},
		Try:  "smelt node show NODE: which check runs, and since when",
	},
	Joining: {
		For: "the cluster to accept it", Actor: "cluster", Deadline: 30 * time.Minute,
		Next: []State{InService, NeedsWork},
		Try:  "smelt join status NODE; look at the cluster's controller",
	},
	InService: {
		For: "nothing; it is re-verified on a schedule", Actor: "nobody", Deadline: 30 * 24 * time.Hour,
		Next: []State{ReVerifying, Leaving, NeedsWork},
		Try:  "re-verify it: smelt burnin run NODE",
	},
	ReVerifying: {
		For: "re-verification to finish", Actor: "agent", Deadline: 26 * time.Hour,
		Next: []State{InService, NeedsWork, Leaving},
		Try:  "smelt node show NODE: which check runs, and since when",
	},
	Leaving: {
		For: "the cluster to drain it", Actor: "cluster", Deadline: 7 * 24 * time.Hour,
		Next: []State{Inspected, Retired, NeedsWork},
		Try:  "smelt join status NODE: which jobs still run",
	},
	NeedsWork: {
		For: "a technician's task and its proof test", Actor: "technician", Deadline: 7 * 24 * time.Hour,
		Next: []State{Discovered, Inspected, Approved, Wiping, Imaging, Starting, BurningIn, Joining, Leaving, Retired, Rejected},
		Try:  "smelt task list NODE",
	},
	Retired:  {For: "nothing", Actor: "nobody", Next: []State{Discovered}},
	Rejected: {For: "nothing", Actor: "nobody", Next: []State{Discovered}},
}

// MayMove says why from must not become to, or nil.
func MayMove(from, to State) error {
	for _, n := range Table[from].Next {
		if n == to {
			return nil
		}
	}
	return fmt.Errorf("a node that is %s cannot become %s", from, to)
}
