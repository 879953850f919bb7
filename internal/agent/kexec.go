package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/internal/pid1"
)

// bySelf is on the command line of a system that the agent started: it says of
// itself that no firmware did.
const bySelf = "smelt.start=kexec"

// startOf is by what an installed system was started.
func startOf(cmdline string) string {
	for w := range strings.FieldsSeq(cmdline) {
		switch w {
		case bySelf:
			return "kexec"
		case "smelt.mode=" + pid1.RAM:
			return "ram"
		}
	}
	return "disk"
}

// kexec starts the system that this agent wrote, as its boot loader would.
func (a *Agent) kexec(o api.Order) api.Result {
	if o.Kexec == nil || a.c.Mode != Convert {
		return failed("other", fmt.Errorf("this machine was not started to convert it (mode %s)", a.c.Mode))
	}
	d, r := a.find(o.Kexec.Target)
	if r != nil {
		return failed(r.cause, r)
	}
	if err := a.loadFrom(a.device(d)); err != nil {
		return failed("other", fmt.Errorf("start the system on %s: %w", d.Name, err))
	}
	return api.Result{OK: true}
}

// loadFrom loads the kernel of the system on a disk.
func (a *Agent) loadFrom(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	parts, err := disk.Partitions(f, size)
	if err != nil {
		return err
	}
	last := disk.Partition{}
	for _, p := range parts {
		if p.Offset >= last.Offset {
			last = p
		}
	}
	if last.Number == 0 {
		return errors.New("it has no partition")
	}
	dir, err := os.MkdirTemp("", "smelt-root-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount(disk.PartitionPath(dev, last.Number), dir, "ext4", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount its root: %w", err)
	}
	err = loadRoot(dir)
	if e := unix.Unmount(dir, 0); e != nil {
		err = errors.Join(err, fmt.Errorf("unmount its root: %w", e))
	}
	return err
}

func loadRoot(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	b, err := root.ReadFile("boot/grub/grub.cfg")
	if err != nil {
		return err
	}
	kernel, initrd, args, err := parseBoot(string(b))
	if err != nil {
		return fmt.Errorf("grub.cfg: %w", err)
	}
	return loadKernel(root.Open, kernel, initrd, args+" "+bySelf)
}

// parseBoot reads what our images' grub.cfg starts: one kernel and no menu.
func parseBoot(text string) (kernel, initrd, args string, err error) {
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		path, more, _ := strings.Cut(strings.TrimSpace(rest), " ")
		path = strings.TrimPrefix(path, "/")
		switch {
		case word == "linux" && kernel == "":
			kernel, args = path, strings.TrimSpace(more)
		case word == "initrd" && initrd == "":
			initrd = path
		case word == "linux" || word == "initrd":
			return "", "", "", errors.New("it starts more than one kernel")
		}
	}
	if kernel == "" || initrd == "" || strings.ContainsAny(kernel+initrd+args, "$\"'\\") {
		return "", "", "", errors.New("it does not start one kernel with one initrd")
	}
	return kernel, initrd, args, nil
}

// loadKernel readies a kernel that Kexec starts.
func loadKernel(open func(string) (*os.File, error), kernel, initrd, args string) error {
	k, err := open(kernel)
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := open(initrd)
	if err != nil {
		return err
	}
	defer i.Close()
	return pid1.LoadKernel(k, i, args)
}
