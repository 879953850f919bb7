package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"smelt/images/build"
	"smelt/internal/initramfs"
	"smelt/internal/uki"
)

// hall is a whole site in a network namespace: smelt serve as it is installed,
// and a wire for one machine.
type hall struct {
	t       *testing.T
	dir, ns string
	cache   string // folder for what can be made again
	serve   *exec.Cmd
	log     *watch
}

const hallSite = `apiVersion: smelt/v1
site: e2e
lab: true
state: %s
listen: {boot: "10.78.0.1:80", agent: "10.78.0.1:8443", ui: "127.0.0.1:8480"}
networks:
  - {name: provisioning, interface: br0, address: 10.78.0.1/16, pool: 10.78.200.1-10.78.200.50}
classes: []
`

// needs reports what a test cannot do without, and skips or fails.
func needs(t *testing.T, files ...string) {
	t.Helper()
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("boots machines in QEMU: set SMELT_TEST_E2E=1")
	}
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			missing = f
		}
	}
	switch {
	case missing == "":
	case os.Getenv("SMELT_TEST_NO_SKIP") == "1":
		t.Fatalf("needs %s", missing)
	default:
		t.Skipf("needs %s", missing)
	}
}

func newHall(t *testing.T) *hall {
	t.Helper()
	needs(t, "/usr/bin/qemu-system-x86_64", "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "/usr/lib/ipxe/snponly.efi")
	// The namespace has no way to Debian's mirror.
	if _, err := build.Kernel(t.Context(), cache()); err != nil {
		t.Fatal(err)
	}
	if _, err := build.Loaders(t.Context(), cache()); err != nil {
		t.Fatal(err)
	}
	h := &hall{t: t, cache: cache(), dir: t.TempDir(), ns: fmt.Sprintf("smelt-e2e-%d", os.Getpid())}
	h.run("go", "build", "-o", h.path("smelt"), ".")
	h.run("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", h.path("smelt-agent"), "smelt/cmd/smelt-agent")
	h.write(h.path("site.yaml"), fmt.Appendf(nil, hallSite, h.path("state")))
	h.run("ip", "netns", "add", h.ns)
	t.Cleanup(func() {
		h.down()
		h.run("ip", "netns", "del", h.ns)
	})
	for _, line := range []string{
		"link set lo up", "link add br0 type bridge", "addr add 10.78.0.1/16 dev br0", "link set br0 up",
		"tuntap add tap0 mode tap", "link set tap0 master br0 up",
	} {
		h.run("ip", append([]string{"-n", h.ns}, strings.Fields(line)...)...)
	}
	return h
}

// sub runs a part of the test, which then is what fails.
func (h *hall) sub(name string, f func(t *testing.T)) {
	whole := h.t
	defer func() { h.t = whole }()
	whole.Run(name, func(t *testing.T) {
		h.t = t
		f(t)
	})
}

func (h *hall) path(name string) string { return filepath.Join(h.dir, name) }

func (h *hall) write(path string, b []byte) {
	h.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) read(path string) []byte {
	h.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// run runs a program to its end.
func (h *hall) run(name string, args ...string) string {
	h.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// smelt runs the command as an operator does on the server.
func (h *hall) smelt(args ...string) string {
	h.t.Helper()
	return h.run("ip", append([]string{"netns", "exec", h.ns, h.path("smelt"), "--site", h.path("site.yaml"), "--token-file", h.path("state/operator.token")}, args...)...)
}

// start runs a program in the namespace, to be ended with the test.
func (h *hall) start(out *watch, name string, args ...string) *exec.Cmd {
	h.t.Helper()
	c := exec.Command("ip", append([]string{"netns", "exec", h.ns, name}, args...)...)
	// PDEATHSIG goes by the thread that forked, which so lives as long as the test.
	runtime.LockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// cache is where Debian's kernel is kept between runs.
func cache() string {
	if c := os.Getenv("SMELT_TEST_CACHE"); c != "" {
		return c
	}
	return "../../.cache/kernel-test"
}

// up starts smelt serve.
func (h *hall) up() {
	h.t.Helper()
	h.log = newWatch()
	h.serve = h.start(h.log, h.path("smelt"), "serve", "--site", h.path("site.yaml"), "--cache", h.cache)
	h.log.wait(h.t, 3*time.Minute, "pages at ") // a kernel may have to be fetched
	h.log.wait(h.t, 10*time.Second, "network boot on ")
}

// down ends it, as systemd would.
func (h *hall) down() {
	if h.serve == nil {
		return
	}
	_ = h.serve.Process.Signal(syscall.SIGTERM)
	_ = h.serve.Wait()
	h.serve = nil
}

// machine is one that is on.
type machine struct {
	*watch
	cmd *exec.Cmd
}

// power switches a machine on, until the end of the test, that knows UEFI HTTP
// boot only, with Secure Boot and the keys in vars.
func (h *hall) power(t *testing.T, vars []byte, more ...string) machine {
	t.Helper()
	return h.powerPXE(t, vars, append(more, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")...) // HTTP at once
}

// powerPXE is power for firmware that boots by PXE.
func (h *hall) powerPXE(t *testing.T, vars []byte, more ...string) machine {
	t.Helper()
	h.write(h.path("vars.fd"), vars)
	args := []string{
		"-accel", "tcg", "-m", "1024", "-nographic", "-no-reboot", "-smbios", "type=1,serial=E2E-1",
		"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + h.path("vars.fd"),
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n0,bootindex=1,romfile=,mac=52:54:00:78:00:01",
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
	}
	m := machine{watch: newWatch()}
	m.cmd = h.start(m.watch, "qemu-system-x86_64", append(args, more...)...)
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	})
	return m
}

// wait returns the time until mark was on the console, and how much of it the
// machine worked: the second tells less about who else works on this computer.
func (m machine) wait(t *testing.T, limit time.Duration, mark string) (wall, cpu time.Duration) {
	t.Helper()
	wall = m.watch.wait(t, limit, mark)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ")
	for _, f := range strings.Fields(fields)[11:13] { // utime, stime (proc(5))
		ticks, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		cpu += time.Duration(ticks) * time.Second / 100
	}
	return wall, cpu
}

// off switches it off, as a power cut would.
func (m machine) off() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// end waits until the machine switched itself off.
func (m machine) end(t *testing.T, limit time.Duration) {
	t.Helper()
	timeout := time.AfterFunc(limit, func() { _ = m.cmd.Process.Kill() })
	if err := m.cmd.Wait(); err != nil || !timeout.Stop() {
		t.Fatalf("it did not switch itself off: %v:\n%s", err, m.text())
	}
}

// never wants that none of the marks was on the console, nor soon will be.
func (m machine) never(t *testing.T, marks ...string) {
	t.Helper()
	time.Sleep(3 * time.Second) // nothing tells when something did not happen
	for _, mark := range marks {
		if strings.Contains(m.text(), mark) {
			t.Errorf("%q on the console:\n%s", mark, m.text())
		}
	}
}

// watch keeps what is written and waits for parts of it.
type watch struct {
	start time.Time
	mu    sync.Mutex
	b     bytes.Buffer
	more  chan struct{}
}

func newWatch() *watch { return &watch{start: time.Now(), more: make(chan struct{})} }

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	close(w.more)
	w.more = make(chan struct{})
	return len(p), nil
}

func (w *watch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// wait returns the time until mark was written.
func (w *watch) wait(t *testing.T, limit time.Duration, mark string) time.Duration {
	t.Helper()
	end := time.After(limit)
	for {
		w.mu.Lock()
		text, more := w.b.String(), w.more
		w.mu.Unlock()
		if strings.Contains(text, mark) {
			return time.Since(w.start)
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("no %q within %s:\n%s", mark, limit, text)
		}
	}
}

// enrol boots a machine in setup mode whose system takes what smelt secureboot
// export wrote, and returns the machine's variables.
func (h *hall) enrol(t *testing.T) []byte {
	t.Helper()
	h.smelt("secureboot", "export", h.path("enrol"))
	h.run("env", "CGO_ENABLED=0", "go", "build", "-o", h.path("init"), "./testdata/enrol")
	kernel, err := build.Kernel(t.Context(), cache())
	if err != nil {
		t.Fatal(err)
	}
	var initrd bytes.Buffer
	w := cpio.Newc.Writer(&initrd)
	records := []cpio.Record{cpio.CharDev("dev/console", 0o600, 5, 1)}
	for name, path := range map[string]string{
		"init": h.path("init"), "efivarfs.ko": filepath.Join(kernel.Modules, "kernel/fs/efivarfs/efivarfs.ko"),
		"db.auth": h.path("enrol/db.auth"), "KEK.auth": h.path("enrol/KEK.auth"), "PK.auth": h.path("enrol/PK.auth"),
	} {
		records = append(records, cpio.StaticFile(name, string(h.read(path)), 0o755))
	}
	if err := cpio.WriteRecords(w, append([]cpio.Record{cpio.Directory("dev", 0o755)}, records...)); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	program, err := uki.Build(uki.Parts{
		Stub: h.read(uki.Stub), OSRelease: "ID=test\n", CmdLine: "console=ttyS0 panic=-1", Release: kernel.Release,
		Initrd: initrd.Bytes(), Kernel: h.read(kernel.Vmlinuz),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.disk(program)
	// With PXE, so that it comes first in the boot order that is kept as well.
	m := h.powerPXE(t, h.read("/usr/share/OVMF/OVMF_VARS_4M.fd"), h.diskFlags(0)...)
	m.wait(t, 3*time.Minute, "ENROL <nil>")
	m.end(t, time.Minute)
	return h.read(h.path("vars.fd"))
}

// TestSecureBoot boots a machine by UEFI HTTP with Secure Boot and the site's
// key: the RAM system runs and enrols, what was changed on the way does not, and
// a machine that is nobody's business any more starts its own disk.
func TestSecureBoot(t *testing.T) {
	h := newHall(t)
	h.up()
	key, err := secureBootKey(h.path("state"), "e2e")
	if err != nil {
		t.Fatal(err)
	}
	var vars []byte // of a machine that has the site's key
	h.sub("enrolment", func(t *testing.T) { vars = h.enrol(t) })
	if vars == nil {
		return
	}
	program, err := filepath.Glob(h.path("state/boot/smelt-*.efi"))
	if err != nil || len(program) != 1 {
		t.Fatalf("%q, %v: want one UKI", program, err)
	}
	whole := h.read(program[0])
	const node = "new-525400780001"

	h.sub("the site's key", func(t *testing.T) {
		m := h.power(t, vars)
		for _, mark := range []struct{ text, means string }{
			{">>Start HTTP Boot", "firmware starts"},
			{"URI: http://10.78.0.1/boot/file/smelt.efi", "it has an address and a URL"},
			{"BdsDxe: loading Boot", fmt.Sprintf("it has the UKI of %.1f MB", float64(len(whole))/1e6)},
			{"BdsDxe: starting Boot", "the signature is verified"},
			{"msg=smelt-agent", "the agent runs"},
			{"msg=orders action=kernel", "the agent has its orders"},
			{"msg=enrolled node=" + node, "the agent is enrolled"},
		} {
			wall, cpu := m.wait(t, 3*time.Minute, mark.text)
			t.Logf("%6.1f s, %6.1f s of CPU: %s", wall.Seconds(), cpu.Seconds(), mark.means)
		}
		h.smelt("node", "show", node)
	})
	h.sub("the site's key, by PXE", func(t *testing.T) {
		// snponly runs, is refused Debian's kernel, and goes on to the UKI.
		m := h.powerPXE(t, vars)
		m.wait(t, 3*time.Minute, "| kernel: node "+node)
		m.wait(t, 3*time.Minute, "msg=orders action=kernel")
	})
	h.sub("one bit flipped", func(t *testing.T) {
		bad := slices.Clone(whole)
		bad[len(bad)/3] ^= 1 // in the initrd, which shim and GRUB would not look at
		h.write(program[0], bad)
		h.refused(t, vars)
	})
	h.sub("the next loader", func(t *testing.T) {
		// The ladder goes on: to shim, of which this firmware knows no key, then
		// to iPXE, which is signed too and runs its script.
		m := h.power(t, vars)
		m.wait(t, 3*time.Minute, "URI: http://10.78.0.1/boot/file/shimx64.efi")
		m.wait(t, time.Minute, "Access Denied")
		m.off()
		m = h.power(t, vars)
		m.wait(t, 3*time.Minute, "| kernel: node "+node)
		m.never(t, "msg=smelt-agent")
	})
	h.down()
	h.write(program[0], unsigned(t, whole))
	h.up()
	h.sub("unsigned", func(t *testing.T) { h.refused(t, vars) })

	h.smelt("node", "reject", node, "--reason", "e2e")
	for name, sign := range map[string]func([]byte) ([]byte, error){
		"its own disk":           key.Sign,
		"its own disk, unsigned": func(b []byte) ([]byte, error) { return b, nil },
	} {
		h.sub(name, func(t *testing.T) {
			const mark = "LOCAL-DISK-OK"
			loader, err := sign(h.loader(mark))
			if err != nil {
				t.Fatal(err)
			}
			h.disk(loader)
			m := h.power(t, vars, h.diskFlags(2)...)
			m.wait(t, 3*time.Minute, "URI: http://10.78.0.1/boot/file/local.efi")
			if name == "its own disk" {
				m.wait(t, time.Minute, mark)
				return
			}
			m.wait(t, time.Minute, "cannot load image")
			m.wait(t, time.Minute, "BdsDxe: loading Boot0000") // it goes on by itself: no prompt
			m.never(t, mark)
		})
	}
}

// TestVendorKeys boots a machine with Secure Boot that knows the keys of vendors
// only: it refuses the UKI, and its next start is given shim and GRUB, by which
// it comes to the RAM system.
func TestVendorKeys(t *testing.T) {
	h := newHall(t)
	h.up()
	vars := h.read("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	h.sub("the UKI is refused", func(t *testing.T) { h.refused(t, vars) })
	h.sub("shim and GRUB", func(t *testing.T) {
		m := h.power(t, vars)
		for _, mark := range []struct{ text, means string }{
			{"URI: http://10.78.0.1/boot/file/shimx64.efi", "it has an address and a URL"},
			{"| kernel: node new-525400780001", "GRUB has its configuration"},
			{"msg=smelt-agent", "the agent runs"},
			{"msg=enrolled node=new-525400780001", "the agent is enrolled"},
		} {
			wall, cpu := m.wait(t, 5*time.Minute, mark.text)
			t.Logf("%6.1f s, %6.1f s of CPU: %s", wall.Seconds(), cpu.Seconds(), mark.means)
		}
	})
}

// refused boots a machine whose firmware must not start what it loads.
func (h *hall) refused(t *testing.T, vars []byte) {
	t.Helper()
	m := h.power(t, vars)
	m.wait(t, 3*time.Minute, "URI: http://10.78.0.1/boot/file/smelt.efi")
	m.wait(t, time.Minute, "Access Denied")
	m.never(t, "BdsDxe: starting Boot", "EFI stub", "Linux version", "msg=smelt-agent")
}

// unsigned is an EFI program without its signatures, as before Key.Sign.
func unsigned(t *testing.T, program []byte) []byte {
	t.Helper()
	b := slices.Clone(program)
	directory := int(binary.LittleEndian.Uint32(b[0x3c:])) + 24 + 144
	table := binary.LittleEndian.Uint32(b[directory:])
	if table == 0 {
		t.Fatal("it was not signed")
	}
	clear(b[directory : directory+8])
	return b[:table]
}

// loader is an EFI program that says mark.
func (h *hall) loader(mark string) []byte {
	h.t.Helper()
	h.write(h.path("loader.cfg"), []byte("echo "+mark+"; echo; sleep 60\n"))
	h.run("grub-mkimage", "-O", "x86_64-efi", "--disable-shim-lock", "-p", "/", "-c", h.path("loader.cfg"), "-o", h.path("loader.efi"), "echo", "sleep")
	return h.read(h.path("loader.efi"))
}

// disk makes a disk that starts an EFI program.
func (h *hall) disk(program []byte) {
	h.t.Helper()
	h.write(h.path("BOOTX64.EFI"), program)
	h.write(h.path("disk.img"), make([]byte, 40<<20))
	h.run("mformat", "-i", h.path("disk.img"), "-F", "::")
	h.run("mmd", "-i", h.path("disk.img"), "::/EFI", "::/EFI/BOOT")
	h.run("mcopy", "-i", h.path("disk.img"), h.path("BOOTX64.EFI"), "::/EFI/BOOT/BOOTX64.EFI")
}

// diskFlags put that disk into the machine, before or after the network card in
// the order that firmware tries.
func (h *hall) diskFlags(index int) []string {
	return []string{"-drive", "format=raw,if=none,id=d0,file=" + h.path("disk.img"), "-device", fmt.Sprintf("virtio-blk-pci,drive=d0,bootindex=%d", index)}
}

// TestOtherNetwork: the first card that gets an address is on a network that
// does not lead to us, which only its question can tell. It waits, and asks
// through the next card.
func TestOtherNetwork(t *testing.T) {
	h := newHall(t)
	needs(t, "/usr/sbin/dnsmasq")
	h.up() // makes the RAM system
	h.down()
	for _, line := range []string{
		"link add br1 type bridge", "addr add 10.79.0.1/16 dev br1", "link set br1 up",
		"tuntap add tap1 mode tap", "link set tap1 master br1 up",
	} {
		h.run("ip", append([]string{"-n", h.ns}, strings.Fields(line)...)...)
	}
	office := h.start(newWatch(), "/usr/sbin/dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br1", "--bind-interfaces",
		"--dhcp-range=10.79.1.1,10.79.1.50,255.255.0.0", "--dhcp-option=3", "--dhcp-leasefile="+h.path("office.leases"), "--user=root")
	t.Cleanup(func() {
		_ = office.Process.Kill()
		_ = office.Wait()
	})
	kernel, err := build.Kernel(t.Context(), cache())
	if err != nil {
		t.Fatal(err)
	}
	h.write(h.path("initrd"), slices.Concat(h.read(filepath.Join(cache(), initramfs.BaseName(kernel.Release))), h.read(h.path("state/boot/agent.cpio.zst"))))
	m := machine{watch: newWatch()}
	m.cmd = h.start(m.watch, "qemu-system-x86_64", "-accel", "tcg", "-m", "1024", "-nographic", "-no-reboot",
		"-kernel", kernel.Vmlinuz, "-initrd", h.path("initrd"),
		"-append", "console=ttyS0 quiet smelt.boot=http://10.78.0.1 smelt.server=https://10.78.0.1:8443 smelt.via=uki",
		"-netdev", "tap,id=n1,ifname=tap1,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n1,romfile=,mac=52:54:00:79:00:01",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:78:00:01")
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	})
	m.wait(t, 3*time.Minute, "address=10.79.")
	m.wait(t, time.Minute, "no orders yet: nothing is touched")
	h.up()
	m.wait(t, 3*time.Minute, "address=10.78.")
	m.wait(t, 3*time.Minute, "msg=enrolled node=new-525400780001 mode=inspect")
}
