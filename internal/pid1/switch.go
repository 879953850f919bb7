package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NewRoot is where the child has mounted the root that it wants to be the
// machine's when it ends with ExitSwitch.
const NewRoot = "/newroot"

// switchRoot makes NewRoot the root and its init process 1. It returns only
// when that failed; the RAM system is gone by then or damaged.
func switchRoot() error {
	// Of /run only its name goes along: what this system kept there is over,
	// and some of it is secret.
	for _, m := range []string{"/run", "/tmp"} {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	for _, m := range []string{"/dev", "/sys", "/proc"} {
		if err := unix.Mount(m, NewRoot+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m, err)
		}
	}
	if err := os.Chdir(NewRoot); err != nil {
		return err
	}
	// rootfs cannot be unmounted (Documentation/filesystems/ramfs-rootfs-initramfs.rst):
	// its files are removed for their memory, without leaving it.
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return err
	}
	empty("/", st.Dev)
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return syscall.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=linux"})
}

// empty removes what lies below dir on the file system dev. Folders that hold
// mounts stay.
func empty(dir string, dev uint64) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range list {
		name := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(name, &st) != nil || st.Dev != dev {
			continue
		}
		if e.IsDir() {
			empty(name, dev)
		}
		_ = os.Remove(name)
	}
}

// LoadKernel readies a kernel that ExitKexec starts.
func LoadKernel(kernel, initrd *os.File, cmdline string) error {
	err := unix.KexecFileLoad(int(kernel.Fd()), int(initrd.Fd()), cmdline, 0)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EKEYREJECTED), errors.Is(err, unix.ENODATA):
		return fmt.Errorf("kexec: the running kernel is locked down and does not take this one (%w): with Secure Boot it must be signed with a key that the firmware knows", err)
	case err != nil:
		return fmt.Errorf("kexec: %w", err)
	}
	return nil
}

// Args is c as ParseCmdLine reads it.
func (c CmdLine) Args() []string {
	var out []string
	add := func(key, v string) {
		if v != "" {
			out = append(out, key+"="+v)
		}
	}
	add("smelt.server", c.Server)
	add("smelt.nonce", c.Nonce)
	add("smelt.mode", c.Mode)
	add("smelt.boot", c.Boot)
	add("smelt.via", c.Via)
	add("smelt.node", c.Node)
	add("smelt.code", c.Code)
	add("smelt.page", c.Page)
	if c.BootIF != nil {
		add("BOOTIF", "01-"+strings.ReplaceAll(c.BootIF.String(), ":", "-"))
	}
	return out
}

// Others are the words of a kernel command line that are neither ours nor the
// loader's: what a kernel started by this one is to have, too.
func Others(cmdline string) []string {
	var out []string
	for w := range strings.FieldsSeq(cmdline) {
		k, _, _ := strings.Cut(w, "=")
		if !strings.HasPrefix(k, "smelt.") && k != "BOOTIF" && k != "initrd" && k != "BOOT_IMAGE" {
			out = append(out, w)
		}
	}
	return out
}
