// Package power switches machines and proves that they switched.
//
// A Controller is the raw ability of one driver (a BMC, a PDU outlet, a
// human). Nothing is believed because a command returned ok: Verified wraps a
// Controller so that each verb is command, poll to the confirmed state,
// deadline, evidence. Budget grants watts and start slots on each Circuit.
package power

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// State is the power state a controller reports.
type State int

// The states. Unknown never causes an action.
const (
	_ State = iota
	On
	Off
	Unknown
)

func (s State) String() string {
	switch s {
	case On:
		return "on"
	case Off:
		return "off"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// Device is a boot device for BootOnce.
type Device int

// The boot devices.
const (
	_ Device = iota
	Network
	Disk
)

func (d Device) String() string {
	switch d {
	case Network:
		return "network"
	case Disk:
		return "disk"
	}
	return fmt.Sprintf("device(%d)", int(d))
}

// Errors that callers branch on.
var (
	ErrUnsupported = errors.New("not supported by this controller")
	ErrAuth        = errors.New("the credential was refused") // never retried: BMCs lock out
	ErrNotReached  = errors.New("the state was not reached in time")
	ErrNeedsHuman  = errors.New("a person must do this") // manual driver: a task was opened
)

// A Controller is what one driver can do to one machine. Each call talks to
// the device, honours ctx, and returns an error wrapping ErrAuth,
// ErrUnsupported or ErrNeedsHuman where that is the reason. A nil error means
// only that the device accepted the command.
//
// At most one call is in flight per Controller; Verified sees to it.
type Controller interface {
	// String names driver and place for people: "ipmi 10.0.0.5", "pdu pdu1 outlet 3".
	String() string
	// State reads the power state now. A state between on and off (PoweringOn)
	// is Unknown with a nil error.
	State(ctx context.Context) (State, error)
	// Set commands On or Off (hard).
	Set(ctx context.Context, s State) error
	// BootOnce chooses the device of the next boot, ErrUnsupported where the
	// machine's own boot order decides.
	BootOnce(ctx context.Context, d Device) error
}

// SoftOffer is a Controller that can ask the operating system to shut down.
type SoftOffer interface {
	SoftOff(ctx context.Context) error
}

// Meter is a Controller that can measure.
type Meter interface {
	Readings(ctx context.Context) (Readings, error)
}

// Readings are what a controller measured; NaN where it cannot.
type Readings struct {
	Watts   float64
	Celsius map[string]float64 // sensor name -> degrees
	At      time.Time
}

// Evidence is what was done and seen for one verb, kept in an event.
type Evidence struct {
	Verb       string        `json:"verb"`
	Controller string        `json:"controller"`
	Before     string        `json:"before"`
	After      string        `json:"after"`
	Polls      int           `json:"polls"`
	Took       time.Duration `json:"took"`
	Notes      []string      `json:"notes,omitempty"`
}

// Map is e as the evidence of an event.
func (e Evidence) Map() map[string]string {
	return map[string]string{
		"verb": e.Verb, "controller": e.Controller, "before": e.Before, "after": e.After,
		"polls": fmt.Sprint(e.Polls), "took": e.Took.Round(time.Millisecond).String(),
	}
}

// Limits of the verified verbs. The zero value of a field means its default.
type Limits struct {
	Reach   time.Duration // how long a state may take to be confirmed; 60 s
	Poll    time.Duration // between two reads; 2 s
	Dwell   time.Duration // off time of a cycle; 5 s
	Spacing time.Duration // between two commands to one device; 1 s
	Soft    time.Duration // how long a soft off may take before it failed; 600 s
}
