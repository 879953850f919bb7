package gpu

import (
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
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"go.uber.org/goleak"

	"smelt/burnin"
	"smelt/inventory"
)

// The test binary is its own worker, and the child that dies.
const envRole = "SMELT_GPU_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "worker":
		if err := Work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "limit":
		if err := Limit(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "unguarded":
		// What the guards are for.
		if ret := nvml.New(nvml.WithLibraryPath("/nonexistent/libnvidia-ml.so.1")).Init(); ret != nvml.ERROR_LIBRARY_NOT_FOUND {
			os.Exit(9)
		}
		v, _ := nvml.SystemGetDriverVersion()
		fmt.Println("survived", v)
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "simlib-")
	if err != nil {
		panic(err)
	}
	simDir = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

var simDir string

// library builds one of the simulated libraries and returns its path.
func buildLibrary(t *testing.T, source string, flags ...string) string {
	t.Helper()
	soname := map[string]string{"nvml.c": nvmlName, "cuda.c": cudaName}[source]
	dir := filepath.Join(simDir, strings.Join(append([]string{source}, flags...), "_"))
	path := filepath.Join(dir, soname)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-soname," + soname, "-o", path}, flags...)
	args = append(args, filepath.Join("simlib", source), "-lm")
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %v: %v\n%s", args, err, out)
	}
	return path
}

// useSim points the supervisor at freshly built simulated libraries.
func useSim(t *testing.T, flags ...string) {
	t.Helper()
	t.Setenv(EnvNVML, buildLibrary(t, "nvml.c", flags...))
	t.Setenv(EnvCUDA, buildLibrary(t, "cuda.c"))
}

// rig is a lab node with one simulated card for each fault.
func rig(t *testing.T, check string, faults ...string) (Supervisor, burnin.Request) {
	t.Helper()
	t.Setenv(envRole, "worker")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sys := t.TempDir()
	req := burnin.Request{
		Spec:    burnin.Spec{ID: check, Required: true, Duration: 500 * time.Millisecond, Deadline: 30 * time.Second},
		Subject: burnin.Subject{Node: "rig-1", Sim: &burnin.Simulation{}},
	}
	for i, f := range faults {
		g := inventory.GPU{
			PCI:   inventory.PCI{Address: fmt.Sprintf("0000:%02x:00.0", i+1), Class: "030000", Vendor: "1234", Device: "1111"},
			Model: "NVIDIA GeForce RTX 3090", UUID: fmt.Sprintf("GPU-%d", i), VRAM: 24 << 30, Slot: fmt.Sprint(i + 1), Simulated: true,
		}
		if err := os.MkdirAll(filepath.Join(sys, "bus/pci/devices", g.Address), 0o755); err != nil {
			t.Fatal(err)
		}
		req.Subject.Hardware.GPUs = append(req.Subject.Hardware.GPUs, g)
		req.Subject.Sim.GPUs = append(req.Subject.Sim.GPUs, burnin.SimGPU{PCI: g.Address, Model: g.Model, UUID: g.UUID, VRAM: g.VRAM, Fault: f})
	}
	return Supervisor{Worker: []string{self}, Sysfs: sys}, req
}

type ran struct {
	burnin.Result
	series   map[string][]float64
	progress []float64
}

func runCheck(t *testing.T, s Supervisor, req burnin.Request) ran {
	t.Helper()
	in, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Run(t.Context(), bytes.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	got := ran{series: map[string][]float64{}}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines {
		var l burnin.Line
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		switch {
		case l.Sample != nil:
			got.series[l.Sample.Series] = append(got.series[l.Sample.Series], l.Sample.Value)
		case l.Progress != nil:
			got.progress = append(got.progress, l.Progress.Done)
		case l.Result != nil:
			if i != len(lines)-1 {
				t.Fatal("a result that is not the last line")
			}
			got.Result = *l.Result
		}
	}
	if got.ID != req.Spec.ID {
		t.Fatalf("result is of %q: %s", got.ID, out.String())
	}
	if got.Took <= 0 {
		t.Error("it took no time")
	}
	return got
}

// judge makes the verdict of a lab run of this check alone.
func judge(req burnin.Request, res burnin.Result) burnin.Verdict {
	hw := req.Subject.Hardware
	return burnin.Judge(burnin.Report{
		Node: req.Subject.Node, Image: "image", Hardware: hw, HWDigest: hw.Digest(), Lab: true,
		Profile: burnin.Profile{Name: "test", Checks: []burnin.Spec{req.Spec}}, Results: []burnin.Result{res},
	})
}

func TestSimulatedCards(t *testing.T) {
	const all = "gpu-presence gpu-vram gpu-compute"
	tests := []struct {
		checks, fault string
		want          burnin.Answer
		repair        string
		log           []string
	}{
		{all, "", burnin.PASS, "", nil},
		{"gpu-presence", "lost", burnin.PASS, "", nil}, // it is lost under load only
		{"gpu-vram gpu-compute", "lost", burnin.REPAIR, "Reseat GPU RTX 3090 in slot 2: it fell off the bus under load (simulated)", []string{"the card is lost"}},
		{"gpu-compute", "vanish", burnin.REPAIR, "Reseat GPU RTX 3090 in slot 2: it fell off the bus under load (simulated)", []string{"does not return"}},
		{"gpu-vram", "vram", burnin.REPAIR, "Replace GPU RTX 3090 in slot 2: its memory returned wrong data (memory errors", nil},
		{"gpu-compute", "compute", burnin.REPAIR, "Replace GPU RTX 3090 in slot 2: it computed wrong results (wrong blocks", []string{"on SM 1: sum"}},
		{"gpu-vram gpu-compute", "hot", burnin.REPAIR, "Check fans and heat sink of GPU RTX 3090 in slot 2: it gets too hot (temperature", nil},
		{"gpu-vram gpu-compute", "crash", burnin.INCONCLUSIVE, "", []string{"the worker died: exit status 2", "SIGSEGV"}},
	}
	useSim(t)
	for _, tt := range tests {
		for check := range strings.FieldsSeq(tt.checks) {
			t.Run(check+"/"+tt.fault, func(t *testing.T) {
				s, req := rig(t, check, "", tt.fault)
				if tt.fault == "hot" {
					req.Spec.Duration = 1700 * time.Millisecond
				}
				got := runCheck(t, s, req)
				if !got.Simulated {
					t.Error("not labelled simulated")
				}
				v := judge(req, got.Result)
				if v.Answer != tt.want || !v.Simulated {
					t.Errorf("%s (simulated %v), want %s: %q\n%s", v.Answer, v.Simulated, tt.want, v.Reasons, strings.Join(got.Log, "\n"))
				}
				var repairs []string
				for _, r := range v.Repairs {
					repairs = append(repairs, r.String())
				}
				if tt.repair == "" && len(repairs) > 0 || tt.repair != "" && (len(repairs) == 0 || !strings.HasPrefix(repairs[0], tt.repair)) {
					t.Errorf("repairs %q", repairs)
				}
				for _, r := range repairs {
					if strings.Contains(r, "slot 1") {
						t.Errorf("the good card is blamed: %s", r)
					}
				}
				for _, l := range tt.log {
					if !strings.Contains(strings.Join(got.Log, "\n"), l) {
						t.Errorf("the log lacks %q:\n%s", l, strings.Join(got.Log, "\n"))
					}
				}
				// On a site that is no lab the same run proves nothing.
				r := burnin.Report{Node: "rig-1", Image: "i", Hardware: req.Subject.Hardware, HWDigest: req.Subject.Hardware.Digest(), Profile: burnin.Profile{Checks: []burnin.Spec{req.Spec}}, Results: []burnin.Result{got.Result}}
				if v := burnin.Judge(r); v.Answer != burnin.INCONCLUSIVE {
					t.Errorf("not in a lab: %s", v.Answer)
				}
				if check == burnin.GPUPresence {
					return
				}
				for _, name := range []string{"temperature", "power", "SM clock", "memory clock"} {
					if n := len(got.series["GPU 0000:01:00.0 "+name]); n < 2 {
						t.Errorf("%d samples of %s in %s", n, name, got.Took)
					}
				}
				if len(got.progress) == 0 || got.progress[len(got.progress)-1] > 1 {
					t.Errorf("progress %v", got.progress)
				}
			})
		}
	}
}

// TestVRAMErrorsExact: the simulated card has three stuck bits; each is found
// at its address with its bit, and no other.
func TestVRAMErrorsExact(t *testing.T) {
	useSim(t)
	s, req := rig(t, burnin.GPUVRAM, "vram")
	req.Spec.Duration = 0 // one pass
	got := runCheck(t, s, req)
	const size = 0x740000 // 0.9 of 8 MiB in grains of 64 KiB
	want := []string{
		fmt.Sprintf("offset 0x%x: ", size/4), "(bits 5)",
		fmt.Sprintf("offset 0x%x: ", size/2+8), "(bits 13)",
		fmt.Sprintf("offset 0x%x: ", size/4*3+12), "(bits 31)",
	}
	var errs []string
	for _, l := range got.Log {
		if strings.HasPrefix(l, "memory error") {
			errs = append(errs, l)
		}
	}
	slices.Sort(errs)
	if len(errs) != 3 {
		t.Fatalf("%d errors in the log, want 3:\n%s", len(errs), strings.Join(got.Log, "\n"))
	}
	for _, w := range want {
		if !strings.Contains(strings.Join(errs, "\n"), w) {
			t.Errorf("no error says %q:\n%s", w, strings.Join(errs, "\n"))
		}
	}
	i := slices.IndexFunc(got.Findings, func(f burnin.Finding) bool { return f.Name == "memory errors" })
	if i < 0 || got.Findings[i].Value != 3 || got.Findings[i].Status != burnin.Fail {
		t.Errorf("findings %+v", got.Findings)
	}
	if got.Work != 5*size/1e9 {
		t.Errorf("work %v GB", got.Work)
	}
}

func TestHangingWorker(t *testing.T) {
	useSim(t)
	s, req := rig(t, burnin.GPUCompute, "", "hang")
	req.Spec.Duration, req.Spec.Deadline = 200*time.Millisecond, 3*time.Second
	got := runCheck(t, s, req)
	if got.Status != burnin.Error || !strings.Contains(got.Reason, "GPU 0000:02:00.0: the worker did not finish before its deadline") {
		t.Errorf("%s: %s", got.Status, got.Reason)
	}
	if got.Took >= req.Spec.Deadline {
		t.Errorf("took %s of %s", got.Took, req.Spec.Deadline)
	}
	if v := judge(req, got.Result); v.Answer != burnin.INCONCLUSIVE {
		t.Errorf("%s: %q", v.Answer, v.Reasons)
	}
	if !got.Simulated {
		t.Error("not labelled simulated")
	}
}

func TestStopped(t *testing.T) {
	useSim(t)
	s, req := rig(t, burnin.GPUCompute, "hang")
	in, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := &notify{line: make(chan struct{})}
	go func() {
		<-out.line // the worker is at work
		cancel()
	}()
	start := time.Now()
	if err := s.Run(ctx, bytes.NewReader(in), out); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s to stop", took)
	}
	if !strings.Contains(out.String(), `"status":"error"`) || !strings.Contains(out.String(), "stopped") {
		t.Error(out.String())
	}
}

type notify struct {
	bytes.Buffer
	line chan struct{}
	done bool
}

func (n *notify) Write(p []byte) (int, error) {
	if !n.done {
		n.done = true
		close(n.line)
	}
	return n.Buffer.Write(p)
}

// TestUnguarded shows what go-nvml does to a process that calls it after a
// failed Init: the reason for workers and for library.
func TestUnguarded(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envRole+"=unguarded")
	out, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != exitUndefinedSymbol || !strings.Contains(string(out), "symbol lookup error") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBadWorkers(t *testing.T) {
	useSim(t)
	for _, tt := range []struct {
		name   string
		worker []string
		want   string
	}{
		{"exit 127", []string{"sh", "-c", "echo 'symbol lookup error: undefined symbol: nvmlX' >&2; exit 127"}, "lacks a function that was called (exit 127)"},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, "signal: killed"},
		{"says nothing", []string{"true"}, "without a result"},
		{"says nonsense", []string{"echo", "hello"}, "not of the protocol"},
		{"endless line", []string{"sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"}, "reading from the worker"},
		{"does not exist", []string{"/nonexistent/smelt-gpu"}, "cannot start a worker"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, req := rig(t, burnin.GPUCompute, "")
			s.Worker = tt.worker
			got := runCheck(t, s, req)
			if got.Status != burnin.Error || !strings.Contains(got.Reason, tt.want) || !got.Simulated {
				t.Errorf("%s: %s", got.Status, got.Reason)
			}
			if v := judge(req, got.Result); v.Answer != burnin.INCONCLUSIVE {
				t.Errorf("%s: %q", v.Answer, v.Reasons)
			}
		})
	}
}

func TestLibraries(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		t.Setenv(EnvNVML, "/nonexistent/libnvidia-ml.so.1")
		s, req := rig(t, burnin.GPUPresence, "")
		got := runCheck(t, s, req)
		if got.Status != burnin.Error || !strings.Contains(got.Reason, "cannot load /nonexistent") {
			t.Errorf("%s: %s", got.Status, got.Reason)
		}
	})
	t.Run("lacks what we need", func(t *testing.T) {
		// Any library will do that is no NVML.
		t.Setenv(EnvNVML, buildLibrary(t, "cuda.c"))
		s, req := rig(t, burnin.GPUPresence, "")
		got := runCheck(t, s, req)
		if got.Status != burnin.Error || !strings.Contains(got.Reason, "lacks nvmlInit_v2") {
			t.Errorf("%s: %s", got.Status, got.Reason)
		}
	})
	t.Run("old driver", func(t *testing.T) {
		// Calls that it lacks are left out instead of ending the worker.
		useSim(t, "-DSIM_OLD_DRIVER")
		s, req := rig(t, burnin.GPUCompute, "")
		req.Spec.Limits = map[string]float64{"maxCelsius": 80}
		got := runCheck(t, s, req)
		if got.Status != burnin.Pass {
			t.Errorf("%s: %s", got.Status, got.Reason)
		}
		if len(got.series["GPU 0000:01:00.0 power"]) > 0 || len(got.series["GPU 0000:01:00.0 temperature"]) == 0 {
			t.Errorf("series %v", got.series)
		}
		if i := slices.IndexFunc(got.Findings, func(f burnin.Finding) bool { return f.Name == "temperature" && f.Limit == "<= 80" }); i < 0 {
			t.Errorf("no temperature with the profile's limit: %+v", got.Findings)
		}
	})
	t.Run("real where a simulation was asked for", func(t *testing.T) {
		for _, flag := range []string{"nvml.c", "cuda.c"} {
			useSim(t)
			env := map[string]string{"nvml.c": EnvNVML, "cuda.c": EnvCUDA}[flag]
			t.Setenv(env, buildLibrary(t, flag, "-DSIM_UNLABELLED"))
			s, req := rig(t, burnin.GPUCompute, "")
			got := runCheck(t, s, req)
			if got.Status != burnin.Error || !strings.Contains(got.Reason, "not both simulated") || !got.Simulated {
				t.Errorf("%s real: %s: %s", flag, got.Status, got.Reason)
			}
		}
	})
	t.Run("simulated where none was asked for", func(t *testing.T) {
		for _, fault := range []string{"", "crash"} {
			useSim(t)
			s, req := rig(t, burnin.GPUCompute, fault)
			cards := filepath.Join(t.TempDir(), "cards")
			if err := writeCards(cards, *req.Subject.Sim); err != nil {
				t.Fatal(err)
			}
			t.Setenv(envCards, cards)
			req.Subject.Sim = nil
			req.Subject.Hardware.GPUs[0].Vendor = "10de"
			req.Subject.Hardware.GPUs[0].Simulated = false
			got := runCheck(t, s, req)
			if !got.Simulated {
				t.Errorf("fault %q: %s, and not labelled simulated", fault, got.Status)
			}
		}
	})
	t.Run("one simulated, none asked for", func(t *testing.T) {
		useSim(t)
		t.Setenv(EnvCUDA, buildLibrary(t, "cuda.c", "-DSIM_UNLABELLED"))
		s, req := rig(t, burnin.GPUCompute, "")
		cards := filepath.Join(t.TempDir(), "cards")
		if err := writeCards(cards, *req.Subject.Sim); err != nil {
			t.Fatal(err)
		}
		t.Setenv(envCards, cards)
		req.Subject.Sim = nil
		req.Subject.Hardware.GPUs[0].Vendor = "10de"
		if got := runCheck(t, s, req); !got.Simulated {
			t.Errorf("%s, and not labelled simulated", got.Status)
		}
	})
}

func TestPresence(t *testing.T) {
	useSim(t)
	for _, tt := range []struct {
		name   string
		change func(*Supervisor, *burnin.Request)
		cause  string
		item   string
	}{
		{"not on the bus", func(s *Supervisor, _ *burnin.Request) {
			os.Remove(filepath.Join(s.Sysfs, "bus/pci/devices/0000:02:00.0"))
		}, burnin.CauseGPUMissing, "GPU 0000:02:00.0"},
		{"not known to the driver", func(_ *Supervisor, r *burnin.Request) {
			r.Subject.Hardware.GPUs[1].Vendor = "10de"
			r.Subject.Sim.GPUs = r.Subject.Sim.GPUs[:1]
		}, burnin.CauseGPUMissing, "GPU 0000:02:00.0"},
		{"another model", func(_ *Supervisor, r *burnin.Request) { r.Subject.Sim.GPUs[1].Model = "NVIDIA GeForce GTX 1060 6GB" }, burnin.CauseGPUMismatch, "GPU 0000:02:00.0"},
		{"another card", func(_ *Supervisor, r *burnin.Request) { r.Subject.Sim.GPUs[1].UUID = "GPU-x" }, burnin.CauseGPUMismatch, "GPU 0000:02:00.0"},
		{"less memory", func(_ *Supervisor, r *burnin.Request) { r.Subject.Sim.GPUs[1].VRAM = 12 << 30 }, burnin.CauseGPUMismatch, "GPU 0000:02:00.0"},
		{"one more", func(_ *Supervisor, r *burnin.Request) {
			r.Subject.Sim.GPUs = append(r.Subject.Sim.GPUs, burnin.SimGPU{PCI: "0000:09:00.0", Model: "x", UUID: "y", VRAM: 1 << 30})
		}, burnin.CauseGPUMismatch, "GPU 0000:09:00.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, req := rig(t, burnin.GPUPresence, "", "")
			tt.change(&s, &req)
			got := runCheck(t, s, req)
			if got.Status != burnin.Fail {
				t.Fatalf("%s: %s", got.Status, got.Reason)
			}
			for _, f := range got.Findings {
				if (f.Status == burnin.Fail) != (f.Item == tt.item && f.Cause == tt.cause) {
					t.Errorf("finding %+v", f)
				}
			}
		})
	}
}

func TestNoCards(t *testing.T) {
	s, req := rig(t, burnin.GPUCompute)
	got := runCheck(t, s, req)
	if got.Status != burnin.Error {
		t.Errorf("%s: %s", got.Status, got.Reason)
	}
	req.Spec.ID = "gpu-magic"
	if got := runCheck(t, s, req); got.Status != burnin.Error {
		t.Errorf("%s: %s", got.Status, got.Reason)
	}
}

func TestBadRequests(t *testing.T) {
	s := Supervisor{Worker: []string{"true"}}
	for name, in := range map[string]string{
		"empty": "", "no JSON": "hello", "unknown field": `{"spec":{"id":"gpu-vram","deadline":"1s","reps":3},"subject":{}}`,
		"too large": strings.Repeat(" ", maxRequest+1),
	} {
		if err := s.Run(t.Context(), strings.NewReader(in), io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	err := writeCards(filepath.Join(t.TempDir(), "cards"), burnin.Simulation{GPUs: []burnin.SimGPU{{PCI: "0000:01:00.0", Model: "a|b"}}})
	if err == nil {
		t.Error("a model that breaks the file was written")
	}
}

// TestOrphan: a worker whose supervisor is gone ends by itself, also when its
// card hangs.
func TestOrphan(t *testing.T) {
	useSim(t)
	s, req := rig(t, burnin.GPUCompute, "hang")
	cards := filepath.Join(t.TempDir(), "cards")
	if err := writeCards(cards, *req.Subject.Sim); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(job{Request: req, GPU: "0000:01:00.0", NVML: os.Getenv(EnvNVML), CUDA: os.Getenv(EnvCUDA), Sysfs: s.Sysfs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Worker[0])
	cmd.Env = append(os.Environ(), envCards+"="+cards)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	var ee *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != exitOrphan {
		t.Errorf("ended with %v", err)
	}
}

// TestDeadlines: no profile may kill a worker that only does as it is told.
func TestDeadlines(t *testing.T) {
	for name, p := range burnin.Profiles() {
		for _, s := range p.Checks {
			worker, margin := limits(s)
			const cards, startup = 16, 5 * time.Second
			if need := s.Duration + cards*stagger(s) + startup; worker < need || worker+margin > s.Deadline {
				t.Errorf("%s %s: a worker gets %s and needs %s", name, s.ID, worker, need)
			}
		}
	}
}

func TestMerge(t *testing.T) {
	card := func(addr, model string) inventory.GPU {
		return inventory.GPU{PCI: inventory.PCI{Address: addr, Vendor: "10de", Device: "2204"}, Model: model}
	}
	cards := []inventory.GPU{card("0000:01:00.0", "RTX 3090"), card("0000:02:00.0", "RTX 3090"), card("0000:03:00.0", "GTX 1060")}
	speed := func(addr string, v float64) burnin.Result {
		return burnin.Result{ID: burnin.GPUCompute, Status: burnin.Pass, Work: 1, WorkUnit: "TFLOP", Findings: []burnin.Finding{{Item: "GPU " + addr, Name: throughput, Value: v, Unit: "GFLOPS", Status: burnin.Pass}}}
	}
	spec := burnin.Spec{ID: burnin.GPUCompute, Limits: map[string]float64{"minEfficiency": 0.9}}

	t.Run("slow card", func(t *testing.T) {
		got := merge(spec, cards, []burnin.Result{speed("0000:01:00.0", 30000), speed("0000:02:00.0", 20000), speed("0000:03:00.0", 4000)})
		if got.Status != burnin.Fail || got.Findings[1].Cause != burnin.CauseSlow || got.Findings[0].Status != burnin.Pass || got.Findings[2].Status != burnin.Pass {
			t.Errorf("%+v", got)
		}
		if got.Work != 3 {
			t.Errorf("work %v", got.Work)
		}
	})
	t.Run("equal cards", func(t *testing.T) {
		got := merge(spec, cards, []burnin.Result{speed("0000:01:00.0", 30000), speed("0000:02:00.0", 29000), speed("0000:03:00.0", 4000)})
		if got.Status != burnin.Pass {
			t.Errorf("%+v", got)
		}
	})
	driver := func(addr string) burnin.Result {
		return burnin.Result{ID: burnin.GPUCompute, Status: burnin.Error, Findings: []burnin.Finding{{Item: "GPU " + addr, Name: "driver error", Value: 700, Status: burnin.Error}}}
	}
	t.Run("error of one card is its fault", func(t *testing.T) {
		got := merge(spec, cards[:2], []burnin.Result{speed("0000:01:00.0", 30000), driver("0000:02:00.0")})
		if got.Status != burnin.Fail || got.Findings[1].Status != burnin.Fail {
			t.Errorf("%+v", got)
		}
	})
	t.Run("error of every card is ours", func(t *testing.T) {
		got := merge(spec, cards[:2], []burnin.Result{driver("0000:01:00.0"), driver("0000:02:00.0")})
		if got.Status != burnin.Error {
			t.Errorf("%+v", got)
		}
	})
}
