package images

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"testing/iotest"
)

// noise does not become shorter.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(3, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func compressed(t testing.TB, raw []byte) (Manifest, []byte) {
	t.Helper()
	var blob bytes.Buffer
	m, err := Compress(t.Context(), &blob, bytes.NewReader(raw), int64(len(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m, blob.Bytes()
}

func decoder(t testing.TB) *Decoder {
	t.Helper()
	d, err := NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// What does not become shorter travels as it is, is still zstd, and comes out
// the same by our reader and by zstd's own.
func TestStored(t *testing.T) {
	raw := append(noise(2*ChunkSize), disk(3)...)
	raw = append(raw, noise(storedBlock+512)...)
	m, blob := compressed(t, raw)
	want := map[int]bool{0: true, 1: true, 5: true}
	if last := m.Chunks[len(m.Chunks)-1]; last.Length%storedBlock == 0 {
		t.Fatal("the last chunk must end inside a block")
	}
	d := decoder(t)
	plain := make([]byte, ChunkSize)
	for i, c := range m.Chunks {
		if c.Zero {
			continue
		}
		if c.Stored() != want[i] {
			t.Errorf("chunk %d of %d bytes in %d: stored %v", i, c.Length, c.BlobLen, c.Stored())
		}
		frame := blob[c.BlobOff:]
		// As a network brings it: in pieces.
		n, err := d.Chunk(iotest.HalfReader(bytes.NewReader(frame)), c, plain)
		if err != nil || n != c.BlobLen {
			t.Fatalf("chunk %d: %d of %d bytes, %v", i, n, c.BlobLen, err)
		}
		if !bytes.Equal(plain[:c.Length], raw[c.Offset:c.Offset+c.Length]) {
			t.Errorf("chunk %d differs", i)
		}
		for _, short := range []int64{0, 5, 12, c.BlobLen / 2, c.BlobLen - 1} {
			if _, err := d.Chunk(bytes.NewReader(frame[:short]), c, plain); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCorrupt) {
				t.Errorf("chunk %d cut at %d: %v", i, short, err)
			}
		}
		bad := bytes.Clone(frame[:c.BlobLen])
		for _, at := range []int64{0, 4, 8, 9, 11, 12, c.BlobLen / 2, c.BlobLen - 1} {
			bad[at] ^= 4
			_, err := d.Chunk(bytes.NewReader(bad), c, plain)
			// Another frame may unpack to the same bytes; a stored one cannot.
			if same := err == nil && !c.Stored() && bytes.Equal(plain[:c.Length], raw[c.Offset:c.Offset+c.Length]); !same && !errors.Is(err, ErrCorrupt) {
				t.Errorf("chunk %d flipped at %d: %v", i, at, err)
			}
			bad[at] ^= 4
		}
	}

	zstd, err := exec.LookPath("zstd")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("zstd is not installed")
		}
		t.Skip("zstd is not installed")
	}
	cmd := exec.Command(zstd, "-dc")
	cmd.Stdin = bytes.NewReader(blob)
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, raw) {
		t.Errorf("zstd -d does not give the disk image back: %v", err)
	}
}

// A frame of one chunk, alone and at every length of the last block.
func TestStoredLen(t *testing.T) {
	for _, n := range []int{512, storedBlock - 512, storedBlock, storedBlock + 512, ChunkSize - 512, ChunkSize} {
		if got := len(appendStored(nil, make([]byte, n))); int64(got) != StoredLen(int64(n)) {
			t.Errorf("%d bytes: %d, want %d", n, got, StoredLen(int64(n)))
		}
	}
	if StoredLen(ChunkSize) > maxFrame {
		t.Error("a manifest with stored chunks is refused")
	}
}

// Whatever a peer sends, only the chunk itself is accepted, and nothing is
// written behind it.
func FuzzDecoder(f *testing.F) {
	raw := append(noise(storedBlock+512), disk(0)...)
	m, blob := compressed(f, raw)
	f.Add(blob)
	f.Add(appendStored(nil, raw))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add([]byte(nil))
	c := m.Chunks[0]
	d := decoder(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, n := range []int64{StoredLen(c.Length), int64(len(frame))} {
			c.BlobLen = n
			room := bytes.Repeat([]byte{0xee}, int(c.Length)+64)
			if _, err := d.Chunk(bytes.NewReader(frame), c, room[:c.Length]); err == nil && !bytes.Equal(room[:c.Length], raw) {
				t.Fatal("other bytes were accepted")
			}
			if !bytes.Equal(room[c.Length:], bytes.Repeat([]byte{0xee}, 64)) {
				t.Fatal("bytes behind the chunk were overwritten")
			}
		}
	})
}
