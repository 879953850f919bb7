package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"smelt/power"
)

// workers is how many verbs of the worker process are under way at once.
const workers = 8

// beWorker switches machines, one verb after the other, until it is killed or
// its input ends. It answers each job that is done.
func beWorker(ctx context.Context, in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var o orders
	if err := d.Decode(&o); err != nil {
		return err
	}
	all, err := machines(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		for {
			var line any
			if d.Decode(&line) != nil {
				return
			}
		}
	}()
	if o.Rounds == 0 { // no jobs: look at each once, which tidies up after the dead
		r, err := power.NewPoller(all, power.PollConfig{}).Round(ctx)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(r)
	}
	quick := power.Limits{Poll: 50 * time.Millisecond, Dwell: 50 * time.Millisecond, Spacing: time.Millisecond}
	nodes := make(chan *power.Verified)
	var wg sync.WaitGroup
	var mu sync.Mutex
	e := json.NewEncoder(out)
	for range workers {
		wg.Go(func() {
			for v := range nodes {
				var err error
				switch rand.IntN(3) {
				case 0:
					_, err = v.On(ctx)
				case 1:
					_, err = v.Off(ctx)
				case 2:
					_, err = v.Cycle(ctx, power.Network)
				}
				mu.Lock()
				if ctx.Err() == nil {
					_ = e.Encode(fmt.Sprint(err))
				}
				mu.Unlock()
			}
		})
	}
	list := make([]*power.Verified, 0, len(o.Stations))
	for i := range o.Stations {
		c, err := controller(o.Stations[i], o.Sessions)
		if err != nil {
			return err
		}
		list = append(list, power.Verify(c, quick))
	}
	for ctx.Err() == nil {
		select {
		case nodes <- list[rand.IntN(len(list))]:
		case <-ctx.Done():
		}
	}
	close(nodes)
	wg.Wait()
	return nil
}

// benchSessions kills processes that switch machines, and counts what they
// leave on the BMCs once the next one has looked at each.
func benchSessions(ctx context.Context, h *hall) ([]result, error) {
	at := h.healthy(40)
	done, wrong := 0, 0
	for kill := 0; kill < h.kills || done < h.jobs; kill++ {
		c, err := h.start(ctx, "work", orders{Stations: at, Sessions: h.dir, Rounds: 1})
		if err != nil {
			return nil, err
		}
		// At any instruction: after some jobs and a random while.
		for range max(1, h.jobs/max(1, h.kills)) {
			var said string
			if err := c.answer(&said); err != nil {
				c.kill()
				return nil, err
			}
			done++
			if said != "<nil>" {
				wrong++
				say("a job failed: %s", said)
			}
		}
		time.Sleep(time.Duration(rand.IntN(int(200 * time.Millisecond))))
		c.kill()
	}
	leaked, err := h.stats()
	if err != nil {
		return nil, err
	}
	c, err := h.start(ctx, "work", orders{Stations: at, Sessions: h.dir})
	if err != nil {
		return nil, err
	}
	var r power.Round
	err = c.answer(&r)
	c.end()
	if err != nil {
		return nil, err
	}
	s, err := h.stats()
	if err != nil {
		return nil, err
	}
	results := []result{
		atMost("sessions_left", float64(s.Open), 0, "sessions on all BMCs after the rounds, %d jobs and %d kill -9, of %d logins; the kills had left %d", done, h.kills, s.Logins, leaked.Open),
		atMost("failed_logins", float64(s.FailedLogins), 0, "logins refused, of which there should be none"),
	}
	if wrong > 0 || r.Failed > 0 {
		return results, errors.New("jobs failed on BMCs that answer")
	}
	return results, nil
}
