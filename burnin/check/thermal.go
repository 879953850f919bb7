package check

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/burnin"
)

// Thermal loads every processor and reads all temperature sensors of the host
// (not of GPUs) while it does. Without a sensor it is a Skip.
//
// Limits: maxCelsius, the hottest steady temperature that is accepted (default
// 90): the mean of the last third of the run.
type Thermal struct {
	Sys string // "" is /sys
}

// ID implements burnin.Check.
func (Thermal) ID() string { return burnin.Thermal }

type sensor struct {
	name, file string
	values     []float64
}

// Run implements burnin.Check.
func (c Thermal) Run(ctx context.Context, spec burnin.Spec, _ burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(c.ID())
	r.WorkUnit = "readings"
	sensors := c.sensors()
	if len(sensors) == 0 {
		r.Status, r.Reason, r.Took = burnin.Skip, "this machine has no temperature sensor that the kernel knows", time.Since(r.Started)
		return r
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	cpus, err := allowedCPUs()
	if err != nil {
		return errored(r, "which processors there are: %v", err)
	}
	for range cpus {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					block()
				}
			}
		})
	}
	every := min(max(spec.Duration/600, 200*time.Millisecond), 5*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		for i := range sensors {
			if v, ok := celsius(sensors[i].file); ok {
				sensors[i].values = append(sensors[i].values, v)
				rec.Sample(sensors[i].name, "C", v)
				r.Work++
			}
		}
		if time.Since(r.Started) >= spec.Duration {
			break
		}
		rec.Progress(frac(time.Since(r.Started), spec.Duration)*0.99, fmt.Sprintf("reading %d sensors under load", len(sensors)))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	close(stop)
	load.Wait()

	hottest := 0.0
	for _, s := range sensors {
		if len(s.values) == 0 {
			continue
		}
		last := s.values[len(s.values)*2/3:]
		mean := 0.0
		for _, v := range last {
			mean += v / float64(len(last))
		}
		hottest = max(hottest, mean)
		r.Findings = append(r.Findings, atMost(burnin.Finding{Item: s.name, Name: "steady temperature", Value: mean, Unit: " C", Cause: burnin.CauseHot}, limit(spec, "maxCelsius", 90)))
	}
	finish(ctx, &r, fmt.Sprintf("%d sensors, hottest %.0f C", len(sensors), hottest))
	return r
}

// sensors lists what /sys/class/hwmon has, and the thermal zones that no
// hwmon stands for.
func (c Thermal) sensors() []sensor {
	sys := c.Sys
	if sys == "" {
		sys = "/sys"
	}
	var out []sensor
	files, err := filepath.Glob(filepath.Join(sys, "class/hwmon/hwmon*/temp*_input"))
	if err != nil {
		return nil
	}
	for _, f := range files {
		chip, _ := readLine(filepath.Join(filepath.Dir(f), "name"))
		// The cards' own sensors belong to the GPU checks.
		if chip == "nouveau" || chip == "nvidia" || chip == "amdgpu" || chip == "radeon" {
			continue
		}
		label, ok := readLine(strings.TrimSuffix(f, "_input") + "_label")
		if !ok {
			label = strings.TrimSuffix(filepath.Base(f), "_input")
		}
		out = append(out, sensor{name: filepath.Base(filepath.Dir(f)) + " " + chip + " " + label, file: f})
	}
	if len(out) == 0 {
		zones, err := filepath.Glob(filepath.Join(sys, "class/thermal/thermal_zone*/temp"))
		if err != nil {
			return nil
		}
		for _, f := range zones {
			kind, _ := readLine(filepath.Join(filepath.Dir(f), "type"))
			out = append(out, sensor{name: filepath.Base(filepath.Dir(f)) + " " + kind, file: f})
		}
	}
	return slices.DeleteFunc(out, func(s sensor) bool {
		_, ok := celsius(s.file)
		return !ok
	})
}

// celsius reads millidegrees. Values no working machine can have are those of
// inputs that are not wired (127, -128, 0).
func celsius(file string) (float64, bool) {
	n, ok := readInt(file)
	v := float64(n) / 1000
	return v, ok && v > 1 && v < 126
}
