package gpu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// Where the libraries are. SMELT_NVML and SMELT_LIBCUDA override both sets,
// but never what a result is called: that is the library's own word.
const (
	EnvNVML  = "SMELT_NVML"
	EnvCUDA  = "SMELT_LIBCUDA"
	envCards = "SMELT_SIM_CARDS" // read by the simulated libraries

	nvmlName = "libnvidia-ml.so.1"
	cudaName = "libcuda.so.1"
	// SimDir is where an image of a lab has the simulated libraries.
	SimDir = "/usr/lib/smelt/sim"
)

const (
	maxRequest = 4 << 20
	maxLine    = 4 << 20
	maxStderr  = 4 << 10
)

// A Supervisor runs GPU checks in worker processes.
type Supervisor struct {
	Worker []string // command line of a worker: this program and "worker"
	Sysfs  string   // "/sys"
}

// Run reads one burnin.Request from in and writes burnin.Lines to out, the
// last one with the result. An error means that there was no request to run or
// nowhere to write to; everything else is in the result.
func (s Supervisor) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	b, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if len(b) > maxRequest {
		return fmt.Errorf("request: larger than %d bytes", maxRequest)
	}
	var req burnin.Request
	if err := json.Unmarshal(b, &req); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	r := &run{Supervisor: s, req: req, out: out}
	res := r.check(ctx)
	if res.ID == "" {
		res.ID = req.Spec.ID
	}
	if err := r.emit(burnin.Line{Result: &res}); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	return nil
}

type run struct {
	Supervisor
	req burnin.Request

	// Some worker said that a library is simulated. All use the same ones.
	simulated atomic.Bool

	mu       sync.Mutex
	out      io.Writer
	progress map[string]float64
}

func (r *run) emit(l burnin.Line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err = r.out.Write(append(b, '\n'))
	return err
}

// targets are the cards that must be tested: those of NVIDIA, and those that
// the simulation shows.
func targets(s burnin.Subject) []inventory.GPU {
	var out []inventory.GPU
	for _, g := range s.Hardware.GPUs {
		if g.Vendor == "10de" || simulates(s, g.Address) {
			out = append(out, g)
		}
	}
	return out
}

func simulates(s burnin.Subject, address string) bool {
	return s.Sim != nil && slices.ContainsFunc(s.Sim.GPUs, func(g burnin.SimGPU) bool { return g.PCI == address })
}

func (r *run) check(ctx context.Context) (res burnin.Result) {
	spec, start := r.req.Spec, time.Now()
	res = burnin.Result{ID: spec.ID, Started: start, Status: burnin.Error, Simulated: r.req.Subject.Sim != nil}
	defer func() { res.Took = time.Since(start) }()
	switch spec.ID {
	case burnin.GPUPresence, burnin.GPUVRAM, burnin.GPUCompute:
	default:
		res.Reason = fmt.Sprintf("smelt-gpu has no check %q", spec.ID)
		return res
	}
	cards := targets(r.req.Subject)
	if len(cards) == 0 {
		res.Reason = "inspection found no NVIDIA card: there is nothing to test"
		return res
	}
	dir, err := os.MkdirTemp("", "smelt-gpu-")
	if err != nil {
		res.Reason = err.Error()
		return res
	}
	defer os.RemoveAll(dir)
	j := job{Request: r.req, NVML: nvmlName, CUDA: cudaName, Sysfs: r.Sysfs}
	env := os.Environ()
	if sim := r.req.Subject.Sim; sim != nil {
		j.NVML, j.CUDA = filepath.Join(SimDir, nvmlName), filepath.Join(SimDir, cudaName)
		path := filepath.Join(dir, "cards")
		if err := writeCards(path, *sim); err != nil {
			res.Reason = err.Error()
			return res
		}
		env = append(env, envCards+"="+path)
	}
	if v := os.Getenv(EnvNVML); v != "" {
		j.NVML = v
	}
	if v := os.Getenv(EnvCUDA); v != "" {
		j.CUDA = v
	}

	limit, margin := limits(spec)
	r.progress = map[string]float64{}
	work, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if spec.ID == burnin.GPUPresence {
		return r.result(r.worker(work, j, env, 1), j)
	}
	outcomes := make([]outcome, len(cards))
	var wg sync.WaitGroup
	for i, g := range cards {
		wg.Go(func() {
			// Not all at once: one step of the whole load trips weak supplies.
			select {
			case <-time.After(time.Duration(i) * stagger(spec)):
			case <-work.Done():
			}
			one := j
			one.GPU = g.Address
			outcomes[i] = r.worker(work, one, env, len(cards))
			if outcomes[i].res == nil && ctx.Err() == nil {
				// It died or hung. A card that fell off the bus does that to
				// its process; the driver knows.
				ask := one
				ask.Spec.ID = probe
				pc, cancel := context.WithTimeout(ctx, margin/2)
				defer cancel()
				if p := r.worker(pc, ask, env, 0); p.res != nil && p.res.Status == burnin.Fail {
					p.res.Log = append(outcomes[i].log(), p.res.Log...)
					outcomes[i] = p
				}
			}
		})
	}
	wg.Wait()
	results := make([]burnin.Result, len(cards))
	for i, g := range cards {
		one := j
		one.GPU = g.Address
		results[i] = r.result(outcomes[i], one)
	}
	res = merge(spec, cards, results)
	return res
}

// limits divides the deadline of a check: the worker must end, and a probe of
// its card after it, before the agent gives up on all of it.
func limits(spec burnin.Spec) (worker, margin time.Duration) {
	deadline := spec.Deadline
	if deadline <= 0 {
		deadline = spec.Duration + time.Minute
	}
	margin = min(deadline/5, 30*time.Second)
	return deadline - margin, margin
}

// stagger is the time between the starts of two cards.
func stagger(spec burnin.Spec) time.Duration { return min(spec.Duration/30, 2*time.Second) }

// writeCards writes what the simulated libraries read: pci|model|uuid|vram|fault.
func writeCards(path string, sim burnin.Simulation) error {
	var b strings.Builder
	for _, g := range sim.GPUs {
		for _, s := range []string{g.PCI, g.Model, g.UUID, g.Fault} {
			if strings.ContainsAny(s, "|\n\x00") {
				return fmt.Errorf("simulated card %q: %q cannot be written", g.PCI, s)
			}
		}
		fmt.Fprintf(&b, "%s|%s|%s|%d|%s\n", g.PCI, g.Model, g.UUID, g.VRAM, g.Fault)
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// An outcome is how a worker ended: with a result or with a reason why not.
type outcome struct {
	res    *burnin.Result
	why    string
	stderr string
	took   time.Duration
}

func (o outcome) log() []string {
	var out []string
	if o.why != "" {
		out = append(out, o.why)
	}
	for line := range strings.Lines(o.stderr) {
		if line = strings.TrimSpace(line); line != "" && len(out) < 20 {
			out = append(out, "worker: "+line)
		}
	}
	return out
}

func (r *run) result(o outcome, j job) burnin.Result {
	sim := r.simulated.Load() || j.Subject.Sim != nil
	if o.res != nil {
		res := *o.res
		res.ID = j.Spec.ID
		res.Simulated = res.Simulated || sim
		return res
	}
	res := burnin.Result{ID: j.Spec.ID, Status: burnin.Error, Reason: o.why, Simulated: sim, Took: o.took, Log: o.log()}
	if j.GPU != "" {
		res.Reason = "GPU " + j.GPU + ": " + o.why
	}
	return res
}

// worker runs one job in a process of its own and relays its samples. of is
// how many workers share the progress bar; 0 relays none.
func (r *run) worker(ctx context.Context, j job, env []string, of int) (o outcome) {
	start := time.Now()
	defer func() { o.took = time.Since(start) }()
	b, err := json.Marshal(j)
	if err != nil {
		return outcome{why: err.Error()}
	}
	cmd := exec.CommandContext(ctx, r.Worker[0], r.Worker[1:]...)
	cmd.Env = env
	stderr := &head{}
	cmd.Stderr = stderr
	// in stays open while the worker runs: its end would be the worker's.
	in, err := cmd.StdinPipe()
	if err != nil {
		return outcome{why: err.Error()}
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return outcome{why: err.Error()}
	}
	cmd.Stdout = pw
	if err := cmd.Start(); err != nil {
		pr.Close()
		pw.Close()
		return outcome{why: "cannot start a worker: " + err.Error()}
	}
	pw.Close()
	relayed := make(chan outcome, 1)
	go func() { relayed <- r.relay(pr, j, of) }()
	go func() {
		if _, err := in.Write(append(b, '\n')); err != nil {
			in.Close() // the worker is gone; Wait says how
		}
	}()
	select {
	case o = <-relayed:
	case <-ctx.Done():
		// The kill is on its way; what was said before it counts.
		select {
		case o = <-relayed:
		case <-time.After(grace):
		}
	}
	pr.Close()
	// With a result it has said everything, and without one it says no more. A
	// process that waits for a dead card inside the kernel survives the kill:
	// leave it behind rather than hang with it.
	_ = cmd.Process.Kill()
	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	select {
	case err := <-reaped:
		if o.res == nil && (o.why == "" || ctx.Err() != nil) {
			o.why = death(ctx, err)
		}
	case <-time.After(grace):
		if o.res == nil {
			o.why = "the worker hangs in the kernel and cannot be killed"
		}
	}
	o.stderr = stderr.String()
	return o
}

// grace is how long a killed worker has to be gone.
const grace = 2 * time.Second

// exitUndefinedSymbol is what ld.so exits with when a lazily bound function
// does not exist.
const exitUndefinedSymbol = 127

func death(ctx context.Context, err error) string {
	var ee *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "the worker did not finish before its deadline and was killed"
	case ctx.Err() != nil:
		return "stopped"
	case errors.As(err, &ee) && ee.ExitCode() == exitUndefinedSymbol:
		return "the worker died: the driver library lacks a function that was called (exit 127)"
	case errors.As(err, &ee):
		return "the worker died: " + ee.String()
	case err != nil:
		return "the worker failed: " + err.Error()
	}
	return "the worker ended without a result"
}

// relay passes samples and progress on until the result, or until the worker
// closes its output.
func (r *run) relay(rd io.Reader, j job, of int) outcome {
	var o outcome
	sc := bufio.NewScanner(rd)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	for sc.Scan() {
		if len(bytes.TrimSpace(sc.Bytes())) == 0 {
			continue
		}
		var l workerLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			o.why = "the worker wrote something that is not of the protocol: " + err.Error()
			continue
		}
		if l.Simulated {
			r.simulated.Store(true)
		}
		switch {
		case l.Result != nil:
			o.res = l.Result
			return o
		case l.Sample != nil && of > 0:
			_ = r.emit(burnin.Line{Sample: l.Sample})
		case l.Progress != nil && of > 0:
			r.mu.Lock()
			r.progress[j.GPU] = l.Progress.Done
			sum := 0.0
			for _, v := range r.progress {
				sum += v
			}
			r.mu.Unlock()
			_ = r.emit(burnin.Line{Progress: &burnin.Progress{Done: sum / float64(of), Doing: l.Progress.Doing}})
		}
	}
	if err := sc.Err(); err != nil {
		o.why = "reading from the worker: " + err.Error()
	}
	return o
}

// merge makes one result of one per card.
func merge(spec burnin.Spec, cards []inventory.GPU, results []burnin.Result) burnin.Result {
	out := burnin.Result{ID: spec.ID, Started: time.Now()}
	passed := 0
	for _, r := range results {
		if r.Status == burnin.Pass {
			passed++
		}
	}
	var reasons []string
	compare(spec, cards, results)
	for i, r := range results {
		if !r.Started.IsZero() && r.Started.Before(out.Started) {
			out.Started = r.Started
		}
		// Our own kernels ran on the other cards: an error of one card alone is
		// that card's (as with XID 13 and 31); on all of them it would be ours.
		if passed > 0 && r.Status == burnin.Error {
			for n, f := range r.Findings {
				if f.Name == "driver error" {
					r.Findings[n].Status, r.Findings[n].Cause = burnin.Fail, burnin.CauseCompute
					r.Status = burnin.Fail
				}
			}
		}
		if r.Status == burnin.Error && !slices.ContainsFunc(r.Findings, func(f burnin.Finding) bool { return f.Status == burnin.Error }) {
			r.Findings = append(r.Findings, burnin.Finding{Item: "GPU " + cards[i].Address, Where: cards[i].Slot, Name: "tested", Value: 0, Limit: "= 1", Status: burnin.Error})
		}
		out.Findings = append(out.Findings, r.Findings...)
		out.Log = append(out.Log, r.Log...)
		out.Simulated = out.Simulated || r.Simulated
		if r.WorkUnit != "" {
			out.Work, out.WorkUnit = out.Work+r.Work, r.WorkUnit
		}
		if r.Status == burnin.Pass {
			continue
		}
		// Without a driver every card says the same.
		if !slices.Contains(reasons, r.Reason) {
			reasons = append(reasons, r.Reason)
		}
		if out.Status != burnin.Fail {
			out.Status = burnin.Error
			if r.Status == burnin.Fail {
				out.Status = burnin.Fail
			}
		}
	}
	if len(reasons) == 0 {
		out.Status = burnin.Pass
	}
	out.Reason = strings.Join(append([]string{fmt.Sprintf("%d of %d cards passed", passed, len(cards))}, reasons...), "; ")
	return out
}

// compare holds the throughput of each card against the fastest of its model
// in this machine. Nothing absolute is known of every card ever sold, but
// equal cards are equally fast. Simulated cards share one processor and are
// not compared.
func compare(spec burnin.Spec, cards []inventory.GPU, results []burnin.Result) {
	need := spec.Limits["minEfficiency"]
	if need <= 0 {
		return
	}
	find := func(r burnin.Result) int {
		return slices.IndexFunc(r.Findings, func(f burnin.Finding) bool { return f.Name == throughput })
	}
	best := map[string]float64{}
	model := func(g inventory.GPU) string { return g.Vendor + g.Device + g.SubVen + g.SubDev + g.Model }
	for i, r := range results {
		if n := find(r); n >= 0 && !r.Simulated {
			best[model(cards[i])] = max(best[model(cards[i])], r.Findings[n].Value)
		}
	}
	for i := range results {
		n := find(results[i])
		if n < 0 || results[i].Simulated {
			continue
		}
		f := &results[i].Findings[n]
		floor := need * best[model(cards[i])]
		f.Limit = fmt.Sprintf(">= %.0f", floor)
		if f.Value < floor {
			f.Status, f.Cause = burnin.Fail, burnin.CauseSlow
			if results[i].Status == burnin.Pass {
				results[i].Status = burnin.Fail
				results[i].Reason = fmt.Sprintf("%s: %.0f GFLOPS, the fastest of its model makes %.0f", f.Item, f.Value, best[model(cards[i])])
			}
		}
	}
}

// head keeps the first bytes that were written to it: both ld.so and the Go
// runtime say first what happened, and then where.
type head struct {
	mu sync.Mutex
	b  []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b = append(h.b, p[:min(len(p), maxStderr-len(h.b))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.b)
}
