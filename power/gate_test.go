package power_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"smelt/power"
	"smelt/power/powertest"
)

// Two systems of one BMC: one request at a time, apart from each other.
func TestGateIsSharedByADevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gates := power.NewGates(100*time.Millisecond, new(power.Refused))
		one, two := gates.At("10.0.0.5").Login("admin", nil), gates.At("10.0.0.5").Login("admin", nil)
		other := gates.At("10.0.0.6").Login("admin", nil)
		var inside, most, elsewhere atomic.Int32
		began := time.Now()
		for range 5 {
			for _, l := range []*power.Login{one, two} {
				go func() {
					err := l.Do(t.Context(), func(context.Context) error {
						most.Store(max(most.Load(), inside.Add(1)))
						time.Sleep(time.Second)
						inside.Add(-1)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}()
			}
		}
		go func() {
			if err := other.Do(t.Context(), func(context.Context) error { elsewhere.Add(1); return nil }); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if elsewhere.Load() != 1 {
			t.Error("another device waits for this one")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := one.Do(ctx, func(context.Context) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a turn: %v", err)
		}
		for inside.Load() != 0 || time.Since(began) < 10*time.Second {
			time.Sleep(50 * time.Millisecond)
		}
		synctest.Wait()
		if most.Load() != 1 {
			t.Errorf("%d requests at once to one device", most.Load())
		}
	})
}

// A credential is refused once for each version of it, whoever asks, and a
// restart does not forget that.
func TestRefusedOncePerVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "refused.json")
	version := "1"
	right := "3"
	tries := map[string]int{}
	call := func(l *power.Login) error {
		return l.Do(t.Context(), func(context.Context) error {
			tries[version]++
			if version != right {
				return fmt.Errorf("log in as admin: %w: 401", power.ErrAuth)
			}
			return nil
		})
	}
	start := func() (*power.Login, *power.Login) {
		r, err := power.OpenRefused(path)
		if err != nil {
			t.Fatal(err)
		}
		g := power.NewGates(0, r)
		now := func(context.Context) (string, error) { return version, nil }
		return g.At("bmc").Login("admin", now), g.At("bmc").Login("admin", now)
	}
	for _, v := range []string{"1", "2", "1"} {
		version = v
		for range 3 { // restarts
			for range 2 {
				a, b := start()
				for _, l := range []*power.Login{a, b, a} {
					if err := call(l); !errors.Is(err, power.ErrAuth) {
						t.Fatalf("version %s: %v", v, err)
					}
				}
			}
		}
	}
	if tries["1"] != 1 || tries["2"] != 1 {
		t.Errorf("attempts by version %v, want one each", tries)
	}
	a, b := start()
	other := power.NewGates(0, new(power.Refused)).At("other").Login("admin", nil)
	if err := call(other); !errors.Is(err, power.ErrAuth) || tries["1"] != 2 {
		t.Errorf("another device has nothing to do with it: %v", err)
	}
	version = right
	if err := errors.Join(call(a), call(b)); err != nil {
		t.Errorf("the right one: %v", err)
	}
	b2, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(b2)) != "[]" {
		t.Errorf("after a success the file holds %q, error %v", b2, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", fi.Mode(), err)
	}
	// The device was wrong, not we: a person says try again.
	right = "4"
	if err := call(a); !errors.Is(err, power.ErrAuth) {
		t.Error(err)
	}
	right = "3"
	if err := call(a); !errors.Is(err, power.ErrAuth) || !strings.Contains(err.Error(), "not tried again") {
		t.Errorf("tried again by itself: %v", err)
	}
	a.Reset()
	if err := call(b); err != nil {
		t.Errorf("after a reset: %v", err)
	}
}

func TestOpenRefusedRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "refused.json")
	for _, text := range []string{"", "{}", `[{"devise": "x"}]`, "[}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := power.OpenRefused(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v, want one that names the file", text, err)
		}
	}
}

// A controller that passes a gate of its own is counted there, not twice.
func TestGateBelowVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &behindGate{login: power.NewGates(0, new(power.Refused)).At("bmc").Login("", nil)}
		v := power.Verify(c, power.Limits{})
		for range 5 {
			if _, err := v.State(t.Context()); !errors.Is(err, power.ErrAuth) {
				t.Errorf("%v", err)
			}
		}
		if c.calls != 1 {
			t.Errorf("%d calls with a refused credential", c.calls)
		}
		c.login.Reset() // below, as a new version would
		c.err = nil
		if _, err := v.State(t.Context()); err != nil {
			t.Errorf("the gate above remembers what the gate below forgot: %v", err)
		}
		// A device that hangs trips the breaker of its own gate, too.
		c.hang, c.calls = true, 0
		for range 20 {
			if _, err := v.State(t.Context()); err == nil {
				t.Error("no error")
			}
		}
		if c.calls != 3 {
			t.Errorf("%d calls to a device that hangs, want 3 and then a pause", c.calls)
		}
		c.hang = false
		time.Sleep(6 * time.Second)
		if _, err := v.State(t.Context()); err != nil {
			t.Errorf("it is back: %v", err)
		}
	})
}

type behindGate struct {
	power.Controller
	login *power.Login
	err   error
	hang  bool
	calls int
}

func (b *behindGate) String() string { return "behind a gate" }

func (b *behindGate) State(ctx context.Context) (s power.State, err error) {
	err = b.login.Do(ctx, func(ctx context.Context) error {
		b.calls++
		if b.hang {
			<-ctx.Done()
			return ctx.Err()
		}
		if b.calls == 1 {
			return fmt.Errorf("wrong: %w", power.ErrAuth)
		}
		return b.err
	})
	return power.On, err
}

// Two machines behind one BMC: one refused login for both, and what is wrong
// with one of them does not stop the other.
func TestMachinesOfOneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		version := "1"
		login := power.NewGates(0, new(power.Refused)).At("bmc").Login("admin", func(context.Context) (string, error) { return version, nil })
		var a, b powertest.Fake
		one, two := login.Verify(&a, power.Limits{}), login.Verify(&b, power.Limits{})
		wrong := powertest.Script{Err: fmt.Errorf("401: %w", power.ErrAuth)}
		a.SetScript(wrong)
		b.SetScript(wrong)
		for range 3 {
			for _, v := range []*power.Verified{one, two} {
				if _, err := v.On(t.Context()); !errors.Is(err, power.ErrAuth) {
					t.Error(err)
				}
			}
		}
		if n := len(a.Calls()) + len(b.Calls()); n != 1 {
			t.Errorf("%d logins with a refused credential, want 1", n)
		}
		version = "2" // smelt secret set
		a.SetScript(powertest.Script{Err: errors.New("404: there is no such system")})
		b.SetScript(powertest.Script{})
		for range 10 {
			if _, err := one.State(t.Context()); err == nil {
				t.Error("no error")
			}
			if _, err := two.State(t.Context()); err != nil {
				t.Errorf("the other one: %v", err)
			}
		}
		if n := len(a.Calls()); n > 5 {
			t.Errorf("%d calls for a machine that is not there: its breaker does not hold", n)
		}
	})
}
