package inventory

import "time"

// Spec is what site.yaml (or an import) says a node should be. The zero Spec
// belongs to a machine nobody expected.
type Spec struct {
	Name     NodeID   `json:"name,omitempty"`
	Position Position `json:"position,omitempty"`
	Class    string   `json:"class,omitempty"`
	MACs     []MAC    `json:"macs,omitempty"`
	BMCMAC   *MAC     `json:"bmcMAC,omitempty"`
	Serial   string   `json:"serial,omitempty"` // board or chassis serial
	Circuit  string   `json:"circuit,omitempty"`
	Watts    float64  `json:"watts,omitempty"` // nameplate, for power grants
	Protect  bool     `json:"protect,omitempty"`
	Image    string   `json:"image,omitempty"` // name or digest; from the class when empty
	Root     string   `json:"root,omitempty"`  // RootRAM, or empty for a disk
	Profile  string   `json:"profile,omitempty"`
	Target   string   `json:"target,omitempty"`
}

// Node is one machine: the fold of its events. Fields are facts; only Apply
// changes them. Power, link and alerts are facts beside the state.
type Node struct {
	ID       NodeID    `json:"id"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`              // entered State
	Deadline time.Time `json:"deadline,omitzero"`  // zero in terminal states
	Version  uint64    `json:"version"`            // number of events applied
	Fence    uint64    `json:"fence"`              // see DESIGN: rises when responsibility changes hands
	Spec     Spec      `json:"spec"`               //
	MACs     []MAC     `json:"macs,omitempty"`     // seen or expected; a label for finding it
	Hardware *Hardware `json:"hardware,omitempty"` // last inspection
	Salvage  *Salvage  `json:"salvage,omitempty"`  // saved before the first wipe
	Verdict  *Verdict  `json:"verdict,omitempty"`  // last triage
	Hold     *Hold     `json:"hold,omitempty"`
	Plan     *Plan     `json:"plan,omitempty"`    // set by approval, cleared by in-service
	Failure  *Failure  `json:"failure,omitempty"` // why it needs work
	Report   string    `json:"report,omitempty"`  // id of the last burn-in report
	Passed   *Passed   `json:"passed,omitempty"`  // last PASS, for which hardware and image
	Image    string    `json:"image,omitempty"`   // digest on its disk, once started from it
	Root     string    `json:"root,omitempty"`    // RootRAM: it runs Image from memory and loads it at each start
	Once     *Once     `json:"once,omitempty"`    // what an operator asked it to boot once
	Joined   bool      `json:"joined,omitempty"`  // a cluster may send it jobs: from joining until it left
	Power    PowerFact `json:"power"`
	Shed     []Shed    `json:"shed,omitempty"` // what was taken from it for want of power, the last one last
	Note     string    `json:"note,omitempty"` // what exactly it waits for inside the state
}

// Waits is the row of the table for the state of n.
func (n Node) Waits() Waiting { return Table[n.State] }

// Stuck tells whether n is past the deadline of its state.
func (n Node) Stuck(now time.Time) bool { return !n.Deadline.IsZero() && now.After(n.Deadline) }

// Convertible says why the disks of n must not be touched now, or nil. It is
// one of the guards of rule 2 and is asked again right before each permit.
func (n Node) Convertible() error {
	switch {
	case n.Spec.Protect:
		return refusal("it is protected in site.yaml")
	case n.Hold != nil:
		return refusal("it is held by " + n.Hold.Owner + ": " + n.Hold.Reason)
	case n.Joined:
		return refusal("it belongs to a cluster and may run jobs: let it leave first")
	case n.Plan == nil:
		return refusal("nobody approved it")
	case n.State != Approved && n.State != Wiping && n.State != Imaging:
		return refusal("it is " + n.State.String())
	case n.Plan.Root == RootRAM && n.State != Approved:
		return refusal("its plan writes no disk")
	case n.Hardware == nil:
		return refusal("it was never inspected")
	case n.Hardware.Digest() != n.Plan.Hardware:
		return refusal("its hardware changed since it was approved: approve it again")
	}
	return n.Plan.Check()
}

type refusal string

func (r refusal) Error() string { return string(r) }

// A Hold is an owner's "do not touch". Only the same kind of owner lifts it.
type Hold struct {
	Owner  string    `json:"owner"` // kind: operator, technician, cluster, system
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Failure is why a node needs work, and which step to repeat afterwards.
type Failure struct {
	Step   State    `json:"step,omitzero"` // the state that failed; the one it left when not given
	Cause  string   `json:"cause"`
	Tasks  []string `json:"tasks,omitempty"` // ids
	Detail string   `json:"detail,omitempty"`
}

// Passed is a burn-in PASS: it counts only for this hardware and image.
type Passed struct {
	Report    string    `json:"report"`
	Hardware  string    `json:"hardware"`
	Image     string    `json:"image"`
	Profile   string    `json:"profile"`
	Simulated bool      `json:"simulated,omitempty"`
	At        time.Time `json:"at"`
}

// PowerFact is the last confirmed power state.
type PowerFact struct {
	On     string    `json:"on,omitempty"`  // on, off, unknown
	Via    string    `json:"via,omitempty"` // controller that confirmed it
	At     time.Time `json:"at,omitzero"`
	Detail string    `json:"detail,omitempty"`
}

// Verdict is the answer of triage for one node against one target.
type Verdict struct {
	Target    string   `json:"target"`
	Answer    string   `json:"answer"` // convert, upgrade, part-out, recycle, unknown
	Reasons   []Reason `json:"reasons"`
	Simulated bool     `json:"simulated,omitempty"`
}

// Reason is one line of a verdict: what was required, found, and what to do.
type Reason struct {
	Item      string `json:"item"` // vram, pcie-link, ram, cores, driver, disk, ...
	OK        bool   `json:"ok"`
	Want      string `json:"want,omitempty"`
	Got       string `json:"got,omitempty"`
	Where     string `json:"where,omitempty"` // slot or position
	Fix       string `json:"fix,omitempty"`
	Part      string `json:"part,omitempty"`
	Simulated bool   `json:"simulated,omitempty"`
}

// A Task is a piece of work for a human: a physical verb, a place, a proof.
type Task struct {
	ID      string    `json:"id"`
	Node    NodeID    `json:"node"`
	Verb    string    `json:"verb"`  // move, reseat, replace, plug, press, check, name
	What    string    `json:"what"`  // "GPU RTX 3090 (0000:02:00.0)"
	Where   string    `json:"where"` // "A3-S2, slot 2"
	Why     string    `json:"why"`
	How     string    `json:"how,omitempty"`
	Proof   string    `json:"proof"` // what shows that it worked: reinspect, burnin, dhcp, none
	Opened  time.Time `json:"opened"`
	DoneAt  time.Time `json:"doneAt,omitzero"`
	DoneBy  string    `json:"doneBy,omitempty"`
	Outcome string    `json:"outcome,omitempty"`
}

// Open tells whether the work is still to be done.
func (t Task) Open() bool { return t.DoneAt.IsZero() }

func (t Task) String() string { return t.Verb + " " + t.What + " at " + t.Where }
