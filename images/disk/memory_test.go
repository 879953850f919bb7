package disk

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"smelt/images"
)

// endless is a disk of any length that reads as what belongs there.
type endless struct{ chunks [2][]byte }

func (e endless) readAt(b []byte, off int64) error {
	copy(b, e.chunks[off/images.ChunkSize%2][off%images.ChunkSize:])
	return nil
}
func (e endless) writeAt([]byte, int64) error { return nil }
func (e endless) zero(int64, int64) error     { return nil }
func (e endless) sync() error                 { return nil }
func (e endless) forget(int64)                {}

// TestBoundedMemory: an image of any length is written in the memory of its
// workers, 9 MiB each, and of both ends. A mining board has 1 GiB for
// everything.
func TestBoundedMemory(t *testing.T) {
	const n, workers = 300, 8 // 1.2 GiB
	var e endless
	var frames [2][]byte
	r := rand.NewChaCha8([32]byte{1})
	for i := range e.chunks {
		e.chunks[i] = make([]byte, images.ChunkSize)
		r.Read(e.chunks[i][:images.ChunkSize/(1+i)]) // stored, and half as long
		var b bytes.Buffer
		if _, err := images.Compress(t.Context(), &b, bytes.NewReader(e.chunks[i]), images.ChunkSize, nil); err != nil {
			t.Fatal(err)
		}
		frames[i] = b.Bytes()
	}
	m := images.Manifest{Name: "endless", Arch: "amd64", Size: n * images.ChunkSize, Blob: images.Digest{1}}
	for i := range int64(n) {
		l := int64(len(frames[i%2]))
		m.Chunks = append(m.Chunks, images.Chunk{Offset: i * images.ChunkSize, Length: images.ChunkSize,
			Digest: images.ChunkDigest(e.chunks[i%2]), BlobOff: m.BlobLen, BlobLen: l})
		m.BlobLen += l
	}
	var most atomic.Uint64
	sample := func() {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		for old := most.Load(); s.HeapInuse > old && !most.CompareAndSwap(old, s.HeapInuse); old = most.Load() {
		}
	}
	runtime.GC()
	sample()
	before := most.Load()
	// The blob: a frame of each kind in turn.
	both := append(bytes.Clone(frames[0]), frames[1]...)
	fetch := func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		sample()
		at := off % int64(len(both))
		return io.NopCloser(io.LimitReader(&repeating{both, at}, n)), nil
	}
	if _, err := write(t.Context(), e, m.Size, "endless", m, fetch, Options{Workers: workers, Progress: func(Progress) { sample() }}); err != nil {
		t.Fatal(err)
	}
	if grown := int64(most.Load()) - int64(before); grown > (workers*9+8+24)*mib {
		t.Errorf("%d MiB of memory for an image of %d MiB", grown/mib, m.Size/mib)
	} else {
		t.Logf("%d MiB of memory for an image of %d MiB, %d workers", grown/mib, m.Size/mib, workers)
	}
}

// repeating reads b again and again.
type repeating struct {
	b  []byte
	at int64
}

func (r *repeating) Read(b []byte) (int, error) {
	n := copy(b, r.b[r.at:])
	r.at = (r.at + int64(n)) % int64(len(r.b))
	return n, nil
}
