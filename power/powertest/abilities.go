package powertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"smelt/power"
)

// What a controller may have beside the contract: each promise is for one that
// has the ability, and says so in the log for one that has not.

// offers tells whether c has an ability. Some drivers have all its methods and
// learn from the device whether it can.
func offers[A any](t *testing.T, c power.Controller) (A, bool) {
	a, ok := c.(A)
	if !ok {
		t.Logf("%s has no such ability", c)
	}
	return a, ok
}

// unsupported ends a promise that the device turns out not to make.
func unsupported(t *testing.T, err error) bool {
	if errors.Is(err, power.ErrUnsupported) || errors.Is(err, power.ErrNeedsHuman) {
		t.Logf("not this device: %v", err)
		return true
	}
	return false
}

// readings: what is measured is sane, or NaN, while the machine is off and on.
func readings(t *testing.T, c power.Controller, h Hardware) {
	m, ok := offers[power.Meter](t, c)
	if !ok {
		return
	}
	within := func(what string, x, low, high float64) {
		if !math.IsNaN(x) && (x < low || x > high) {
			t.Errorf("%s is %v: want %v to %v, or NaN where nothing is measured", what, x, low, high)
		}
	}
	for _, on := range []power.State{power.Off, power.On} {
		if on == power.On {
			if err := h.set(t.Context(), c, on); err != nil {
				t.Fatal(err)
			}
			if err := says(t.Context(), c, h, on); err != nil {
				t.Fatal(err)
			}
		}
		r, err := m.Readings(t.Context())
		if unsupported(t, err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		within("the power in watts", r.Watts, 0, 100e3)
		for name, x := range r.Celsius {
			within("sensor "+name, x, -60, 150)
		}
		for name, x := range r.RPM {
			within("fan "+name, x, 0, 100e3)
		}
		if age := time.Since(r.At); age < 0 || age > time.Minute {
			t.Errorf("measured %v ago: want the time of this reading", age)
		}
	}
}

// light: it is lit and put out, seen at the hardware.
func light(t *testing.T, c power.Controller, h Hardware) {
	i, ok := offers[power.Identifier](t, c)
	if !ok {
		return
	}
	if i.Light() == "" {
		t.Error("the light has no name: what should a person look for?")
	}
	for _, on := range []bool{true, true, false} {
		err := i.Identify(t.Context(), on)
		if unsupported(t, err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Light == nil {
			t.Log("nobody can see the light of this hardware")
			continue
		}
		if err := follow("the light", func() error {
			if lit := h.Light(); lit != on {
				return fmt.Errorf("told %v, it is %v", on, lit)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// eventLog: what the device logs is read, and the newest is last.
func eventLog(t *testing.T, c power.Controller, h Hardware) {
	l, ok := offers[power.Logger](t, c)
	if !ok {
		return
	}
	list, err := l.EventLog(t.Context())
	if unsupported(t, err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if h.Log == nil {
		t.Logf("this hardware logs nothing on demand; it has %d entries", len(list))
		return
	}
	for _, what := range []string{"first of the test", "second of the test"} {
		want := h.Log(what)
		if err := follow("the log", func() error {
			list, err := l.EventLog(t.Context())
			if err != nil {
				return err
			}
			if len(list) == 0 || !strings.Contains(list[len(list)-1].Message+" "+list[len(list)-1].Sensor, want) {
				return fmt.Errorf("the newest of %d entries is not %q: %+v", len(list), want, list)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// screen: a picture that says of which type it is.
func screen(t *testing.T, c power.Controller, _ Hardware) {
	s, ok := offers[power.Screener](t, c)
	if !ok {
		return
	}
	p, err := s.Screen(t.Context())
	if unsupported(t, err) {
		return
	}
	magic := map[string]string{"image/png": "\x89PNG", "image/jpeg": "\xff\xd8"}[p.Type]
	if err != nil || magic == "" || !strings.HasPrefix(string(p.Data), magic) {
		t.Errorf("picture of type %q with %d bytes, error %v", p.Type, len(p.Data), err)
	}
}

// audit: the device says who it is, changes nothing, and tells no secret.
func audit(t *testing.T, c power.Controller, h Hardware) {
	k, ok := offers[power.Keeper](t, c)
	if !ok {
		return
	}
	a, err := k.Audit(t.Context())
	if unsupported(t, err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if a.At.IsZero() {
		t.Error("the audit has no time")
	}
	for _, f := range a.Findings {
		if f.Code == "" || f.What == "" {
			t.Errorf("finding %+v: want a code and what is wrong", f)
		}
	}
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	if h.Secret != "" && strings.Contains(string(b), h.Secret) {
		t.Errorf("the audit has the password in it: %s", b)
	}
	if h.On() {
		t.Error("the audit switched the machine on")
	}
}

// password: after a change the old one is refused and the new one works.
func password(t *testing.T, c power.Controller, h Hardware) {
	k, ok := offers[power.Keeper](t, c)
	if !ok {
		return
	}
	if h.Again == nil {
		t.Log("this hardware's password cannot be changed")
		return
	}
	const next = "n3wPassw0rdN3wPa" // 16: what IPMI 2.0 keeps at least
	err := k.SetPassword(t.Context(), next)
	if unsupported(t, err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if s, err := h.Again(t, next).State(t.Context()); err != nil || s != power.Off {
		t.Errorf("with the new password: state %s, error %v", s, err)
	}
	if h.Secret == "" {
		return
	}
	if s, err := h.Again(t, h.Secret).State(t.Context()); !errors.Is(err, power.ErrAuth) {
		t.Errorf("with the old password: state %s, error %v, want ErrAuth", s, err)
	} else if strings.Contains(err.Error(), h.Secret) {
		t.Errorf("the error has the password in it: %v", err)
	}
}

// restore: the policy is set and read back.
func restore(t *testing.T, c power.Controller, _ Hardware) {
	if _, ok := offers[power.Keeper](t, c); !ok {
		return
	}
	v := power.Verify(c, power.Limits{})
	for _, p := range []power.RestorePolicy{power.AlwaysOn, power.AlwaysOff} {
		if err := v.SetRestorePolicy(t.Context(), p); err != nil && !unsupported(t, err) {
			t.Errorf("%s: %v", p, err)
		}
	}
}
