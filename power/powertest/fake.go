// Package powertest holds the promises of power.Controller against a driver
// (Run), and a Controller without a machine that behaves as badly as the worst
// firmware does (Fake).
package powertest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"smelt/power"
)

// A Fake is a Controller without a machine. The zero value is a machine that
// is off and obeys at once; Script makes it lie.
type Fake struct {
	mu     sync.Mutex
	script Script
	on     bool
	next   power.Device
	boots  []power.Device
	calls  []string
	timer  *time.Timer
	device device
}

// A Script is how a Fake behaves. Errors come first, then hanging, then what
// happens to the machine.
type Script struct {
	Latency time.Duration // of each call
	Settle  time.Duration // from an accepted command to the change
	Ignore  bool          // commands are accepted and nothing happens
	Invert  bool          // on switches off, off switches on
	Deaf    bool          // as Ignore, for the request to shut down only
	Reads   []power.State // what the next reads say, before they tell the truth
	Unknown bool          // every read says unknown
	Toggle  bool          // each read says the opposite of the one before
	Hang    bool          // every call lasts until its context ends
	Err     error         // every call fails with it and does nothing
	After   error         // commands do what they are told and then fail with it
	NoBoot  bool          // BootOnce is not supported
}

// SetScript changes the behaviour from now on.
func (f *Fake) SetScript(s Script) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script = s
}

// On tells whether the machine is on.
func (f *Fake) On() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.on
}

// Turn switches the machine behind the controller's back.
func (f *Fake) Turn(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn(on)
}

// Calls lists what was asked of the Fake: "state", "set on", "set off",
// "soft off", "boot network", "boot disk", and the other abilities by name.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// Boots lists what each start booted from, 0 where nobody chose.
func (f *Fake) Boots() []power.Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]power.Device(nil), f.boots...)
}

func (f *Fake) String() string { return "fake controller (simulated)" }

// begin records a call, waits as scripted and returns the script.
func (f *Fake) begin(ctx context.Context, call string) (Script, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	s := f.script
	if s.Err == nil && f.device.password != f.device.wants {
		s.Err = fmt.Errorf("wrong password: %w", power.ErrAuth)
	}
	f.mu.Unlock()
	if s.Hang {
		<-ctx.Done()
		return s, ctx.Err()
	}
	if s.Latency > 0 {
		select {
		case <-time.After(s.Latency):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
	return s, s.Err
}

// turn is the machine itself. f.mu is held.
func (f *Fake) turn(on bool) {
	if on && !f.on {
		f.boots = append(f.boots, f.next)
		f.next = 0
	}
	f.on = on
}

func (f *Fake) act(s Script, on bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
	}
	switch {
	case s.Ignore:
	case s.Settle > 0:
		f.timer = time.AfterFunc(s.Settle, func() { f.Turn(on != s.Invert) })
	default:
		f.turn(on != s.Invert)
	}
	return s.After
}

// State says what the script or the machine says.
func (f *Fake) State(ctx context.Context) (power.State, error) {
	s, err := f.begin(ctx, "state")
	if err != nil {
		return power.Unknown, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.script.Reads) > 0:
		r := f.script.Reads[0]
		f.script.Reads = f.script.Reads[1:]
		return r, nil
	case s.Unknown:
		return power.Unknown, nil
	case s.Toggle:
		f.device.toggled = !f.device.toggled
		if f.device.toggled {
			return power.On, nil
		}
		return power.Off, nil
	case f.on:
		return power.On, nil
	}
	return power.Off, nil
}

// Set switches the machine as the script says.
func (f *Fake) Set(ctx context.Context, want power.State) error {
	s, err := f.begin(ctx, "set "+want.String())
	if err != nil {
		return err
	}
	if want != power.On && want != power.Off {
		return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
	}
	return f.act(s, want == power.On)
}

// SoftOff shuts the machine down as the script says.
func (f *Fake) SoftOff(ctx context.Context) error {
	s, err := f.begin(ctx, "soft off")
	if err != nil {
		return err
	}
	s.Ignore = s.Ignore || s.Deaf
	return f.act(s, false)
}

// BootOnce chooses what the next start boots from.
func (f *Fake) BootOnce(ctx context.Context, d power.Device) error {
	s, err := f.begin(ctx, "boot "+d.String())
	if err != nil {
		return err
	}
	if s.NoBoot || d != power.Network && d != power.Disk {
		return fmt.Errorf("boot once from %s: %w", d, power.ErrUnsupported)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.Ignore {
		f.next = d
	}
	return s.After
}
