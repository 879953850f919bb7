package inventory

import (
	"errors"
	"fmt"
	"time"
)

// What a machine can be asked to boot once, beside its life.
const (
	BootRescue  = "rescue"  // the RAM system with a shell for an operator, by ssh
	BootMemtest = "memtest" // a memory test without an operating system
)

// MaxOnce is how long such a boot may last at most.
const MaxOnce = 7 * 24 * time.Hour

// Once is a boot that an operator asked for: the next one, and only that one.
type Once struct {
	Boot   string    `json:"boot"` // BootRescue, BootMemtest
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Write  bool      `json:"write,omitempty"` // rescue: its disks are not made read-only
	Asked  time.Time `json:"asked"`
	Until  time.Time `json:"until"`          // it ends then, whatever it is doing
	Began  time.Time `json:"began,omitzero"` // it was started; the start after that is an ordinary one
	// Restart: the machine is to be restarted for it. Ended: it is over, and the
	// machine is to be restarted out of it. Both until that was done.
	Restart bool      `json:"restart,omitempty"`
	Ended   time.Time `json:"ended,omitzero"`
}

// Active tells whether the machine is to boot it, or may be running it.
func (o *Once) Active(now time.Time) bool { return o != nil && now.Before(o.Until) && o.Ended.IsZero() }

// outlives tells whether what was asked for still makes sense in a state.
func (o *Once) outlives(to State) bool {
	switch to {
	case Approved, Wiping, Imaging, Starting, BurningIn, Joining, InService:
		return false
	}
	return true
}

// MayBootOnce says why n must not boot, or go on with, what was asked of it, or
// nil. What holds when somebody asks need not hold when the machine starts: a
// hold is lifted, a site.yaml protects it.
func (n Node) MayBootOnce(at time.Time) error {
	if n.Once == nil {
		return errors.New("nobody asked it to boot anything once")
	}
	return n.mayBootOnce(*n.Once, at)
}

// mayBootOnce says why n must not be taken out of what it does for o, or nil.
// Nobody is interrupted: not the writing of a disk, and no job that a cluster
// may have given it, unless a person holds the machine.
func (n Node) mayBootOnce(o Once, at time.Time) error {
	if o.Boot != BootRescue && o.Boot != BootMemtest {
		return fmt.Errorf("there is no boot %q: want %s or %s", o.Boot, BootRescue, BootMemtest)
	}
	switch {
	case o.By == "":
		return errors.New("nobody asked for it")
	case o.Write && o.Boot != BootRescue:
		return fmt.Errorf("%s writes no disk", o.Boot)
	case !o.Until.After(at):
		return errors.New("it would be over before it begins")
	case o.Until.Sub(o.Asked) > MaxOnce:
		return fmt.Errorf("it would last %s, the longest is %s", o.Until.Sub(o.Asked), MaxOnce)
	case o.Write && n.Spec.Protect:
		return errors.New("it is protected in site.yaml: its disks stay read-only")
	case o.Write && n.State == Rejected:
		return errors.New("it was rejected: its disks stay read-only")
	}
	if by, _, _ := cutActor(o.By); o.Write && n.Hold != nil && n.Hold.Owner != by {
		return fmt.Errorf("it is held by %s: %s: its disks stay read-only", n.Hold.Owner, n.Hold.Reason)
	}
	switch n.State {
	case Discovered, Inspected, NeedsWork, Retired, Rejected:
		if n.Joined && n.Hold == nil {
			return errors.New("a cluster may send it jobs: let it leave, or hold it first")
		}
		return nil
	case BurningIn, Joining, InService, ReVerifying, Leaving:
		if n.Hold == nil {
			return fmt.Errorf("it is %s: let it leave, or hold it first", n.State)
		}
		return nil
	}
	return fmt.Errorf("it is %s", n.State)
}
