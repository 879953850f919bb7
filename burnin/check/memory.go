package check

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/burnin"
	"smelt/inventory"
)

// Memory fills a share of the free memory with patterns and reads them back.
// It watches the counters of the memory controller (EDAC).
//
// Limits: share, the part of the free memory that is tested (default 0.5).
type Memory struct{}

// ID implements burnin.Check.
func (Memory) ID() string { return burnin.Memory }

const (
	region   = 16 << 20  // one mapping
	headroom = 128 << 20 // left to everybody else
)

// Run implements burnin.Check.
func (m Memory) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(m.ID())
	r.WorkUnit = "bytes verified"
	free, err := available("/proc/meminfo")
	if err != nil {
		return errored(r, "free memory: %v", err)
	}
	share := limit(spec, "share", 0.5)
	if !(share > 0 && share <= 1) {
		return errored(r, "limit share is %v, want more than 0 and at most 1", share)
	}
	want := int64(float64(free)*share) / region * region
	want = min(max(want, region), (free-headroom)/region*region)
	if want < region {
		return errored(r, "%d MiB are free: too little to test any", free>>20)
	}
	edac := readEDAC("/sys/devices/system/edac/mc")

	var areas [][]uint64
	defer func() {
		for _, a := range areas {
			_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&a[0])), len(a)*8))
		}
	}()
	for got := int64(0); got < want && ctx.Err() == nil; got += region {
		// Memory of our own, not the collector's: it must stay where it is.
		b, err := unix.Mmap(-1, 0, region, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return errored(r, "after %d MiB there was no more memory: %v", got>>20, err)
		}
		areas = append(areas, unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), region/8))
	}

	workers := 1
	if cpus, err := allowedCPUs(); err == nil {
		workers = min(len(cpus), len(areas))
	}
	var verified, wrong atomic.Int64
	var mu sync.Mutex
	passes := 0
	for ctx.Err() == nil && (passes == 0 || time.Since(r.Started) < spec.Duration) {
		began, before := time.Now(), verified.Load()
		for _, phase := range []string{"writing", "verifying"} {
			var done atomic.Int64
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := w; i < len(areas) && ctx.Err() == nil; i += workers {
						if phase == "writing" {
							fill(areas[i], uint64(passes), uint64(i))
						} else {
							for _, e := range verify(areas[i], uint64(passes), uint64(i)) {
								wrong.Add(1)
								mu.Lock()
								if len(r.Log) < 20 {
									r.Log = append(r.Log, fmt.Sprintf("pass %d, MiB %d: wrote %016x, read %016x", passes, i*region>>20, e.want, e.got))
								}
								mu.Unlock()
							}
							verified.Add(region)
						}
						part := float64(done.Add(1)) / float64(len(areas))
						rec.Progress(min(0.99, max(part, frac(time.Since(r.Started), spec.Duration))), fmt.Sprintf("%s %d MiB, pass %d", phase, len(areas)*region>>20, passes+1))
					}
				})
			}
			wg.Wait()
		}
		passes++
		rec.Sample("memory test", "MB/s", float64(verified.Load()-before)/1e6/time.Since(began).Seconds())
	}
	r.Work = float64(verified.Load())
	item := burnin.Finding{Item: "memory", Where: locators(s.Hardware), Cause: burnin.CauseMemory}
	item.Name, item.Value = "wrong words", float64(wrong.Load())
	r.Findings = append(r.Findings, atMost(item, 0))
	for label, now := range readEDAC("/sys/devices/system/edac/mc") {
		// Corrected errors count too: a machine that corrects while it is new
		// will not for long. What happened before the run is not ours.
		if d := now - edac[label]; d > 0 {
			r.Findings = append(r.Findings, atMost(burnin.Finding{Item: "memory module " + label, Where: label, Name: "memory controller errors", Value: float64(d), Cause: burnin.CauseMemory}, 0))
		}
	}
	finish(ctx, &r, fmt.Sprintf("%d passes over %d MiB, every word right", passes, len(areas)*region>>20))
	return r
}

func frac(done, of time.Duration) float64 {
	if of <= 0 {
		return 1
	}
	return min(1, float64(done)/float64(of))
}

// pattern is the word at index i: in turn its own address, its complement,
// alternating bits and noise, so that stuck bits, stuck address lines and
// neighbours that leak are all seen.
func pattern(pass, area uint64, i int) uint64 {
	switch pass % 4 {
	case 0:
		return area<<32 | uint64(i)
	case 1:
		return ^(area<<32 | uint64(i))
	case 2:
		if (uint64(i)+pass/4)&1 == 0 {
			return 0x5555555555555555
		}
		return 0xaaaaaaaaaaaaaaaa
	}
	x := (uint64(i) + area<<24 + pass<<48) * 0x9e3779b97f4a7c15
	return x ^ x>>29
}

func fill(a []uint64, pass, area uint64) {
	for i := range a {
		a[i] = pattern(pass, area, i)
	}
}

type mismatch struct{ want, got uint64 }

// verify returns at most 100 wrong words: beyond that it is only more of them.
func verify(a []uint64, pass, area uint64) []mismatch {
	var out []mismatch
	for i, got := range a {
		if want := pattern(pass, area, i); got != want && len(out) < 100 {
			out = append(out, mismatch{want, got})
		}
	}
	return out
}

// available is MemAvailable in bytes.
func available(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "MemAvailable:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no MemAvailable", file)
}

// readEDAC returns the errors, corrected or not, of each memory module.
func readEDAC(dir string) map[string]int64 {
	out := map[string]int64{}
	for _, pattern := range []string{"mc*/dimm*", "mc*/rank*"} {
		dimms, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			continue
		}
		for _, d := range dimms {
			label, ok := readLine(filepath.Join(d, "dimm_label"))
			if !ok || label == "" {
				label = filepath.Base(filepath.Dir(d)) + " " + filepath.Base(d)
			}
			ce, _ := readInt(filepath.Join(d, "dimm_ce_count"))
			ue, _ := readInt(filepath.Join(d, "dimm_ue_count"))
			out[label] += ce + ue
		}
	}
	return out
}

// locators names the sockets when there is only one candidate.
func locators(h inventory.Hardware) string {
	if len(h.Memory.DIMMs) == 1 {
		return h.Memory.DIMMs[0].Locator
	}
	return ""
}
