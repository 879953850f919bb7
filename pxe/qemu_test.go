package pxe

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// e2e gates the tests that boot real firmware under emulation: 5 to 30 seconds each.
func e2e(t *testing.T) {
	t.Helper()
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("boots machines in QEMU: set SMELT_TEST_E2E=1")
	}
	needs(t, "qemu-system-x86_64", "go")
	for _, f := range []string{"/usr/lib/ipxe/undionly.kpxe", "/usr/lib/ipxe/snponly.efi", "/usr/share/OVMF/OVMF_CODE_4M.fd"} {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("%v (install the packages ipxe and ovmf)", err)
		}
	}
}

// kernel returns a Linux kernel of Debian, from SMELT_TEST_KERNEL or fetched
// once into the user's cache.
func kernel(t *testing.T) string {
	t.Helper()
	if k := os.Getenv("SMELT_TEST_KERNEL"); k != "" {
		return k
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "smelt", "test-kernel")
	if found, _ := filepath.Glob(dir + "/boot/vmlinuz-*"); len(found) > 0 {
		return found[0]
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `set -e
name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n1)
apt-get download "$name"
dpkg -x linux-image-*.deb .
rm linux-image-*.deb`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fetching a kernel: %v: %s", err, out)
	}
	found, _ := filepath.Glob(dir + "/boot/vmlinuz-*")
	if len(found) == 0 {
		t.Fatalf("no kernel in the package, see %s", dir)
	}
	return found[0]
}

// cpio is an initramfs in the newc format.
func cpio(files map[string][]byte) []byte {
	var b bytes.Buffer
	ino := 0
	entry := func(name string, mode int, data []byte) {
		ino++
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.Write(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	for name, data := range files {
		entry(name, 0o100755, data)
	}
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}

const (
	guestMAC    = "52:54:00:00:00:01"
	guestUUID   = "11223344-5566-7788-99aa-bbccddeeff00"
	guestSerial = "RIG 42/A"
)

// userland is the program testdata/init.
func userland(t *testing.T) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-o", out, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// newBootLab is a lab with a wire for a QEMU machine and something to boot.
func newBootLab(t *testing.T) *lab {
	t.Helper()
	e2e(t)
	l := newLab(t)
	for _, line := range []string{
		"-n " + l.server + " tuntap add tap0 mode tap",
		"-n " + l.server + " link set tap0 master " + bridge + " up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	l.file("initrd-1", cpio(map[string][]byte{"init": userland(t)}))
	l.file("initrd-2", cpio(map[string][]byte{"second": []byte("here")}))
	l.spec.Files["vmlinuz"] = kernel(t)
	l.spec.Files[LoaderBIOS] = "/usr/lib/ipxe/undionly.kpxe"
	l.spec.Files[LoaderUEFI] = "/usr/lib/ipxe/snponly.efi"
	l.spec.Network.RouterAdvertisement = true
	l.spec.Boots[guestMAC] = Boot{
		Action: Kernel, Kernel: "vmlinuz", Initrd: []string{"initrd-1", "initrd-2"},
		Args: []string{"console=ttyS0", "smelt.name=two words || reboot", "smelt.end"},
		Why:  "a test", Screen: []string{"machine rig-01, rack A3", "state: inspected"},
	}
	return l
}

// bios are the flags of a machine with SeaBIOS, whose network ROM is iPXE.
func bios(l *lab) []string {
	return []string{"-device", "virtio-net-pci,netdev=n0,bootindex=1,mac=" + guestMAC}
}

// uefi are the flags of a machine with OVMF that boots by its own PXE.
func uefi(l *lab) []string {
	return ovmf(l, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "-machine", "q35")
}

// ovmf are the flags of a machine with some build of OVMF and a copy of its
// variables. The empty romfile keeps iPXE's ROM from taking over the card.
func ovmf(l *lab, code, vars string, machine ...string) []string {
	file := filepath.Join(l.dir, "vars.fd")
	data, err := os.ReadFile(vars)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return append(machine,
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
		"-drive", "if=pflash,format=raw,unit=1,file="+file,
		"-device", "virtio-net-pci,netdev=n0,bootindex=1,romfile=,mac="+guestMAC,
	)
}

// boot runs a machine until mark stands on its serial line, and returns the
// line's text and the time that took.
func (l *lab) boot(limit time.Duration, mark string, flags ...string) (string, time.Duration) {
	l.t.Helper()
	return l.bootIn(l.server, "qemu-system-x86_64", limit, mark, flags...)
}

// bootIn is boot for a machine of some kind that hangs on the wire tap0 of a
// namespace.
func (l *lab) bootIn(namespace, qemu string, limit time.Duration, mark string, flags ...string) (string, time.Duration) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := append([]string{
		"netns", "exec", namespace, qemu, "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot",
		"-uuid", guestUUID, "-smbios", "type=1,serial=" + guestSerial,
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
	}, flags...)
	cmd := exec.CommandContext(ctx, "ip", args...)
	// PDEATHSIG goes by the thread that forked: keep it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	serial := &watch{mark: mark, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = serial, serial
	start := time.Now()
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case <-serial.seen:
	case err := <-done:
		done <- err
		if !serial.has() {
			l.t.Fatalf("the machine ended (%v) without %q:\n%s", err, mark, serial.text())
		}
	case <-ctx.Done():
		l.t.Fatalf("no %q within %s:\n%s", mark, limit, serial.text())
	}
	return serial.text(), time.Since(start)
}

// watch keeps what is written and tells when mark was.
type watch struct {
	mark string
	seen chan struct{}
	lab  lab // for its lock
	b    bytes.Buffer
	told bool
}

func (w *watch) Write(p []byte) (int, error) {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	w.b.Write(p)
	// The line of our userland must be whole; shim shows a box that has no lines.
	i := bytes.Index(w.b.Bytes(), []byte(w.mark))
	if !w.told && i >= 0 && (w.mark != "BOOT-OK" || bytes.IndexByte(w.b.Bytes()[i:], '\n') >= 0) {
		w.told = true
		close(w.seen)
	}
	return len(p), nil
}

func (w *watch) has() bool {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	return w.told
}

func (w *watch) text() string {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	return w.b.String()
}

// booted holds that a machine reached the userland it was told to, and that we
// knew which machine it was: the script stage is a script of iPXE, GRUB's
// configuration, or orders.
func (l *lab) booted(serial, stage, addr string) {
	l.t.Helper()
	want := []string{"console=ttyS0 smelt.name=two%20words%20||%20reboot smelt.end", `second="here"`}
	if stage != "orders" { // the others have a screen of ours
		want = append(want, "rig-01, rack A3")
	}
	for _, want := range want {
		if !strings.Contains(serial, want) {
			l.t.Errorf("no %q on the serial line:\n%s", want, serial)
		}
	}
	if stage != "orders" { // for which only the real RAM system asks
		m := l.event(stage, func(e Event) bool { return e.Kind == stage }).Machine
		if m.MAC.String() != guestMAC || m.Addr.String() != addr || stage == "script" && (m.UUID != guestUUID || m.Serial != guestSerial) {
			l.t.Errorf("at the %s stage the machine was %+v", stage, m)
		}
	}
	m := l.event("dhcp", func(e Event) bool { return e.Kind == "dhcp request" || e.Kind == "dhcp discover" }).Machine
	if m.MAC.String() != guestMAC || m.UUID != guestUUID {
		l.t.Errorf("by DHCP the machine was %+v", m)
	}
}

// TestBootHold: a machine that nobody knows shows why it waits, asks again,
// and boots once somebody does.
func TestBootHold(t *testing.T) {
	for name, flags := range map[string]func(*lab) []string{"bios": bios, "uefi": uefi} {
		t.Run(name, func(t *testing.T) {
			l := newBootLab(t)
			l.spec.Then = l.spec.Boots[guestMAC]
			l.spec.Boots[guestMAC] = Boot{Action: Hold, Why: "approve me", Screen: []string{"new machine"}}
			l.start()
			serial, _ := l.boot(180*time.Second, "BOOT-OK", flags(l)...)
			for _, want := range []string{"| new machine", "| hold: approve me", "| asking again in 10 seconds"} {
				if !strings.Contains(serial, want) {
					t.Errorf("no %q on the screen:\n%s", want, serial)
				}
			}
		})
	}
}

// TestBootLocal: a machine in service starts what is on its disk.
func TestBootLocal(t *testing.T) {
	const mark = "LOCAL-DISK-OK"
	t.Run("bios", func(t *testing.T) {
		l := newBootLab(t)
		l.spec.Boots[guestMAC] = Boot{Action: Local, Why: "in service"}
		l.start()
		// A boot sector that writes a line on the first serial port:
		// xor ax,ax; mov ds,ax; mov si,7c16h; L: lodsb; test al,al; jz E; mov dx,3f8h; out dx,al; jmp L; E: hlt; jmp E
		sector := append([]byte{0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x16, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, 0xf4, 0xeb, 0xfd, 0}, mark+"\r\n\x00"...)
		disk := make([]byte, 1<<20)
		copy(disk, sector)
		disk[510], disk[511] = 0x55, 0xaa
		path := filepath.Join(l.dir, "disk.img")
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		_, took := l.boot(60*time.Second, mark, append(bios(l), "-drive", "format=raw,if=ide,file="+path)...)
		l.event("the script", func(e Event) bool { return e.Kind == "script" && e.Answer == "local disk" })
		t.Logf("BIOS: %s to its own disk", took)
	})
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("uefi direct=%v", direct), func(t *testing.T) { bootLocalUEFI(t, mark, direct) })
	}
}

func bootLocalUEFI(t *testing.T, mark string, direct bool) {
	needs(t, "grub-mkimage", "mformat", "mcopy", "mmd")
	l := newBootLab(t)
	l.spec.Boots[guestMAC] = Boot{Action: Local, Why: "in service"}
	disk := exec.Command("sh", "-e", "-c", `
echo 'echo `+mark+`; echo; sleep 60' >disk.cfg
grub-mkimage -O x86_64-efi -p / -c disk.cfg -o boot.efi echo sleep
truncate -s 40M disk.img
mformat -i disk.img -F ::
mmd -i disk.img ::/EFI ::/EFI/BOOT
mcopy -i disk.img boot.efi ::/EFI/BOOT/BOOTX64.EFI
cat >local.cfg <<END
search --no-floppy --file --set=root /EFI/BOOT/BOOTX64.EFI
chainloader /EFI/BOOT/BOOTX64.EFI
boot
END
grub-mkimage -O x86_64-efi -p / -c local.cfg -o local.efi search search_fs_file chain boot part_gpt part_msdos fat`)
	disk.Dir = l.dir
	if out, err := disk.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if direct {
		l.spec.Files[LoaderLocal] = filepath.Join(l.dir, "local.efi")
	}
	l.start()
	// Without IPv6, which OVMF would try for a minute before the disk.
	_, took := l.boot(300*time.Second, mark, append(uefi(l), "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n", "-drive", "format=raw,if=none,id=d0,file="+filepath.Join(l.dir, "disk.img"), "-device", "virtio-blk-pci,drive=d0,bootindex=2")...)
	l.event("the script", func(e Event) bool { return e.Kind == "script" && e.Answer == "local disk" })
	t.Logf("UEFI, %s served %v: %s to its own disk", LoaderLocal, direct, took)
}
