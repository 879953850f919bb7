package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/build"
	"smelt/images/disk"
	"smelt/internal/agent"
	"smelt/internal/api"
	"smelt/internal/initramfs"
	"smelt/inventory"
)

// need skips a test that cannot run here, unless skips are not allowed.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("needs %s", what)
}

// ramSystem is the kernel and initramfs that a machine boots.
type ramSystem struct{ kernel, initrd string }

// kernel fetches Debian's kernel, once for all runs.
func kernel(t *testing.T) build.KernelFiles {
	t.Helper()
	cache := os.Getenv("SMELT_TEST_CACHE")
	if cache == "" {
		cache = "../../.cache/kernel-test"
	}
	k, err := build.Kernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// buildRAM makes the RAM system from the working tree.
func buildRAM(t *testing.T, k build.KernelFiles, trust initramfs.Trust) ramSystem {
	t.Helper()
	dir := t.TempDir()
	agent := filepath.Join(dir, "smelt-agent")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "smelt/cmd/smelt-agent")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	initrd := filepath.Join(dir, "initrd")
	f, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = initramfs.Build(f, initramfs.Options{Modules: k.Modules, Release: k.Release, Agent: agent, Trust: trust})
	if err != nil {
		t.Fatal(err)
	}
	i, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs: %.1f MB in %v", float64(i.Size())/1e6, time.Since(start).Round(time.Millisecond))
	if i.Size() > 25e6 {
		t.Errorf("initramfs has %d bytes, want less than 25 MB", i.Size())
	}
	return ramSystem{k.Vmlinuz, initrd}
}

// wire is a network namespace with a bridge, one tap and dnsmasq as the DHCP
// server: none of our own code answers the machine's network questions.
type wire struct{ l net.Listener }

const (
	serverIP = "10.177.0.1"
	tap      = "agenttap0"
)

// newWire moves the calling goroutine's thread into a fresh namespace, for the
// rest of the test; what is started from it runs there.
func newWire(t *testing.T) *wire {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	must(netlink.LinkSetUp(lo))
	tt := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap}, Mode: netlink.TUNTAP_MODE_TAP}
	must(netlink.LinkAdd(tt))
	l, err := netlink.LinkByName(tap)
	must(err)
	a, err := netlink.ParseAddr(serverIP + "/24")
	must(err)
	must(netlink.AddrAdd(l, a))
	must(netlink.LinkSetUp(l))
	run(t, io.Discard, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface="+tap, "--bind-dynamic",
		"--dhcp-range=10.177.0.100,10.177.0.200,1h", "--dhcp-authoritative", "--leasefile-ro", "--no-ping", "--user=root", "--group=root", "--pid-file=")
	ln, err := net.Listen("tcp", serverIP+":0")
	must(err)
	return &wire{ln}
}

// run starts a program that ends with the test.
func run(t *testing.T, out io.Writer, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = out, out
	// Ends with this thread, too: a test that is killed leaves nothing behind.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// fakeServer speaks the agent API: it enrols anybody, records what it gets and
// hands out the orders it was given.
type fakeServer struct {
	t      *testing.T
	srv    *httptest.Server
	key    ed25519.PrivateKey
	node   inventory.NodeID
	nonce  string
	fence  uint64
	permit func(id string) int // status of a permit use, 0: none ever; nil: 200 once

	mu       sync.Mutex
	order    api.Order
	changed  chan struct{}
	enrols   []api.Enrol
	invs     []api.Inventory
	results  []api.Result
	progress []api.Progress
	used     map[string]bool
	chunks   []byte
	wake     chan struct{} // a fresh one after every event
}

func newFakeServer(t *testing.T, l net.Listener) *fakeServer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{
		t: t, key: key, node: "rig-01", nonce: "c0ffee", fence: 3,
		order: api.Order{ID: "0", Kind: api.OrderWait, Fence: 3},
		used:  map[string]bool{}, changed: make(chan struct{}), wake: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathEnrol, func(w http.ResponseWriter, r *http.Request) {
		var e api.Enrol
		if !decode(w, r, &e) {
			return
		}
		if e.Nonce != f.nonce {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		f.event(func() { f.enrols = append(f.enrols, e) })
		answer(w, api.Enrolled{Node: f.node, Mode: "inspect", Session: "s3ss10n", Expires: time.Now().Add(time.Hour), Fence: f.fence, Now: time.Now()})
	})
	auth := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer s3ss10n" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, r)
		}
	}
	mux.HandleFunc("GET "+api.PathTime, func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"now": time.Now()}) })
	mux.HandleFunc("GET "+api.PathOrder, auth(func(w http.ResponseWriter, r *http.Request) {
		deadline := time.After(5 * time.Second)
		for {
			f.mu.Lock()
			o, c := f.order, f.changed
			f.mu.Unlock()
			if q := r.URL.Query(); o.ID != q.Get("after") || o.Load.String() != q.Get("load") {
				answer(w, o)
				return
			}
			select {
			case <-c:
			case <-deadline:
				answer(w, o)
				return
			case <-r.Context().Done():
				return
			}
		}
	}))
	mux.HandleFunc("POST "+api.PathInventory, auth(func(w http.ResponseWriter, r *http.Request) {
		var v api.Inventory
		if decode(w, r, &v) {
			f.event(func() { f.invs = append(f.invs, v) })
		}
	}))
	mux.HandleFunc("POST "+api.PathProgress, auth(func(w http.ResponseWriter, r *http.Request) {
		var v api.Progress
		if decode(w, r, &v) {
			f.event(func() { f.progress = append(f.progress, v) })
		}
	}))
	mux.HandleFunc("POST "+api.PathResult, auth(func(w http.ResponseWriter, r *http.Request) {
		var v api.Result
		if decode(w, r, &v) {
			f.event(func() { f.results = append(f.results, v) })
		}
	}))
	mux.HandleFunc("POST "+api.PathPermit, auth(func(w http.ResponseWriter, r *http.Request) {
		var v api.PermitUse
		if !decode(w, r, &v) {
			return
		}
		code := http.StatusOK
		defer func() {
			if code == 0 {
				<-r.Context().Done()
			}
		}()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.permit != nil {
			code = f.permit(v.ID)
		} else if f.used[v.ID] {
			code = http.StatusConflict
		}
		f.used[v.ID] = true
		if code != 0 {
			w.WriteHeader(code)
		}
	}))
	mux.HandleFunc("GET "+api.PathChunks, auth(func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, _ = w.Write(f.chunks)
	}))
	mux.HandleFunc("PUT "+api.PathChunks, auth(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			f.event(func() { f.chunks = b })
		}
	}))
	f.srv = httptest.NewUnstartedServer(mux)
	if l != nil {
		_ = f.srv.Listener.Close()
		f.srv.Listener = l
	}
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.srv.StartTLS()
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fakeServer) event(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.wake)
	f.wake = make(chan struct{})
}

// give makes o the order of the machine.
func (f *fakeServer) give(o api.Order) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.order = o
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits for a condition on what was recorded.
func (f *fakeServer) until(what string, limit time.Duration, ok func() bool) {
	f.t.Helper()
	deadline := time.After(limit)
	for {
		f.mu.Lock()
		done, wake := ok(), f.wake
		f.mu.Unlock()
		if done {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			f.t.Fatalf("no %s within %v", what, limit)
		}
	}
}

func (f *fakeServer) pin() string { return spki(f.srv.Certificate()) }

func spki(c *x509.Certificate) string {
	d := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(d[:])
}

func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// console keeps the serial log of a machine and waits for lines in it.
type console struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	start time.Time
	marks map[string]time.Duration
}

func (c *console) follow(r io.Reader, marks ...string) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		c.mu.Lock()
		fmt.Fprintf(&c.buf, "%6.2f %s\n", time.Since(c.start).Seconds(), strings.TrimRight(s.Text(), "\r"))
		for _, m := range marks {
			if _, ok := c.marks[m]; !ok && strings.Contains(s.Text(), m) {
				c.marks[m] = time.Since(c.start)
			}
		}
		c.mu.Unlock()
	}
}

func (c *console) at(mark string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.marks[mark]
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// cpuSeconds is the processor time a program has used: it says how long
// something takes on a machine that does nothing else.
func cpuSeconds(t *testing.T, c *exec.Cmd) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	sys, err2 := strconv.Atoi(f[12])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return float64(user+sys) / 100
}

// boot starts a machine that loads the RAM system directly.
func boot(t *testing.T, ram ramSystem, cmdline string, args ...string) (*exec.Cmd, *console) {
	t.Helper()
	c := &console{start: time.Now(), marks: map[string]time.Duration{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	base := []string{
		"-accel", "tcg", "-machine", "q35", "-m", "512", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-monitor", "none",
		"-kernel", ram.kernel, "-initrd", ram.initrd,
		"-append", "console=ttyS0 quiet " + cmdline,
		"-netdev", "tap,id=n0,ifname=" + tap + ",script=no,downscript=no",
	}
	done := make(chan struct{})
	t.Cleanup(func() { // after the one of run, which ends the machine
		<-done
		if t.Failed() {
			t.Logf("console:\n%s", c)
		}
	})
	qemu := run(t, w, "qemu-system-x86_64", append(base, args...)...)
	_ = w.Close()
	go func() {
		defer close(done)
		c.follow(r, "level=INFO msg=smelt-agent", "msg=address", "msg=enrolled")
	}()
	return qemu, c
}

func TestRAMSystemInspects(t *testing.T) {
	need(t, os.Getenv("SMELT_TEST_E2E") == "1", "SMELT_TEST_E2E=1 (boots a machine)")
	need(t, os.Getuid() == 0, "root")
	k := kernel(t)
	w := newWire(t)
	f := newFakeServer(t, w.l)
	ram := buildRAM(t, k, initramfs.Trust{SiteKey: f.key.Public().(ed25519.PublicKey), Pin: f.pin()})

	disk := hiveDisk(t)
	before := sum(t, disk)
	qemu, con := boot(t, ram, "smelt.server="+f.srv.URL+" smelt.nonce=c0ffee smelt.mode=inspect BOOTIF=01-52-54-00-77-00-01",
		"-device", "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:01",
		"-drive", "id=d0,if=none,format=raw,file="+disk, "-device", "ide-hd,drive=d0,serial=OLD-RIG-1,bus=ide.0",
		"-device", "pcie-root-port,id=rp1,chassis=1,slot=7,x-speed=2_5,x-width=1", "-device", "secondary-vga,bus=rp1",
		"-device", "pcie-root-port,id=rp2,chassis=2,slot=9,x-speed=8,x-width=16",
		"-smbios", "type=1,manufacturer=Mining Inc.,product=Rig,serial=SYS-1", "-smbios", "type=2,manufacturer=BIOSTAR,product=TB250-BTC,serial=BRD-1",
	)
	f.until("enrolment", 60*time.Second, func() bool { return len(f.enrols) > 0 })
	cpu := cpuSeconds(t, qemu)
	t.Logf("power on to: agent %v, address %v, enrolled %v (%.1f s of processor time)", con.at("level=INFO msg=smelt-agent"), con.at("msg=address"), time.Since(con.start), cpu)
	if cpu > 15 {
		t.Errorf("%.1f s of processor time until enrolment, want 8 on a quiet machine", cpu)
	}
	f.until("inventory", 20*time.Second, func() bool { return len(f.invs) > 0 })

	h := f.invs[0].Hardware
	if h.Board.Serial != "BRD-1" || h.Board.SystemSerial != "SYS-1" || h.Board.Product != "TB250-BTC" {
		t.Errorf("board = %+v", h.Board)
	}
	if len(h.NICs) != 1 || h.NICs[0].MAC.String() != "52:54:00:77:00:01" || h.NICs[0].Driver != "virtio_net" || !h.NICs[0].Link {
		t.Errorf("nics = %+v", h.NICs)
	}
	if len(h.Disks) != 1 || h.Disks[0].Serial != "OLD-RIG-1" || h.Disks[0].Size != 64<<20 || h.Disks[0].Bus != "sata" || h.Disks[0].InUse {
		t.Errorf("disks = %+v", h.Disks)
	}
	if len(h.GPUs) != 1 || h.GPUs[0].Port == nil || h.GPUs[0].Port.Link.MaxWidth != 1 || h.GPUs[0].Port.Slot != "7" {
		t.Errorf("gpus = %+v", h.GPUs)
	}
	if h.Memory.Total < 400<<20 || len(h.Memory.DIMMs) != 1 || h.Memory.DIMMs[0].Size != 512<<20 {
		t.Errorf("memory = %+v", h.Memory)
	}
	if h.CPU.Threads != 1 || h.CPU.Cores != 1 || h.CPU.Model == "" || h.Firmware.UEFI {
		t.Errorf("cpu = %+v, firmware = %+v", h.CPU, h.Firmware)
	}
	if s := f.invs[0].Salvage; s == nil || s.WorkerName != "rig-north-17" || strings.Contains(fmt.Sprint(s), "hunter2") {
		t.Errorf("salvage = %+v", s)
	}

	// Rule 1: whatever it is told, an inspection boot writes no disk.
	f.give(api.Order{ID: "wipe-1", Kind: api.OrderWipe, Fence: 3, Wipe: &api.WipeOrder{Level: "metadata", Disks: []inventory.DiskID{h.Disks[0].DiskID}}})
	f.until("refusal", 20*time.Second, func() bool { return len(f.results) > 0 })
	if r := f.results[0]; r.OK || r.Cause != "permit" {
		t.Errorf("wipe in an inspection boot = %+v", r)
	}
	f.give(api.Order{ID: "off-1", Kind: api.OrderOff, Fence: 3})
	f.until("result of off", 20*time.Second, func() bool { return len(f.results) > 1 })
	if got := sum(t, disk); got != before {
		t.Error("the disk changed")
	}
	t.Log(con)
}

func sum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// hiveDisk makes a disk with a partition table and an ext4 that holds what
// HiveOS keeps there.
func hiveDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree", "hive-config")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"rig.conf":       "HIVE_HOST_URL=\"http://api.hiveos.farm\"\nRIG_ID=123456\nRIG_PASSWD=\"hunter2\"\nWORKER_NAME=\"rig-north-17\"\nFARM_HASH=deadbeefdeadbeefdeadbeef\n",
		"nvidia-oc.conf": "CLOCK=\"-200 -200\"\nMEM=\"2400 2400\"\nPLIMIT=\"220\"\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(dir, "disk.img")
	script := fmt.Sprintf(`set -e; truncate -s 64M %[1]s; echo '2048,,L' | sfdisk -q %[1]s; truncate -s 63M %[2]s/fs; mke2fs -q -t ext4 -d %[2]s/tree %[2]s/fs; dd if=%[2]s/fs of=%[1]s bs=1M seek=1 conv=notrunc status=none`, disk, dir)
	if out, err := exec.CommandContext(context.Background(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return disk
}

// store serves one image over plain HTTP, as an image store does.
type imageStore struct {
	manifest images.Manifest
	digest   images.Digest
	base     string
	raw      string // file of the disk image
	blob     []byte

	mu   sync.Mutex
	gate chan struct{} // while not nil, only the first pieces are served
	open int
}

// serveImage makes a disk image with a GPT whose last partition is an ext4, and
// serves it.
func serveImage(t *testing.T, l net.Listener, key ed25519.PrivateKey) *imageStore {
	t.Helper()
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	for _, d := range []string{"etc", "usr"} {
		if err := os.MkdirAll(filepath.Join(dir, "root", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	payload := make([]byte, 48<<20) // does not compress
	if _, err := rand.Read(payload); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"usr/payload": payload, "etc/hostname": []byte("image\n")} {
		if err := os.WriteFile(filepath.Join(dir, "root", name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const uuid = "5e1f0000-0000-4000-8000-000000000001"
	script := fmt.Sprintf(`set -e; cd %s; truncate -s 128M disk.raw
printf 'label: gpt\nstart=2048,size=2048,type=21686148-6449-6E6F-744E-656564454649\nstart=4096,type=L\n' | sfdisk -q disk.raw
truncate -s 125M fs; mke2fs -q -t ext4 -U %s -d root fs; dd if=fs of=disk.raw bs=1M seek=2 conv=notrunc status=none`, dir, uuid)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var blob bytes.Buffer
	m, err := images.Compress(t.Context(), &blob, f, 128<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Name, m.Arch, m.Created, m.Key, m.Root, m.Kernel = "test", "amd64", time.Now().UTC(), strings.Repeat("0", 64), uuid, "6.1.0"
	env, err := images.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	_, digest, err := images.Open(env, key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	s := &imageStore{manifest: m, digest: digest, base: "http://" + l.Addr().String(), raw: raw, blob: blob.Bytes(), gate: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /manifest/"+digest.String(), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(env) })
	mux.HandleFunc("GET /blob/"+m.Blob.String(), func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.open++
		n, gate := s.open, s.gate
		s.mu.Unlock()
		if gate != nil && n > 7 {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob.Bytes()))
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return s
}

func TestRAMSystemConverts(t *testing.T) {
	need(t, os.Getenv("SMELT_TEST_E2E") == "1", "SMELT_TEST_E2E=1 (boots a machine)")
	need(t, os.Getuid() == 0, "root")
	k := kernel(t)
	w := newWire(t)
	f := newFakeServer(t, w.l)
	il, err := net.Listen("tcp", serverIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	store := serveImage(t, il, f.key)
	ram := buildRAM(t, k, initramfs.Trust{SiteKey: f.key.Public().(ed25519.PublicKey), Pin: f.pin()})
	nvme, beside := hiveDisk(t), hiveDisk(t)
	if err := os.Truncate(nvme, 192<<20); err != nil {
		t.Fatal(err)
	}
	untouched := sum(t, beside)
	args := []string{
		"-device", "e1000e,netdev=n0,mac=52:54:00:77:00:02",
		"-drive", "id=d0,if=none,format=raw,cache=writeback,discard=unmap,file=" + nvme, "-device", "nvme,drive=d0,serial=NVME-1",
		"-drive", "id=d1,if=none,format=raw,file=" + beside, "-device", "virtio-blk-pci,drive=d1,serial=OTHER-1",
	}
	cmdline := "smelt.server=" + f.srv.URL + " smelt.nonce=c0ffee smelt.mode=convert BOOTIF=01-52-54-00-77-00-02"

	qemu, _ := boot(t, ram, cmdline, args...)
	f.until("inventory", 90*time.Second, func() bool { return len(f.invs) > 0 })
	var target inventory.DiskID
	for _, d := range f.invs[0].Hardware.Disks {
		if d.Serial == "NVME-1" {
			target = d.DiskID
		}
	}
	if target.Size != 192<<20 {
		t.Fatalf("disks = %+v", f.invs[0].Hardware.Disks)
	}
	o, p := f.wipeOrder("wipe-1", target)
	o.Wipe.Level = "discard"
	if r := f.resultIn(f.sign(o, p, f.key), time.Minute); !r.OK || r.Wiped[0].Level != "discard" {
		t.Fatalf("wipe = %+v", r)
	}
	imageOrder := func(id string) api.Order {
		p := inventory.Permit{ID: "permit-" + id, Node: f.node, Agent: agent.Fingerprint(f.agentKey()), Action: "image", Disks: []inventory.DiskID{target},
			Plan: "plan-1", Image: store.digest.String(), Fence: f.fence, Issued: time.Now(), NotAfter: time.Now().Add(5 * time.Minute)}
		return f.sign(api.Order{ID: id, Kind: api.OrderImage, Fence: f.fence, Image: &api.ImageOrder{
			Manifest: store.digest.String(), Base: store.base, Target: target,
			Handoff: api.Handoff{Node: f.node, Server: f.srv.URL, Pin: f.pin(), SiteKey: f.key.Public().(ed25519.PublicKey), Session: "h4nd0ff", Expires: time.Now().Add(time.Hour), Image: store.digest.String(), Fence: f.fence},
		}}, p, f.key)
	}
	// The power goes while the image is being written.
	f.give(imageOrder("image-1"))
	f.until("first chunks", time.Minute, func() bool {
		var m disk.Map
		if m.UnmarshalBinary(f.chunks) != nil {
			return false
		}
		for i, c := range store.manifest.Chunks {
			if !c.Zero && m.Has(i) {
				return true
			}
		}
		return false
	})
	if err := qemu.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = qemu.Wait()
	head := make([]byte, 1<<20)
	readAt(t, nvme, head, 0)
	if !images.IsZero(head) {
		t.Error("a disk that is half written has a partition table")
	}

	store.mu.Lock()
	close(store.gate)
	store.gate = nil
	store.mu.Unlock()
	f.give(api.Order{ID: "0", Kind: api.OrderWait, Fence: f.fence})
	f.mu.Lock()
	f.invs = nil
	f.mu.Unlock()
	// From here on what the machine does to its disk is recorded.
	before, record := nvme+".before", nvme+".log"
	if out, err := exec.Command("cp", "--sparse=always", nvme, before).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args[3] = "id=d0,if=none,driver=blklogwrites,log-sector-size=512,discard=unmap,file.driver=file,file.filename=" + nvme + ",log.driver=file,log.filename=" + record
	qemu, con := boot(t, ram, cmdline, args...)
	f.until("inventory of the second boot", 90*time.Second, func() bool { return len(f.invs) > 0 })
	r := f.resultIn(imageOrder("image-2"), 2*time.Minute)
	if !r.OK || r.Evidence["reused"] == "0" || r.Evidence["reused"] == "" {
		t.Fatalf("image = %+v\n%s", r, con)
	}
	t.Logf("image: %v", r.Evidence)
	f.give(api.Order{ID: "off-1", Kind: api.OrderOff, Fence: f.fence})
	exited := make(chan error, 1)
	go func() { exited <- qemu.Wait() }()
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("machine ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the machine does not power off")
	}

	if sum(t, beside) != untouched {
		t.Error("the disk beside it was written")
	}
	got := map[string]string{}
	for _, name := range []string{"/var/lib/smelt/agent.json", "/etc/hostname"} {
		out, err := exec.Command("debugfs", "-R", "cat "+name, nvme+"?offset=2097152").Output()
		if err != nil {
			t.Fatal(err)
		}
		got[name] = string(out)
	}
	var h agent.Handed
	if err := json.Unmarshal([]byte(got["/var/lib/smelt/agent.json"]), &h); err != nil || h.Session != "h4nd0ff" || h.Node != f.node || h.Base != store.base {
		t.Errorf("handoff = %q, %v", got["/var/lib/smelt/agent.json"], err)
	}
	if got["/etc/hostname"] != "rig-01\n" {
		t.Errorf("hostname = %q", got["/etc/hostname"])
	}
	out, err := exec.Command("sh", "-c", "dumpe2fs -h '"+nvme+"?offset=2097152' 2>/dev/null | grep -E 'Block count|Filesystem state'; sfdisk --verify "+nvme+"; e2fsck -fn '"+nvme+"?offset=2097152'").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "state:         clean") {
		t.Errorf("file system: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	cutAnywhere(t, before, record, store, 100)
}

func readAt(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
}
