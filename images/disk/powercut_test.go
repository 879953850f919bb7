package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"smelt/images"
	"smelt/images/gpt"
)

var errPower = errors.New("power is gone")

// plug is a disk with a volatile cache whose plug is pulled at one of its
// operations. What was written since the last flush is then there or not, in
// no order, sector by sector: a drive promises no more (NVM Express Base
// Specification 2.0, 6.8; linux Documentation/block/writeback_cache_control).
type plug struct {
	rng *rand.Rand

	mu      sync.Mutex
	medium  []byte // what survives
	cache   []byte // what reads return
	pending []extent
	ops     int
	left    int // operations until the plug is pulled; below 0 never
	dead    bool
}

type extent struct{ off, n int64 }

func newPlug(medium []byte, left int, rng *rand.Rand) *plug {
	return &plug{rng: rng, medium: medium, cache: bytes.Clone(medium), left: left}
}

// step counts an operation, with p.mu held, and says whether this is the one
// that the power does not last for.
func (p *plug) step() (last bool, err error) {
	if p.dead {
		return false, errPower
	}
	p.ops++
	p.left--
	if p.left == -1 {
		p.dead = true
		return true, nil
	}
	return false, nil
}

func (p *plug) readAt(b []byte, off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errPower
	}
	copy(b, p.cache[off:])
	return nil
}

func (p *plug) writeAt(b []byte, off int64) error {
	return p.change(off, int64(len(b)), func() { copy(p.cache[off:], b) })
}

func (p *plug) zero(off, n int64) error {
	return p.change(off, n, func() { clear(p.cache[off : off+n]) })
}

func (p *plug) change(off, n int64, do func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, err := p.step()
	if err != nil {
		return err
	}
	do()
	p.pending = append(p.pending, extent{off, n})
	if last {
		p.pull()
		return errPower
	}
	return nil
}

func (p *plug) sync() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, err := p.step()
	if err != nil {
		return err
	}
	if last {
		p.pull() // somewhere in the flush
		return errPower
	}
	for _, e := range p.pending {
		copy(p.medium[e.off:e.off+e.n], p.cache[e.off:])
	}
	p.pending = nil
	return nil
}

func (p *plug) forget(int64) {}

// pull leaves on the medium what happened to reach it.
func (p *plug) pull() {
	const sector = 512
	for _, e := range p.pending {
		keep := []int{0, 100, p.rng.IntN(101)}[p.rng.IntN(3)] // of each hundred sectors
		for at := e.off; at < e.off+e.n; at += sector {
			if p.rng.IntN(100) < keep {
				copy(p.medium[at:min(at+sector, e.off+e.n)], p.cache[at:])
			}
		}
	}
}

// system makes a disk with a partition table at both ends and data up to them.
func system(t testing.TB, size int64, seed byte) []byte {
	t.Helper()
	d := memory(make([]byte, size))
	r := rand.New(rand.NewPCG(uint64(seed), 5))
	for off := int64(mib); off < size-mib/2; off += 4096 {
		if off/images.ChunkSize%4 != 2 { // a hole
			for i := range int64(64) {
				d[off+i] = byte(r.Uint32()) | 1
			}
		}
	}
	copy(d, "boot code")
	table := gpt.Table{Disk: gpt.GUID{seed}, Parts: []gpt.Part{
		{Number: 1, Type: gpt.ESP, ID: gpt.GUID{seed, 1}, First: 2048, Last: 4095},
		{Number: 2, Type: gpt.Linux, ID: gpt.GUID{seed, 2}, First: 4096, Last: size/512 - 200},
	}}
	if err := table.Write(d, size); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestPowerCut pulls the plug at each operation of writing an image over another
// system, twice, and finishes. A disk in between never has a partition table of
// the image, first or backup, unless every byte is there that it speaks of; nor
// has it the table of the old system with anything of the image under it.
func TestPowerCut(t *testing.T) {
	times := 1 // at each operation
	if os.Getenv("SMELT_TEST_E2E") == "1" {
		times = 8
	}
	const chunks = 7
	for _, tt := range []struct {
		name  string
		size  int64 // of the image
		extra int64 // what the disk has more
	}{
		{"disk as long as the image", chunks * images.ChunkSize, 0},
		{"last chunk short", chunks*images.ChunkSize - mib, 0},
		{"longer disk", chunks * images.ChunkSize, 5 * mib},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			raw := system(t, tt.size, 1)
			old := system(t, tt.size+tt.extra, 9)
			var blob bytes.Buffer
			m, err := images.Compress(t.Context(), &blob, bytes.NewReader(raw), tt.size, nil)
			if err != nil {
				t.Fatal(err)
			}
			m.Name, m.Arch = "cut", "amd64"
			fetch := func(_ context.Context, off, n int64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(blob.Bytes()[off : off+n])), nil
			}
			// try runs until the plug is pulled, and judges what is left.
			try := func(p *plug, done Map) (kept Map, err error) {
				kept = NewMap(len(m.Chunks))
				_, err = write(t.Context(), p, int64(len(p.medium)), "plug", m, fetch, Options{
					Workers: 3, Done: done, Progress: func(p Progress) { kept = p.Map },
				})
				if err != nil && !errors.Is(err, errPower) {
					t.Fatal(err)
				}
				if e := judge(p.medium, raw, old); e != nil {
					t.Fatalf("pulled at operation %d: %v", p.ops, e)
				}
				return kept, err
			}
			whole := newPlug(bytes.Clone(old), -1, nil)
			if _, err := try(whole, Map{}); err != nil {
				t.Fatal(err)
			}
			total := whole.ops
			complete := 0
			for i := range total * times {
				rng := rand.New(rand.NewPCG(uint64(i), 77))
				p := newPlug(bytes.Clone(old), i/times, rng)
				kept, err := try(p, Map{})
				if err == nil {
					t.Fatalf("operation %d of %d was never reached", i/times, total)
				}
				if bytes.Equal(p.medium[:len(raw)], raw) {
					complete++
				}
				// Again, with a map that may claim what the cache took with it.
				p = newPlug(p.medium, rng.IntN(total), rng)
				if kept, err = try(p, kept); err == nil {
					continue // fewer operations were left than that
				}
				for i := range kept.Len() { // and one that claims everything
					kept.Set(i)
				}
				p = newPlug(p.medium, -1, nil)
				if _, err := try(p, kept); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p.medium[:len(raw)], raw) {
					t.Fatalf("cut at %d, cut again, finished: the disk is not the image", i/times)
				}
			}
			t.Logf("%d operations, %d first cuts, %d of them after everything was there", total, total*times, complete)
		})
	}
}

// judge says what is wrong with a disk that lost its power.
func judge(medium, raw, old []byte) error {
	const size = 512
	table, err := gpt.Read(bytes.NewReader(medium), int64(len(medium)))
	mbr := medium[510] == 0x55 && medium[511] == 0xaa
	switch {
	case err != nil && !mbr:
		return nil // nothing boots
	case err == nil && table.Disk == (gpt.GUID{9}):
		// The old system: nothing of it was touched.
		if !bytes.Equal(medium[mib:len(medium)-mib], old[mib:len(old)-mib]) {
			return errors.New("the old partition table is there, and what it speaks of was overwritten")
		}
		return nil
	case err == nil && table.Disk == (gpt.GUID{1}):
		if !bytes.Equal(medium[mib:len(raw)-mib], raw[mib:len(raw)-mib]) {
			return errors.New("the image's partition table is there before its data")
		}
		// With the primary table the last MiB counts as well.
		if string(medium[size:size+8]) == "EFI PART" && !bytes.Equal(medium[len(raw)-mib:len(raw)], raw[len(raw)-mib:]) {
			return errors.New("the image's first partition table is there before its end")
		}
		return nil
	case mbr:
		// A boot sector without a table: torn while it was written or cleared.
		// BIOS runs it; what it loads must be the old system or the new.
		if bytes.Equal(medium[mib:len(medium)-mib], old[mib:len(old)-mib]) || bytes.Equal(medium[mib:len(raw)], raw[mib:]) {
			return nil
		}
		return errors.New("a boot sector is there before the system")
	}
	return fmt.Errorf("a partition table of nobody is there: %v", table.Disk)
}
