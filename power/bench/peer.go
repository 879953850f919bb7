package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/bmc-toolbox/bmclib/v2"

	"smelt/power"
)

// parallel is how many reads are under way at once, for both.
const parallel = 64

// peerReport is how long each took to read the power state of all, in turn.
type peerReport struct {
	Ours, Theirs       []time.Duration
	OursCPU, TheirsCPU []time.Duration
}

// bePeer reads the power state of BMCs as bmclib's users do (Open,
// GetPowerState, Close, by its provider for Redfish alone), and as we do. The
// BMCs are healthy: bmclib has no answer to others.
func bePeer(ctx context.Context, in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(cores)
	var o orders
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	var r peerReport
	for range o.Rounds {
		ours, ourCPU, err := timed(o.Stations, func(s station) error {
			c, err := controller(s, o.Sessions)
			if err != nil {
				return err
			}
			state, err := power.Verify(c, power.Limits{}).State(ctx)
			if err == nil && state == power.Unknown {
				return errors.New("state unknown")
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("ours: %w", err)
		}
		theirs, theirCPU, err := timed(o.Stations, func(s station) error { return readWithBmclib(ctx, s) })
		if err != nil {
			return fmt.Errorf("bmclib: %w", err)
		}
		r.Ours, r.Theirs = append(r.Ours, ours), append(r.Theirs, theirs)
		r.OursCPU, r.TheirsCPU = append(r.OursCPU, ourCPU), append(r.TheirsCPU, theirCPU)
	}
	return json.NewEncoder(out).Encode(r)
}

func readWithBmclib(ctx context.Context, s station) error {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	c := bmclib.NewClient(host, "admin", secret, bmclib.WithRedfishPort(port), bmclib.WithPerProviderTimeout(30*time.Second))
	c.Registry.Drivers = c.Registry.For("gofish")
	if err := c.Open(ctx); err != nil {
		return err
	}
	_, err = c.GetPowerState(ctx)
	return errors.Join(err, c.Close(ctx))
}

// timed does f for all stations, so many at once.
func timed(stations []station, f func(station) error) (wall, busy time.Duration, err error) {
	began, before := time.Now(), cpu()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	places := make(chan struct{}, parallel)
	for _, s := range stations {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := f(s); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", s.Addr, err))
			}
		})
	}
	wg.Wait()
	return time.Since(began), cpu() - before, errors.Join(errs...)
}

func benchPeer(ctx context.Context, h *hall) ([]result, error) {
	n := h.healthy(h.peers)
	c, err := h.start(ctx, "peer", orders{Stations: n, Sessions: h.dir, Rounds: 3})
	if err != nil {
		return nil, err
	}
	defer c.end()
	var r peerReport
	if err := c.answer(&r); err != nil {
		return nil, err
	}
	ours, theirs := median(seconds(r.Ours)), median(seconds(r.Theirs))
	ourCPU, theirCPU := median(seconds(r.OursCPU)), median(seconds(r.TheirsCPU))
	return []result{
		inform("bmc_state_vs_bmclib", theirs/ours, "bmclib 2.3.5 (gofish) against ours: time to read the power state of %d BMCs, %d at once: %.2f s against %.2f s", len(n), parallel, theirs, ours),
		inform("bmc_state_cpu_vs_bmclib", theirCPU/ourCPU, "the same in processor time of the process that reads: %.2f s against %.2f s", theirCPU, ourCPU),
	}, nil
}

func seconds(d []time.Duration) []float64 {
	out := make([]float64, len(d))
	for i := range d {
		out[i] = d[i].Seconds()
	}
	return out
}
