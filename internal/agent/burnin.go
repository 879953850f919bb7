package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"smelt/burnin"
	"smelt/burnin/check"
	"smelt/internal/api"
)

// burnin runs the checks of a profile, one after the other, and returns what
// they found. It judges nothing: the server does.
func (a *Agent) burnin(ctx context.Context, o api.Order) api.Result {
	if a.c.Mode != Installed {
		return failed("other", fmt.Errorf("burn-in runs in the installed system, this is mode %s", a.c.Mode))
	}
	w := o.Burnin
	if w == nil {
		return failed("other", errors.New("the order carries no profile"))
	}
	subject := w.Subject
	checks := map[string]burnin.Check{}
	for _, c := range check.All(check.Network{Client: a.client.http, Fetch: a.fetcher(ctx)}) {
		checks[c.ID()] = c
	}
	hw := a.c.System.Hardware()
	rep := burnin.Report{
		ID: w.Report, Node: subject.Node, Profile: w.Profile, Hardware: hw, HWDigest: hw.Digest(),
		Image: a.c.Handoff.Image, Kernel: oneLine("/proc/sys/kernel/osrelease"), Driver: oneLine("/sys/module/nvidia/version"),
		Agent: a.c.Version, Started: time.Now().UTC(), Lab: w.Lab,
	}
	rep, resumed := a.resume(rep)
	if resumed {
		a.log.Info("burn-in goes on", "report", rep.ID, "checks", len(rep.Results))
	}
	job := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clock := newRunClock(w.Profile.Limit, cancel)
	defer clock.stop()
	rec := newRecorder(rep.Started)
	rec.restore(rep.Series)
	for ctx.Err() == nil && len(rep.Results) < len(w.Profile.Checks) {
		i := len(rep.Results)
		spec := w.Profile.Checks[i]
		rec.begin(spec.ID, func(done float64, doing string) {
			a.progress(o, (float64(i)+done)/float64(len(w.Profile.Checks)), spec.ID+": "+doing, 0)
		})
		if l, _ := a.load.get(); holds(l, spec.ID) {
			clock.stop()
			rep.Series = rec.series()
			a.keep(rep)
			rec.Progress(0, "held for want of power")
			a.await(job, spec.ID)
			if job.Err() != nil {
				break // a machine that is switched off while it waits keeps what passed
			}
			a.forget()
			clock.start()
		}
		rec.Progress(0, "starting")
		res, whole := a.undisturbed(ctx, checks[spec.ID], spec, subject, rec)
		if !whole {
			rec.drop(spec.ID)
			continue
		}
		a.log.Info("check", "id", spec.ID, "status", res.Status.String(), "reason", res.Reason, "took", res.Took.Round(time.Millisecond))
		rep.Results = append(rep.Results, res)
	}
	// What did not run is missing from the report, and counts as such.
	rep.Finished = time.Now().UTC()
	rep.Series = rec.series()
	if err := job.Err(); errors.Is(err, context.Canceled) {
		return failed("other", err)
	}
	return api.Result{OK: true, Report: &rep}
}

// await returns once a check may begin.
func (a *Agent) await(ctx context.Context, check string) {
	for {
		l, changed := a.load.get()
		if !holds(l, check) {
			return
		}
		a.log.Info("burn-in is held for want of power", "check", check, "load", l.String())
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// undisturbed runs one check. whole is false when the load made it end: then it
// is done again.
func (a *Agent) undisturbed(ctx context.Context, c burnin.Check, spec burnin.Spec, s burnin.Subject, rec *recorder) (res burnin.Result, whole bool) {
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		res = a.check(run, c, spec, s, rec)
	}()
	for {
		l, changed := a.load.get()
		if cuts(l, spec.ID) {
			cancel()
			<-done
			return res, false
		}
		select {
		case <-done:
			return res, true
		case <-changed:
		}
	}
}

// check runs one check and survives it: past its deadline, or when it panics,
// the result is Error.
func (a *Agent) check(ctx context.Context, c burnin.Check, spec burnin.Spec, s burnin.Subject, rec *recorder) burnin.Result {
	if spec.Deadline <= 0 {
		spec.Deadline = spec.Duration + time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, spec.Deadline)
	defer cancel()
	start := time.Now()
	done := make(chan burnin.Result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- burnin.Result{Status: burnin.Error, Reason: fmt.Sprintf("the check panicked: %v", p)}
			}
		}()
		switch {
		case c != nil:
			done <- c.Run(ctx, spec, s, rec)
		case strings.HasPrefix(spec.ID, "gpu-"):
			done <- a.helper(ctx, spec, s, rec)
		default:
			done <- burnin.Result{Status: burnin.Error, Reason: "this agent has no check of that name"}
		}
	}()
	var res burnin.Result
	select {
	case res = <-done:
	case <-ctx.Done():
		// A check that hears the end of its context has a moment to say so; one
		// that hangs in the kernel is left behind.
		select {
		case res = <-done:
		case <-time.After(10 * time.Second):
			res = burnin.Result{Status: burnin.Error, Reason: fmt.Sprintf("no end %v after its deadline of %v", 10*time.Second, spec.Deadline)}
		}
	}
	res.ID = spec.ID
	if res.Started.IsZero() {
		res.Started = start.UTC()
	}
	if res.Took == 0 {
		res.Took = time.Since(start)
	}
	return res
}

// helper runs a GPU check in smelt-gpu, which may crash with the driver.
func (a *Agent) helper(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec *recorder) burnin.Result {
	fail := func(format string, args ...any) burnin.Result {
		return burnin.Result{ID: spec.ID, Status: burnin.Error, Reason: fmt.Sprintf(format, args...)}
	}
	in, err := json.Marshal(burnin.Request{Spec: spec, Subject: s})
	if err != nil {
		return fail("request: %v", err)
	}
	c := exec.CommandContext(ctx, a.c.GPUHelper, "run")
	var stderr bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(in), &limited{buf: &stderr}
	// Its workers go with it. The signal comes with the death of the thread that
	// started it, so that the thread is kept: others end, with what was pinned to
	// a processor.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	out, err := c.StdoutPipe()
	if err != nil {
		return fail("%v", err)
	}
	if err := c.Start(); err != nil {
		return fail("the GPU helper does not start: %v", err)
	}
	var res *burnin.Result
	var broken error
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		var l burnin.Line
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			broken = err // loses one sample; a broken result is no result
			continue
		}
		switch {
		case l.Sample != nil:
			rec.Sample(l.Sample.Series, l.Sample.Unit, l.Sample.Value)
		case l.Progress != nil:
			rec.Progress(l.Progress.Done, l.Progress.Doing)
		case l.Result != nil:
			res = l.Result
		}
	}
	err = errors.Join(sc.Err(), c.Wait())
	switch {
	case res != nil && res.ID == spec.ID && err == nil:
		return *res
	case ctx.Err() != nil:
		return fail("stopped at its deadline")
	case res != nil && err == nil:
		return fail("the GPU helper answered for %q", res.ID)
	}
	r := fail("the GPU helper ended without a result: %v", errors.Join(err, broken))
	if stderr.Len() > 0 {
		r.Log = strings.Split(strings.TrimSpace(stderr.String()), "\n")
	}
	return r
}

// limited keeps the first 4 KiB.
type limited struct{ buf *bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	if room := 4<<10 - l.buf.Len(); room > 0 {
		l.buf.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// recorder keeps the samples of a run. It thins out a series that gets long,
// so that a day of burn-in is no larger than an hour.
type recorder struct {
	start time.Time

	mu       sync.Mutex
	check    string
	progress func(float64, string)
	byName   map[string]*thinned
	order    []string
}

type thinned struct {
	burnin.Series
	every, skipped int
}

const (
	maxPoints   = 2000 // of one series
	maxRecorded = 500  // series
)

func newRecorder(start time.Time) *recorder {
	return &recorder{start: start, byName: map[string]*thinned{}}
}

func (r *recorder) begin(check string, progress func(float64, string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check, r.progress = check, progress
}

// Sample implements burnin.Recorder.
func (r *recorder) Sample(series, unit string, v float64) {
	t := time.Since(r.start).Seconds()
	r.mu.Lock()
	defer r.mu.Unlock()
	key := r.check + "\x00" + series
	s := r.byName[key]
	if s == nil {
		if len(r.order) == maxRecorded {
			return
		}
		s = &thinned{Series: burnin.Series{Name: series, Unit: unit, Check: r.check}, every: 1}
		r.byName[key], r.order = s, append(r.order, key)
	}
	if s.skipped++; s.skipped < s.every {
		return
	}
	s.skipped = 0
	s.T, s.V = append(s.T, t), append(s.V, v)
	if len(s.T) > maxPoints {
		n := 0
		for i := 0; i < len(s.T); i += 2 {
			s.T[n], s.V[n] = s.T[i], s.V[i]
			n++
		}
		s.T, s.V, s.every = s.T[:n], s.V[:n], 2*s.every
	}
}

// Progress implements burnin.Recorder.
func (r *recorder) Progress(done float64, doing string) {
	r.mu.Lock()
	f := r.progress
	r.mu.Unlock()
	if f != nil {
		f(min(max(done, 0), 1), doing)
	}
}

// restore takes over what was sampled before a run was held.
func (r *recorder) restore(list []burnin.Series) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range list {
		if len(r.order) == maxRecorded {
			return
		}
		key := s.Check + "\x00" + s.Name
		r.byName[key], r.order = &thinned{Series: s, every: 1}, append(r.order, key)
	}
}

// drop forgets the samples of a check that is done again.
func (r *recorder) drop(check string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = slices.DeleteFunc(r.order, func(key string) bool {
		gone := r.byName[key].Check == check
		if gone {
			delete(r.byName, key)
		}
		return gone
	})
}

func (r *recorder) series() []burnin.Series {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []burnin.Series
	for _, k := range r.order {
		out = append(out, r.byName[k].Series)
	}
	return out
}

func oneLine(path string) string {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return ""
	}
	l, _, _ := strings.Cut(string(b), "\n")
	return l
}

// fetcher returns how the network check gets bytes that can be verified: a
// chunk of the image this machine runs from, by its manifest. Nil when the
// image store is not known.
func (a *Agent) fetcher(ctx context.Context) func(context.Context, int) (int64, error) {
	if a.c.ImageBase == "" {
		return nil
	}
	f, err := newChunks(ctx, &http.Client{}, a.c.ImageBase, a.c.Handoff.Image, a.c.Images)
	if err != nil {
		a.log.Warn("network check without an image", "err", err)
		return nil
	}
	return f
}
