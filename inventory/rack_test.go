package inventory

import "testing"

func TestRack(t *testing.T) {
	for p, want := range map[Position]string{"A3-S2": "A3", "hall-1-A3-U10": "hall-1-A3", "shelf": "", "": "", "-x": "", "A3-": "A3"} {
		if got := p.Rack(); got != want {
			t.Errorf("rack of %q is %q, want %q", p, got, want)
		}
	}
}
