package inband

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"smelt/power"
)

// An agent obeys, or does not.
type agent struct {
	heard time.Time
	told  []string
	err   error
}

func (a *agent) tell(_ context.Context, verb string) error {
	if a.err != nil {
		return a.err
	}
	a.told = append(a.told, verb)
	return nil
}

func TestAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a agent
		c, err := New(Config{Node: "rig-01", Tell: a.tell, Heard: func() time.Time { return a.heard }})
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if s, err := c.State(ctx); s != power.Unknown || !errors.Is(err, power.ErrUnsupported) {
			t.Errorf("nobody there: state %s, error %v", s, err)
		}
		if err := c.SoftOff(ctx); !errors.Is(err, power.ErrUnsupported) {
			t.Errorf("nobody there: soft off %v", err)
		}
		a.heard = time.Now()
		if s, err := c.State(ctx); s != power.On || err != nil {
			t.Errorf("it speaks: state %s, error %v", s, err)
		}
		for _, s := range []power.State{power.On, power.Off, power.Unknown} {
			if err := c.Set(ctx, s); !errors.Is(err, power.ErrUnsupported) {
				t.Errorf("set %s: %v", s, err)
			}
		}
		if err := c.BootOnce(ctx, power.Disk); !errors.Is(err, power.ErrUnsupported) {
			t.Errorf("boot once: %v", err)
		}
		if err := c.SoftOff(ctx); err != nil || len(a.told) != 1 || a.told[0] != "off" {
			t.Errorf("soft off: %v, told %q", err, a.told)
		}
		a.err = errors.New("it did not take the order")
		if err := c.SoftOff(ctx); !errors.Is(err, a.err) {
			t.Errorf("it does not take it: %v", err)
		}
		time.Sleep(power.Alive)
		if err := c.SoftOff(ctx); !errors.Is(err, power.ErrUnsupported) {
			t.Errorf("silent again: %v", err)
		}
		// Alone it never says that a machine is off: silence is no proof.
		a.err, a.heard = nil, time.Now()
		v := power.Verify(c, power.Limits{Soft: time.Minute})
		if e, err := v.SoftOff(ctx); err == nil || e.After == power.Off.String() {
			t.Errorf("verified soft off: %v, evidence %+v", err, e)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Node: "rig-01"}); err == nil {
		t.Error("nobody to speak with, and accepted")
	}
}
