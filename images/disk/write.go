// Package disk puts images on disks: it writes and verifies chunk by chunk,
// resumes, wipes, recognises what a disk held before, and grows the last
// partition. It is the node's side of package images and needs no other tool
// on the node.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"smelt/images"
)

// headLen is what makes a disk bootable: MBR and partition table. It is
// cleared before the first chunk and written after everything else was
// verified, so that a disk written half never boots.
const headLen = 1 << 20

// stall is how long a fetch may bring no byte.
const stall = 30 * time.Second

// mismatches is how often a chunk may arrive with the wrong contents: once is
// a bad cable, always is a bad server.
const mismatches = 3

// Options of Write. The zero value is what most callers want.
type Options struct {
	// Done is what an earlier try left behind. It is a hint: a chunk it claims
	// is read and verified before it is believed, and a map of another length
	// is ignored.
	Done Map
	// Progress is called from the writers, one call at a time, a few times a
	// second and at the end of each stage. It must not block.
	Progress func(Progress)
	// ReadBack reads the whole disk after it was written and flushed: it finds
	// the single bad block too, and takes as long as reading the disk does.
	// Without it both ends and one chunk in a hundred are read, which finds a
	// disk that lies about its size or loses writes at large.
	ReadBack bool
	// Workers fetch, verify and write at the same time. 0 chooses by CPUs. A
	// worker needs 9 MiB at most.
	Workers int
	// Patience is how long nothing may arrive before Write gives up. 0 is five
	// minutes: a controller that restarts must not fail a hall of machines.
	Patience time.Duration
	// Source, if not nil, is asked for chunks before they are fetched.
	Source Source
}

// Progress is where Write is.
type Progress struct {
	Stage   string // write, verify
	Done    int64  // bytes of the disk
	Total   int64
	Fetched int64 // bytes of the blob
	Map     Map   // a copy; keep it to resume
}

// Result says what Write did.
type Result struct {
	Written  int64 // bytes of data
	Zeroed   int64 // bytes made to read as zeros
	Reused   int64 // bytes an earlier try had written, verified again
	Fetched  int64 // bytes of the blob that were used
	Retries  int   // fetches that failed or brought the wrong bytes
	ReadBack int64 // bytes read back and compared
	Elapsed  time.Duration
}

// ErrCorrupt is wrapped when a source keeps sending bytes that are not the image's.
var ErrCorrupt = images.ErrCorrupt

// ErrReadBack is wrapped when the disk does not return what was written to it.
var ErrReadBack = errors.New("disk does not return what was written")

// surface is a disk as the writer sees it: writes are on it for certain only
// after a sync, and until then in no order. b is aligned.
type surface interface {
	readAt(b []byte, off int64) error
	writeAt(b []byte, off int64) error
	zero(off, n int64) error
	sync() error
	// forget makes the next reads come from the disk, not from memory.
	forget(n int64)
}

type writer struct {
	dev   surface
	size  int64 // of the disk
	m     images.Manifest
	fetch Fetch
	o     Options
	began time.Time

	mu     sync.Mutex
	done   Map
	at     Progress
	told   time.Time
	heard  time.Time // when bytes last arrived
	result Result
	ends   map[int][]byte // first and last chunk, verified: they have their turn last
	idle   []*buffers
}

// Write makes the disk at path begin with the image. path must exist and be
// used by nobody. The caller has verified m's signature.
func Write(ctx context.Context, path string, m images.Manifest, fetch Fetch, o Options) (Result, error) {
	if err := m.Validate(); err != nil {
		return Result{}, err
	}
	dev, err := openDevice(path)
	if err != nil {
		return Result{}, err
	}
	defer dev.Close()
	return write(ctx, dev, dev.size, path, m, fetch, o)
}

func write(ctx context.Context, dev surface, size int64, path string, m images.Manifest, fetch Fetch, o Options) (Result, error) {
	if size < m.Size {
		return Result{}, fmt.Errorf("%s: %w: it has %d bytes, image %s needs %d", path, ErrShort, size, m.Name, m.Size)
	}
	if o.Workers <= 0 {
		// More than CPUs: a worker waits for the network and the disk.
		o.Workers = min(max(2*runtime.NumCPU(), 6), 8)
	}
	if o.Patience <= 0 {
		o.Patience = 5 * time.Minute
	}
	w := &writer{dev: dev, size: size, m: m, fetch: fetch, o: o, began: time.Now(), heard: time.Now(),
		done: NewMap(len(m.Chunks)), ends: map[int][]byte{}}
	if o.Done.Len() != len(m.Chunks) {
		w.o.Done = NewMap(len(m.Chunks))
	}
	err := w.run(ctx)
	for _, b := range w.idle {
		b.dec.Close()
		b.free()
	}
	w.result.Elapsed = time.Since(w.began)
	if err != nil {
		return w.result, fmt.Errorf("image %s to %s: %w", m.Name, path, err)
	}
	return w.result, nil
}

func (w *writer) run(ctx context.Context) error {
	// Both copies of an old partition table go: firmware takes the backup when
	// the primary is damaged.
	for _, off := range []int64{w.size/512*512 - headLen, 0} {
		if err := w.dev.writeAt(zeroes[:headLen], off); err != nil {
			return err
		}
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	w.stage("write", w.m.Size)
	if err := w.fromSource(ctx); err != nil {
		return err
	}
	if err := w.chunks(ctx); err != nil {
		return err
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	// The last chunk may hold a backup table at the very end of the disk, the
	// first holds the primary: they come when the rest is on the medium, one
	// after the other, for a table may not be there before what it speaks of.
	if last := len(w.m.Chunks) - 1; last > 0 && !w.m.Chunks[last].Zero {
		if err := w.dev.writeAt(w.ends[last], w.m.Chunks[last].Offset); err != nil {
			return err
		}
		w.finished(last, w.m.Chunks[last].Length, &w.result.Written)
		if err := w.dev.sync(); err != nil {
			return err
		}
	}
	head := zeroes[:headLen]
	if b := w.ends[0]; b != nil {
		head = b[:headLen]
	}
	if err := w.readBack(ctx, head); err != nil {
		return err
	}
	return w.finish(ctx, head)
}

// finish makes the disk bootable.
func (w *writer) finish(ctx context.Context, head []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.dev.writeAt(head, 0); err != nil {
		return err
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	got := alignedBuffer(headLen)
	if err := w.dev.readAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, head) {
		err := fmt.Errorf("%w: first MiB", ErrReadBack)
		return errors.Join(err, w.dev.writeAt(zeroes[:headLen], 0), w.dev.sync())
	}
	w.finished(0, w.m.Chunks[0].Length, &w.result.Written)
	return nil
}

// A task is neighbouring chunks of one kind: of data whose frames follow each
// other in the blob, or zero.
type task struct{ from, to int }

// tasks covers all chunks.
func (w *writer) tasks() []task {
	// 64 MiB: long enough that a connection streams, short enough that the
	// workers finish together. A small image is shared out too.
	run := min(max(len(w.m.Chunks)/(4*w.o.Workers), 1), 16)
	var ts []task
	for i := 0; i < len(w.m.Chunks); {
		j := i + 1
		for j < len(w.m.Chunks) && j-i < run && w.follows(j) {
			j++
		}
		ts = append(ts, task{i, j})
		i = j
	}
	return ts
}

// follows says whether chunk i goes on where the one before it ends.
func (w *writer) follows(i int) bool {
	a, b := w.m.Chunks[i-1], w.m.Chunks[i]
	return a.Zero == b.Zero && (a.Zero || b.BlobOff == a.BlobOff+a.BlobLen)
}

func (w *writer) chunks(ctx context.Context) error {
	return w.parallel(ctx, w.tasks(), func(ctx context.Context, t task, buf *buffers) error {
		if c := w.m.Chunks[t.from]; c.Zero {
			// Cheaper to do again than to read, so Done is not asked. The head
			// is zero already, and this keeps its bytes from being sent twice.
			from := max(c.Offset, headLen)
			n := w.m.Chunks[t.to-1].Offset + w.m.Chunks[t.to-1].Length - from
			if n > 0 {
				if err := w.dev.zero(from, n); err != nil {
					return err
				}
			}
			for i := t.from; i < t.to; i++ {
				if i > 0 {
					w.finished(i, w.m.Chunks[i].Length, &w.result.Zeroed)
				}
			}
			return nil
		}
		for i := t.from; i < t.to; {
			if w.there(i, buf) {
				i++
				continue
			}
			j := i + 1
			for j < t.to && !w.has(j) && !w.o.Done.Has(j) {
				j++
			}
			if err := w.get(ctx, i, j, buf); err != nil {
				return err
			}
			i = j
		}
		return nil
	})
}

// there says whether chunk i need not be fetched: the source brought it, or an
// earlier try had written it and the disk proves that.
func (w *writer) there(i int, buf *buffers) bool {
	if w.has(i) {
		return true
	}
	if !w.o.Done.Has(i) || i == 0 || i == len(w.m.Chunks)-1 {
		return false
	}
	c := w.m.Chunks[i]
	b := buf.all[:c.Length]
	// A read error is no reason to stop: writing may mend the sector.
	if err := w.dev.readAt(b, c.Offset); err != nil || !c.Holds(b) {
		return false
	}
	w.finished(i, c.Length, &w.result.Reused)
	return true
}

// put takes chunk i, which is verified. The ends stay in memory: what makes the
// disk bootable is written when everything else is.
func (w *writer) put(i int, b []byte) error {
	if w.has(i) {
		return nil
	}
	c := w.m.Chunks[i]
	if i == 0 || i == len(w.m.Chunks)-1 {
		keep := alignedBuffer(len(b))
		copy(keep, b)
		w.mu.Lock()
		w.ends[i] = keep
		w.mu.Unlock()
		if i > 0 || len(b) == headLen {
			return nil
		}
		return w.dev.writeAt(b[headLen:], headLen)
	}
	if err := w.dev.writeAt(b, c.Offset); err != nil {
		return err
	}
	w.finished(i, c.Length, &w.result.Written)
	return nil
}

// parallel runs do for each task on Workers goroutines and waits for them.
func (w *writer) parallel(ctx context.Context, ts []task, do func(context.Context, task, *buffers) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan task)
	g.Go(func() error {
		defer close(queue)
		for _, t := range ts {
			select {
			case queue <- t:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range min(w.o.Workers, len(ts)) {
		g.Go(func() error {
			buf, err := w.buffers()
			if err != nil {
				return err
			}
			defer w.free(buf)
			for t := range queue {
				if err := do(ctx, t, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// buffers belong to one worker.
type buffers struct {
	all  []byte // a chunk, aligned
	free func()
	dec  *images.Decoder
}

// buffers returns idle ones, or new ones: a stage uses those of the one before.
func (w *writer) buffers() (*buffers, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.idle); n > 0 {
		b := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return b, nil
	}
	dec, err := images.NewDecoder()
	if err != nil {
		return nil, err
	}
	all, free, err := hugeBuffer()
	if err != nil {
		dec.Close()
		return nil, err
	}
	return &buffers{all, free, dec}, nil
}

func (w *writer) free(b *buffers) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, b)
}

// get fetches chunks from up to but not including to, whose frames follow each
// other, and puts them. This is the one place that tries again, from the chunk
// that is missing.
func (w *writer) get(ctx context.Context, from, to int, buf *buffers) error {
	const first = 250 * time.Millisecond
	wait, wrong := first, 0
	for {
		i, err := w.try(ctx, from, to, buf)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e := new(diskError); errors.As(err, e) {
			return e.error
		}
		if i > from {
			from, wait, wrong = i, first, 0
		}
		w.mu.Lock()
		w.result.Retries++
		silent := time.Since(w.heard)
		w.mu.Unlock()
		if errors.As(err, new(permanent)) {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if errors.Is(err, ErrCorrupt) {
			if wrong++; wrong == mismatches {
				return fmt.Errorf("chunk %d, %d times: %w", i, wrong, err)
			}
		}
		if silent > w.o.Patience {
			return fmt.Errorf("chunk %d: nothing arrived for %s: %w", i, silent.Round(time.Second), err)
		}
		// Spread: a whole hall waits for the same server.
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// diskError is a failure of the target, which no fetch mends.
type diskError struct{ error }

// try fetches once, and returns the first chunk that is not put.
func (w *writer) try(ctx context.Context, from, to int, buf *buffers) (int, error) {
	off, end := w.m.Chunks[from].BlobOff, w.m.Chunks[to-1].BlobOff+w.m.Chunks[to-1].BlobLen
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("no byte for %s", stall)) })
	defer watch.Stop()
	body, err := w.fetch(ctx, off, end-off)
	if err != nil {
		return from, cause(ctx, err)
	}
	defer body.Close()
	r := &watched{body, watch}
	for i := from; i < to; i++ {
		c := w.m.Chunks[i]
		n, err := buf.dec.Chunk(r, c, buf.all)
		if errors.Is(err, ErrCorrupt) {
			return i, err
		}
		if err != nil {
			return i, cause(ctx, err)
		}
		w.arrived(n)
		// While the disk is busy nothing is read, and nothing need come.
		watch.Stop()
		if err := w.put(i, buf.all[:c.Length]); err != nil {
			return i, diskError{err}
		}
	}
	return to, nil
}

// arrived notes that n bytes came over the network.
func (w *writer) arrived(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
	w.result.Fetched += n
	w.at.Fetched += n
}

// cause prefers why we gave up to "context canceled".
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

// watched sets the watchdog off anew with each read.
type watched struct {
	r     io.Reader
	watch *time.Timer
}

func (r *watched) Read(b []byte) (int, error) {
	r.watch.Reset(stall)
	return r.r.Read(b)
}

// readBack compares the disk with the manifest. head is the first MiB, which
// is not on the disk yet.
func (w *writer) readBack(ctx context.Context, head []byte) error {
	// What the kernel remembers says nothing about the disk.
	w.dev.forget(w.m.Size)
	n := len(w.m.Chunks)
	pick := map[int]bool{0: true, n - 1: true}
	if w.o.ReadBack {
		for i := range n {
			pick[i] = true
		}
	}
	for range max(8, n/128) {
		pick[rand.N(n)] = true
	}
	var ts []task
	var total int64
	for i := range n {
		if pick[i] {
			ts = append(ts, task{i, i + 1})
			total += w.m.Chunks[i].Length
		}
	}
	w.stage("verify", total)
	return w.parallel(ctx, ts, func(_ context.Context, t task, buf *buffers) error {
		c := w.m.Chunks[t.from]
		b := buf.all[:c.Length]
		if err := w.dev.readAt(b, c.Offset); err != nil {
			return err
		}
		if t.from == 0 {
			copy(b, head)
		}
		if !c.Holds(b) {
			return fmt.Errorf("%w: chunk %d at %d; replace the disk or its cable", ErrReadBack, t.from, c.Offset)
		}
		w.read(c.Length)
		return nil
	})
}

// stage begins a stage of so many bytes.
func (w *writer) stage(name string, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at.Stage, w.at.Done, w.at.Total = name, 0, total
	w.tell(true)
}

// has says whether chunk i is on the disk, or kept for its end.
func (w *writer) has(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done.Has(i) || w.ends[i] != nil
}

// finished notes that chunk i is on the disk.
func (w *writer) finished(i int, n int64, kind *int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done.Set(i)
	*kind += n
	if w.at.Stage == "write" {
		w.at.Done += n
	}
	w.tell(w.done.Count() == w.done.Len())
}

func (w *writer) read(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.result.ReadBack += n
	w.at.Done += n
	w.tell(w.at.Done == w.at.Total)
}

// tell calls Progress, with w.mu held.
func (w *writer) tell(now bool) {
	if w.o.Progress == nil || !now && time.Since(w.told) < 200*time.Millisecond {
		return
	}
	w.told = time.Now()
	p := w.at
	p.Map = w.done.Clone()
	w.o.Progress(p)
}
