package manual

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"smelt/power"
	"smelt/power/powertest"
)

func TestConformance(t *testing.T) {
	powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
		c := New(Config{Node: "rig-01", Place: "A3-S2"})
		on := false
		c.Confirm(power.Off)
		return c, powertest.Hardware{
			On: func() bool { return on },
			Human: func(s power.State) {
				on = s == power.On
				c.Confirm(s)
			},
		}
	})
}

func TestAsksOnce(t *testing.T) {
	c := New(Config{Node: "rig-01", Place: "A3-S2"})
	if s, err := c.State(t.Context()); s != power.Unknown || !errors.Is(err, power.ErrNeedsHuman) {
		t.Errorf("untold: state %s, error %v", s, err)
	}
	v := power.Verify(c, power.Limits{})
	e, err := v.On(t.Context())
	if !errors.Is(err, power.ErrNeedsHuman) || !strings.Contains(err.Error(), "switch on rig-01 at A3-S2") || e.Before != "unknown" {
		t.Errorf("on: error %v, evidence %+v", err, e)
	}
	c.Confirm(power.On)
	if _, err := v.On(t.Context()); err != nil {
		t.Errorf("on, as confirmed: %v", err)
	}
	if _, err := v.Off(t.Context()); !errors.Is(err, power.ErrNeedsHuman) || !strings.Contains(err.Error(), "switch off rig-01 at A3-S2") {
		t.Errorf("off: %v", err)
	}
	if _, err := c.State(t.Context()); !errors.Is(err, power.ErrNeedsHuman) {
		t.Errorf("what was confirmed before a person was asked is still believed: %v", err)
	}
}

// That it runs is heard; that it is off is the person's word.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at time.Time
		c := New(Config{Node: "rig-01", Heard: func() (time.Time, string) { return at, "a boot request" }})
		at = time.Now()
		says := func(want power.State) {
			t.Helper()
			if s, err := c.State(t.Context()); s != want || (want == power.Unknown) != errors.Is(err, power.ErrNeedsHuman) {
				t.Errorf("state %s, error %v; want %s", s, err, want)
			}
		}
		says(power.On)
		time.Sleep(time.Second)
		if err := c.Set(t.Context(), power.Off); !errors.Is(err, power.ErrNeedsHuman) {
			t.Error(err)
		}
		says(power.Unknown) // what was heard before is no news
		c.Confirm(power.Off)
		says(power.Off)
		time.Sleep(time.Second)
		at = time.Now()
		says(power.On) // whoever said off looked at another machine, or switched it on since
		time.Sleep(power.Alive)
		says(power.Off)
	})
}
