package main

import (
	"flag"
	"os"
	"testing"

	"smelt/power"
)

var update = flag.Bool("update", false, "write docs/blackout.svg anew")

// What the budget promises, and that the picture in docs shows it.
func TestBlackout(t *testing.T) {
	alone, err := simulate(false)
	if err != nil {
		t.Fatal(err)
	}
	ordered, err := simulate(true)
	if err != nil {
		t.Fatal(err)
	}
	if len(alone.rated) == 0 {
		t.Error("by themselves no circuit is above its rating: there is nothing to show")
	}
	if len(ordered.above) > 0 {
		t.Errorf("in order, circuits are above their limits: %v", ordered.above)
	}
	if ordered.advised > 0 {
		t.Errorf("%d steps were advised and nothing was wrong", ordered.advised)
	}
	if want := machines - neverComes; len(ordered.starts) != want || len(alone.starts) != want {
		t.Errorf("%d and %d machines start, want %d", len(ordered.starts), len(alone.starts), want)
	}
	last := map[int]int{}
	rank := map[string]int{power.WorkService: 0, power.WorkConvert: 1, power.WorkBurnIn: 1, power.WorkIdle: 2}
	worst := map[int]int{}
	for _, s := range ordered.starts {
		if before, ok := last[s.panel]; ok && s.second-before < 10 {
			t.Errorf("panel %d: two starts within %d s", s.panel+1, s.second-before)
		}
		last[s.panel] = s.second
		if rank[s.work] < worst[s.panel] {
			t.Errorf("panel %d: %s starts late, at %d s", s.panel+1, s.work, s.second)
		}
		worst[s.panel] = max(worst[s.panel], rank[s.work])
	}
	t.Logf("by themselves: peak %.0f kW, %d circuits above rating, %.1f times the rating in the first 40 ms; in order: peak %.0f kW, %.2f times, all work after %d s",
		alone.peak/1000, len(alone.rated), alone.rush, ordered.peak/1000, ordered.rush, ordered.running-release)

	const file = "../../docs/blackout.svg"
	want := picture(alone, ordered)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the simulation says: go generate ./power/blackout", file)
	}
}
