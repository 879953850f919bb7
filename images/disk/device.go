package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/images"
)

// device is a disk, or a file that stands for one, that nobody else uses.
type device struct {
	*os.File
	path   string
	size   int64
	sector int64 // bytes; what direct I/O goes by
	block  bool  // a block device
}

// openDevice opens an existing disk, for us alone, that can take an image.
func openDevice(path string) (*device, error) {
	d, err := openDisk(path)
	if err != nil {
		return nil, err
	}
	// A partition table and a FAT are written in sectors: an image for 512
	// cannot start from a 4096-byte-sector disk, whatever is copied.
	if d.sector != 512 {
		_ = d.Close()
		return nil, fmt.Errorf("%s has sectors of %d bytes, images are for 512: reformat the drive to 512-byte sectors (nvme format --lbaf, sg_format)", path, d.sector)
	}
	return d, nil
}

// openDisk opens an existing disk for us alone. It never creates: a device
// that is not there must not become a file in RAM that takes the image and
// reports success.
func openDisk(path string) (*device, error) {
	i, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	block := i.Mode()&os.ModeDevice != 0 && i.Mode()&os.ModeCharDevice == 0
	if !block && !i.Mode().IsRegular() {
		return nil, fmt.Errorf("open disk: %s is neither a block device nor a file", path)
	}
	// O_EXCL without O_CREAT claims a block device: EBUSY when it, or one of
	// its partitions, is mounted or part of an array (open(2)).
	flags := unix.O_RDWR | unix.O_EXCL | unix.O_CLOEXEC
	fd, err := openRetry(path, flags|unix.O_DIRECT)
	if err == unix.EINVAL {
		fd, err = openRetry(path, flags) // tmpfs has no direct I/O
	}
	if err == unix.EBUSY {
		return nil, fmt.Errorf("open disk: %s is in use (mounted, or part of an array)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk: %s: %w", path, err)
	}
	d := &device{File: os.NewFile(uintptr(fd), path), path: path, block: block}
	if err := d.measure(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (d *device) measure() error {
	var err error
	if d.size, err = d.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("size of %s: %w", d.path, err)
	}
	if d.sector = 512; !d.block {
		return nil
	}
	ro, err := unix.IoctlGetInt(int(d.Fd()), unix.BLKROGET)
	if err == nil && ro != 0 {
		return fmt.Errorf("%s is read-only", d.path)
	}
	sector, err := unix.IoctlGetInt(int(d.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("sector size of %s: %w", d.path, err)
	}
	d.sector = int64(sector)
	return nil
}

// align is enough for direct I/O everywhere.
const align = 4096

// alignedBuffer returns n bytes that direct I/O takes.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+align)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & (align - 1))
	return b[off : off+n : off+n]
}

// hugeBuffer returns a chunk's room in huge pages, where the kernel has them: a
// direct write then pins 2 pages, not 1024. free gives it back.
func hugeBuffer() (b []byte, free func(), err error) {
	const huge = 2 << 20
	all, err := unix.Mmap(-1, 0, images.ChunkSize+huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("memory for a chunk: %w", err)
	}
	off := int(-uintptr(unsafe.Pointer(&all[0])) & (huge - 1))
	b = all[off : off+images.ChunkSize : off+images.ChunkSize]
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a kernel without it is slower, no more
	return b, func() { _ = unix.Munmap(all) }, nil
}

// readAt fills b, which is aligned.
func (d *device) readAt(b []byte, off int64) error {
	if _, err := d.ReadAt(b, off); err != nil {
		return fmt.Errorf("read %s at %d: %w", d.path, off, err)
	}
	return nil
}

// writeAt writes b, which is aligned.
func (d *device) writeAt(b []byte, off int64) error {
	if _, err := d.WriteAt(b, off); err != nil {
		return fmt.Errorf("write %s at %d: %w", d.path, off, err)
	}
	return nil
}

var zeroes = alignedBuffer(4 << 20)

// punch makes a range read as zeros without sending them: on a block device
// the kernel uses WRITE ZEROES or a discard that guarantees zeros, and says
// EOPNOTSUPP where there is none.
func (d *device) punch(off, n int64) error {
	for {
		err := unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EINTR {
			return err
		}
	}
}

// zero makes a range read as zeros, by writing them where punch cannot.
func (d *device) zero(off, n int64) error {
	switch err := d.punch(off, n); err {
	case nil:
		return nil
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL, unix.ENODEV:
	default:
		return fmt.Errorf("clear %s at %d: %w", d.path, off, err)
	}
	return d.writeZeros(off, n)
}

func (d *device) writeZeros(off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := d.writeAt(zeroes[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// forget drops what the kernel remembers of the first n bytes, so that reads
// come from the disk. With direct I/O it remembers nothing.
func (d *device) forget(n int64) { unix.Fadvise(int(d.Fd()), 0, n, unix.FADV_DONTNEED) }

// sync returns when the data is on the medium, not in the drive's cache.
func (d *device) sync() error {
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", d.path, err)
	}
	return nil
}

// Reread makes the kernel read the partition table again. It fails with EBUSY
// while a partition is in use.
func Reread(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("read partitions again: %w", err)
	}
	defer f.Close()
	// The kernel answers EBUSY for a moment after another's close, too; that
	// is the caller's to repeat, who knows what else looks at the disk.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("read partitions of %s again: %w", path, err)
	}
	return nil
}

// PartitionPath names partition n of a disk: sda1, nvme0n1p1.
func PartitionPath(disk string, n int) string {
	if c := filepath.Base(disk); c != "" && strings.ContainsRune("0123456789", rune(c[len(c)-1])) {
		return fmt.Sprintf("%sp%d", disk, n)
	}
	return fmt.Sprintf("%s%d", disk, n)
}

// ErrShort is wrapped when an image does not fit on a disk.
var ErrShort = errors.New("disk is smaller than the image")
