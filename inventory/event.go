package inventory

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kind says which facts an Event carries.
type Kind string

// The kinds of event. Words are stored and sent: never reuse or rename one.
const (
	KindCreated   Kind = "created"   // Spec, MACs, To: expected or discovered
	KindSpec      Kind = "spec"      // Spec changed in site.yaml
	KindMoved     Kind = "moved"     // To, Reason; the only kind that changes State of an existing node
	KindInspected Kind = "inspected" // Hardware, Salvage (if any was found); no move
	KindTriaged   Kind = "triaged"   // Verdict
	KindHeld      Kind = "held"      // Hold
	KindReleased  Kind = "released"  // hold lifted; Actor is the owner kind
	KindPower     Kind = "power"     // Power
	KindFence     Kind = "fence"     // Fence
	KindNote      Kind = "note"      // Reason becomes Note: what it waits for inside the state
	KindTask      Kind = "task"      // a task opened or closed; Task is its id
	KindReport    Kind = "report"    // Report filed; Passed set when it is a PASS
	KindAlarm     Kind = "alarm"     // something a human should know; changes nothing
	KindOnce      Kind = "once"      // Once: what it boots next, once; without one: that is over
	KindShed      Kind = "shed"      // Shed: what is taken from it for want of power now; none: all was given back
	KindStep      Kind = "step"      // evidence inside a state (a permit used, a chunk map verified)
)

// An Event is one fact about a node. Seq orders all events of a site and is
// given by the store; Version orders those of one node without gaps.
type Event struct {
	Seq      uint64            `json:"seq,omitempty"`
	Node     NodeID            `json:"node"`
	Version  uint64            `json:"version"`
	At       time.Time         `json:"at"`
	Kind     Kind              `json:"kind"`
	Actor    string            `json:"actor"` // operator:NAME, system, agent, technician:NAME, cluster
	Reason   string            `json:"reason,omitempty"`
	Evidence map[string]string `json:"evidence,omitempty"`

	From     State      `json:"from,omitempty"` // with KindMoved: the state it leaves; the store fills it in
	To       State      `json:"to,omitempty"`
	Deadline *time.Time `json:"deadline,omitempty"` // overrides the table's deadline of To
	Spec     *Spec      `json:"spec,omitempty"`
	MACs     []MAC      `json:"macs,omitempty"`
	Hardware *Hardware  `json:"hardware,omitempty"`
	Salvage  *Salvage   `json:"salvage,omitempty"`
	Verdict  *Verdict   `json:"verdict,omitempty"`
	Hold     *Hold      `json:"hold,omitempty"`
	Plan     *Plan      `json:"plan,omitempty"`    // with a move to Approved
	Failure  *Failure   `json:"failure,omitempty"` // with a move to NeedsWork
	Power    *PowerFact `json:"power,omitempty"`
	Fence    uint64     `json:"fence,omitempty"`
	Task     string     `json:"task,omitempty"`
	Report   string     `json:"report,omitempty"`
	Passed   *Passed    `json:"passed,omitempty"`
	Once     *Once      `json:"once,omitempty"`
	Shed     []Shed     `json:"shed,omitempty"`
	Image    string     `json:"image,omitempty"` // with a move to BurningIn: digest it started from
}

// ErrStale: the event was made for another version of the node. Read the node
// again and decide anew.
var ErrStale = errors.New("stale event")

// Apply returns n after e, or n unchanged and why e must not happen. It is
// pure: same node and event, same answer. e.Version must be n.Version+1.
func (n Node) Apply(e Event) (Node, error) {
	out, err := n.apply(e)
	if err != nil {
		return n, fmt.Errorf("node %s: %s: %w", n.name(e), e.Kind, err)
	}
	return out, nil
}

func (n Node) name(e Event) NodeID {
	if n.ID != "" {
		return n.ID
	}
	return e.Node
}

func (n Node) apply(e Event) (Node, error) {
	if e.Version != n.Version+1 {
		return n, fmt.Errorf("%w: it is at version %d, the event makes %d", ErrStale, n.Version, e.Version)
	}
	if e.At.IsZero() || e.Actor == "" {
		return n, errors.New("an event needs a time and an actor")
	}
	if e.Kind == KindCreated {
		return n.create(e)
	}
	if n.Version == 0 || e.Node != n.ID {
		return n, fmt.Errorf("the event is for node %q", e.Node)
	}
	n.Version = e.Version
	switch e.Kind {
	case KindMoved:
		return n.move(e)
	case KindSpec:
		if e.Spec == nil {
			return n, errors.New("no spec")
		}
		n.Spec = *e.Spec
		for _, m := range e.Spec.MACs {
			n.MACs = addMAC(n.MACs, m)
		}
	case KindInspected:
		if e.Hardware == nil {
			return n, errors.New("no hardware")
		}
		n.Hardware = e.Hardware
		// What was seen replaces what was seen before: a card that moved to
		// another machine must not label both.
		if len(e.Hardware.NICs) > 0 {
			n.MACs = nil
			for _, m := range n.Spec.MACs {
				n.MACs = addMAC(n.MACs, m)
			}
			for _, nic := range e.Hardware.NICs {
				n.MACs = addMAC(n.MACs, nic.MAC)
			}
		}
		// What ran here is saved once: after the wipe there is nothing to find.
		if e.Salvage != nil && n.Salvage == nil {
			n.Salvage = e.Salvage
		}
	case KindTriaged:
		if e.Verdict == nil {
			return n, errors.New("no verdict")
		}
		n.Verdict = e.Verdict
	case KindHeld:
		if e.Hold == nil || e.Hold.Owner == "" || e.Hold.Reason == "" {
			return n, errors.New("a hold needs an owner and a reason")
		}
		if n.Hold != nil && n.Hold.Owner != e.Hold.Owner {
			return n, fmt.Errorf("already held by %s: %s", n.Hold.Owner, n.Hold.Reason)
		}
		n.Hold = e.Hold
	case KindReleased:
		if n.Hold == nil {
			return n, errors.New("it is not held")
		}
		if owner, _, _ := cutActor(e.Actor); owner != n.Hold.Owner {
			return n, fmt.Errorf("held by %s: only that owner lifts it, not %s", n.Hold.Owner, e.Actor)
		}
		n.Hold = nil
	case KindPower:
		if e.Power == nil {
			return n, errors.New("no power fact")
		}
		n.Power = *e.Power
		if e.Power.On == "on" {
			n = n.give(func(do string) bool { return do == ShedOff })
		}
	case KindFence:
		if e.Fence <= n.Fence {
			return n, fmt.Errorf("fence %d does not rise above %d", e.Fence, n.Fence)
		}
		n.Fence = e.Fence
	case KindNote:
		n.Note = e.Reason
	case KindReport:
		if e.Report == "" {
			return n, errors.New("no report")
		}
		if e.Passed != nil && e.Passed.Report != e.Report {
			return n, fmt.Errorf("a PASS of report %q with report %q", e.Passed.Report, e.Report)
		}
		n.Report, n.Passed = e.Report, e.Passed
	case KindOnce:
		if e.Once != nil && (e.Once.Ended.IsZero() || n.Once == nil) {
			if err := n.mayBootOnce(*e.Once, e.At); err != nil {
				return n, err
			}
		} else if n.Once == nil {
			return n, errors.New("nothing was asked of it to boot once")
		}
		n.Once = e.Once
	case KindShed:
		return n.shed(e.Shed)
	case KindTask, KindAlarm, KindStep:
		// kept as history only
	default:
		return n, errors.New("unknown kind of event")
	}
	return n, nil
}

func (n Node) create(e Event) (Node, error) {
	if n.Version != 0 {
		return n, errors.New("it already exists")
	}
	if _, err := ParseNodeID(string(e.Node)); err != nil {
		return n, err
	}
	if e.To != Expected && e.To != Discovered {
		return n, fmt.Errorf("a node cannot begin as %s", e.To)
	}
	out := Node{ID: e.Node, Version: 1, State: e.To, Since: e.At, MACs: slices.Clone(e.MACs)}
	if e.Spec != nil {
		out.Spec = *e.Spec
		for _, m := range e.Spec.MACs {
			out.MACs = addMAC(out.MACs, m)
		}
	}
	if e.Deadline != nil && !e.Deadline.After(e.At) {
		return n, errors.New("its deadline would be over before it begins")
	}
	out.Deadline = deadline(e)
	return out, nil
}

func (n Node) move(e Event) (Node, error) {
	if err := MayMove(n.State, e.To); err != nil {
		return n, err
	}
	if e.Reason == "" {
		return n, errors.New("a move needs a reason")
	}
	if e.From != 0 && e.From != n.State {
		return n, fmt.Errorf("%w: it is %s, the event leaves %s", ErrStale, n.State, e.From)
	}
	if e.Deadline != nil && !e.Deadline.After(e.At) {
		return n, errors.New("its deadline would be over before it begins")
	}
	only := n.Plan != nil && n.Plan.WipeOnly
	switch {
	case n.State == Wiping && e.To == Retired && !only:
		return n, errors.New("it is being wiped to get an image")
	case e.To == Imaging && only:
		return n, errors.New("its plan is to wipe it and no more")
	}
	switch e.To {
	case Approved:
		if e.Plan != nil {
			n.Plan = e.Plan
		}
		if err := n.destructible(Approved); err != nil {
			return n, err
		}
	case Wiping, Imaging:
		if err := n.destructible(e.To); err != nil {
			return n, err
		}
	case Starting:
		if n.State == Approved {
			if n.Plan == nil || n.Plan.Root != RootRAM {
				return n, errors.New("nothing was written to its disk yet")
			}
			if err := n.Convertible(); err != nil {
				return n, err
			}
			n.Image, n.Passed = "", nil
		}
		if n.Plan != nil {
			n.Root = n.Plan.Root
		}
	case Joining, InService:
		if n.Hardware == nil || n.Image == "" || n.Passed == nil ||
			n.Passed.Hardware != n.Hardware.Digest() || n.Passed.Image != n.Image {
			return n, errors.New("no PASS for its current hardware and image")
		}
	case BurningIn:
		if e.Image != "" && n.Plan != nil && e.Image != n.Plan.Image {
			return n, fmt.Errorf("it started from image %s, the plan says %s", e.Image, n.Plan.Image)
		}
	case NeedsWork:
		if e.Failure == nil || e.Failure.Cause == "" {
			return n, errors.New("needs-work without a cause")
		}
	}
	n.Failure = nil
	if e.To == NeedsWork {
		f := *e.Failure
		if f.Step == 0 {
			f.Step = n.State
		}
		n.Failure = &f
	}
	switch e.To {
	case Wiping, Imaging:
		n.Image, n.Passed = "", nil
	case BurningIn:
		if e.Image != "" {
			n.Image = e.Image
		}
		n.Passed = nil // a PASS from before does not answer for what begins now
	case ReVerifying:
		n.Passed = nil
	}
	switch e.To {
	case InService, Retired, Rejected, Discovered, Inspected:
		n.Plan = nil // each approval brings a plan of its own
	}
	switch {
	case e.To == Joining:
		n.Joined = true // from the first word to the cluster: nobody knows when it heard it
	case n.State == Leaving && e.To == Inspected, Table[e.To].Terminal():
		n.Joined = false
	}
	if n.Once != nil && !n.Once.outlives(e.To) {
		n.Once = nil
	}
	n.State, n.Since, n.Note = e.To, e.At, ""
	n.Deadline = deadline(e)
	return n.shedMoved(), nil
}

// destructible is Convertible as if n were in the state it moves to.
func (n Node) destructible(to State) error {
	n.State = to
	return n.Convertible()
}

func deadline(e Event) time.Time {
	d := Table[e.To].Deadline
	switch {
	case d == 0: // nobody waits in a terminal state
		return time.Time{}
	case e.Deadline != nil:
		return *e.Deadline
	}
	return e.At.Add(d)
}

func addMAC(list []MAC, m MAC) []MAC {
	if slices.Contains(list, m) {
		return list
	}
	return append(slices.Clone(list), m)
}

// cutActor splits "operator:anna" into kind and name.
func cutActor(a string) (kind, name string, ok bool) {
	for i := range a {
		if a[i] == ':' {
			return a[:i], a[i+1:], true
		}
	}
	return a, "", false
}
