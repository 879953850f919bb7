package powertest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"smelt/power"
)

// A device is what a Fake has beside the machine's power: a light, a log, a
// screen, an account, a restore policy.
type device struct {
	toggled  bool
	light    bool
	log      []power.LogEntry
	password string
	wants    string // the password that it wants; empty: it asks for none
	restore  power.RestorePolicy
}

// Use gives the Fake the password that it sends, and the device, with the
// first one, the password that it wants.
func (f *Fake) Use(password string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.device.password = password
	if f.device.wants == "" {
		f.device.wants = password
	}
}

// Lit tells whether the locate light is on.
func (f *Fake) Lit() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.device.light
}

// Logged adds a line to the device's log, as a sensor would.
func (f *Fake) Logged(message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.device.log = append(f.device.log, power.LogEntry{ID: fmt.Sprint(len(f.device.log) + 1), At: time.Now(), Severity: "Warning", Message: message})
}

// Readings measures 120 W of a machine that is on.
func (f *Fake) Readings(ctx context.Context) (power.Readings, error) {
	if _, err := f.begin(ctx, "readings"); err != nil {
		return power.Readings{Watts: math.NaN()}, err
	}
	r := power.Readings{Celsius: map[string]float64{"inlet (simulated)": 24}, RPM: map[string]float64{"fan (simulated)": 0}, At: time.Now()}
	if f.On() {
		r.Watts, r.RPM["fan (simulated)"] = 120, 4000
	}
	return r, nil
}

// Light names the light.
func (f *Fake) Light() string { return "chassis LED (simulated)" }

// Identify switches the light.
func (f *Fake) Identify(ctx context.Context, on bool) error {
	s, err := f.begin(ctx, "identify")
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.Ignore {
		f.device.light = on
	}
	return s.After
}

// EventLog is what was Logged.
func (f *Fake) EventLog(ctx context.Context) ([]power.LogEntry, error) {
	if _, err := f.begin(ctx, "log"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]power.LogEntry(nil), f.device.log...), nil
}

// Screen is the beginning of a picture.
func (f *Fake) Screen(ctx context.Context) (power.Picture, error) {
	if _, err := f.begin(ctx, "screen"); err != nil {
		return power.Picture{}, err
	}
	return power.Picture{Type: "image/png", Data: []byte("\x89PNG\r\n\x1a\n")}, nil
}

// Audit says who the Fake is.
func (f *Fake) Audit(ctx context.Context) (power.Audit, error) {
	if _, err := f.begin(ctx, "audit"); err != nil {
		return power.Audit{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return power.Audit{
		Vendor: "Smelt (simulated)", Model: "Fake", Firmware: map[string]string{"bmc": "1.0"},
		Accounts: []power.Account{{ID: "1", Name: "admin", Role: "Administrator", Enabled: true}},
		Restore:  f.device.restore, At: time.Now(),
	}, nil
}

// SetBootOrder puts first at the head of network and disk.
func (f *Fake) SetBootOrder(ctx context.Context, first power.Device) ([]string, error) {
	s, err := f.begin(ctx, "order "+first.String())
	if err != nil {
		return nil, err
	}
	order := []string{power.Network.String(), power.Disk.String()}
	if first == power.Disk {
		slices.Reverse(order)
	}
	return order, s.After
}

// SetPassword changes what the device wants; the Fake goes on sending what Use
// gave it.
func (f *Fake) SetPassword(ctx context.Context, password string) error {
	s, err := f.begin(ctx, "password")
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.Ignore {
		f.device.wants = password
	}
	return s.After
}

// SetRestorePolicy keeps the policy.
func (f *Fake) SetRestorePolicy(ctx context.Context, p power.RestorePolicy) error {
	s, err := f.begin(ctx, "restore")
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.Ignore {
		f.device.restore = p
	}
	return s.After
}
