package power_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errLost = errors.New("500 Internal Server Error")

// What a device may do to a verb, and what must come of it. Time is virtual.
func TestLies(t *testing.T) {
	const on, off, unknown = power.On, power.Off, power.Unknown
	authErr := fmt.Errorf("wrong password: %w", power.ErrAuth)
	for _, l := range []struct {
		name     string
		start    bool // the machine is on
		script   powertest.Script
		verb     string
		err      error  // nil: the verb succeeds
		says     string // in the error
		end      bool   // the machine is on afterwards
		commands string // what was sent, reads left out
		after    string // in the evidence
		quirks   string // in the evidence
	}{
		{"obeys", false, powertest.Script{}, "on", nil, "", true, "set on", "on", ""},
		{"slow", false, powertest.Script{Settle: 46 * time.Second, Latency: time.Second}, "on", nil, "", true, "set on", "on", ""},
		{"too slow", false, powertest.Script{Settle: 80 * time.Second}, "on", power.ErrNotReached, "still off after 1m0s", false, "set on", "off", "ok-and-nothing"},
		{"accepts and does nothing", false, powertest.Script{Ignore: true}, "on", power.ErrNotReached, "still off", false, "set on", "off", "ok-and-nothing"},
		{"accepts and does nothing", true, powertest.Script{Ignore: true}, "off", power.ErrNotReached, "still on", true, "set off", "on", "ok-and-nothing"},
		{"on already", true, powertest.Script{}, "on", nil, "", true, "", "on", ""},
		{"off already", false, powertest.Script{}, "off", nil, "", false, "", "off", ""},
		{"fails and did it", false, powertest.Script{After: errLost}, "on", nil, "", true, "set on", "on", "failed-and-done"},
		{"fails and did nothing", false, powertest.Script{After: errLost, Ignore: true}, "on", power.ErrNotReached, "500 Internal", false, "set on", "off", ""},
		{"fails off and did it", true, powertest.Script{After: errLost}, "off", nil, "", false, "set off", "off", "failed-and-done"},
		{"does not know", false, powertest.Script{Unknown: true}, "on", power.ErrNotReached, "nothing was done", false, "", "unknown", ""},
		{"does not know", true, powertest.Script{Unknown: true}, "off", power.ErrNotReached, "nothing was done", true, "", "unknown", ""},
		{"does not know", true, powertest.Script{Unknown: true}, "cycle", power.ErrNotReached, "nothing was done", true, "", "unknown", ""},
		{"knows later", true, powertest.Script{Reads: []power.State{unknown, unknown}}, "off", nil, "", false, "set off", "off", ""},
		{"says off once while on", true, powertest.Script{Reads: []power.State{off}}, "off", nil, "", false, "set off", "off", ""},
		{"flaps after the command", true, powertest.Script{Reads: []power.State{on, off, on, off, on, off, off}}, "off", nil, "", false, "set off", "off", "toggles"},
		{"says off once, then nothing happens", true, powertest.Script{Reads: []power.State{on, off}, Ignore: true}, "off", power.ErrNotReached, "still on", true, "set off", "on", "ok-and-nothing"},
		{"one off read is no reason to start", true, powertest.Script{Reads: []power.State{off}}, "on", nil, "", true, "", "on", ""},
		{"a state that is none", false, powertest.Script{Reads: []power.State{42, 0}}, "on", nil, "", true, "set on", "on", ""},
		{"wrong password", false, powertest.Script{Err: authErr}, "on", power.ErrAuth, "wrong password", false, "", "unknown", ""},
		{"unreachable", true, powertest.Script{Err: errors.New("no route to host")}, "off", power.ErrNotReached, "no route to host", true, "", "unknown", ""},
		{"hangs", true, powertest.Script{Hang: true}, "off", power.ErrNotReached, "nothing was done", true, "", "unknown", ""},
		{"inverted outlet", true, powertest.Script{Invert: true}, "off", power.ErrNotReached, "still on", true, "set off", "on", "ok-and-nothing"},
		{"cycle", true, powertest.Script{Settle: 3 * time.Second}, "cycle", nil, "", true, "set off, boot network, set on", "on", ""},
		{"cycle from off", false, powertest.Script{}, "cycle", nil, "", true, "boot network, set on", "on", ""},
		{"cycle without boot devices", true, powertest.Script{NoBoot: true}, "cycle", nil, "", true, "set off, boot network, set on", "on", ""},
		{"cycle that stays on", true, powertest.Script{Ignore: true}, "cycle", power.ErrNotReached, "switch off", true, "set off", "on", "ok-and-nothing"},
		{"soft", true, powertest.Script{Settle: 400 * time.Second}, "soft", nil, "", false, "soft off", "off", ""},
		{"soft, the system is deaf", true, powertest.Script{Deaf: true}, "soft", power.ErrNotReached, "still on after 10m0s", true, "soft off", "on", ""},
		{"slow to go off", true, powertest.Script{Settle: 40 * time.Second}, "off", nil, "", false, "set off", "off", "slow-off"},
		{"toggles", false, powertest.Script{Toggle: true}, "on", power.ErrNotReached, "nothing was done", false, "", "on", "toggles"},
		{"toggles", true, powertest.Script{Toggle: true}, "off", power.ErrNotReached, "nothing was done", true, "", "on", "toggles"},
		{"toggles", true, powertest.Script{Toggle: true}, "soft", power.ErrNotReached, "nothing was done", true, "", "on", "toggles"},
		{"toggles", true, powertest.Script{Toggle: true}, "cycle", power.ErrNotReached, "nothing was done", true, "", "on", "toggles"},
		{"toggles after the command", false, powertest.Script{Reads: append([]power.State{off, off}, slices.Repeat([]power.State{on, off}, 80)...), Ignore: true}, "on", power.ErrNotReached, "after 1m0s", false, "set on", "on", "toggles"},
		{"toggles by twos after the command", false, powertest.Script{Reads: append([]power.State{off, off, on}, slices.Repeat([]power.State{off, off, on, on}, 40)...), Ignore: true}, "on", power.ErrNotReached, "after 1m0s", false, "set on", "on", "toggles"},
		{"says on once and is off", false, powertest.Script{Reads: []power.State{off, off, on}, Ignore: true}, "on", power.ErrNotReached, "still off", false, "set on", "off", "ok-and-nothing"},
		{"soft fails and did it", true, powertest.Script{After: errLost}, "soft", nil, "", false, "soft off", "off", "failed-and-done"},
	} {
		t.Run(l.name+" "+l.verb, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f powertest.Fake
				f.Turn(l.start)
				f.SetScript(l.script)
				v := power.Verify(&f, power.Limits{})
				began := time.Now()
				var e power.Evidence
				var err error
				switch l.verb {
				case "on":
					e, err = v.On(t.Context())
				case "off":
					e, err = v.Off(t.Context())
				case "soft":
					e, err = v.SoftOff(t.Context())
				case "cycle":
					e, err = v.Cycle(t.Context(), power.Network)
				}
				if !errors.Is(err, l.err) || err != nil && l.err == nil {
					t.Errorf("error %v, want %v", err, l.err)
				}
				if err != nil && !strings.Contains(err.Error(), l.says) {
					t.Errorf("error %q does not say %q", err, l.says)
				}
				if f.On() != l.end {
					t.Errorf("machine on %v, want %v", f.On(), l.end)
				}
				sent := slices.DeleteFunc(f.Calls(), func(c string) bool { return c == "state" })
				if got := strings.Join(sent, ", "); got != l.commands {
					t.Errorf("sent %q, want %q", got, l.commands)
				}
				if got := strings.Join(e.Quirks, " "); got != l.quirks {
					t.Errorf("quirks %q, want %q", got, l.quirks)
				}
				if e.After != l.after || e.Took != time.Since(began) {
					t.Errorf("evidence %+v, want after %s and took %v", e, l.after, time.Since(began))
				}
				time.Sleep(2 * time.Minute) // let what was scripted end
			})
		})
	}
}

func TestRefusedCredentialTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f powertest.Fake
		f.SetScript(powertest.Script{Err: fmt.Errorf("401: %w", power.ErrAuth)})
		v := power.Verify(&f, power.Limits{})
		ctx := t.Context()
		for range 3 {
			if s, err := v.State(ctx); s != power.Unknown || !errors.Is(err, power.ErrAuth) {
				t.Errorf("state %s, error %v", s, err)
			}
			if _, err := v.Cycle(ctx, power.Disk); !errors.Is(err, power.ErrAuth) {
				t.Errorf("cycle: %v", err)
			}
			time.Sleep(time.Hour)
		}
		if n := len(f.Calls()); n != 1 {
			t.Errorf("the device was asked %d times, want once", n)
		}
		f.SetScript(powertest.Script{})
		v.Reset()
		if _, err := v.On(ctx); err != nil || !f.On() {
			t.Errorf("after a reset: %v", err)
		}
	})
}

func TestDeviceThatDoesNotAnswerIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f powertest.Fake
		f.SetScript(powertest.Script{Err: errors.New("no route to host")})
		v := power.Verify(&f, power.Limits{})
		for range 3600 {
			if _, err := v.State(t.Context()); err == nil || !strings.Contains(err.Error(), "no route to host") {
				t.Fatalf("error %v", err)
			}
			time.Sleep(time.Second)
		}
		if n := len(f.Calls()); n < 10 || n > 20 {
			t.Errorf("an hour of reading made %d calls to a dead device, want about 14", n)
		}
		f.SetScript(powertest.Script{})
		time.Sleep(5 * time.Minute)
		if s, err := v.State(t.Context()); err != nil || s != power.Off {
			t.Errorf("the device is back: state %s, error %v", s, err)
		}
	})
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f powertest.Fake
		f.SetScript(powertest.Script{Ignore: true})
		v := power.Verify(&f, power.Limits{})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := v.On(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		// The caller's impatience is no failure of the device.
		f.SetScript(powertest.Script{Hang: true})
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := v.State(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			cancel()
		}
		f.SetScript(powertest.Script{})
		if s, err := v.State(t.Context()); err != nil || s != power.Off {
			t.Errorf("state %s, error %v", s, err)
		}
	})
}

// One verb at a time, one call at a time, and a read is not held up by a verb
// that waits.
func TestVerbsDoNotInterleave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f powertest.Fake
		f.SetScript(powertest.Script{Settle: 20 * time.Second})
		v := power.Verify(&f, power.Limits{})
		done := make(chan string, 2)
		go func() {
			if _, err := v.Cycle(t.Context(), 0); err != nil {
				t.Error(err)
			}
			done <- "cycle"
		}()
		time.Sleep(time.Millisecond)
		go func() {
			if _, err := v.Off(t.Context()); err != nil {
				t.Error(err)
			}
			done <- "off"
		}()
		time.Sleep(time.Second)
		began := time.Now()
		if _, err := v.State(t.Context()); err != nil || time.Since(began) > time.Second {
			t.Errorf("a read took %v beside a verb, error %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.On(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a verb that cannot have its turn: %v", err)
		}
		time.Sleep(3 * time.Minute)
		if first, second := <-done, <-done; first != "cycle" || second != "off" || f.On() {
			t.Errorf("done %s, %s, machine on %v", first, second, f.On())
		}
	})
}

func TestCommandsAreSpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f powertest.Fake
		v := power.Verify(&f, power.Limits{Spacing: 30 * time.Second, Poll: time.Second})
		began := time.Now()
		for range 2 {
			if _, err := v.On(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := v.Off(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 90*time.Second {
			t.Errorf("four commands within %v, want 30 s between two", took)
		}
	})
}

func TestNotAsked(t *testing.T) {
	var f powertest.Fake
	v := power.Verify(struct{ power.Controller }{&f}, power.Limits{})
	if _, err := v.SoftOff(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("soft off: %v", err)
	}
	if _, err := v.Readings(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("readings: %v", err)
	}
}

// A verb that is cut short says what it left behind, whenever that happens.
func TestHalfACycleIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for after := time.Duration(0); after < 16*time.Second; after += 250 * time.Millisecond {
			var f powertest.Fake
			f.Turn(true)
			f.SetScript(powertest.Script{Settle: 2 * time.Second, Latency: 100 * time.Millisecond})
			v := power.Verify(&f, power.Limits{})
			ctx, cancel := context.WithTimeout(t.Context(), after)
			e, err := v.Cycle(ctx, power.Network)
			cancel()
			calls := strings.Join(f.Calls(), " ")
			time.Sleep(time.Minute) // let what was commanded happen
			off, on := strings.Contains(calls, "set off"), strings.Contains(calls, "set on")
			notes := strings.Join(e.Notes, "; ")
			switch {
			case err == nil:
				if !f.On() || e.After != "on" {
					t.Errorf("%v: done, machine on %v, evidence %+v", after, f.On(), e)
				}
			case !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("%v: %v", after, err)
			case !off && (!f.On() || strings.Contains(err.Error(), "cut short")):
				t.Errorf("%v: nothing was commanded, machine on %v, error %v", after, f.On(), err)
			case off && !on && !f.On() && !strings.Contains(err.Error(), "the machine is off and stays off") && !strings.Contains(notes, "told to switch off"):
				t.Errorf("%v: the machine is off and nobody says so: %v, evidence %+v", after, err, e)
			case on && (!strings.Contains(notes, "told to switch on") || strings.Contains(err.Error(), "stays off")):
				t.Errorf("%v: on was commanded: %v, evidence %+v", after, err, e)
			}
			if strings.Contains(words(err), "stays off") && (f.On() || e.After != "off") {
				t.Errorf("%v: machine on %v, error %v, evidence %+v", after, f.On(), err, e)
			}
		}
	})
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
