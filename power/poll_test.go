package power_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

// fleet is n machines; each tenth is dead and each twentieth is slow.
func fleet(n int) (map[inventory.NodeID]*power.Verified, []*powertest.Fake) {
	machines, fakes := map[inventory.NodeID]*power.Verified{}, make([]*powertest.Fake, n)
	for i := range n {
		f := new(powertest.Fake)
		f.Turn(i%2 == 0)
		f.SetScript(powertest.Script{Latency: 50 * time.Millisecond})
		switch {
		case i%10 == 3:
			f.SetScript(powertest.Script{Hang: true})
		case i%20 == 7:
			f.SetScript(powertest.Script{Latency: 8 * time.Second})
		}
		fakes[i] = f
		machines[inventory.NodeID(fmt.Sprintf("n%03d", i))] = power.Verify(f, power.Limits{})
	}
	return machines, fakes
}

func TestPollRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machines, _ := fleet(400)
		var mu sync.Mutex
		healthy := time.Duration(0) // when the last of them was seen
		began := time.Now()
		p := power.NewPoller(machines, power.PollConfig{Parallel: 16, Slow: 64, Seen: func(s power.Sample) {
			mu.Lock()
			defer mu.Unlock()
			if s.Err == nil && s.Took < time.Second {
				healthy = max(healthy, time.Since(began))
			}
		}})
		r, err := p.Round(t.Context())
		if err != nil || r.Read != 360 || r.Failed != 40 || r.Skipped != 0 {
			t.Errorf("round %+v, error %v", r, err)
		}
		// 340 healthy ones of 100 ms on 16 places are 2.1 s; 60 others hold a
		// place for a second each, which is 3.75 s more.
		if healthy > 8*time.Second {
			t.Errorf("the last healthy machine was read after %v: the slow and the dead delay the others", healthy)
		}
		for n, want := range map[inventory.NodeID]power.State{"n000": power.On, "n001": power.Off, "n003": power.Unknown, "n007": power.Off} {
			s, ok := p.Last(n)
			if !ok || s.State != want || s.Node != n || (s.Err == nil) != (want != power.Unknown) {
				t.Errorf("%s: %+v", n, s)
			}
			if want == power.On && s.Readings.Watts != 120 || want == power.Unknown && !math.IsNaN(s.Readings.Watts) {
				t.Errorf("%s: %v W", n, s.Readings.Watts)
			}
		}
		if _, ok := p.Last("nobody"); ok {
			t.Error("a sample of a machine that is not there")
		}
	})
}

func TestPollRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machines, fakes := fleet(100)
		var mu sync.Mutex
		seen := map[inventory.NodeID]int{}
		p := power.NewPoller(machines, power.PollConfig{Every: 10 * time.Second, Parallel: 4, Seen: func(s power.Sample) {
			mu.Lock()
			defer mu.Unlock()
			seen[s.Node]++
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := p.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		select {
		case <-p.Ready():
		default:
			t.Error("never ready")
		}
		if n := seen["n000"]; n < 58 || n > 61 {
			t.Errorf("ten minutes of rounds each 10 s made %d samples of a healthy machine", n)
		}
		if n := seen["n007"]; n < 20 || n > 40 { // 16 s each: every other round
			t.Errorf("%d samples of a slow one", n)
		}
		if n := len(fakes[3].Calls()); n > 12 {
			t.Errorf("%d calls to a dead one: the breaker does not hold", n)
		}
	})
}

// A controller that measures nothing is asked for readings once.
func TestPollBlind(t *testing.T) {
	c := &blind{}
	p := power.NewPoller(map[inventory.NodeID]*power.Verified{"a": power.Verify(c, power.Limits{})}, power.PollConfig{})
	for range 3 {
		if r, err := p.Round(t.Context()); err != nil || r.Read != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if s, _ := p.Last("a"); s.State != power.Off || s.Err != nil || !math.IsNaN(s.Readings.Watts) || c.asked != 1 {
		t.Errorf("%+v, asked %d times", s, c.asked)
	}
}

type blind struct {
	powertest.Fake
	asked int
}

func (b *blind) Readings(context.Context) (power.Readings, error) {
	b.asked++
	return power.Readings{}, power.ErrUnsupported
}
