// Package check measures a machine: the burn-in checks that need no GPU
// library. Each does real work, verifies what came out of it, and says how
// much it was. What the numbers mean is decided in package burnin.
//
// A check ends when its duration is over and it has done at least one whole
// piece of work, or when its context ends: cut short before that, its result is
// an Error.
package check

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"smelt/burnin"
)

// All returns every check of this package. n is how the network check reaches
// the server.
func All(n Network) []burnin.Check {
	return []burnin.Check{System{}, CPU{}, Memory{}, Disk{}, n, PCIe{}, Thermal{}}
}

// begin is a Result that nobody has finished: an Error.
func begin(id string) burnin.Result {
	return burnin.Result{ID: id, Status: burnin.Error, Reason: "it did not finish", Started: time.Now().UTC()}
}

// finish makes the status of a result from its findings: the worst one. Zero
// work is a failure of the tool, not a pass of the machine.
func finish(ctx context.Context, r *burnin.Result, done string) {
	r.Took = time.Since(r.Started)
	r.Status, r.Reason = burnin.Pass, done
	for _, f := range r.Findings {
		if f.Status == burnin.Fail {
			r.Status, r.Reason = burnin.Fail, f.Item+": "+f.Name+" is "+number(f.Value)+f.Unit
			if f.Limit != "" {
				r.Reason += ", wanted " + f.Limit
			}
			return // a fault found is a fault, also when there was no time for the rest
		}
	}
	switch {
	case ctx.Err() != nil:
		r.Status, r.Reason = burnin.Error, "stopped before it was done: "+context.Cause(ctx).Error()
	case r.Work <= 0:
		r.Status, r.Reason = burnin.Error, "it did no work"
	}
}

func errored(r burnin.Result, format string, args ...any) burnin.Result {
	r.Took = time.Since(r.Started)
	r.Status, r.Reason = burnin.Error, fmt.Sprintf(format, args...)
	return r
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// limit is a limit of the spec, or the default.
func limit(s burnin.Spec, name string, def float64) float64 {
	if v, ok := s.Limits[name]; ok {
		return v
	}
	return def
}

// atMost and atLeast make a finding with its limit in words and judged.
func atMost(f burnin.Finding, max float64) burnin.Finding {
	f.Limit, f.Status = "<= "+number(max), burnin.Pass
	if !(f.Value <= max) { // also NaN
		f.Status = burnin.Fail
	}
	return f
}

func atLeast(f burnin.Finding, min float64) burnin.Finding {
	f.Limit, f.Status = ">= "+number(min), burnin.Pass
	if !(f.Value >= min) {
		f.Status = burnin.Fail
	}
	return f
}

// untilDone reports progress by time until stop is closed.
func untilDone(stop <-chan struct{}, start time.Time, d time.Duration, rec burnin.Recorder, doing func() string) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			done := 1.0
			if d > 0 {
				done = min(1, float64(time.Since(start))/float64(d))
			}
			rec.Progress(done, doing())
		}
	}
}

// readLine is the first line of a small file of /sys or /proc.
func readLine(path string) (string, bool) {
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", false
	}
	l, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(l), true
}

func readInt(path string) (int64, bool) {
	l, ok := readLine(path)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(l, 0, 64)
	return n, err == nil
}
