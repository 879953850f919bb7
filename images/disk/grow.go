package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/images/gpt"
)

// Grow makes the last partition of a disk with a GPT end where the disk ends,
// and returns it. The partition may be mounted. Doing it twice is nothing.
func Grow(path string) (Partition, error) {
	fail := func(err error) (Partition, error) {
		return Partition{}, fmt.Errorf("grow last partition of %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return fail(err)
	}
	t, err := gpt.Read(f, size)
	if err != nil {
		return fail(err)
	}
	if len(t.Parts) == 0 {
		return fail(errors.New("there is none"))
	}
	last := &t.Parts[0]
	for i := range t.Parts {
		if t.Parts[i].First > last.First {
			last = &t.Parts[i]
		}
	}
	// Whole MiB: erase blocks and 4 KiB sectors stay aligned.
	const m = mib / gpt.Sector
	end := (gpt.LastUsable(size)+1)/m*m - 1
	p := Partition{last.Number, last.Offset(), (end - last.First + 1) * gpt.Sector, true, last.Type.String(), last.Name}
	if end <= last.Last {
		p.Size = last.Size()
		return p, nil
	}
	last.Last = end
	if err := t.Write(f, size); err != nil {
		return fail(err)
	}
	if err := f.Sync(); err != nil {
		return fail(err)
	}
	i, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if i.Mode()&os.ModeDevice == 0 {
		return p, nil
	}
	// One partition can be made longer while it is in use; reading the whole
	// table again cannot.
	if err := tellPartition(f, blkpgResize, p); err != nil {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0); err != nil {
			return fail(fmt.Errorf("the kernel keeps the old size until the next boot: %w", err))
		}
	}
	return p, nil
}

const (
	mib                = 1 << 20
	blkpg              = 0x1269 // linux/blkpg.h
	blkpgResize        = 3
	ext4ResizeFS       = 0x40086610 // EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64)
	ext4Magic    int64 = 0xef53
)

// tellPartition tells the kernel about one partition.
func tellPartition(f *os.File, op int32, p Partition) error {
	type partition struct { // struct blkpg_partition
		start, length int64
		number        int32
		names         [128]byte
	}
	type arg struct { // struct blkpg_ioctl_arg
		op, flags, length int32
		data              unsafe.Pointer
	}
	part := partition{start: p.Offset, length: p.Size, number: int32(p.Number)}
	a := arg{op: op, length: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkpg, uintptr(unsafe.Pointer(&a))); e != 0 {
		return e
	}
	return nil
}

// GrowFilesystem makes the ext4 filesystem mounted at mount as long as the
// partition it is on. The kernel does it online; no tool is needed.
func GrowFilesystem(mount, partition string) error {
	fail := func(err error) error { return fmt.Errorf("grow filesystem at %s: %w", mount, err) }
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return fail(err)
	}
	if int64(st.Type) != ext4Magic {
		return fail(fmt.Errorf("it is not ext4 (type %#x)", st.Type))
	}
	p, err := os.Open(partition)
	if err != nil {
		return fail(err)
	}
	size, err := p.Seek(0, 2)
	p.Close()
	if err != nil {
		return fail(err)
	}
	blocks := uint64(size / st.Bsize)
	d, err := os.Open(mount)
	if err != nil {
		return fail(err)
	}
	defer d.Close()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks))); e != 0 {
		return fail(e) // EPERM: no CAP_SYS_RESOURCE, or the filesystem has errors
	}
	return nil
}
