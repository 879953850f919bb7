package convert_test

import (
	"context"
	"strings"
	"testing"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

// serialBMC is a BMC that says which machine it is in.
type serialBMC struct {
	*powertest.Fake
	serial string
}

func (b serialBMC) Audit(ctx context.Context) (power.Audit, error) {
	a, err := b.Fake.Audit(ctx)
	a.Serial = b.serial
	return a, err
}

// A BMC whose machine is another node's is found and said; one that says what
// nobody knows, or what it should, is not.
func TestWhoseBMC(t *testing.T) {
	for _, tt := range []struct {
		serial string
		wrong  bool
	}{{"SIM-B00000", false}, {" sim-b00001 ", true}, {"SIM-C00001", false}, {"X-1", false}, {"To be filled by O.E.M.", false}, {"", false}} {
		p := plantOf(t, 100, inventory.Inspected, inventory.Inspected)
		p.conf.Power[nodeID(0)] = power.Verify(serialBMC{p.fakes[nodeID(0)], tt.serial}, power.Limits{})
		p.restart()
		if err := p.say(0, "operator:anna", "bmc-audit", nil); err != nil {
			t.Fatal(err)
		}
		list, err := p.c.BMCs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, b := range list {
			for _, f := range b.Audit.Findings {
				found = found || b.Node == nodeID(0) && f.Code == "other-machine"
			}
		}
		events, err := p.st.NodeEvents(t.Context(), nodeID(0))
		if err != nil {
			t.Fatal(err)
		}
		alarm := false
		for _, e := range events {
			alarm = alarm || e.Kind == inventory.KindAlarm && e.Evidence["other"] == string(nodeID(1))
		}
		if found != tt.wrong || alarm != tt.wrong {
			t.Errorf("serial %q: found %v, alarm %v, want %v", tt.serial, found, alarm, tt.wrong)
		}
		p.restart() // what was found is known to the next process
		err = p.say(0, "operator:anna", "power", map[string]string{"verb": "off"})
		if tt.wrong != (err != nil && strings.Contains(err.Error(), "that is rig-01")) || p.fakes[nodeID(0)].On() != tt.wrong {
			t.Errorf("serial %q: power off: %v", tt.serial, err)
		}
	}
}
