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
	"golang.org/x/sys/unix"

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
	// ReadBack reads the whole disk after writing. Without it the beginning,
	// the end and a random sample are read.
	ReadBack bool
	// Workers fetch, verify and write at the same time. 0 chooses by CPUs. A
	// worker needs 9 MiB.
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

type writer struct {
	dev   *device
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
	kept   map[int][]byte // what the source brought before its time
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
	if dev.size < m.Size {
		return Result{}, fmt.Errorf("%s: %w: it has %d bytes, image %s needs %d", path, ErrShort, dev.size, m.Name, m.Size)
	}
	if o.Workers <= 0 {
		// More than CPUs: a worker waits for the network and the disk.
		o.Workers = min(max(2*runtime.NumCPU(), 4), 8)
	}
	if o.Patience <= 0 {
		o.Patience = 5 * time.Minute
	}
	w := &writer{dev: dev, m: m, fetch: fetch, o: o, began: time.Now(), heard: time.Now(), done: NewMap(len(m.Chunks))}
	if o.Done.Len() != len(m.Chunks) {
		w.o.Done = NewMap(len(m.Chunks))
	}
	err = w.run(ctx)
	w.result.Elapsed = time.Since(w.began)
	if err != nil {
		return w.result, fmt.Errorf("image %s to %s: %w", m.Name, path, err)
	}
	return w.result, nil
}

func (w *writer) run(ctx context.Context) error {
	// Both copies of an old partition table go: firmware takes the backup when
	// the primary is damaged.
	for _, off := range []int64{w.dev.size/512*512 - headLen, 0} {
		if err := w.dev.writeZeros(off, headLen); err != nil {
			return err
		}
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	w.stage("write", w.m.Size)
	// The last chunk may hold a backup table at the very end of the disk, the
	// first holds the primary: they come after the rest is on the medium.
	last := len(w.m.Chunks) - 1
	if err := w.fromSource(ctx); err != nil {
		return err
	}
	if err := w.chunks(ctx, w.tasks(1, last)); err != nil {
		return err
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	if last > 0 {
		if err := w.chunks(ctx, w.tasks(last, last+1)); err != nil {
			return err
		}
	}
	first := w.m.Chunks[0]
	b := alignedBuffer(images.ChunkSize)[:first.Length]
	if !first.Zero {
		buf, err := newBuffers()
		if err != nil {
			return err
		}
		defer buf.close()
		if err := w.get(ctx, 0, buf); err != nil {
			return err
		}
		copy(b, buf.raw)
	}
	if err := w.dev.writeAt(b[headLen:], headLen); err != nil {
		return err
	}
	if err := w.dev.sync(); err != nil {
		return err
	}
	if err := w.readBack(ctx, b[:headLen]); err != nil {
		return err
	}
	return w.finish(ctx, b[:headLen])
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
		return errors.Join(err, w.dev.writeZeros(0, headLen))
	}
	w.finished(0, w.m.Chunks[0].Length, &w.result.Written)
	return nil
}

// A task is a chunk of data, or neighbouring zero chunks.
type task struct{ from, to int }

// tasks covers chunks from up to but not including to.
func (w *writer) tasks(from, to int) []task {
	const run = 16 // zero chunks in one call: 64 MiB
	var ts []task
	for i := from; i < to; {
		j := i + 1
		if w.m.Chunks[i].Zero {
			for j < to && j-i < run && w.m.Chunks[j].Zero {
				j++
			}
		}
		ts = append(ts, task{i, j})
		i = j
	}
	return ts
}

func (w *writer) chunks(ctx context.Context, ts []task) error {
	return w.parallel(ctx, ts, func(ctx context.Context, t task, buf *buffers) error {
		c := w.m.Chunks[t.from]
		if c.Zero {
			// Cheaper to do again than to read, so Done is not asked.
			n := w.m.Chunks[t.to-1].Offset + w.m.Chunks[t.to-1].Length - c.Offset
			if err := w.dev.zero(c.Offset, n); err != nil {
				return err
			}
			for i := t.from; i < t.to; i++ {
				w.finished(i, w.m.Chunks[i].Length, &w.result.Zeroed)
			}
			return nil
		}
		if w.isDone(t.from) {
			return nil // the source brought it
		}
		if w.o.Done.Has(t.from) {
			b := buf.all[:c.Length]
			// A read error is no reason to stop: writing may mend the sector.
			if err := w.dev.readAt(b, c.Offset); err == nil && c.Holds(b) {
				w.finished(t.from, c.Length, &w.result.Reused)
				return nil
			}
		}
		if err := w.get(ctx, t.from, buf); err != nil {
			return err
		}
		if err := w.dev.writeAt(buf.raw, c.Offset); err != nil {
			return err
		}
		w.finished(t.from, c.Length, &w.result.Written)
		return nil
	})
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
			buf, err := newBuffers()
			if err != nil {
				return err
			}
			defer buf.close()
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
	all []byte // a chunk, aligned
	raw []byte // the part of all that get filled
	dec *images.Decoder
}

func newBuffers() (*buffers, error) {
	dec, err := images.NewDecoder()
	if err != nil {
		return nil, err
	}
	return &buffers{all: alignedBuffer(images.ChunkSize), dec: dec}, nil
}

func (b *buffers) close() { b.dec.Close() }

// get leaves chunk i, verified, in buf.raw. This is the one place that tries
// again.
func (w *writer) get(ctx context.Context, i int, buf *buffers) error {
	if w.fromKept(i, buf) {
		return nil
	}
	wait := 250 * time.Millisecond
	wrong := 0
	for {
		err := w.try(ctx, i, buf)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
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

func (w *writer) try(ctx context.Context, i int, buf *buffers) error {
	c := w.m.Chunks[i]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("no byte for %s", stall)) })
	defer watch.Stop()
	body, err := w.fetch(ctx, c.BlobOff, c.BlobLen)
	if err != nil {
		return cause(ctx, err)
	}
	defer body.Close()
	n, err := buf.dec.Chunk(&watched{body, watch}, c, buf.all)
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	if err != nil {
		return cause(ctx, err)
	}
	w.arrived(n)
	buf.raw = buf.all[:c.Length]
	return nil
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

// watched puts off the watchdog while bytes come.
type watched struct {
	r     io.Reader
	watch *time.Timer
}

func (r *watched) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.watch.Reset(stall)
	}
	return n, err
}

// readBack compares the disk with the manifest. head is the first MiB, which
// is not on the disk yet.
func (w *writer) readBack(ctx context.Context, head []byte) error {
	// What the kernel remembers says nothing about the disk.
	unix.Fadvise(int(w.dev.Fd()), 0, w.m.Size, unix.FADV_DONTNEED)
	n := len(w.m.Chunks)
	pick := map[int]bool{0: true, n - 1: true}
	if w.o.ReadBack {
		for i := range n {
			pick[i] = true
		}
	}
	for range max(8, n/32) {
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

func (w *writer) isDone(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done.Has(i)
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
