package pid1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Devices follows the kernel's announcements of devices (uevents): a disk is
// set read-only the moment it appears, and what has a modalias gets its driver.
type Devices struct {
	Modules *Modules
	Log     *slog.Logger

	sock int
	last time.Time

	mu   sync.Mutex
	open disk // the one that Unseal opened
	all  bool // OpenAll opened every disk

	// Stand-ins for the kernel in a test.
	sys string                          // folder instead of /sys
	ro  func(name string, ro int) error // instead of setReadOnly
}

// disk is one appearance of a disk: a name passes on to the next disk, the
// kernel's sequence number does not (Documentation/ABI/stable/sysfs-block,
// diskseq, since Linux 5.15).
type disk struct{ name, seq string }

// Listen opens the socket. What appears from now on is not missed.
func (d *Devices) Listen() error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("uevent socket: %v", err)
	}
	_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	// Group 1 is the kernel itself; group 2 would be udev.
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(s)
		return fmt.Errorf("uevent socket: %v", err)
	}
	tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		_ = unix.Close(s)
		return fmt.Errorf("uevent socket: %v", err)
	}
	d.sock = s
	return nil
}

// Settle handles announcements until none came for quiet, at most limit.
func (d *Devices) Settle(quiet, limit time.Duration) {
	end := time.Now().Add(limit)
	d.last = time.Now()
	for time.Now().Before(end) && time.Since(d.last) < quiet {
		d.once()
	}
}

// Run handles announcements until ctx ends.
func (d *Devices) Run(ctx context.Context) error {
	defer unix.Close(d.sock)
	for ctx.Err() == nil {
		d.once()
	}
	return nil
}

func (d *Devices) once() {
	var b [16 << 10]byte
	n, from, err := unix.Recvfrom(d.sock, b[:], 0)
	if errors.Is(err, unix.ENOBUFS) {
		// Announcements were lost: look at everything.
		_ = d.SealAll()
		d.Modules.Coldplug(d.Log)
		d.last = time.Now()
		return
	}
	if err != nil {
		return // timeout or interrupt
	}
	// Only the kernel (port 0) is believed.
	if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
		return
	}
	d.handle(parseUevent(b[:n]))
}

func (d *Devices) handle(ev map[string]string) {
	if ev["SUBSYSTEM"] == "block" && ev["ACTION"] == "remove" {
		d.removed(ev["DEVPATH"], ev["DISKSEQ"])
	}
	if ev["ACTION"] != "add" && ev["ACTION"] != "change" {
		return
	}
	d.last = time.Now()
	if ev["SUBSYSTEM"] == "block" && ev["ACTION"] == "add" {
		d.appeared(ev["DEVPATH"], ev["DEVTYPE"])
	}
	if a := ev["MODALIAS"]; a != "" && ev["ACTION"] == "add" {
		d.Modules.Plug(a, d.Log)
	}
}

// appeared seals a new disk or partition, unless its disk is being written.
func (d *Devices) appeared(devpath, kind string) {
	name := filepath.Base(devpath)
	whole := name
	if kind == "partition" {
		whole = filepath.Base(filepath.Dir(devpath))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isOpen(whole) {
		return
	}
	if err := d.setReadOnly(name, 1); err != nil {
		d.Log.Warn("disk could not be set read-only", "disk", name, "err", err)
	}
}

// removed forgets that a disk was open: what takes its name next is another.
func (d *Devices) removed(devpath, seq string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open.name == filepath.Base(devpath) && (seq == "" || d.open.seq == "" || d.open.seq == seq) {
		d.open = disk{}
	}
}

// OpenAll lifts every Seal, also of disks that appear later: an operator was
// allowed to write them.
func (d *Devices) OpenAll() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = true
	names, err := os.ReadDir(filepath.Join(d.sysfs(), "class/block"))
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, d.setReadOnly(n.Name(), 0))
	}
	return errors.Join(errs...)
}

// isOpen tells whether the disk of that name is the very one that Unseal
// opened, also where the announcement of a swap was lost.
func (d *Devices) isOpen(name string) bool {
	if d.all {
		return true
	}
	return d.open.name == name && d.open == d.now(name)
}

// now is the disk that has a name at this moment.
func (d *Devices) now(name string) disk {
	b, _ := os.ReadFile(filepath.Join(d.sysfs(), "block", name, "diskseq"))
	return disk{name, strings.TrimSpace(string(b))}
}

func (d *Devices) sysfs() string {
	if d.sys != "" {
		return d.sys
	}
	return "/sys"
}

func (d *Devices) setReadOnly(name string, ro int) error {
	if d.ro != nil {
		return d.ro(name, ro)
	}
	return setReadOnly(name, ro)
}

// Seal sets one disk and its partitions read-only in the kernel.
func (d *Devices) Seal(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open.name == name {
		d.open = disk{}
	}
	return d.set(name, 1)
}

// Unseal lifts Seal, also for partitions that appear while the disk is open. It
// does so for one disk at a time: whoever writes one has sealed the last one.
func (d *Devices) Unseal(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open.name != "" {
		return fmt.Errorf("disk %s stays read-only: %s is writable and only one may be", name, d.open.name)
	}
	d.open = d.now(name)
	return d.set(name, 0)
}

// set is called with mu held.
func (d *Devices) set(name string, ro int) error {
	errs := []error{d.setReadOnly(name, ro)}
	parts, err := filepath.Glob(filepath.Join(d.sysfs(), "block", name, name+"*"))
	if err != nil {
		return err
	}
	for _, p := range parts {
		errs = append(errs, d.setReadOnly(filepath.Base(p), ro))
	}
	return errors.Join(errs...)
}

// parseUevent reads "add@/devices/...\0KEY=value\0...".
func parseUevent(b []byte) map[string]string {
	out := map[string]string{}
	for f := range bytes.SplitSeq(b, []byte{0}) {
		if k, v, ok := strings.Cut(string(f), "="); ok {
			out[k] = v
		}
	}
	return out
}

// SealAll sets every disk and partition read-only in the kernel that Unseal has
// not opened.
func (d *Devices) SealAll() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := os.ReadDir(filepath.Join(d.sysfs(), "class/block"))
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		real, err := filepath.EvalSymlinks(filepath.Join(d.sysfs(), "class/block", n.Name()))
		if err != nil {
			continue // gone again
		}
		if d.isOpen(n.Name()) || d.isOpen(filepath.Base(filepath.Dir(real))) {
			continue
		}
		if err := d.setReadOnly(n.Name(), 1); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setReadOnly is blockdev --setro and --setrw.
func setReadOnly(name string, ro int) error {
	if strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") {
		return nil
	}
	f, err := os.OpenFile(filepath.Join("/dev", strings.ReplaceAll(name, "!", "/")), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOMEDIUM) {
		return nil // gone again, or a drive without a medium
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, ro); err != nil {
		return fmt.Errorf("set %s read-only to %d: %v", name, ro, err)
	}
	return nil
}
