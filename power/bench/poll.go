package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/bmc"
)

const cores = 2

// orders are what a process that talks to BMCs is told.
type orders struct {
	Stations []station
	Sessions string // folder of the journals of sessions
	Rounds   int
}

// pollReport is what the process that polls says at its end.
type pollReport struct {
	Rounds  []power.Round
	PeakMiB float64
	CPU     []time.Duration // of each round
}

// controller is the driver of a BMC as smelt serve makes it.
func controller(s station, sessions string) (*bmc.Controller, error) {
	return bmc.New(bmc.Config{
		Kind: "redfish", Address: s.Addr, Pin: s.Pin, User: "admin", Sessions: sessions,
		Password: func(context.Context) (string, error) { return secret, nil },
	})
}

func machines(o orders) (map[inventory.NodeID]*power.Verified, error) {
	out := map[inventory.NodeID]*power.Verified{}
	for i, s := range o.Stations {
		c, err := controller(s, o.Sessions)
		if err != nil {
			return nil, err
		}
		out[inventory.NodeID(fmt.Sprintf("n%05d", i))] = power.Verify(c, power.Limits{})
	}
	return out, nil
}

// bePoller polls as the server does, and does nothing else.
func bePoller(ctx context.Context, in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(cores)
	var o orders
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	all, err := machines(o)
	if err != nil {
		return err
	}
	p := power.NewPoller(all, power.PollConfig{})
	var r pollReport
	for range o.Rounds {
		before := cpu()
		round, err := p.Round(ctx)
		if err != nil {
			return err
		}
		r.Rounds = append(r.Rounds, round)
		r.CPU = append(r.CPU, cpu()-before)
	}
	if r.PeakMiB, err = peak(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// cpu is the processor time that this process used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peak is the most memory that this process held (proc(5), VmHWM).
func peak() (float64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status")
}

func benchPoll(ctx context.Context, h *hall) ([]result, error) {
	c, err := h.start(ctx, "poll", orders{Stations: h.stations, Sessions: h.dir, Rounds: h.rounds + 1})
	if err != nil {
		return nil, err
	}
	defer c.end()
	var r pollReport
	if err := c.answer(&r); err != nil {
		return nil, err
	}
	var steady, busy []float64
	for i, round := range r.Rounds {
		say("round %d: %d read, %d failed, %.1f s, %.1f s of CPU", i+1, round.Read, round.Failed, round.Took.Seconds(), r.CPU[i].Seconds())
		if i > 0 {
			steady = append(steady, round.Took.Seconds())
			busy = append(busy, r.CPU[i].Seconds())
		}
	}
	n := len(h.stations)
	ill := 0
	for _, s := range h.stations {
		if s.Kind == "gone" || s.Kind == "hung" {
			ill++
		}
	}
	results := []result{
		atMost("bmc_poll_2000_s", median(steady), 60, "a round: state and readings of %d BMCs, %v an answer; %d do not answer, %d%% take %v", n, h.latency, ill, slowPerCent, slowness),
		inform("bmc_poll_first_s", r.Rounds[0].Took.Seconds(), "the first round, which learns who does not answer"),
		atMost("bmc_poll_peak_mib", r.PeakMiB, 400, "most memory of the process that polls"),
		inform("bmc_poll_cpu_ms", median(busy)*1000/float64(n), "processor time for each BMC and round"),
	}
	for i, round := range r.Rounds {
		if round.Read != n-ill {
			return results, fmt.Errorf("round %d read %d of the %d BMCs that answer", i+1, round.Read, n-ill)
		}
	}
	return results, nil
}
