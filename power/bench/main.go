// Bench measures what one server's care for 2,000 BMCs costs: a full round of
// power state and readings over Redfish, TLS and a login each, with some BMCs
// that are slow, that hang and that are not there; what is left on the BMCs
// after rounds, jobs and killed processes; and, beside it, the same reads by
// bmclib, which others use. The BMCs are simulated, in a process of their own;
// the process that polls is measured alone. The table for people is on stderr,
// the last line on stdout is JSON.
//
//	go run ./power/bench [-bmcs N] [-rounds N] [-latency 20ms] [-schedules N]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// result is one number of the closing JSON line, and what it should be.
type result struct {
	key   string
	what  string // for people
	value float64
	bar   string // "<= 60"; empty for a number that only informs
	met   bool
}

func atMost(key string, value, bar float64, what string, args ...any) result {
	return result{key, fmt.Sprintf(what, args...), value, fmt.Sprintf("<= %g", bar), value <= bar}
}

func inform(key string, value float64, what string, args ...any) result {
	return result{key: key, what: fmt.Sprintf(what, args...), value: value}
}

// size is how much is measured.
type size struct {
	bmcs, rounds, peers, jobs, kills, schedules int
	latency                                     time.Duration
}

func main() {
	// The kernel ends our children with the thread that started them.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		if err := roles[os.Args[1]](ctx, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", os.Args[1]+":", err)
			os.Exit(1)
		}
		return
	}
	var s size
	flag.IntVar(&s.bmcs, "bmcs", 2000, "BMCs to poll")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds after the first; the median counts")
	flag.IntVar(&s.peers, "peers", 200, "BMCs that bmclib reads, too")
	flag.IntVar(&s.jobs, "jobs", 100, "power verbs before sessions are counted")
	flag.IntVar(&s.kills, "kills", 10, "processes killed in between")
	flag.IntVar(&s.schedules, "schedules", 3000, "random schedules of the power budget")
	flag.DurationVar(&s.latency, "latency", 20*time.Millisecond, "how long a healthy BMC takes for each answer")
	flag.Parse()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s size) error {
	dir, err := os.MkdirTemp("", "smelt-power-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	h, err := startHall(ctx, s, dir)
	if err != nil {
		return fmt.Errorf("virtual BMCs: %w", err)
	}
	defer h.close()
	var all []result
	var errs []error
	for _, part := range []struct {
		name string
		run  func(context.Context, *hall) ([]result, error)
	}{{"poll", benchPoll}, {"peer", benchPeer}, {"sessions", benchSessions}, {"budget", benchBudget}} {
		began := time.Now()
		results, err := part.run(ctx, h)
		all = append(all, results...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
		say("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
	t := tabwriter.NewWriter(os.Stderr, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nKEY\tVALUE\tBAR\t\tWHAT")
	keys := map[string]float64{}
	for _, r := range all {
		keys[r.key] = round(r.value)
		met := ""
		if r.bar != "" && !r.met {
			met = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\n", r.key, round(r.value), r.bar, met, r.what)
	}
	t.Flush()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"bench": "power", "results": keys}); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// round keeps three digits: more than any run repeats.
func round(f float64) float64 {
	if f == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(f))))
	return math.Round(f*scale) / scale
}

func median(f []float64) float64 {
	f = slices.Sorted(slices.Values(f))
	if len(f)%2 == 0 {
		return (f[len(f)/2-1] + f[len(f)/2]) / 2
	}
	return f[len(f)/2]
}
