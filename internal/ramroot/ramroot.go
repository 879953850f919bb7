// Package ramroot runs an image from memory: it fetches and verifies the image
// into a file in memory, mounts the root file system out of it read-only, and
// lays a second file system in memory over it for what the system writes. No
// disk is touched.
//
// It is the node's side of a plan that says root: ram, and works in the RAM
// system only, where there is nothing else.
package ramroot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
	"smelt/images/gpt"
)

// Spare is the memory that must be left beside the image for a system to run.
const Spare = 256 << 20

// ErrMemory: the machine has too little memory for the image.
var ErrMemory = errors.New("too little memory")

// Maker says where things are put. Dir and Root are folders that it makes.
type Maker struct {
	Dir  string                    // for its mounts; they stay while the system runs
	Root string                    // where the new root is mounted
	Load func(module string) error // loads a kernel module
}

// Tree is a root file system in memory.
type Tree struct {
	Root  string // where it is mounted, writable
	Image string // the file system of the image, read-only
	maker Maker
}

// Fits says why the image cannot run from this machine's memory now, or nil.
func Fits(m images.Manifest) error {
	free, err := available("/proc/meminfo")
	if err != nil {
		return err
	}
	if want := m.Data() + Spare; free < want {
		return fmt.Errorf("%w: image %s needs %d MiB to run from it, %d MiB are free", ErrMemory, m.Title(), want>>20, free>>20)
	}
	return nil
}

// available reads what a program may take without swapping (proc_meminfo(5)).
func available(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		k, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %v", file, err)
		}
		return k << 10, nil
	}
	return 0, fmt.Errorf("%s does not say MemAvailable", file)
}

// Make fetches the image, every chunk verified as on its way to a disk, and
// mounts it. The caller has verified m's signature.
func (k Maker) Make(ctx context.Context, m images.Manifest, fetch disk.Fetch, progress func(disk.Progress)) (*Tree, disk.Result, error) {
	fail := func(r disk.Result, err error) (*Tree, disk.Result, error) {
		return nil, r, errors.Join(err, k.remove())
	}
	if err := k.remove(); err != nil { // of a try that failed
		return nil, disk.Result{}, err
	}
	for _, dir := range []string{k.Dir, k.Root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, disk.Result{}, err
		}
	}
	if err := unix.Mount("smelt-image", k.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=100%"); err != nil {
		return fail(disk.Result{}, fmt.Errorf("memory for the image: %w", err))
	}
	file := filepath.Join(k.Dir, "image")
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(disk.Result{}, err)
	}
	err = f.Truncate(m.Size) // zeros take no memory
	if err := errors.Join(err, f.Close()); err != nil {
		return fail(disk.Result{}, err)
	}
	r, err := disk.Write(ctx, file, m, fetch, disk.Options{Progress: progress})
	if err != nil {
		return fail(r, err)
	}
	t, err := k.mount(file, m.Root)
	if err != nil {
		return fail(r, err)
	}
	return t, r, nil
}

// mount puts the last partition of the image in file under a writable layer.
func (k Maker) mount(file, uuid string) (*Tree, error) {
	part, err := rootOf(file)
	if err != nil {
		return nil, err
	}
	dev, err := k.loop(file, part)
	if err != nil {
		return nil, err
	}
	defer dev.Close() // the mount keeps it
	t := &Tree{Root: k.Root, Image: filepath.Join(k.Dir, "lower"), maker: k}
	layer := filepath.Join(k.Dir, "layer")
	for _, dir := range []string{t.Image, layer} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount(dev.Name(), t.Image, "ext4", unix.MS_RDONLY, ""); err != nil {
		return nil, fmt.Errorf("mount the image's root (%s): %w", uuid, err)
	}
	// A file system of its own, with a bound: a program that fills its disk
	// meets a full disk, and not a machine out of memory.
	if err := unix.Mount("smelt-layer", layer, "tmpfs", unix.MS_NODEV, "mode=0755,size=50%"); err != nil {
		return nil, fmt.Errorf("memory for what the system writes: %w", err)
	}
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", t.Image, upper, work)
	if err := unix.Mount("smelt-root", k.Root, "overlay", 0, opts); err != nil {
		return nil, fmt.Errorf("mount the root in memory: %w", err)
	}
	return t, t.settle()
}

// rootOf finds the last partition of a disk image, as the one on a disk is found.
func rootOf(file string) (gpt.Part, error) {
	f, err := os.Open(file)
	if err != nil {
		return gpt.Part{}, err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return gpt.Part{}, err
	}
	table, err := gpt.Read(f, i.Size())
	if err != nil {
		return gpt.Part{}, fmt.Errorf("partitions of the image: %w", err)
	}
	var last gpt.Part
	for _, p := range table.Parts {
		if p.First > last.First {
			last = p
		}
	}
	if last.Size() <= 0 || last.First == 0 {
		return gpt.Part{}, errors.New("the image has no partition")
	}
	return last, nil
}

// loop makes a read-only block device of a part of a file (loop(4)). It goes
// away with its last user.
func (k Maker) loop(file string, part gpt.Part) (*os.File, error) {
	if err := k.Load("loop"); err != nil {
		return nil, err
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	back, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	for range 16 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		dev, err := os.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(back.Fd()), Size: gpt.Sector}
		c.Info.Offset, c.Info.Sizelimit = uint64(part.Offset()), uint64(part.Size())
		c.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &c)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody was faster
			return nil, fmt.Errorf("loop device %s: %w", name, err)
		}
	}
	return nil, errors.New("no loop device is free")
}

// files that a root in memory has of its own. The image's file systems are
// those of a disk that is not there. And no disk becomes writable because a
// driver finds it late: the RAM system made those read-only that it found, the
// rule does so with others.
var files = map[string]string{
	"etc/fstab": "# This system runs from memory and mounts no disk.\n",
	"etc/udev/rules.d/00-smelt-memory.rules": `# This system runs from memory: no disk is written.
ACTION=="add", SUBSYSTEM=="block", KERNEL!="loop*|ram*|zram*|dm-*", RUN+="/sbin/blockdev --setro /dev/%k"
`,
}

func (t *Tree) settle() error {
	root, err := os.OpenRoot(t.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	for name, text := range files {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Remove gives the memory back.
func (t *Tree) Remove() error { return t.maker.remove() }

// remove undoes mounts, the last one first. What was never mounted is no error.
func (k Maker) remove() error {
	var errs []error
	for _, dir := range []string{k.Root, filepath.Join(k.Dir, "layer"), filepath.Join(k.Dir, "lower"), k.Dir} {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
