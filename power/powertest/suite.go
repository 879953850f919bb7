package powertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"smelt/power"
)

// Hardware is what a controller under test switches, seen from outside: the
// truth that its words are held against. A nil field means that the protocol
// cannot be tried that way; Run then says so in the log.
type Hardware struct {
	On   func() bool     // does the machine run
	Turn func(on bool)   // switch it at the machine, behind the controller
	Boot func() []string // what each start booted from so far: "network", "disk" or ""

	// Refused makes a controller for the same machine whose credential is
	// wrong, and tells how many logins the device has seen from it.
	Refused func(t *testing.T) (c power.Controller, logins func() int)
	// Dead makes a controller for an address where nobody answers.
	Dead func(t *testing.T) power.Controller
	// Hang makes the device swallow every request from now on.
	Hang func()
	// Human is the person who does what a controller asks for that cannot
	// switch by itself.
	Human func(power.State)

	// Light tells whether the locate light is on.
	Light func() bool
	// Log makes the device write something like what into its log, and returns
	// what an entry must contain.
	Log func(what string) string
	// Secret is the password that the controller logs in with, which nothing
	// that it says may contain.
	Secret string
	// Again makes a controller for the same device with another password.
	Again func(t *testing.T, password string) power.Controller

	// OnlyOn says that the controller cannot switch off, and knows a machine as
	// on or not at all: what wakes it, and hears of it.
	OnlyOn bool
}

// set commands c, by way of the person where it needs one.
func (h Hardware) set(ctx context.Context, c power.Controller, s power.State) error {
	err := c.Set(ctx, s)
	if errors.Is(err, power.ErrNeedsHuman) && h.Human != nil {
		h.Human(s)
		return nil
	}
	return err
}

// grace is how long after its context has ended a call may still take.
const grace = 2 * time.Second

// settle is how long the hardware of a test may take to follow a command.
const settle = 30 * time.Second

// Run holds a controller to the promises of power.Controller. setup is called
// for each test, possibly at the same time, and returns a controller of a
// machine that is off.
func Run(t *testing.T, setup func(t *testing.T) (power.Controller, Hardware)) {
	for _, promise := range []struct {
		name string
		kept func(*testing.T, power.Controller, Hardware)
	}{
		{"truth", truth},
		{"boot", boot},
		{"soft", soft},
		{"nonsense", nonsense},
		{"refused", refused},
		{"dead", dead},
		{"cancel", cancel},
		{"verified", verified},
		{"readings", readings},
		{"light", light},
		{"log", eventLog},
		{"screen", screen},
		{"audit", audit},
		{"password", password},
		{"restore", restore},
	} {
		t.Run(promise.name, func(t *testing.T) {
			t.Parallel()
			c, h := setup(t)
			promise.kept(t, c, h)
		})
	}
}

func follow(what string, f func() error) error {
	var err error
	for end := time.Now().Add(settle); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// says waits until c says want and the hardware agrees.
func says(ctx context.Context, c power.Controller, h Hardware, want power.State) error {
	return follow("controller and machine disagree", func() error {
		s, err := c.State(ctx)
		if err != nil {
			return err
		}
		if s != want || h.On() != (want == power.On) {
			return fmt.Errorf("want %s, the controller says %s, machine on %v", want, s, h.On())
		}
		return nil
	})
}

func truth(t *testing.T, c power.Controller, h Hardware) {
	ctx := t.Context()
	if c.String() == "" {
		t.Error("the controller has no name")
	}
	if h.OnlyOn {
		wakes(t, c, h)
		return
	}
	if s, err := c.State(ctx); err != nil || s != power.Off || h.On() {
		t.Fatalf("a machine that is off: state %s, error %v, machine on %v", s, err, h.On())
	}
	for _, want := range []power.State{power.On, power.On, power.Off, power.Off, power.On} {
		if err := h.set(ctx, c, want); err != nil {
			t.Fatalf("set %s: %v", want, err)
		}
		if err := says(ctx, c, h, want); err != nil {
			t.Fatalf("set %s: %v", want, err)
		}
	}
	for _, on := range []bool{false, true} {
		if h.Turn == nil {
			t.Log("nobody can switch this hardware by hand")
			break
		}
		h.Turn(on)
		want := power.Off
		if on {
			want = power.On
		}
		if err := says(ctx, c, h, want); err != nil {
			t.Errorf("switched by hand: %v", err)
		}
	}
}

// wakes is truth for a controller that can only switch on.
func wakes(t *testing.T, c power.Controller, h Hardware) {
	ctx := t.Context()
	var blind *power.Blind
	if s, err := c.State(ctx); s != power.Unknown || !errors.As(err, &blind) || blind.May != power.On || h.On() {
		t.Fatalf("a machine that nobody hears: state %s, error %v, machine on %v", s, err, h.On())
	}
	if err := c.Set(ctx, power.Off); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("set off: %v, want ErrUnsupported", err)
	}
	for range 2 {
		if err := c.Set(ctx, power.On); err != nil {
			t.Fatalf("set on: %v", err)
		}
		if err := says(ctx, c, h, power.On); err != nil {
			t.Fatalf("set on: %v", err)
		}
	}
	if err := c.Set(ctx, power.Off); !errors.Is(err, power.ErrUnsupported) || !h.On() {
		t.Errorf("set off while it runs: %v, machine on %v", err, h.On())
	}
}

func boot(t *testing.T, c power.Controller, h Hardware) {
	ctx := t.Context()
	err := c.BootOnce(ctx, power.Network)
	if errors.Is(err, power.ErrUnsupported) || errors.Is(err, power.ErrNeedsHuman) {
		t.Logf("no boot device: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	cycle := func() {
		for _, s := range []power.State{power.On, power.Off} {
			if err := c.Set(ctx, s); err != nil {
				t.Fatalf("set %s: %v", s, err)
			}
			if err := says(ctx, c, h, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	cycle()
	cycle()
	if err := c.BootOnce(ctx, power.Disk); err != nil {
		t.Fatal(err)
	}
	cycle()
	if h.Boot == nil {
		t.Log("this hardware does not tell what it booted from")
		return
	}
	if b := h.Boot(); len(b) != 3 || b[0] != "network" || b[1] != "" || b[2] != "disk" {
		t.Errorf("boots %q, want network once, then nothing chosen, then disk once", b)
	}
}

func soft(t *testing.T, c power.Controller, h Hardware) {
	s, ok := c.(power.SoftOffer)
	if !ok {
		t.Log("no soft off")
		return
	}
	ctx := t.Context()
	if err := c.Set(ctx, power.On); err != nil {
		t.Fatal(err)
	}
	if err := says(ctx, c, h, power.On); err != nil {
		t.Fatal(err)
	}
	if err := s.SoftOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := says(ctx, c, h, power.Off); err != nil {
		t.Error(err)
	}
}

func nonsense(t *testing.T, c power.Controller, h Hardware) {
	for _, s := range []power.State{0, power.Unknown, 99} {
		if err := c.Set(t.Context(), s); err == nil || h.On() {
			t.Errorf("set %s: error %v, machine on %v; want an error and nothing done", s, err, h.On())
		}
	}
	if err := c.BootOnce(t.Context(), 99); err == nil {
		t.Error("boot once from device 99 was accepted")
	}
}

func refused(t *testing.T, _ power.Controller, h Hardware) {
	if h.Refused == nil {
		t.Log("this protocol cannot tell a wrong credential")
		return
	}
	c, logins := h.Refused(t)
	for _, call := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"state", func(ctx context.Context) error { s, err := c.State(ctx); return unlessOff(s, err) }},
		{"set on", func(ctx context.Context) error { return c.Set(ctx, power.On) }},
		{"boot network", func(ctx context.Context) error { return c.BootOnce(ctx, power.Network) }},
	} {
		before := logins()
		err := call.do(t.Context())
		if errors.Is(err, power.ErrUnsupported) && logins() == before {
			continue // there is nothing to log in for
		}
		if !errors.Is(err, power.ErrAuth) {
			t.Errorf("%s: error %v, want ErrAuth", call.name, err)
		}
		// A driver may remember the refusal: then only the first one is seen.
		if n := logins() - before; n > 1 || n != 1 && before == 0 {
			t.Errorf("%s: %d logins reached the device, want exactly 1", call.name, n)
		}
	}
	if h.On() {
		t.Error("a refused credential switched the machine on")
	}
	before := logins()
	v := power.Verify(c, power.Limits{Reach: settle, Poll: 10 * time.Millisecond, Spacing: time.Millisecond, Dwell: time.Millisecond})
	for range 5 {
		if _, err := v.On(t.Context()); !errors.Is(err, power.ErrAuth) {
			t.Errorf("verified on: error %v, want ErrAuth", err)
		}
	}
	if n := logins() - before; n > 1 {
		t.Errorf("five verified verbs made %d logins, want at most 1", n)
	}
}

// unlessOff is an error for a driver that says a state where it must not.
func unlessOff(s power.State, err error) error {
	if s == power.On || s == power.Off {
		return fmt.Errorf("said %s (error %w)", s, err)
	}
	return err
}

func dead(t *testing.T, _ power.Controller, h Hardware) {
	if h.Dead == nil {
		t.Log("nothing to reach")
		return
	}
	c := h.Dead(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s, err := c.State(ctx)
	if err == nil || s == power.On || s == power.Off {
		t.Errorf("nobody there: state %s, error %v; want an error and no state", s, err)
	}
	if errors.Is(err, power.ErrAuth) {
		t.Errorf("nobody there was taken for a refused credential: %v", err)
	}
	if err := c.Set(ctx, power.On); err == nil {
		t.Error("nobody there: set on was accepted")
	}
	if s, ok := c.(power.SoftOffer); ok {
		if err := s.SoftOff(ctx); err == nil {
			t.Error("nobody there: soft off was accepted")
		}
	}
}

func cancel(t *testing.T, c power.Controller, h Hardware) {
	if h.Hang == nil {
		t.Log("nothing that could hang")
		return
	}
	h.Hang()
	calls := map[string]func(context.Context) error{
		"state": func(ctx context.Context) error { s, err := c.State(ctx); return unlessOff(s, err) },
		"set":   func(ctx context.Context) error { return c.Set(ctx, power.On) },
		"boot":  func(ctx context.Context) error { return c.BootOnce(ctx, power.Network) },
	}
	if s, ok := c.(power.SoftOffer); ok {
		calls["soft"] = s.SoftOff
	}
	for name, call := range calls {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel) // no deadline that a library could look up
		began := time.Now()
		err := call(ctx)
		if errors.Is(err, power.ErrUnsupported) {
			cancel()
			continue
		}
		if err == nil {
			t.Errorf("%s: no error from a device that does not answer", name)
		}
		if errors.Is(err, power.ErrAuth) {
			t.Errorf("%s: silence was taken for a refused credential: %v", name, err)
		}
		if took := time.Since(began); took > 200*time.Millisecond+grace {
			t.Errorf("%s: returned %v after its context had ended", name, took-200*time.Millisecond)
		}
		cancel()
	}
}

func verified(t *testing.T, c power.Controller, h Hardware) {
	if h.Human != nil || h.OnlyOn {
		t.Log("it cannot be polled to off")
		return
	}
	ctx := t.Context()
	v := power.Verify(c, power.Limits{Reach: settle, Poll: 20 * time.Millisecond, Dwell: 20 * time.Millisecond, Spacing: time.Millisecond, Soft: settle})
	for _, verb := range []struct {
		name string
		do   func() (power.Evidence, error)
		on   bool
	}{
		{"on", func() (power.Evidence, error) { return v.On(ctx) }, true},
		{"on again", func() (power.Evidence, error) { return v.On(ctx) }, true},
		{"cycle", func() (power.Evidence, error) { return v.Cycle(ctx, power.Network) }, true},
		{"off", func() (power.Evidence, error) { return v.Off(ctx) }, false},
		{"cycle while off", func() (power.Evidence, error) { return v.Cycle(ctx, 0) }, true},
		{"off", func() (power.Evidence, error) { return v.Off(ctx) }, false},
	} {
		e, err := verb.do()
		if err != nil || h.On() != verb.on {
			t.Fatalf("%s: error %v, machine on %v, evidence %+v", verb.name, err, h.On(), e)
		}
		if want := map[bool]string{true: "on", false: "off"}[verb.on]; e.After != want || e.Polls == 0 || e.Controller == "" {
			t.Errorf("%s: evidence %+v", verb.name, e)
		}
	}
}
