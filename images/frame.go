package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// ChunkDigest is the digest of a chunk's plain bytes: BLAKE3 with 32 bytes.
// Everything else in an image has SHA-256. Each byte that goes to a disk is
// hashed before it is written, and a mining board's Celeron has neither SHA
// instructions nor AVX: BLAKE3 is 2 times faster than SHA-256 there, and 2 to 8
// times on a server (docs/decisions/0014).
func ChunkDigest(plain []byte) Digest { return blake3.Sum256(plain) }

// Holds says whether b is the chunk's plain bytes.
func (c Chunk) Holds(b []byte) bool {
	if c.Zero {
		return int64(len(b)) == c.Length && IsZero(b)
	}
	return int64(len(b)) == c.Length && ChunkDigest(b) == c.Digest
}

// A stored frame carries a chunk that does not become shorter: a zstd frame of
// raw blocks (RFC 8878, 3.1.1), in one layout alone, so that its length follows
// from the chunk's, and a reader puts the bytes where they belong without
// unpacking anything.
const (
	storedHead  = 9         // magic, descriptor, content size
	storedBlock = 128 << 10 // a block's longest content (RFC 8878, 3.1.1.2.4)
	blockHead   = 3
)

// StoredLen is how long the stored frame of a chunk of n bytes is. Compress
// keeps a compressed frame only when it is shorter, so a frame of this length
// is stored.
func StoredLen(n int64) int64 {
	return storedHead + n + (n+storedBlock-1)/storedBlock*blockHead
}

// Stored says whether the chunk's frame in the blob is a stored one.
func (c Chunk) Stored() bool { return !c.Zero && c.BlobLen == StoredLen(c.Length) }

// appendStored appends the stored frame of a chunk's plain bytes to b.
func appendStored(b, plain []byte) []byte {
	b = appendStoredHead(b, len(plain))
	for off := 0; off < len(plain); off += storedBlock {
		end := min(off+storedBlock, len(plain))
		h := blockHeader(end-off, end == len(plain))
		b = append(b, h[:]...)
		b = append(b, plain[off:end]...)
	}
	return b
}

func appendStoredHead(b []byte, n int) []byte {
	b = append(b, 0x28, 0xb5, 0x2f, 0xfd,
		0xa0) // single segment, 4 bytes of content size, no checksum (RFC 8878, 3.1.1.1.1)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

// blockHeader begins a raw block: last, type 0, size (RFC 8878, 3.1.1.2).
func blockHeader(n int, last bool) [blockHead]byte {
	v := uint32(n) << 3
	if last {
		v |= 1
	}
	return [blockHead]byte{byte(v), byte(v >> 8), byte(v >> 16)}
}

// ErrCorrupt is wrapped when bytes are not the image's.
var ErrCorrupt = errors.New("contents are not the image's")

// A Decoder unpacks and verifies frames. It is for one goroutine.
type Decoder struct {
	zstd  *zstd.Decoder
	frame []byte
}

// NewDecoder returns a Decoder; Close it. It grows to 4 MiB with the frames it
// is given, besides about 1 MiB of tables.
func NewDecoder() (*Decoder, error) {
	// The limit makes a frame that unpacks to more than a chunk an error before
	// it is memory.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(ChunkSize),
		zstd.WithDecoderMaxWindow(ChunkSize), zstd.WithDecodeAllCapLimit(true),
		zstd.IgnoreChecksum(true)) // the chunk's digest is checked
	if err != nil {
		return nil, err
	}
	return &Decoder{zstd: z}, nil
}

// Close frees what the Decoder holds.
func (d *Decoder) Close() { d.zstd.Close() }

// Chunk reads the frame of chunk c from r, which may bring more, and leaves the
// plain bytes, verified, in b[:c.Length]. It returns how many bytes it read. An
// error that wraps ErrCorrupt says that r brought wrong bytes; any other is r's.
func (d *Decoder) Chunk(r io.Reader, c Chunk, b []byte) (int64, error) {
	if c.Zero || int64(cap(b)) < c.Length || c.BlobLen <= 0 || c.BlobLen > maxFrame {
		return 0, fmt.Errorf("chunk at %d: no frame, or no room for it", c.Offset)
	}
	if c.Stored() {
		return stored(r, c, b[:c.Length])
	}
	if int64(cap(d.frame)) < c.BlobLen {
		// In steps, so that a few frames settle it.
		d.frame = make([]byte, min((c.BlobLen+1<<19)&^(1<<19-1), maxFrame))
	}
	f := d.frame[:c.BlobLen]
	n, err := io.ReadFull(r, f)
	if err != nil {
		return int64(n), short(int64(n), c, err)
	}
	plain, err := d.zstd.DecodeAll(f, b[:0:c.Length])
	if err != nil {
		return c.BlobLen, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	if !c.Holds(plain) {
		return c.BlobLen, fmt.Errorf("%w: digest of %d bytes differs from the manifest's", ErrCorrupt, len(plain))
	}
	return c.BlobLen, nil
}

// stored reads a stored frame. Each read takes a block's bytes and the head of
// the next, whose place the next read overwrites: nothing is copied twice, and
// the bytes are hashed while the processor's cache still has them.
func stored(r io.Reader, c Chunk, b []byte) (int64, error) {
	var head [storedHead + blockHead]byte
	n, err := io.ReadFull(r, head[:])
	total := int64(n)
	if err != nil {
		return total, short(total, c, err)
	}
	if [storedHead]byte(head[:]) != [storedHead]byte(appendStoredHead(nil, len(b))) {
		return total, fmt.Errorf("%w: not a stored frame", ErrCorrupt)
	}
	sum := blake3.New()
	next := [blockHead]byte(head[storedHead:])
	for off := 0; off < len(b); off += storedBlock {
		end := min(off+storedBlock, len(b))
		last := end == len(b)
		if next != blockHeader(end-off, last) {
			return total, fmt.Errorf("%w: block at %d of a stored frame", ErrCorrupt, off)
		}
		to := end
		if !last {
			to += blockHead
		}
		n, err := io.ReadFull(r, b[off:to])
		total += int64(n)
		if err != nil {
			return total, short(total, c, err)
		}
		if !last {
			next = [blockHead]byte(b[end:to])
		}
		sum.Write(b[off:end])
	}
	if Digest(sum.Sum(nil)) != c.Digest {
		return total, fmt.Errorf("%w: digest of %d bytes differs from the manifest's", ErrCorrupt, len(b))
	}
	return total, nil
}

// short names a frame that ended early; other errors are the source's.
func short(n int64, c Chunk, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%d of %d bytes: %w", n, c.BlobLen, io.ErrUnexpectedEOF)
	}
	return err
}
