package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"smelt/burnin"
	"smelt/inventory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record keeps what a check says.
type record struct {
	mu       sync.Mutex
	series   map[string]int
	progress float64
}

func (r *record) Sample(series, unit string, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.series == nil {
		r.series = map[string]int{}
	}
	r.series[series]++
}

func (r *record) Progress(done float64, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = max(r.progress, done)
}

func spec(id string, d time.Duration, limits map[string]float64) burnin.Spec {
	return burnin.Spec{ID: id, Required: true, Duration: d, Deadline: time.Minute, Limits: limits}
}

func finding(r burnin.Result, name string) burnin.Finding {
	i := slices.IndexFunc(r.Findings, func(f burnin.Finding) bool { return f.Name == name })
	if i < 0 {
		return burnin.Finding{}
	}
	return r.Findings[i]
}

func TestBlockIsDeterministic(t *testing.T) {
	for range 3 {
		if got := block(); got != golden {
			t.Fatalf("block() = %#x, want %#x", got, uint64(golden))
		}
	}
}

func TestCPU(t *testing.T) {
	var rec record
	var s burnin.Subject
	s.Hardware.CPU.Threads = 1
	r := CPU{}.Run(t.Context(), spec("cpu", 300*time.Millisecond, nil), s, &rec)
	if r.Status != burnin.Pass || r.Work < 1 || r.Took < 300*time.Millisecond {
		t.Errorf("result = %+v", r)
	}
	// Inspection found more processors than can be used: some are dead.
	s.Hardware.CPU.Threads = 4096
	r = CPU{}.Run(t.Context(), spec("cpu", 0, nil), s, &rec)
	if r.Status != burnin.Fail || finding(r, "logical processors tested").Cause != burnin.CauseCPU {
		t.Errorf("result = %+v", r)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if r := (CPU{}).Run(stopped, spec("cpu", time.Second, nil), burnin.Subject{}, &rec); r.Status != burnin.Error {
		t.Errorf("stopped: %v (%s), want error", r.Status, r.Reason)
	}
}

func TestMemory(t *testing.T) {
	var rec record
	r := Memory{}.Run(t.Context(), spec("memory", 0, map[string]float64{"share": 0.001}), burnin.Subject{}, &rec)
	if r.Status != burnin.Pass || r.Work < region || rec.series["memory test"] == 0 {
		t.Errorf("result = %+v", r)
	}
	if r := (Memory{}).Run(t.Context(), spec("memory", 0, map[string]float64{"share": 7}), burnin.Subject{}, &rec); r.Status != burnin.Error {
		t.Errorf("share 7: %v, want error", r.Status)
	}
}

// One flipped bit is found in every pattern, at its place.
func TestMemoryFindsFlips(t *testing.T) {
	a := make([]uint64, 1<<16)
	for pass := range uint64(8) {
		fill(a, pass, 3)
		if bad := verify(a, pass, 3); bad != nil {
			t.Fatalf("pass %d: %v without a fault", pass, bad)
		}
		a[4711] ^= 1 << 17
		if bad := verify(a, pass, 3); len(bad) != 1 || bad[0].want^bad[0].got != 1<<17 {
			t.Errorf("pass %d: %v, want one flipped bit", pass, bad)
		}
		// A stuck address line makes two words the same cell: whatever is
		// written last is read at both.
		fill(a, 0, 3)
		a[100] = a[100|1<<12]
		if bad := verify(a, 0, 3); len(bad) != 1 {
			t.Errorf("aliased words: %v, want one", bad)
		}
	}
}

func TestDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "scratch")
	var rec record
	r := Disk{}.Run(t.Context(), spec("disk", 0, map[string]float64{"bytes": 4 << 20, "minMBps": 0.001}), burnin.Subject{Scratch: dir}, &rec)
	if r.Status != burnin.Pass || r.Work != 4<<20 || rec.series["disk write"] == 0 || rec.series["disk read"] == 0 {
		t.Errorf("result = %+v", r)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	r = Disk{}.Run(t.Context(), spec("disk", 0, map[string]float64{"bytes": 4 << 20, "minMBps": 1e9}), burnin.Subject{Scratch: dir}, &rec)
	if r.Status != burnin.Fail || finding(r, "write speed").Cause != burnin.CauseDiskSlow {
		t.Errorf("slow disk: %+v", r)
	}
	if r := (Disk{}).Run(t.Context(), spec("disk", 0, nil), burnin.Subject{}, &rec); r.Status != burnin.Error {
		t.Errorf("no scratch: %v, want error", r.Status)
	}
}

// A disk that is full, or lies in RAM, proves nothing.
func TestDiskInRAM(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		skip(t, "cannot mount: "+err.Error())
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	r := Disk{}.Run(t.Context(), spec("disk", 0, map[string]float64{"bytes": 1 << 20}), burnin.Subject{Scratch: dir}, &record{})
	// Newer kernels take O_DIRECT on tmpfs; then at least the size is bounded.
	if r.Status == burnin.Pass && r.Work > 4<<20 {
		t.Errorf("result = %+v", r)
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func TestNetwork(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if asked%5 == 0 {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprint(w, "now")
	}))
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	fetch := func(context.Context, int) (int64, error) {
		time.Sleep(time.Millisecond) // no network is infinitely fast
		return 1 << 20, nil
	}
	s := burnin.Subject{Server: srv.URL}
	var rec record
	n := Network{Client: srv.Client(), Fetch: fetch}

	r := n.Run(t.Context(), spec("network", 50*time.Millisecond, map[string]float64{"minMbps": 1, "maxLoss": 0.5}), s, &rec)
	if r.Status != burnin.Pass || r.Work < 1<<20 || finding(r, "share of questions without an answer").Value != 0.2 {
		t.Errorf("result = %+v", r)
	}
	r = n.Run(t.Context(), spec("network", 0, map[string]float64{"minMbps": 1}), s, &rec)
	if r.Status != burnin.Fail {
		t.Errorf("a fifth of the answers is lost: %v (%s), want fail", r.Status, r.Reason)
	}
	n.Fetch = func(context.Context, int) (int64, error) { return 0, errors.New("other contents") }
	r = n.Run(t.Context(), spec("network", 0, map[string]float64{"maxLoss": 1}), s, &rec)
	if r.Status != burnin.Fail || finding(r, "pieces that came damaged or not at all").Value == 0 {
		t.Errorf("damaged pieces: %+v", r)
	}
	n.Fetch = nil
	if r := n.Run(t.Context(), spec("network", 0, nil), s, &rec); r.Status != burnin.Error {
		t.Errorf("nothing to fetch: %v, want error", r.Status)
	}
}

// bus makes a tree of PCI functions as sysfs has it.
type bus struct{ root string }

func (b bus) function(t *testing.T, addr, vendor, device string, files map[string]string) {
	t.Helper()
	dir := filepath.Join(b.root, "bus/pci/devices", addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var cfg [64]byte
	var v, d uint16
	fmt.Sscanf(vendor, "%x", &v)
	fmt.Sscanf(device, "%x", &d)
	binary.LittleEndian.PutUint16(cfg[:], v)
	binary.LittleEndian.PutUint16(cfg[2:], d)
	b.file(t, addr, "config", string(cfg[:]))
	for name, text := range files {
		b.file(t, addr, name, text)
	}
}

func (b bus) file(t *testing.T, addr, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.root, "bus/pci/devices", addr, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(maxWidth, curWidth int) map[string]string {
	return map[string]string{
		"max_link_width": fmt.Sprintln(maxWidth), "current_link_width": fmt.Sprintln(curWidth),
		"max_link_speed": "8.0 GT/s PCIe\n", "current_link_speed": "2.5 GT/s PCIe\n",
		"aer_dev_correctable": "RxErr 0\nTOTAL_ERR_COR 3\n", "aer_dev_fatal": "TOTAL_ERR_FATAL 0\n", "aer_dev_nonfatal": "TOTAL_ERR_NONFATAL 0\n",
	}
}

func TestPCIe(t *testing.T) {
	gpu := inventory.GPU{PCI: inventory.PCI{Address: "0000:01:00.0", Vendor: "10de", Device: "2204", Port: &inventory.Port{Address: "0000:00:01.0", Slot: "4"}}}
	for _, tc := range []struct {
		name      string
		port, dev map[string]string
		min       int
		change    func(t *testing.T, b bus)
		want      burnin.Status
		cause     string
	}{
		{"whole", link(16, 16), link(16, 16), 8, nil, burnin.Pass, ""},
		{"x1 slot, class wants 8", link(1, 1), link(16, 1), 8, nil, burnin.Fail, burnin.CauseLinkWidth},
		{"x1 slot, class takes it", link(1, 1), link(16, 1), 1, nil, burnin.Pass, ""},
		{"x1 riser in an x16 slot", link(16, 1), link(16, 1), 1, nil, burnin.Fail, burnin.CauseLinkWidth},
		{"old errors", link(16, 16), link(16, 16), 8, nil, burnin.Pass, ""},
		{"another card", link(16, 16), link(16, 16), 8, func(t *testing.T, b bus) { b.function(t, "0000:01:00.0", "10de", "1b80", nil) }, burnin.Fail, burnin.CauseGPULost},
		{"fell off the bus", link(16, 16), link(16, 16), 8, func(t *testing.T, b bus) { b.file(t, "0000:01:00.0", "config", strings.Repeat("\xff", 64)) }, burnin.Fail, burnin.CauseGPULost},
		{"gone", link(16, 16), link(16, 16), 8, func(t *testing.T, b bus) {
			if err := os.RemoveAll(filepath.Join(b.root, "bus/pci/devices/0000:01:00.0")); err != nil {
				t.Fatal(err)
			}
		}, burnin.Fail, burnin.CauseGPULost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bus{t.TempDir()}
			b.function(t, "0000:00:01.0", "8086", "1901", tc.port)
			b.function(t, "0000:01:00.0", "10de", "2204", tc.dev)
			if tc.change != nil {
				tc.change(t, b)
			}
			s := burnin.Subject{Class: burnin.ClassLimits{MinLinkWidth: tc.min}}
			s.Hardware.GPUs = []inventory.GPU{gpu}
			r := PCIe{Sys: b.root}.Run(t.Context(), spec("pcie", 0, nil), s, &record{})
			if r.Status != tc.want {
				t.Fatalf("status = %v (%s), want %v\n%+v", r.Status, r.Reason, tc.want, r.Findings)
			}
			for _, f := range r.Findings {
				if f.Status == burnin.Fail && (f.Cause != tc.cause || f.Where != "4" || f.Item != "GPU 0000:01:00.0") {
					t.Errorf("finding = %+v, want cause %s at slot 4", f, tc.cause)
				}
			}
		})
	}
}

// Errors that come while the check runs count; the recorder is where this test
// gets in between.
func TestPCIeCountsNewErrors(t *testing.T) {
	b := bus{t.TempDir()}
	b.function(t, "0000:00:01.0", "8086", "1901", link(16, 16))
	b.function(t, "0000:01:00.0", "10de", "2204", link(16, 16))
	var s burnin.Subject
	s.Hardware.GPUs = []inventory.GPU{{PCI: inventory.PCI{Address: "0000:01:00.0", Vendor: "10de", Device: "2204", Port: &inventory.Port{Address: "0000:00:01.0"}}}}
	rec := onProgress(func() { b.file(t, "0000:00:01.0", "aer_dev_correctable", "TOTAL_ERR_COR 503\n") })
	r := PCIe{Sys: b.root}.Run(t.Context(), spec("pcie", 0, nil), s, rec)
	if f := finding(r, "corrected link errors at 0000:00:01.0"); r.Status != burnin.Fail || f.Value != 500 || f.Cause != burnin.CausePCIeErrors {
		t.Errorf("result = %+v", r)
	}
}

type onProgress func()

func (onProgress) Sample(string, string, float64) {}
func (f onProgress) Progress(_ float64, _ string) { f() }

func TestThermal(t *testing.T) {
	sys := t.TempDir()
	r := Thermal{Sys: sys}.Run(t.Context(), spec("thermal", 0, nil), burnin.Subject{}, &record{})
	if r.Status != burnin.Skip || r.Reason == "" {
		t.Errorf("no sensor: %v (%s), want skip with a reason", r.Status, r.Reason)
	}
	dir := filepath.Join(sys, "class/hwmon/hwmon0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("name", "coretemp\n")
	write("temp1_label", "Package id 0\n")
	write("temp1_input", "54000\n")
	write("temp2_input", "127000\n") // not wired
	r = Thermal{Sys: sys}.Run(t.Context(), spec("thermal", 0, nil), burnin.Subject{}, &record{})
	if r.Status != burnin.Pass || r.Work != 1 || len(r.Findings) != 1 || r.Findings[0].Item != "hwmon0 coretemp Package id 0" {
		t.Errorf("cool: %+v", r)
	}
	write("temp1_input", "97000\n")
	r = Thermal{Sys: sys}.Run(t.Context(), spec("thermal", 0, nil), burnin.Subject{}, &record{})
	if r.Status != burnin.Fail || r.Findings[0].Cause != burnin.CauseHot {
		t.Errorf("hot: %+v", r)
	}
}

func TestAllAreKnown(t *testing.T) {
	for _, c := range All(Network{}) {
		if !burnin.KnownCheck(c.ID()) {
			t.Errorf("burnin does not know the check %q", c.ID())
		}
	}
}
