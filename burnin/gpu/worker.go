package gpu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// probe is the check that the supervisor runs on a card whose worker died: is
// it still on the bus?
const probe = "probe"

// A job is what a worker reads: the request, and the one card it is for.
type job struct {
	burnin.Request
	GPU   string `json:"gpu,omitempty"` // PCI address; empty for gpu-presence
	NVML  string `json:"nvml"`
	CUDA  string `json:"cuda"`
	Sysfs string `json:"sysfs"`
}

// A workerLine is one line of a worker: a line of the protocol, or the news
// that a library it loaded is a simulation. That comes first, so that also a
// worker that dies later is known to have been simulated.
type workerLine struct {
	burnin.Line
	Simulated bool `json:"simulated,omitempty"`
}

// Work is the worker process: it reads one job and writes lines until its
// result. It ends the process when in closes, which is how a worker never
// outlives its supervisor.
func Work(in io.Reader, out io.Writer) error {
	start := time.Now()
	var j job
	d := json.NewDecoder(io.LimitReader(in, maxRequest))
	if err := d.Decode(&j); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	go func() {
		// Anything but the end of in is the supervisor's business.
		if _, err := io.Copy(io.Discard, in); err == nil {
			os.Exit(exitOrphan)
		}
	}()
	w := &worker{job: j, out: out, res: burnin.Result{ID: j.Spec.ID}, fell: make(chan struct{})}
	ran := make(chan burnin.Result, 1)
	go func() {
		runtime.LockOSThread() // CUDA contexts belong to a thread
		w.run()
		w.settle()
		ran <- w.res
		// The end of a locked goroutine ends its thread, and in one run of
		// twenty that was seen to end the process with SIGSEGV before the
		// result was out. The process ends soon enough.
		select {}
	}()
	var res burnin.Result
	select {
	case res = <-ran:
	case <-w.fell:
		// A call on a card that is gone may never return.
		select {
		case res = <-ran:
		case <-time.After(stuckAfter):
			gone := &worker{job: j, res: burnin.Result{ID: j.Spec.ID}}
			gone.lost()
			gone.logf("GPU %s: a call of the driver does not return", j.GPU)
			gone.settle()
			res = gone.res
		}
	}
	res.Started = start
	res.Took = time.Since(start)
	res.Simulated = w.simulated.Load()
	return w.emit(workerLine{Line: burnin.Line{Result: &res}})
}

const (
	exitOrphan = 3
	stuckAfter = time.Second
)

type worker struct {
	job
	simulated atomic.Bool
	fell      chan struct{} // closed by the monitor when the card falls off the bus
	res       burnin.Result
	logged    int

	mu  sync.Mutex
	out io.Writer
}

func (w *worker) emit(l workerLine) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.out.Write(append(b, '\n'))
	return err
}

func (w *worker) sample(series, unit string, v float64) {
	_ = w.emit(workerLine{Line: burnin.Line{Sample: &burnin.Sample{Series: series, Unit: unit, Value: v}}})
}

func (w *worker) progress(done float64, doing string) {
	_ = w.emit(workerLine{Line: burnin.Line{Progress: &burnin.Progress{Done: done, Doing: doing}}})
}

const maxLogLines = 100

func (w *worker) logf(format string, args ...any) {
	w.logged++
	switch {
	case w.logged < maxLogLines:
		w.res.Log = append(w.res.Log, fmt.Sprintf(format, args...))
	case w.logged == maxLogLines:
		w.res.Log = append(w.res.Log, "more lines left out")
	}
}

func (w *worker) fail(format string, args ...any) {
	w.res.Status, w.res.Reason = burnin.Error, fmt.Sprintf(format, args...)
}

// settle makes the status of the findings where run did not set one.
func (w *worker) settle() {
	if w.res.Status != 0 {
		return
	}
	w.res.Status = burnin.Pass
	for _, f := range w.res.Findings {
		if f.Status == burnin.Fail {
			w.res.Status, w.res.Reason = burnin.Fail, f.String()
			return
		}
		if f.Status != burnin.Pass && f.Status != burnin.Skip {
			w.res.Status, w.res.Reason = burnin.Error, f.String()
		}
	}
	if len(w.res.Findings) == 0 {
		w.fail("nothing was measured")
	}
}

func (w *worker) limit(name string, otherwise float64) float64 {
	if v, ok := w.Spec.Limits[name]; ok {
		return v
	}
	return otherwise
}

func (w *worker) run() {
	nh, sim, err := dlopen(w.NVML)
	if err != nil {
		w.fail("%v", err)
		return
	}
	var ch uintptr
	cudaSim := sim
	if w.Spec.ID == burnin.GPUVRAM || w.Spec.ID == burnin.GPUCompute {
		if ch, cudaSim, err = dlopen(w.CUDA); err != nil {
			w.fail("%v", err)
			return
		}
	}
	w.simulated.Store(sim || cudaSim)
	if w.simulated.Load() {
		_ = w.emit(workerLine{Simulated: true})
		w.logf("simulated: no real card was touched; %s and %s imitate the driver", w.NVML, w.CUDA)
	}
	if w.Subject.Sim != nil && !(sim && cudaSim) {
		w.fail("a simulation was asked for, but %s and %s are not both simulated: nothing was run on a real card", w.NVML, w.CUDA)
		return
	}
	lib, err := openNVML(nh, w.NVML)
	if err != nil {
		w.fail("%v", err)
		return
	}
	defer lib.close()
	w.logf("driver %s", lib.driver)
	switch w.Spec.ID {
	case burnin.GPUPresence:
		w.presence(lib)
	case probe:
		w.probe(lib)
	case burnin.GPUVRAM, burnin.GPUCompute:
		w.load(lib, ch)
	default:
		w.fail("smelt-gpu has no check %q", w.Spec.ID)
	}
}

// finding starts a finding about the worker's card.
func (w *worker) finding(f burnin.Finding) {
	if f.Item == "" {
		f.Item = "GPU " + w.GPU
		for _, g := range w.Subject.Hardware.GPUs {
			if g.Address == w.GPU {
				f.Where = g.Slot
			}
		}
	}
	if f.Status == burnin.Pass {
		f.Cause = "" // named beforehand, in case it fails
	}
	w.res.Findings = append(w.res.Findings, f)
}

func (w *worker) lost() {
	w.finding(burnin.Finding{Name: "losses from the bus", Value: 1, Limit: "= 0", Status: burnin.Fail, Cause: burnin.CauseGPULost})
	w.logf("GPU %s: the driver says that the card is lost (XID 79 in the kernel log): riser, power cable and slot are the first suspects", w.GPU)
}

func passIf(ok bool) burnin.Status {
	if ok {
		return burnin.Pass
	}
	return burnin.Fail
}

func value(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}

func (w *worker) probe(lib *library) {
	dev, err := lib.find(w.GPU)
	if err == nil {
		_, err = dev.temperature()
	}
	switch {
	case errors.Is(err, errLost):
		w.lost()
	case err != nil:
		w.fail("GPU %s: %v", w.GPU, err)
	default:
		w.finding(burnin.Finding{Name: "on the bus", Value: 1, Limit: "= 1", Status: burnin.Pass})
	}
}

// presence compares three views: what inspection found, what is on the bus
// now, and what the driver knows.
func (w *worker) presence(lib *library) {
	known, bad, err := lib.devices()
	if err != nil {
		w.fail("%v", err)
		return
	}
	for _, err := range bad {
		w.logf("driver: %v", err)
	}
	expected := targets(w.Subject)
	for _, g := range expected {
		item := "GPU " + g.Address
		add := func(f burnin.Finding) {
			f.Item, f.Where = item, g.Slot
			w.finding(f)
		}
		_, err := os.Stat(filepath.Join(w.Sysfs, "bus/pci/devices", g.Address))
		add(burnin.Finding{Name: "on the bus", Value: value(err == nil), Limit: "= 1", Status: passIf(err == nil), Cause: burnin.CauseGPUMissing})
		i := slices.IndexFunc(known, func(d device) bool { return d.address == g.Address })
		if i < 0 {
			f := burnin.Finding{Name: "known to the driver", Value: 0, Limit: "= 1", Status: burnin.Fail, Cause: burnin.CauseGPUMissing}
			if _, err := lib.find(g.Address); errors.Is(err, errLost) {
				f.Cause = burnin.CauseGPULost
			} else if err != nil {
				w.logf("%s: %v", item, err)
			}
			add(f)
			continue
		}
		d := known[i]
		w.res.Work++
		w.logf("%s: %s, %s, %d MiB", item, d.name, d.uuid, d.vram>>20)
		add(burnin.Finding{Name: "known to the driver", Value: 1, Limit: "= 1", Status: burnin.Pass})
		if g.Model != "" {
			// The names of mining cards vary ("Graphics Device"); their PCI id does
			// not. A simulated card has the PCI id of the device it stands for.
			ok := sameModel(g.Model, d.name) || !w.simulated.Load() && g.Vendor == "10de" && d.id == "10de:"+g.Device
			add(burnin.Finding{Name: "is the " + burnin.ShortModel(g.Model) + " of the inspection", Value: value(ok), Limit: "= 1", Status: passIf(ok), Cause: burnin.CauseGPUMismatch})
			if !ok {
				w.logf("%s: inspection found %q, the driver says %q", item, g.Model, d.name)
			}
		}
		if g.UUID != "" {
			ok := g.UUID == d.uuid
			add(burnin.Finding{Name: "same UUID", Value: value(ok), Limit: "= 1", Status: passIf(ok), Cause: burnin.CauseGPUMismatch})
		}
		if g.VRAM > 0 {
			// Firmware and ECC keep a share for themselves.
			f := burnin.Finding{Name: "memory size", Value: float64(d.vram >> 20), Unit: "MiB", Limit: fmt.Sprintf(">= %d", g.VRAM>>20*9/10), Cause: burnin.CauseGPUMismatch}
			f.Status = passIf(int64(d.vram>>20) >= g.VRAM>>20*9/10)
			add(f)
		}
	}
	for _, d := range known {
		if !slices.ContainsFunc(expected, func(g inventory.GPU) bool { return g.Address == d.address }) {
			w.finding(burnin.Finding{Item: "GPU " + d.address, Name: "expected cards here", Value: 0, Limit: "= 1", Status: burnin.Fail, Cause: burnin.CauseGPUMismatch})
			w.logf("GPU %s: %s, which inspection did not find", d.address, d.name)
		}
	}
	for _, g := range w.Subject.Hardware.GPUs {
		if g.Vendor == "1002" && !simulates(w.Subject, g.Address) {
			// There is no load engine for AMD; whether that matters is for the
			// class of the node to say. It must not look tested.
			w.finding(burnin.Finding{Item: "GPU " + g.Address, Where: g.Slot, Name: "tested", Limit: "= 1", Status: burnin.Skip})
			w.logf("GPU %s: %s: an AMD card, which is not tested", g.Address, g.Model)
		}
	}
	w.res.WorkUnit = "cards"
	w.res.Reason = fmt.Sprintf("%d of %d cards are there", int(w.res.Work), len(expected))
}

// sameModel compares the name of the PCI ID database ("GA102 [GeForce RTX
// 3090]") or an earlier NVML name with what NVML says ("NVIDIA GeForce RTX
// 3090"). The database adds to some names ("GeForce RTX 3060 Lite Hash Rate"),
// so one may begin with the other; Ti, SUPER and D are other chips.
func sameModel(inspected, nvml string) bool {
	if i, j := strings.Index(inspected, "["), strings.LastIndex(inspected, "]"); i >= 0 && j > i {
		inspected = inspected[i+1 : j]
	}
	plain := func(s string) string {
		return strings.ReplaceAll(strings.ToLower(burnin.ShortModel(strings.TrimSpace(s))), "-", " ")
	}
	short, long := plain(inspected), plain(nvml)
	if len(short) > len(long) {
		short, long = long, short
	}
	rest, ok := strings.CutPrefix(long, short)
	if !ok || short == "" {
		return false
	}
	switch word, _, _ := strings.Cut(strings.TrimPrefix(rest, " "), " "); {
	case rest == "":
		return true
	case rest[0] != ' ', word == "ti", word == "super", word == "d":
		return false
	}
	return true
}

// load runs a check that works the card, and watches it while it works.
func (w *worker) load(lib *library, cudaHandle uintptr) {
	dev, err := lib.find(w.GPU)
	switch {
	case errors.Is(err, errLost):
		w.lost()
		return
	case err != nil:
		w.fail("GPU %s: %v", w.GPU, err)
		return
	}
	c, err := openCUDA(cudaHandle, w.CUDA)
	if err == nil {
		var k *cudaCard
		if k, err = c.open(w.GPU); err == nil {
			m := w.monitor(dev)
			if w.Spec.ID == burnin.GPUVRAM {
				err = w.vram(k, m)
			} else {
				err = w.compute(k, m)
			}
			m.stop()
			if err == nil && !m.lost {
				m.findings(w)
				return
			}
		}
	}
	w.broke(dev, err)
}

// broke says what an error under load means: a lost card is a fault of the
// hardware, a memory error too; anything else may be the driver's or ours, and
// the supervisor, who sees how the other cards did, decides.
func (w *worker) broke(dev device, err error) {
	if err != nil {
		w.logf("GPU %s: %v", w.GPU, err)
	}
	if dev.lost() {
		w.lost()
		return
	}
	var ce *cudaError
	switch {
	case err == nil: // it was lost and is back
		w.lost()
	case errors.As(err, &ce) && ce.code == cudaECCUncorrectable:
		w.finding(burnin.Finding{Name: "uncorrectable memory errors", Value: 1, Limit: "= 0", Status: burnin.Fail, Cause: burnin.CauseVRAM})
	case errors.As(err, &ce):
		w.finding(burnin.Finding{Name: "driver error", Value: float64(ce.code), Limit: "= 0", Status: burnin.Error})
		w.fail("GPU %s: %v", w.GPU, err)
	default:
		w.fail("GPU %s: %v", w.GPU, err)
	}
}

// monitor samples the card at 2.5 Hz from its own goroutine, because calls of CUDA
// block the worker's.
type monitor struct {
	hottest  float64
	limit    float64
	samples  int
	thermal  int // samples with HW thermal slowdown
	brake    int // samples with HW power brake
	lost     bool
	slowdown float64

	cancel context.CancelFunc
	gone   context.Context // ended when the card is lost
	done   chan struct{}
}

const samplePeriod = 400 * time.Millisecond

func (w *worker) monitor(dev device) *monitor {
	m := &monitor{limit: w.limit("maxCelsius", 83), done: make(chan struct{})}
	if t, ok := dev.slowdown(); ok {
		m.slowdown = t
		m.limit = t - w.limit("marginCelsius", 5)
	}
	ctx, cancel := context.WithCancel(context.Background())
	gone, isGone := context.WithCancel(context.Background())
	m.cancel, m.gone = cancel, gone
	go func() {
		defer close(m.done)
		defer isGone()
		t := time.NewTicker(samplePeriod)
		defer t.Stop()
		for last := false; ; {
			rs, err := dev.readings()
			if errors.Is(err, errLost) {
				m.lost = true
				close(w.fell)
				return
			}
			for _, r := range rs {
				w.sample("GPU "+w.GPU+" "+r.name, r.unit, r.value)
				if r.name == "temperature" {
					m.samples++
					m.hottest = max(m.hottest, r.value)
				}
			}
			if why, ok := dev.throttled(); ok {
				if why&reasonHWThermal != 0 {
					m.thermal++
				}
				if why&reasonHWPowerBrake != 0 {
					m.brake++
				}
			}
			if last {
				return
			}
			select {
			case <-ctx.Done():
				last = true // the end of a load is when it is hottest
			case <-t.C:
			}
		}
	}()
	return m
}

// stop ends the sampling; the fields are for reading afterwards.
func (m *monitor) stop() {
	m.cancel()
	<-m.done
}

func (m *monitor) findings(w *worker) {
	if m.samples == 0 {
		w.finding(burnin.Finding{Name: "temperature", Unit: "C", Status: burnin.Error})
		return
	}
	w.finding(burnin.Finding{Name: "temperature", Value: m.hottest, Unit: "C", Limit: fmt.Sprintf("<= %.0f", m.limit), Status: passIf(m.hottest <= m.limit), Cause: burnin.CauseHot})
	if m.thermal > 0 {
		w.finding(burnin.Finding{Name: "thermal slowdowns", Value: float64(m.thermal), Limit: "= 0", Status: burnin.Fail, Cause: burnin.CauseHot})
	}
	if m.brake > 0 {
		w.finding(burnin.Finding{Name: "power brakes", Value: float64(m.brake), Limit: "= 0", Status: burnin.Fail, Cause: burnin.CausePower})
	}
}

// until tells how far a check with a duration is.
type until struct {
	start    time.Time
	duration time.Duration
	shown    time.Time
}

func (u *until) over() bool { return time.Since(u.start) >= u.duration }

func (u *until) show(w *worker, doing string) {
	if now := time.Now(); now.Sub(u.shown) >= 500*time.Millisecond {
		u.shown = now
		done := 1.0
		if u.duration > 0 {
			done = min(1, now.Sub(u.start).Seconds()/u.duration.Seconds())
		}
		w.progress(done, doing)
	}
}

const (
	vramChunk   = 256 << 20
	vramGrain   = 64 << 10
	vramThreads = 256
)

type chunk struct{ ptr, size uint64 }

// vram writes a pattern that depends on the address over the whole buffer,
// then verifies it and writes its complement, then verifies that: every bit is
// held as 0 and as 1, and a write that lands elsewhere is seen.
func (w *worker) vram(k *cudaCard, m *monitor) error {
	free, total, err := k.memory()
	if err != nil {
		return err
	}
	if w.simulated.Load() {
		w.logf("simulated: %d MiB of ordinary memory stand for the memory of the card", total>>20)
	}
	w.logf("GPU %s: compute capability %s, %d multiprocessors, %d of %d MiB free", w.GPU, k.cc, k.sms, free>>20, total>>20)
	errs, err := k.alloc(vramErrBuffer)
	if err != nil {
		return err
	}
	if err := k.zero(errs, vramErrBuffer); err != nil {
		return err
	}
	share := w.limit("share", 0.9)
	chunks, size, err := k.allocShare(uint64(share*float64(free)), w)
	if err != nil {
		return err
	}
	tested := float64(size) / float64(free)
	f := burnin.Finding{Name: "share of free memory tested", Value: tested, Limit: fmt.Sprintf(">= %g", share), Status: burnin.Pass}
	if tested < share {
		f.Status = burnin.Error // something else held it: says nothing about the card
	}
	w.finding(f)
	const idle = 0.85 // what the driver leaves of a small card
	if inUse := float64(free) / float64(total); inUse < idle {
		w.finding(burnin.Finding{Name: "share of memory free at the start", Value: inUse, Limit: fmt.Sprintf(">= %g", idle), Status: burnin.Error})
		w.logf("GPU %s: something else uses its memory", w.GPU)
	}

	u := until{start: time.Now(), duration: w.Spec.Duration}
	blocks := k.sms * 16
	var moved, count uint64
	seen := map[uint64]bool{}
	passes := 0
	for passes == 0 || !u.over() {
		seed := 0x5EED0001 + uint32(passes)*0x9E3779B9
		for step := range 3 {
			for i, c := range chunks {
				if m.gone.Err() != nil {
					return nil // the monitor knows
				}
				s := seed + uint32(i)*0x85EBCA6B
				var err error
				switch step {
				case 0:
					err = k.launch("vram_fill", blocks, vramThreads, c.ptr, c.size/16, s, uint32(0))
					moved += c.size
				case 1:
					err = k.launch("vram_check", blocks, vramThreads, c.ptr, c.size/16, s, uint32(0), errs)
					moved += 2 * c.size
				case 2:
					err = k.launch("vram_check", blocks, vramThreads, c.ptr, c.size/16, s, ^uint32(0), errs)
					moved += 2 * c.size
				}
				if err != nil {
					return err
				}
				u.show(w, fmt.Sprintf("memory, pass %d", passes+1))
			}
			if step == 0 {
				continue
			}
			n, list, err := k.vramErrors(errs)
			if err != nil {
				return err
			}
			count += uint64(n)
			for _, e := range list {
				if !seen[e.addr] {
					seen[e.addr] = true
					w.logf("%s", describeError(e, chunks))
				}
			}
			if n > 0 {
				if err := k.zero(errs, vramErrBuffer); err != nil {
					return err
				}
			}
		}
		passes++
	}
	for _, c := range chunks {
		if err := k.free(c.ptr); err != nil {
			return err
		}
	}
	if err := k.free(errs); err != nil {
		return err
	}
	w.res.Work, w.res.WorkUnit = float64(moved)/1e9, "GB"
	w.finding(burnin.Finding{Name: "memory errors", Value: float64(count), Limit: "= 0", Status: passIf(count == 0), Cause: burnin.CauseVRAM})
	w.res.Reason = fmt.Sprintf("%d passes over %d MiB", passes, size>>20)
	return nil
}

// allocShare takes at least want bytes in chunks, smaller ones at the end.
func (k *cudaCard) allocShare(want uint64, w *worker) ([]chunk, uint64, error) {
	want = (want + vramGrain - 1) / vramGrain * vramGrain
	var out []chunk
	var got uint64
	for next := uint64(vramChunk); got < want && next >= vramGrain; {
		n := min(next, want-got)
		p, err := k.alloc(n)
		switch {
		case err == nil:
			out, got = append(out, chunk{p, n}), got+n
		case outOfMemory(err):
			next = min(n, next) / 2 / vramGrain * vramGrain
		default:
			return nil, 0, err
		}
	}
	if len(out) == 0 {
		return nil, 0, fmt.Errorf("could not allocate any of %d MiB", want>>20)
	}
	return out, got, nil
}

func describeError(e vramError, chunks []chunk) string {
	where := fmt.Sprintf("0x%x", e.addr)
	var before uint64
	for _, c := range chunks {
		if e.addr >= c.ptr && e.addr < c.ptr+c.size {
			where = fmt.Sprintf("offset 0x%x", before+e.addr-c.ptr)
			break
		}
		before += c.size
	}
	kind := "read differently the second time: the transfer or a weak cell"
	if e.stuck() {
		kind = "same again: the cell"
	}
	var wrong []string
	for d := e.want ^ e.got; d != 0; d &= d - 1 {
		wrong = append(wrong, fmt.Sprint(bits.TrailingZeros32(d)))
	}
	return fmt.Sprintf("memory error at %s: want %08x, got %08x (bits %s), %s, SM %d", where, e.want, e.got, strings.Join(wrong, ","), kind, e.sm)
}

const (
	blocksPerSM = 4 // 16 warps of 4 independent chains: enough to fill the FMA pipes
	launchTime  = 50 * time.Millisecond
)

// compute runs chains of fma whose sum is known, on every multiprocessor at
// once, and compares the sum of every block.
func (w *worker) compute(k *cudaCard, m *monitor) error {
	w.logf("GPU %s: compute capability %s, %d multiprocessors", w.GPU, k.cc, k.sms)
	golden := chainSum(chainThreads, chainSteps)
	blocks := k.sms * blocksPerSM
	size := uint64(8 * blocks)
	out, err := k.alloc(size)
	if err != nil {
		return err
	}
	b := make([]byte, size)
	u := until{start: time.Now(), duration: w.Spec.Duration}
	reps := uint32(1)
	var flop float64
	var busy time.Duration
	wrong, launches := 0, 0
	sms := map[uint32]int{}
	for launches == 0 || !u.over() {
		if m.gone.Err() != nil {
			return nil // the monitor knows
		}
		if err := k.zero(out, size); err != nil {
			return err
		}
		start := time.Now()
		if err := k.launch("fma_chain", blocks, chainThreads, out, uint32(chainSteps), reps); err != nil {
			return err
		}
		took := time.Since(start)
		busy += took
		flop += 2 * float64(blocks) * chainThreads * chainChains * chainSteps * float64(reps)
		if err := k.read(b, out); err != nil {
			return err
		}
		for i := range blocks {
			sum, sm := le32(b[8*i:]), le32(b[8*i+4:])
			if want := golden * reps; sum != want {
				wrong++
				if sms[sm]++; sms[sm] <= 3 {
					w.logf("GPU %s: block %d on SM %d: sum %08x, want %08x", w.GPU, i, sm, sum, want)
				}
			}
		}
		launches++
		u.show(w, "compute")
		// Short launches at first: how fast the card is shows itself, and a
		// launch of seconds would look like a hang to the driver.
		if took < launchTime/2 && reps < 1<<24 {
			reps *= 2
		}
	}
	if err := k.free(out); err != nil {
		return err
	}
	w.res.Work, w.res.WorkUnit = flop/1e9, "GFLOP"
	f := burnin.Finding{Name: "wrong blocks", Value: float64(wrong), Limit: "= 0", Status: passIf(wrong == 0), Cause: burnin.CauseCompute}
	w.finding(f)
	if wrong > 0 {
		w.logf("GPU %s: wrong sums by multiprocessor: %v", w.GPU, sms)
	}
	w.finding(burnin.Finding{Name: throughput, Value: flop / busy.Seconds() / 1e9, Unit: "GFLOPS", Status: burnin.Pass})
	w.res.Reason = fmt.Sprintf("%d launches of %d blocks", launches, blocks)
	return nil
}

const throughput = "throughput"

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
