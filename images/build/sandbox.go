package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// sandboxDevices are the only devices a recipe sees: a read-only mount does
// not keep anyone from writing to /dev/sda.
var sandboxDevices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// runSandboxed runs cmd in a private mount namespace where the host is
// read-only, its disks are not there, /tmp is empty, and only the folder writable outlives
// it; in a process namespace of its own, so that nothing a recipe started
// outlives it; and without a network: what a recipe would fetch there is in no
// lock.
//
// It guards against mistakes, not malice: root in there could undo it. The
// usual mistake is a hook that forgets chroot and installs packages, or edits
// /etc, on the build host.
func runSandboxed(cmd *exec.Cmd, writable string) error {
	errs := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which has left the host's namespace,
		// ends with the goroutine.
		runtime.LockOSThread()
		if err := enterSandbox(writable); err != nil {
			errs <- fmt.Errorf("sandbox: %w", err)
			return
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
			Pdeathsig:  syscall.SIGKILL,
		}
		errs <- cmd.Run()
	}()
	return <-errs
}

// enterSandbox moves the calling thread, and what it starts, into the sandbox.
func enterSandbox(writable string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("building an image needs root")
	}
	fail := func(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fail("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail("make / private", err)
	}
	// The writable folder may be under /tmp, which becomes an empty one: it is
	// held by its descriptor until then.
	tree, err := unix.OpenTree(unix.AT_FDCWD, writable, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail("clone "+writable, err)
	}
	defer unix.Close(tree)
	if err := unix.Mount("smelt", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fail("tmpfs", err)
	}
	if err := os.MkdirAll(writable, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, writable, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("mount "+writable, err)
	}
	// The devices are bound in a tmpfs that then takes the place of /dev.
	dev := "/tmp/dev"
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("smelt", dev, "tmpfs", unix.MS_NOSUID, "mode=755,size=4m"); err != nil {
		return fail("tmpfs", err)
	}
	for _, d := range sandboxDevices {
		p := filepath.Join(dev, d)
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+d, p, "", unix.MS_BIND, ""); err != nil {
			return fail("bind /dev/"+d, err)
		}
	}
	for _, d := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, d), 0o755); err != nil {
			return err
		}
	}
	for to, from := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(from, filepath.Join(dev, to)); err != nil {
			return err
		}
	}
	if err := unix.Mount(dev, "/dev", "", unix.MS_MOVE, ""); err != nil {
		return fail("replace /dev", err)
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return fail("devpts", err)
	}
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &ro); err != nil {
		return fail("make the host read-only", err)
	}
	rw := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY, Attr_set: unix.MOUNT_ATTR_NODEV}
	for _, d := range []string{writable, "/tmp"} {
		if err := unix.MountSetattr(unix.AT_FDCWD, d, 0, &rw); err != nil {
			return fail("make "+d+" writable", err)
		}
	}
	// Files of /dev are devices and pipes; programs open them for writing.
	rw = unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/dev", unix.AT_RECURSIVE, &rw); err != nil {
		return fail("make /dev writable", err)
	}
	return nil
}
