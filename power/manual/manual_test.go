package manual

import (
	"errors"
	"strings"
	"testing"

	"smelt/power"
	"smelt/power/powertest"
)

func TestConformance(t *testing.T) {
	powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
		c := New("rig-01", "A3-S2")
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
	c := New("rig-01", "A3-S2")
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
