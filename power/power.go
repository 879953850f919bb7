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
	"io"
	"strings"
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
	ErrMismatch    = errors.New("the device is not what the site file says") // nothing was sent; waiting does not mend it
	ErrNeedsHuman  = errors.New("a person must do this")                     // manual driver: a task was opened
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
	Watts   float64            // at the wall where the device can, at its inputs else
	Celsius map[string]float64 // sensor name -> degrees
	RPM     map[string]float64 // fan name -> revolutions a minute
	At      time.Time
}

// An Identifier is a Controller that can make the machine findable at the
// rack: a chassis LED, an outlet's light.
type Identifier interface {
	// Identify lights it until Identify(ctx, false), or until the device's own
	// limit, whichever comes first.
	Identify(ctx context.Context, on bool) error
	// Light names what a person must look for: "chassis LED", "outlet light".
	Light() string
}

// A Witness is a Controller that has more to say about its last calls than an
// error: which of its outlets was told what, which has no name. Notes returns it
// once; it goes into the evidence of the verb.
type Witness interface {
	Notes() []string
}

// A Logger is a Controller that keeps a log of its own (IPMI SEL, a Redfish
// LogService).
type Logger interface {
	// EventLog returns the newest entries, oldest first, at most some hundreds.
	EventLog(ctx context.Context) ([]LogEntry, error)
}

// LogEntry is one line of a device's own log. Its clock is the device's: many
// begin in 1970.
type LogEntry struct {
	ID       string    `json:"id"`
	At       time.Time `json:"at,omitzero"`
	Severity string    `json:"severity,omitempty"` // OK, Warning, Critical, or empty
	Sensor   string    `json:"sensor,omitempty"`
	Message  string    `json:"message"`
}

// A Consoler is a Controller with the machine's serial port (serial over LAN).
type Consoler interface {
	// Console opens it. What is read is what the machine prints; what is
	// written is typed. Closing it ends the session at the device. ctx ends it
	// too. A BMC has one: a second one is refused or takes the first one away.
	Console(ctx context.Context) (io.ReadWriteCloser, error)
}

// A Screener is a Controller that can show the machine's screen.
type Screener interface {
	Screen(ctx context.Context) (Picture, error)
}

// Picture is an image of a screen.
type Picture struct {
	Type string // media type: image/png, image/jpeg
	Data []byte
}

// A Keeper is a Controller whose device itself needs care: accounts, firmware,
// what it does when power comes back.
type Keeper interface {
	// Audit reads what there is to say about the device. It changes nothing and
	// costs at most one failed login, without any password, where that is the
	// only way to know (IPMI cipher suite 0).
	Audit(ctx context.Context) (Audit, error)
	// SetPassword gives the account that the controller logs in with a new
	// password. A nil error means that the device accepted it; the caller
	// proves it with a controller that has the new one.
	SetPassword(ctx context.Context, password string) error
	// SetRestorePolicy chooses what the machine does when power comes back.
	SetRestorePolicy(ctx context.Context, p RestorePolicy) error
}

// RestorePolicy is what a machine does when power comes back (Redfish
// ComputerSystem.PowerRestorePolicy; IPMI 2.0 section 28.8).
type RestorePolicy string

// The policies, in Redfish's words.
const (
	AlwaysOff RestorePolicy = "AlwaysOff"
	AlwaysOn  RestorePolicy = "AlwaysOn"
	LastState RestorePolicy = "LastState"
)

// Audit is what a device says about itself, and what is wrong with it.
type Audit struct {
	Vendor   string            `json:"vendor,omitempty"`
	Model    string            `json:"model,omitempty"`    // of the machine
	Serial   string            `json:"serial,omitempty"`   // of the machine
	Firmware map[string]string `json:"firmware,omitempty"` // component -> version; "bmc", "bios" where known
	Accounts []Account         `json:"accounts,omitempty"`
	Restore  RestorePolicy     `json:"restore,omitempty"` // empty: it does not say
	Boot     []string          `json:"boot,omitempty"`    // boot order, first to last, where known
	Findings []Finding         `json:"findings,omitempty"`
	At       time.Time         `json:"at"`
}

// An Account is a user of the device, never with a password.
type Account struct {
	ID      string `json:"id"`
	Name    string `json:"name"` // empty: anonymous
	Role    string `json:"role,omitempty"`
	Enabled bool   `json:"enabled"`
}

// A Finding is something wrong with a device, and what to do.
type Finding struct {
	Code string `json:"code"` // cipher-zero, anonymous-user, restore-policy, old-firmware, default-credential, ...
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
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
	// Started is when a verb last began to switch the machine on; the zero time
	// if it did not. What the machine says after that, this start says.
	Started time.Time `json:"started,omitzero"`
	// Quirks are the lies this verb met, in the words of quirks.csv:
	// "ok-and-nothing", "failed-and-done", "boot-once-ignored".
	Quirks []string `json:"quirks,omitempty"`
}

// Map is e as the evidence of an event.
func (e Evidence) Map() map[string]string {
	m := map[string]string{
		"verb": e.Verb, "controller": e.Controller, "before": e.Before, "after": e.After,
		"polls": fmt.Sprint(e.Polls), "took": e.Took.Round(time.Millisecond).String(),
	}
	if len(e.Quirks) > 0 {
		m["quirks"] = strings.Join(e.Quirks, " ")
	}
	return m
}

// Limits of the verified verbs. The zero value of a field means its default.
type Limits struct {
	Reach   time.Duration // how long a state may take to be confirmed; 60 s
	Poll    time.Duration // between two reads; 2 s
	Dwell   time.Duration // off time of a cycle; 5 s
	Spacing time.Duration // between two commands to one device; 1 s
	Soft    time.Duration // how long a soft off may take before it failed; 600 s
}
