package power_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"smelt/power"
	"smelt/power/powertest"
)

// brief limits, for fakes that obey at once.
var brief = power.Limits{Reach: time.Second, Poll: time.Millisecond, Dwell: time.Millisecond, Spacing: time.Nanosecond, Soft: time.Second}

// Whoever is not trusted is read and not switched, by no verb, until a person
// says so; also a chain.
func TestDistrust(t *testing.T) {
	var bmc, outlet powertest.Fake
	chain, err := power.NewChain(power.Link{Controller: &bmc, Proves: power.Machine}, power.Link{Controller: &outlet, Proves: power.Supply})
	if err != nil {
		t.Fatal(err)
	}
	bmc.Turn(true)
	outlet.Turn(true)
	for _, v := range []*power.Verified{power.Verify(&bmc, brief), power.Verify(chain, brief)} {
		v.Distrust(fmt.Errorf("%w: it is rig-02's", power.ErrMismatch))
		_, on := v.On(t.Context())
		_, off := v.Off(t.Context())
		_, soft := v.SoftOff(t.Context())
		_, cycle := v.Cycle(t.Context(), power.Network)
		for _, err := range []error{on, off, soft, cycle} {
			if !errors.Is(err, power.ErrMismatch) {
				t.Errorf("%s: %v", v, err)
			}
		}
		if s, err := v.State(t.Context()); err != nil || s != power.On {
			t.Errorf("%s is %s, %v", v, s, err)
		}
		v.Reset()
		if _, err := v.Off(t.Context()); err != nil {
			t.Errorf("%s after a reset: %v", v, err)
		}
		bmc.Turn(true)
	}
}
