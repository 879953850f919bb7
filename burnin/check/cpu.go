package check

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"smelt/burnin"
)

// CPU computes the same block of integer, floating-point and hash work on every
// logical processor, each on its own, and compares every result with the known
// one. It watches machine check exceptions. It takes no limits.
type CPU struct{}

// ID implements burnin.Check.
func (CPU) ID() string { return burnin.CPU }

// Run implements burnin.Check.
func (c CPU) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(c.ID())
	r.WorkUnit = "blocks"
	cpus, err := allowedCPUs()
	if err != nil {
		return errored(r, "which processors there are: %v", err)
	}
	mceBefore := machineChecks("/proc/interrupts")
	var blocks atomic.Int64
	wrong := make([]atomic.Int64, len(cpus))
	pinned := make([]error, len(cpus))

	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		last, at := int64(0), time.Now()
		untilDone(stop, r.Started, spec.Duration, rec, func() string {
			n, now := blocks.Load(), time.Now()
			rec.Sample("arithmetic", "blocks/s", float64(n-last)/now.Sub(at).Seconds())
			last, at = n, now
			return fmt.Sprintf("computing on %d processors", len(cpus))
		})
	})
	var wg sync.WaitGroup
	for i, cpu := range cpus {
		wg.Go(func() {
			// Not unlocked: the thread keeps its processor and ends with us.
			runtime.LockOSThread()
			var set unix.CPUSet
			set.Set(cpu)
			if pinned[i] = unix.SchedSetaffinity(0, &set); pinned[i] != nil {
				return
			}
			for n := 0; ctx.Err() == nil && (n == 0 || time.Since(r.Started) < spec.Duration); n++ {
				if block() != golden {
					wrong[i].Add(1)
				}
				blocks.Add(1)
			}
		})
	}
	wg.Wait()
	close(stop)
	watch.Wait()

	r.Work = float64(blocks.Load())
	for i, cpu := range cpus {
		if pinned[i] != nil {
			return errored(r, "processor %d cannot be used alone: %v", cpu, pinned[i])
		}
		if w := wrong[i].Load(); w > 0 {
			r.Findings = append(r.Findings, atMost(burnin.Finding{
				Item: fmt.Sprintf("processor %d", cpu), Name: "wrong results", Value: float64(w), Cause: burnin.CauseCPU,
			}, 0))
		}
	}
	r.Findings = append(r.Findings,
		atMost(burnin.Finding{Item: "processors", Name: "machine check exceptions", Value: float64(machineChecks("/proc/interrupts") - mceBefore), Cause: burnin.CauseCPU}, 0),
		atLeast(burnin.Finding{Item: "processors", Name: "logical processors tested", Value: float64(len(cpus)), Cause: burnin.CauseCPU}, float64(max(1, s.Hardware.CPU.Threads))),
	)
	finish(ctx, &r, fmt.Sprintf("%d blocks on %d processors, all right", blocks.Load(), len(cpus)))
	return r
}

// allowedCPUs lists the processors this process may use.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	var out []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			out = append(out, i)
		}
	}
	return out, nil
}

// golden is what block returns on a processor that works; the same arithmetic
// in Python gives the same number.
const golden = 0x9803f0bd9c788a86

// block is some milliseconds of work: multiplications that
// ripple through all bits (integer), a matrix product whose every product is
// rounded (floating point, never fused: the conversions forbid it), and
// SHA-256.
func block() uint64 {
	x := uint64(0x9e3779b97f4a7c15)
	acc := uint64(0)
	for range 20000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		acc = acc*6364136223846793005 + x/((acc>>40)|1)
	}
	const n = 32
	var a, b [n][n]float64
	for i := range n {
		for j := range n {
			a[i][j] = float64(i*n+j+1) / 7
			b[i][j] = math.Sqrt(float64(j*n+i+1)) / 3
		}
	}
	for range 4 {
		var c [n][n]float64
		for i := range n {
			for j := range n {
				var t float64
				for k := range n {
					p := float64(a[i][k] * b[k][j])
					t = float64(t + p)
				}
				c[i][j] = float64(t / 1024)
			}
		}
		a = c
	}
	h := sha256.New()
	var buf [8]byte
	for i := range n {
		for j := range n {
			binary.LittleEndian.PutUint64(buf[:], math.Float64bits(a[i][j]))
			h.Write(buf[:])
		}
	}
	binary.LittleEndian.PutUint64(buf[:], acc)
	h.Write(buf[:])
	sum := h.Sum(nil)
	for range 100 {
		d := sha256.Sum256(sum)
		sum = d[:]
	}
	return binary.LittleEndian.Uint64(sum)
}

// machineChecks adds up the MCE row of /proc/interrupts.
func machineChecks(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) == 0 || f[0] != "MCE:" {
			continue
		}
		var n int64
		for _, v := range f[1:] {
			var k int64
			if _, err := fmt.Sscan(v, &k); err != nil {
				break
			}
			n += k
		}
		return n
	}
	return 0
}
