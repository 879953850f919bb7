package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/images"
)

// Level says how thoroughly a disk is wiped.
type Level int

// Levels, from weak to strong.
const (
	_ Level = iota
	// Metadata clears every place where a filesystem, volume or array is
	// recognised. The data can be recovered.
	Metadata
	// Discard tells the drive that nothing on it is needed. Most drives return
	// zeros at once; the cells are erased when the drive sees fit.
	Discard
	// Overwrite writes zeros once over what the drive shows. Spare blocks of a
	// flash drive keep what they have.
	Overwrite
	// Secure is the drive's own erase of everything it holds.
	Secure
)

var levels = [...]string{"", "metadata", "discard", "overwrite", "secure"}

func (l Level) String() string {
	if l <= 0 || int(l) >= len(levels) {
		return "none"
	}
	return levels[l]
}

// ParseLevel is the inverse of String.
func ParseLevel(s string) (Level, error) {
	for i, n := range levels {
		if s == n && i > 0 {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("wipe level %q: want metadata, discard, overwrite or secure", s)
}

// Wiped is what became of a disk.
type Wiped struct {
	Reached Level // 0: nothing was wiped for certain
	Bytes   int64 // discarded or overwritten
	Zeros   bool  // a random sample of the disk reads as zeros
	Elapsed time.Duration
}

// ErrWeaker is wrapped when a disk cannot be wiped as thoroughly as asked. The
// disk was wiped at the level in Wiped.Reached, if any.
var ErrWeaker = errors.New("disk cannot be wiped that thoroughly")

// Wipe wipes the disk at path, which must be used by nobody. progress may be
// nil. Killed in the middle, it is simply run again.
func Wipe(ctx context.Context, path string, level Level, progress func(done, total int64)) (Wiped, error) {
	began := time.Now()
	if level < Metadata || level > Secure {
		return Wiped{}, fmt.Errorf("wipe %s: level %d", path, level)
	}
	d, err := openDevice(path)
	if err != nil {
		return Wiped{}, err
	}
	defer d.Close()
	if progress == nil {
		progress = func(int64, int64) {}
	}
	w, err := d.wipe(ctx, level, progress)
	w.Elapsed = time.Since(began)
	if err != nil {
		return w, fmt.Errorf("wipe %s (%s): %w", path, level, err)
	}
	return w, nil
}

func (d *device) wipe(ctx context.Context, level Level, progress func(done, total int64)) (Wiped, error) {
	// Read before anything is gone: arrays hide inside partitions.
	areas, err := d.metadata()
	if err != nil {
		return Wiped{}, err
	}
	var w Wiped
	var weaker error
	switch level {
	case Discard:
		w.Bytes, err = d.discard(ctx, progress)
		if errors.Is(err, unix.EOPNOTSUPP) {
			weaker, err = fmt.Errorf("%w: it takes no discard; choose overwrite", ErrWeaker), nil
			level = Metadata
		}
	case Overwrite:
		w.Bytes, err = d.overwrite(ctx, progress)
	case Secure:
		err = d.secureErase(ctx)
		w.Bytes = d.size
	}
	if err != nil {
		return w, err
	}
	// After every level: a discard is a hint.
	for _, a := range areas {
		if err := ctx.Err(); err != nil {
			return w, err
		}
		if err := d.writeZeros(a.from, a.to-a.from); err != nil {
			return w, err
		}
	}
	if err := d.sync(); err != nil {
		return w, err
	}
	if left, err := d.look(); err != nil {
		return w, err
	} else if len(left) > 0 {
		return w, fmt.Errorf("%v is still there", left)
	}
	if w.Zeros, err = d.sampleZeros(); err != nil {
		return w, err
	}
	if level == Overwrite && !w.Zeros {
		return w, fmt.Errorf("%w: zeros were written, something else is read", ErrReadBack)
	}
	if d.block {
		// Whoever looks next should not see partitions that are gone. A disk
		// without partition scanning refuses; nothing depends on it.
		unix.IoctlSetInt(int(d.Fd()), unix.BLKRRPART, 0)
	}
	w.Reached = level
	return w, weaker
}

// area is a range of bytes.
type area struct{ from, to int64 }

// metadata returns the places where signatures are: both ends of the disk and
// of each partition, and btrfs's mirrors.
func (d *device) metadata() ([]area, error) {
	f, err := os.Open(d.path) // without direct I/O, for small reads
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts, err := Partitions(f, d.size)
	if err != nil && !errors.Is(err, errDamaged) {
		return nil, err
	}
	const edge = 4 * mib
	var as []area
	add := func(from, to, end int64) {
		if from, to = max(0, from&^511), min(to, end); from < to {
			as = append(as, area{from, to &^ 511})
		}
	}
	for _, p := range append([]Partition{{Size: d.size}}, parts...) {
		end := min(p.Offset+p.Size, d.size)
		add(p.Offset, p.Offset+edge, end)
		add(max(end-edge, p.Offset), end, end)
		for _, mirror := range []int64{64 * mib, 256 << 30} {
			if mirror < p.Size {
				add(p.Offset+mirror, p.Offset+mirror+64<<10, end)
			}
		}
	}
	return as, nil
}

// look returns the signatures that the kernel would find now.
func (d *device) look() ([]Signature, error) {
	f, err := os.Open(d.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return Signatures(f, d.size)
}

// step is how much is discarded or overwritten between two looks at ctx.
const (
	discardStep   = 4 << 30
	overwriteStep = 16 << 20
)

func (d *device) discard(ctx context.Context, progress func(done, total int64)) (int64, error) {
	for off := int64(0); off < d.size; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n := min(discardStep, d.size-off)
		if err := d.discardRange(off, n); err != nil {
			return off, fmt.Errorf("discard at %d: %w", off, err)
		}
		off += n
		progress(off, d.size)
	}
	return d.size, nil
}

func (d *device) discardRange(off, n int64) error {
	if !d.block {
		return d.punch(off, n)
	}
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	return nil
}

func (d *device) overwrite(ctx context.Context, progress func(done, total int64)) (int64, error) {
	size := d.size &^ 511
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n := min(overwriteStep, size-off)
		if err := d.writeZeros(off, n); err != nil {
			return off, err
		}
		off += n
		progress(off, size)
	}
	return size, nil
}

// sampleZeros reads 64 places at random.
func (d *device) sampleZeros() (bool, error) {
	unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	b := alignedBuffer(64 << 10)
	if d.size < int64(len(b)) {
		b = b[:d.size&^511]
	}
	for range 64 {
		off := rand.N(d.size-int64(len(b))+1) &^ 511
		if err := d.readAt(b, off); err != nil {
			return false, err
		}
		if !images.IsZero(b) {
			return false, nil
		}
	}
	return true, nil
}
