package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

var zeros = make([]byte, ChunkSize)

// IsZero says whether b, of at most ChunkSize bytes, is all zero.
func IsZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// Compress writes the blob of a raw disk image and returns the part of the
// manifest that follows from it: Size, Blob, BlobLen and Chunks. progress, if
// not nil, is told the bytes of the image done so far.
func Compress(ctx context.Context, w io.Writer, raw io.ReaderAt, size int64, progress func(done int64)) (Manifest, error) {
	workers := runtime.GOMAXPROCS(0)
	type frame struct {
		chunk Chunk
		bytes []byte
	}
	// Frames are made by many and written in order: the queue holds the
	// places, and bounds how many chunks are in memory.
	queue := make(chan chan frame, workers)
	g, ctx := errgroup.WithContext(ctx)

	encoders := make(chan *zstd.Encoder, workers)
	for range workers {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(ChunkSize), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return Manifest{}, err
		}
		defer e.Close()
		encoders <- e
	}

	g.Go(func() error {
		defer close(queue)
		for off := int64(0); off < size; off += ChunkSize {
			b := make([]byte, min(ChunkSize, size-off))
			if _, err := raw.ReadAt(b, off); err != nil && err != io.EOF {
				return fmt.Errorf("read image at %d: %w", off, err)
			}
			place := make(chan frame, 1)
			select {
			case queue <- place:
			case <-ctx.Done():
				return ctx.Err()
			}
			g.Go(func() error {
				c := Chunk{Offset: off, Length: int64(len(b)), Zero: IsZero(b)}
				if !c.Zero {
					c.Digest = ChunkDigest(b)
				}
				e := <-encoders
				defer func() { encoders <- e }()
				f := e.EncodeAll(b, make([]byte, 0, len(b)/2))
				if !c.Zero && int64(len(f)) > StoredLen(c.Length)*31/32 {
					// Three in a hundred on the wire are not worth unpacking.
					f = appendStored(make([]byte, 0, StoredLen(c.Length)), b)
				}
				place <- frame{c, f}
				return nil
			})
		}
		return nil
	})

	m := Manifest{Size: size}
	sum := sha256.New()
	g.Go(func() error {
		out := io.MultiWriter(w, sum)
		for place := range queue {
			var f frame
			select {
			case f = <-place:
			case <-ctx.Done():
				return ctx.Err()
			}
			if !f.chunk.Zero {
				f.chunk.BlobOff, f.chunk.BlobLen = m.BlobLen, int64(len(f.bytes))
			}
			if _, err := out.Write(f.bytes); err != nil {
				return fmt.Errorf("write blob: %w", err)
			}
			m.BlobLen += int64(len(f.bytes))
			m.Chunks = append(m.Chunks, f.chunk)
			if progress != nil {
				progress(f.chunk.Offset + f.chunk.Length)
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Manifest{}, err
	}
	m.Blob = Digest(sum.Sum(nil))
	return m, nil
}
