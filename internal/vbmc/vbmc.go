// Package vbmc stands real management protocols in front of a machine that is
// not real: IPMI (Debian's ipmi_sim), a small Redfish service, and a switched
// PDU that speaks SNMP. The machine is a QEMU process (Machine) or nothing but
// its power state (Switch). The lab, the fleet simulator and the tests of the
// power drivers use it; each part can be told to lie the way firmware does.
package vbmc

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Power is a machine as its BMC sees it. Each call returns when the thing has
// been done or cannot be, except Shutdown, which only presses the button.
type Power interface {
	PowerOn(ctx context.Context) error  // on a running machine: nothing
	PowerOff(ctx context.Context) error // the plug, not the button
	Reset(ctx context.Context) error    // on a machine that is off: nothing
	Shutdown(ctx context.Context) error // the ACPI power button
	State(ctx context.Context) (on bool, err error)
	// SetBoot chooses what the machine boots from: at its next boot only
	// (once; 0 takes the choice back) or from now on.
	SetBoot(ctx context.Context, b Boot, once bool) error
}

// Boot is what a machine boots from.
type Boot int

// The boot choices.
const (
	_ Boot = iota
	BootNetwork
	BootDisk
)

func (b Boot) String() string {
	switch b {
	case BootNetwork:
		return "network"
	case BootDisk:
		return "disk"
	}
	return fmt.Sprintf("boot(%d)", int(b))
}

// Switch is a machine that is nothing but its power state. The zero value is
// a machine that is off and obeys at once.
type Switch struct {
	Delay time.Duration // between a command and the change

	mu    sync.Mutex
	on    bool
	once  Boot
	first Boot
	boots []Boot // what each start booted from
	timer *time.Timer
}

func (s *Switch) later(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.Delay <= 0 {
		f()
		return
	}
	s.timer = time.AfterFunc(s.Delay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
	})
}

func (s *Switch) boot() {
	b := s.first
	if s.once != 0 {
		b, s.once = s.once, 0
	}
	s.boots = append(s.boots, b)
}

// PowerOn turns s on.
func (s *Switch) PowerOn(context.Context) error {
	s.later(func() {
		if !s.on {
			s.on = true
			s.boot()
		}
	})
	return nil
}

// PowerOff turns s off.
func (s *Switch) PowerOff(context.Context) error {
	s.later(func() { s.on = false })
	return nil
}

// Reset starts s again if it is on.
func (s *Switch) Reset(context.Context) error {
	s.later(func() {
		if s.on {
			s.boot()
		}
	})
	return nil
}

// Shutdown turns s off: its system always obeys.
func (s *Switch) Shutdown(ctx context.Context) error { return s.PowerOff(ctx) }

// State tells whether s is on.
func (s *Switch) State(context.Context) (bool, error) { return s.On(), nil }

// On tells whether s is on.
func (s *Switch) On() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

// SetBoot chooses what s boots from.
func (s *Switch) SetBoot(_ context.Context, b Boot, once bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if once {
		s.once = b
		return nil
	}
	s.first, s.once = b, 0
	return nil
}

// Boots lists what each start so far booted from, 0 where nobody chose.
func (s *Switch) Boots() []Boot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Boot(nil), s.boots...)
}

// A Liar is a machine whose wires are loose: it answers every command with
// success and does what the lie says.
type Liar struct {
	Power

	mu  sync.Mutex
	lie Lie
}

// Lie is what a Liar does.
type Lie int

// The lies.
const (
	Honest   Lie = iota
	Ignores      // does nothing
	Inverts      // off is on, on is off
	Stubborn     // does all but shut down
)

// Tell chooses the lie from now on.
func (l *Liar) Tell(lie Lie) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = lie
}

func (l *Liar) now() Lie {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lie
}

// PowerOn turns the machine on, or not.
func (l *Liar) PowerOn(ctx context.Context) error {
	switch l.now() {
	case Ignores:
		return nil
	case Inverts:
		return l.Power.PowerOff(ctx)
	}
	return l.Power.PowerOn(ctx)
}

// PowerOff turns the machine off, or not.
func (l *Liar) PowerOff(ctx context.Context) error {
	switch l.now() {
	case Ignores:
		return nil
	case Inverts:
		return l.Power.PowerOn(ctx)
	}
	return l.Power.PowerOff(ctx)
}

// Reset resets the machine, or not.
func (l *Liar) Reset(ctx context.Context) error {
	if l.now() == Ignores {
		return nil
	}
	return l.Power.Reset(ctx)
}

// Shutdown presses the button, or not.
func (l *Liar) Shutdown(ctx context.Context) error {
	switch l.now() {
	case Ignores, Inverts, Stubborn:
		return nil
	}
	return l.Power.Shutdown(ctx)
}
