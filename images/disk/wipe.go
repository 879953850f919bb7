package disk

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images"
)

// Level says how thoroughly a disk is wiped.
type Level int

// Levels, from weak to strong. What NIST SP 800-88r1 (appendix A) calls each
// is in NIST.
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
	// Secure is the drive's own erase of everything it holds, whichever it has.
	Secure
	// Purge is one of the drive's own erases that leaves nothing to a
	// laboratory either.
	Purge
)

var levels = [...]string{"", "metadata", "discard", "overwrite", "secure", "purge"}

func (l Level) String() string {
	if l <= 0 || int(l) >= len(levels) {
		return "none"
	}
	return levels[l]
}

// NIST is what NIST SP 800-88r1 calls a wipe of this level: clear, purge, or
// none. That revision was withdrawn in September 2025; revision 2 leaves the
// methods to IEEE 2883.
func (l Level) NIST() string {
	switch l {
	case Overwrite, Secure:
		return "clear"
	case Purge:
		return "purge"
	}
	return "none"
}

// ParseLevel is the inverse of String.
func ParseLevel(s string) (Level, error) {
	for i, n := range levels {
		if s == n && i > 0 {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("wipe level %q: want metadata, discard, overwrite, secure or purge", s)
}

// Wiped is what became of a disk.
type Wiped struct {
	Reached Level    // 0: nothing was wiped for certain
	Method  string   // how: "NVMe Sanitize, block erase"
	Notes   []string // what the drive has not, refused, or did not do although it said so
	Bytes   int64    // discarded, overwritten or erased
	Proofs  int      // places that held data before, and were seen not to hold it afterwards
	Zeros   bool     // a random sample of the disk reads as zeros
	Elapsed time.Duration
}

// Errors that callers tell apart.
var (
	// ErrWeaker is wrapped when a disk cannot be wiped as thoroughly as asked.
	// The disk was wiped at the level in Wiped.Reached, if any.
	ErrWeaker = errors.New("disk cannot be wiped that thoroughly")
	// ErrFrozen is wrapped too when the firmware of the machine locked the
	// drive's erase, as many do at each start.
	ErrFrozen = errors.New("the drive is frozen")
)

// Wipe wipes the disk at path, which must be used by nobody. progress may be
// nil. Killed in the middle, it is simply run again.
func Wipe(ctx context.Context, path string, level Level, progress func(done, total int64)) (Wiped, error) {
	began := time.Now()
	if level < Metadata || level > Purge {
		return Wiped{}, fmt.Errorf("wipe %s: level %d", path, level)
	}
	dev, err := openDisk(path)
	if err != nil {
		return Wiped{}, err
	}
	defer dev.Close()
	if progress == nil {
		progress = func(int64, int64) {}
	}
	d := &drive{port: blockPort{dev}, size: dev.size, sector: dev.sector, pause: time.Second}
	w, err := d.wipe(ctx, level, progress)
	w.Elapsed = time.Since(began)
	if err != nil {
		return w, fmt.Errorf("wipe %s (%s): %w", path, level, err)
	}
	return w, nil
}

// Settle waits until the drive behind f, which may be open for reading only,
// is done with an erase that it carries on with by itself since before a loss
// of power: it answers no read until then. If a security erase of ours lost
// power, it takes the password away that the drive is locked with since. A
// drive that knows nothing of the kind is settled. progress may be nil.
func Settle(ctx context.Context, f *os.File, progress func(done, total int64)) error {
	d, own := behind(f, true)
	if own == nil {
		return nil
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	_, err := d.await(ctx, own, progress)
	return err
}

// Lost tells whether the data on the drive behind f is out of everybody's
// reach: its last sanitize failed, and only another one opens it again.
func Lost(f *os.File) bool {
	_, own := behind(f, false)
	if own == nil {
		return false
	}
	s, err := own.erasing()
	return err == nil && s.failed
}

// Offers is the best level of wipe that the drive behind f offers itself, as a
// word: purge, secure or none. It is empty where that cannot be known now: the
// drive does not answer, or is frozen.
func Offers(f *os.File) string {
	d, own := behind(f, false)
	if d == nil || !d.port.(blockPort).block {
		return ""
	}
	return offered(own)
}

func offered(own eraser) string {
	if own == nil {
		return Level(0).String()
	}
	best := Level(0)
	use, _, frozen := own.methods()
	for _, m := range use {
		best = max(best, m.level)
	}
	if frozen && best < Purge {
		return ""
	}
	return best.String()
}

// behind asks the drive behind f who it is. No drive: that cannot be known; no
// eraser: it has none.
func behind(f *os.File, unlock bool) (*drive, eraser) {
	i, err := f.Stat()
	if err != nil {
		return nil, nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil
	}
	d := &drive{port: blockPort{&device{File: f, path: f.Name(), size: size, sector: 512, block: i.Mode().Type() == fs.ModeDevice}}, size: size, sector: 512, pause: time.Second}
	own, err := d.eraser(unlock)
	if err != nil {
		return nil, nil
	}
	return d, own
}

// drive is a disk that is being wiped.
type drive struct {
	port
	size, sector int64
	pause        time.Duration // between two looks at how far an erase is
}

func (d *drive) wipe(ctx context.Context, level Level, progress func(done, total int64)) (w Wiped, err error) {
	own, err := d.eraser(true)
	if err != nil && level >= Secure {
		return w, err
	}
	refuses := ""
	if own != nil {
		// A drive that was erasing when the power went goes on by itself, and
		// answers nothing else until it is done.
		if _, err := d.await(ctx, own, progress); err != nil {
			return w, err
		}
		refuses = own.refuses()
	}
	var ways []method
	if level >= Secure {
		if ways, w.Notes, err = choose(own, level); err != nil {
			return w, err // before a byte is changed
		}
	} else if refuses != "" {
		return w, fmt.Errorf("%w: %s; choose secure or purge", ErrWeaker, refuses)
	}
	if level == Metadata && d.sector != 512 {
		return w, fmt.Errorf("%w: where the metadata is on sectors of %d bytes is not known; choose discard or more", ErrWeaker, d.sector)
	}

	var areas []area
	var before evidence
	if refuses == "" {
		// Read before anything is gone: arrays hide inside partitions.
		if areas, err = d.metadata(); err != nil {
			return w, err
		}
		if level != Metadata && level != Overwrite { // what is written over is read afterwards
			if before, err = d.remember(); err != nil {
				return w, err
			}
		}
	} else {
		w.Notes = append(w.Notes, refuses+": what it held before could not be looked at")
		areas = d.edges(nil)
	}

	var weaker error
	switch level {
	case Metadata:
		w.Method = "signatures cleared"
	case Discard:
		w.Method = "discard"
		switch w.Bytes, err = d.discardAll(ctx, progress); {
		case errors.Is(err, unix.EOPNOTSUPP):
			weaker, err = fmt.Errorf("%w: it takes no discard; choose overwrite", ErrWeaker), nil
		case err != nil:
			return w, err
		default:
			left, err := d.left(before)
			if err != nil {
				return w, err
			}
			if left > 0 {
				weaker = fmt.Errorf("%w: it takes a discard, and %d of %d places still hold what they held; choose overwrite", ErrWeaker, left, len(before))
			}
			w.Proofs = len(before) - left
		}
		if weaker != nil {
			w.Method, level = "signatures cleared", Metadata
		}
	case Overwrite:
		w.Method = "overwritten with zeros"
		w.Bytes, err = d.overwrite(ctx, progress)
	case Secure, Purge:
		level, err = d.eraseItself(ctx, ways, before, progress, &w)
	}
	if err != nil {
		return w, err
	}
	// After every level: a discard is a hint, and an erased drive may show
	// anything.
	for _, a := range areas {
		if err := ctx.Err(); err != nil {
			return w, err
		}
		if err := d.writeZeros(a.from, a.to-a.from); err != nil {
			return w, err
		}
	}
	if err := d.Sync(); err != nil {
		return w, fmt.Errorf("flush: %w", err)
	}
	if left, err := Signatures(d.bytes(), d.size); err != nil {
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
	d.reread() // whoever looks next should not see partitions that are gone
	w.Reached = level
	return w, weaker
}

// bytes is the drive for small reads.
func (d *drive) bytes() io.ReaderAt { return wholeSectors{d.port, d.sector, d.size} }

// eraseItself lets the drive erase itself, by the first of the ways that works,
// and returns the level of that one.
func (d *drive) eraseItself(ctx context.Context, ways []method, before evidence, progress func(done, total int64), w *Wiped) (Level, error) {
	for _, m := range ways {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		err := m.run(ctx, d, progress)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		left := 0
		if err == nil {
			// Who says that it is done is not believed.
			if left, err = d.left(before); err == nil && left > 0 {
				err = fmt.Errorf("the drive says it is done, and %d of %d places still hold what they held", left, len(before))
			}
		}
		if err != nil {
			w.Notes = append(w.Notes, m.name+": "+err.Error())
			continue
		}
		w.Method, w.Bytes, w.Proofs = m.name, d.size, len(before)
		return m.level, nil
	}
	return 0, fmt.Errorf("%w: %s", ErrWeaker, strings.Join(w.Notes, "; "))
}

// choose returns the ways of a drive that are good enough, best first, and why
// the others are not.
func choose(own eraser, want Level) (ways []method, notes []string, err error) {
	if own == nil {
		return nil, nil, fmt.Errorf("%w: it is no NVMe, SATA or SAS drive that can be told to erase itself; choose overwrite or discard", ErrWeaker)
	}
	all, notes, frozen := own.methods()
	for _, m := range all {
		if m.level >= want {
			ways = append(ways, m)
		} else {
			notes = append(notes, m.name+" is only "+m.level.String())
		}
	}
	if len(ways) > 0 {
		return ways, notes, nil
	}
	err = fmt.Errorf("%w: %s", ErrWeaker, strings.Join(notes, "; "))
	if frozen {
		err = fmt.Errorf("%w: %w", ErrFrozen, err)
	}
	return nil, notes, err
}

// A method is one way in which a drive erases itself.
type method struct {
	name  string
	level Level
	run   func(ctx context.Context, d *drive, progress func(done, total int64)) error
}

// An eraser is a drive that may know how to erase itself.
type eraser interface {
	// methods are its ways, best first, and why others cannot be used; frozen
	// when they could be but for the machine's firmware.
	methods() (use []method, not []string, frozen bool)
	// erasing is how far it is with an erase that it carries on with by
	// itself, also through a loss of power.
	erasing() (erasure, error)
	// refuses says why its data cannot be read or written until it is erased;
	// "" if it can.
	refuses() string
}

// erasure is the state of an erase in the background.
type erasure struct {
	running, failed bool
	done            float64 // 0 to 1
}

// eraser asks the drive who it is, and takes a password of ours away if it may.
// Nil: one that cannot erase itself.
func (d *drive) eraser(unlock bool) (eraser, error) {
	nsid, err := d.namespace()
	if err != nil {
		return identifySCSI(d.port, unlock)
	}
	n, err := identifyNVMe(d.port, nsid)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// An erase whose progress has not moved for so long will not.
const stalled = 2 * time.Hour

// await waits until the drive is done with an erase that goes on by itself.
func (d *drive) await(ctx context.Context, own eraser, progress func(done, total int64)) (erasure, error) {
	last, moved, silent := -1.0, time.Now(), 0
	for {
		s, err := own.erasing()
		switch {
		case err != nil:
			if silent++; silent > 10 { // a drive may be busy with itself for a moment
				return s, err
			}
		case !s.running:
			return s, nil
		default:
			silent = 0
			if s.done != last {
				last, moved = s.done, time.Now()
			}
			progress(int64(min(s.done, 1)*float64(d.size)), d.size)
		}
		if time.Since(moved) > stalled {
			return s, fmt.Errorf("the drive erases itself and has been at %.1f %% for %s: replace it", 100*last, stalled)
		}
		if err := d.rest(ctx); err != nil {
			return s, err
		}
	}
}

// begun waits as await does, for an erase that was just begun: a drive may
// need a moment until it says so.
func (d *drive) begun(ctx context.Context, own eraser, progress func(done, total int64)) (erasure, error) {
	if err := d.rest(ctx); err != nil {
		return erasure{}, err
	}
	return d.await(ctx, own, progress)
}

func (d *drive) rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d.pause):
		return nil
	}
}

// meanwhile runs a command that answers only at its end, and shows progress by
// what the drive said that it takes. The command cannot be called back: the
// drive erases on whatever we do, so its end is waited for.
func (d *drive) meanwhile(takes time.Duration, progress func(done, total int64), command func() error) error {
	began, end := time.Now(), make(chan error, 1)
	go func() { end <- command() }()
	tick := time.NewTicker(d.pause)
	defer tick.Stop()
	for {
		select {
		case err := <-end:
			return err
		case <-tick.C:
			done := 0.0 // even that is a sign of life
			if takes > 0 {
				done = min(0.99, time.Since(began).Seconds()/takes.Seconds())
			}
			progress(int64(done*float64(d.size)), d.size)
		}
	}
}

// evidence is what places of a drive held before it was wiped.
type evidence map[int64][sha256.Size]byte

const (
	place  = 4 << 10 // bytes of evidence in one place
	places = 64      // of what was there
	marks  = 16      // of what we write there first
)

// remember reads places at random, and writes something that nobody can guess
// into some of them first: a drive full of zeros proves nothing. A bad sector
// of an old drive is no reason not to erase it, as long as there are others.
func (d *drive) remember() (evidence, error) {
	e := evidence{}
	var bad error
	b := alignedBuffer(int(min(place, d.size/d.sector*d.sector)))
	if len(b) == 0 {
		return nil, fmt.Errorf("it has %d bytes", d.size)
	}
	for range marks {
		off := d.somewhere(len(b))
		rand.Read(b) // never fails (crypto/rand)
		if _, err := d.WriteAt(b, off); err != nil {
			bad = fmt.Errorf("write a mark at %d: %w", off, err)
			continue
		}
		e[off] = sha256.Sum256(b)
	}
	if err := d.Sync(); err != nil {
		return nil, fmt.Errorf("flush: %w", err)
	}
	for off, sum := range e {
		if _, err := d.ReadAt(b, off); err != nil {
			bad = fmt.Errorf("read a mark at %d: %w", off, err)
			delete(e, off)
			continue
		}
		if sha256.Sum256(b) != sum {
			return nil, fmt.Errorf("%w: a mark that was written at %d is not read there", ErrReadBack, off)
		}
	}
	for range places {
		off := d.somewhere(len(b))
		if _, err := d.ReadAt(b, off); err == nil && !images.IsZero(b) {
			e[off] = sha256.Sum256(b)
		}
	}
	if bad != nil && len(e) < marks/2 {
		return nil, fmt.Errorf("it holds nothing that a wipe could be proven by: %w", bad)
	}
	return e, nil
}

// somewhere is a place of n bytes. Places lie on a grid: two are the same or
// do not touch.
func (d *drive) somewhere(n int) int64 {
	return mathrand.N(d.size/int64(n)) * int64(n)
}

// left counts the places that hold what they held.
func (d *drive) left(before evidence) (int, error) {
	left, patience := 0, 60 // it may just be starting anew
	b := alignedBuffer(int(min(place, d.size/d.sector*d.sector)))
	for off, sum := range before {
		_, err := d.ReadAt(b, off)
		for ; err != nil && patience > 0; patience-- {
			time.Sleep(d.pause)
			_, err = d.ReadAt(b, off)
		}
		if err != nil {
			return left, fmt.Errorf("cannot be read after the wipe, at %d: %w", off, err)
		}
		if sha256.Sum256(b) == sum {
			left++
		}
	}
	return left, nil
}

// area is a range of bytes.
type area struct{ from, to int64 }

// metadata returns the places where signatures are: both ends of the disk and
// of each partition, and btrfs's mirrors.
func (d *drive) metadata() ([]area, error) {
	parts, err := Partitions(d.bytes(), d.size)
	if err != nil && !errors.Is(err, errDamaged) {
		return nil, err
	}
	return d.edges(parts), nil
}

func (d *drive) edges(parts []Partition) []area {
	const edge = 4 * mib
	var as []area
	add := func(from, to, end int64) {
		if from, to = max(0, from&^(d.sector-1)), min(to, end); from < to {
			as = append(as, area{from, to &^ (d.sector - 1)})
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
	return as
}

// step is how much is discarded or overwritten between two looks at ctx.
const (
	discardStep   = 4 << 30
	overwriteStep = 16 << 20
)

func (d *drive) discardAll(ctx context.Context, progress func(done, total int64)) (int64, error) {
	for off := int64(0); off < d.size; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n := min(discardStep, d.size-off)
		if err := d.discard(off, n); err != nil {
			return off, fmt.Errorf("discard at %d: %w", off, err)
		}
		off += n
		progress(off, d.size)
	}
	return d.size, nil
}

func (d *drive) overwrite(ctx context.Context, progress func(done, total int64)) (int64, error) {
	size := d.size &^ (d.sector - 1)
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

func (d *drive) writeZeros(off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if _, err := d.WriteAt(zeroes[:k], off); err != nil {
			return fmt.Errorf("write zeros at %d: %w", off, err)
		}
		off, n = off+k, n-k
	}
	return nil
}

// sampleZeros reads 64 places at random.
func (d *drive) sampleZeros() (bool, error) {
	b := alignedBuffer(int(min(64<<10, d.size&^(d.sector-1))))
	for range 64 {
		off := mathrand.N(d.size-int64(len(b))+1) &^ (d.sector - 1)
		if _, err := d.ReadAt(b, off); err != nil {
			return false, fmt.Errorf("read at %d: %w", off, err)
		}
		if !images.IsZero(b) {
			return false, nil
		}
	}
	return true, nil
}
