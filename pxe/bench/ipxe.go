package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"smelt/pxe"
)

const (
	bootBridge = "br0"
	bootMark   = "BOOT-OK" // of a machine whose userland runs
)

// benchIPXE boots a BIOS machine by the iPXE in its network card, once with
// our DHCP, which answers router solicitations and sends option 175, and once
// with a plain DHCP server that names the same script. Script, kernel and
// initrd come from our HTTP both times.
func benchIPXE(ctx context.Context, l *lab) ([]result, error) {
	kernel, err := cloudKernel(ctx)
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%v (install the package busybox-static)", err)
	}
	initrd, err := l.file("initrd", cpio(
		file{"busybox", busybox},
		file{"init", []byte("#!/busybox sh\n/busybox echo; /busybox echo " + bootMark + "; /busybox poweroff -f\n")},
	))
	if err != nil {
		return nil, err
	}
	if err := ip(
		"-n "+l.server+" addr flush dev "+serverIf,
		"-n "+l.server+" link add "+bootBridge+" type bridge forward_delay 0 mcast_snooping 0",
		"-n "+l.server+" addr add "+serverAddr+prefixBits+" dev "+bootBridge,
		"-n "+l.server+" link set "+bootBridge+" up",
		"-n "+l.server+" link set "+serverIf+" master "+bootBridge,
		"-n "+l.server+" tuntap add tap0 mode tap",
		"-n "+l.server+" link set tap0 master "+bootBridge+" up",
	); err != nil {
		return nil, err
	}
	serve := func(noDHCP bool) (*server, error) {
		s := l.spec()
		s.Network.Interface = bootBridge
		s.Network.RouterAdvertisement = true
		s.Files = map[string]string{"vmlinuz": kernel, "initrd": initrd}
		s.Boot = pxe.Boot{Action: pxe.Kernel, Kernel: "vmlinuz", Initrd: []string{"initrd"}, Args: []string{"console=ttyS0", "quiet"}, Why: "a benchmark"}
		s.NoDHCP = noDHCP
		return l.serve(ctx, s)
	}
	took := map[string][]float64{}
	for i := range l.rounds {
		for _, name := range []string{"with", "without"} {
			seconds, err := func() (float64, error) {
				our, err := serve(name == "without")
				if err != nil {
					return 0, err
				}
				defer our.stop()
				if name == "without" {
					plain, err := l.start(ctx, l.udpOpen(67), nil, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
						"--interface="+bootBridge, "--bind-interfaces", "--no-ping", "--log-facility=/dev/null", "--pid-file="+filepath.Join(l.dir, "dnsmasq.pid"),
						"--dhcp-range="+poolFrom+","+poolTo+",255.255.0.0,1h", "--dhcp-leasefile="+filepath.Join(l.dir, "dnsmasq-ipxe"),
						"--dhcp-boot=http://"+serverAddr+"/boot/script?mac=${mac}&uuid=${uuid}")
					if err != nil {
						return 0, err
					}
					defer plain.stop()
				}
				return l.bootBIOS(ctx)
			}()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			say("ipxe round %d: BIOS, iPXE ROM, %-7s router advertisement and option 175: %5.1f s to userland", i+1, name, seconds)
			took[name] = append(took[name], seconds)
		}
	}
	with, without := median(took["with"]), median(took["without"])
	return []result{
		atLeast("ipxe_boot_speedup", without/with, 3, "power-on to userland %.1f s, with a plain DHCP server (dnsmasq) %.1f s", with, without),
	}, nil
}

// bootBIOS runs a machine until its userland says so, and returns the seconds
// that took.
func (l *lab) bootBIOS(ctx context.Context) (float64, error) {
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := l.command(ctx, l.server, "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,bootindex=1,mac=52:54:00:00:00:01")
	serial := &watch{seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = serial, serial
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case <-serial.seen:
		return time.Since(began).Seconds(), nil
	case <-ended:
		return 0, fmt.Errorf("the machine ended without %s:\n%s", bootMark, serial.text())
	case <-ctx.Done():
		return 0, fmt.Errorf("no %s within %s:\n%s", bootMark, limit, serial.text())
	}
}

// watch keeps what a machine writes and tells when its userland spoke.
type watch struct {
	seen chan struct{}

	mu   sync.Mutex
	b    bytes.Buffer
	told bool
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	if !w.told && bytes.Contains(w.b.Bytes(), []byte("\n"+bootMark)) {
		w.told = true
		close(w.seen)
	}
	return len(p), nil
}

func (w *watch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// cloudKernel is Debian's small kernel for virtual machines, from
// SMELT_TEST_KERNEL or fetched once into the user's cache, where the tests of
// package pxe keep theirs.
func cloudKernel(ctx context.Context) (string, error) {
	if k := os.Getenv("SMELT_TEST_KERNEL"); k != "" {
		return k, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "smelt", "test-kernel")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	found, _ := filepath.Glob(dir + "/boot/vmlinuz-*")
	if len(found) == 0 {
		cmd := exec.CommandContext(ctx, "sh", "-e", "-c", `
name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n1)
apt-get download "$name"
dpkg -x linux-image-*.deb .
rm linux-image-*.deb`)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("fetch a kernel: %v: %s", err, out)
		}
		if found, _ = filepath.Glob(dir + "/boot/vmlinuz-*"); len(found) == 0 {
			return "", fmt.Errorf("no kernel in the package, see %s", dir)
		}
	}
	return found[0], nil
}

type file struct {
	name string
	data []byte
}

// cpio is an initramfs in the newc format, of programs.
func cpio(files ...file) []byte {
	var b bytes.Buffer
	for i, f := range append(files, file{name: "TRAILER!!!"}) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", i+1, 0o100755, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(f.name)+1, 0)
		pad := func() { b.WriteString(strings.Repeat("\x00", -b.Len()&3)) }
		b.WriteString(f.name + "\x00")
		pad()
		b.Write(f.data)
		pad()
	}
	return b.Bytes()
}
