package agent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"smelt/images/disk"
	"smelt/images/gpt"
)

// recorded is what a machine did to a disk, as QEMU's blklogwrites keeps it in
// the format of dm-log-writes (Linux, drivers/md/dm-log-writes.c).
type recorded struct {
	log     []byte
	entries []entry
}

type entry struct {
	off, n int64 // on the disk
	data   int64 // in the log; -1 for a discard or a flush
	flags  uint64
}

const (
	logMagic   = 0x6a736677736872
	logFlush   = 1
	logFUA     = 2
	logDiscard = 4
)

func readLog(t *testing.T, path string) recorded {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(i.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	le := binary.LittleEndian
	if le.Uint64(b) != logMagic {
		t.Fatalf("%s is no write log", path)
	}
	r := recorded{log: b}
	entries, sector := le.Uint64(b[16:]), int64(le.Uint32(b[24:]))
	at := sector
	for range entries {
		e := entry{off: int64(le.Uint64(b[at:])) * sector, n: int64(le.Uint64(b[at+8:])) * sector, data: -1, flags: le.Uint64(b[at+16:])}
		at += sector
		if e.flags&logDiscard == 0 && e.n > 0 {
			e.data = at
			at += e.n
		}
		r.entries = append(r.entries, e)
	}
	return r
}

// apply does to state what an entry did, as many of a hundred sectors as keep
// says.
func (r recorded) apply(state []byte, e entry, keep int, rng *rand.Rand) {
	if e.n == 0 {
		return
	}
	to := state[e.off : e.off+e.n]
	for at := int64(0); at < e.n; at += 512 {
		if keep < 100 && rng.IntN(100) >= keep {
			continue
		}
		if e.data < 0 {
			clear(to[at : at+512])
		} else {
			copy(to[at:at+512], r.log[e.data+at:])
		}
	}
}

// cutAnywhere replays what the agent's kernel did to the disk while the image
// was written, and pulls the plug at points of it: what a flush had not yet
// covered is there, not there, or torn. No such disk may have a partition table
// unless the image is whole; each is finished by another try.
func cutAnywhere(t *testing.T, base, log string, s *imageStore, points int) {
	t.Helper()
	state, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.raw)
	if err != nil {
		t.Fatal(err)
	}
	r := readLog(t, log)
	// Up to the flush after the head: then the handover changes the image.
	head, end := -1, -1
	for i, e := range r.entries {
		if head < 0 && e.data >= 0 && e.off == 0 && e.n >= 1024 && string(r.log[e.data+512:e.data+520]) == "EFI PART" {
			head = i
		}
		if head >= 0 && e.flags&logFlush != 0 {
			end = i
			break
		}
	}
	if end < 0 {
		t.Fatalf("the head, or the flush after it, is not among the %d entries", len(r.entries))
	}
	dir := t.TempDir()
	if i, err := os.Stat("/dev/shm"); err == nil && i.IsDir() { // a hundred disks need not reach one
		if dir, err = os.MkdirTemp("/dev/shm", "smelt-cut-*"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	path := filepath.Join(dir, "disk")
	fetch := func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(s.blob[off : off+n])), nil
	}
	claim := disk.NewMap(len(s.manifest.Chunks))
	for i := range claim.Len() {
		claim.Set(i)
	}

	flushed, whole, finished := 0, 0, 0 // entries that state has for certain
	var reused int64
	rng := rand.New(rand.NewPCG(1, 2))
	for p := range points {
		cut := (p + 1) * end / points // the last entry that began
		for i := cut; i > flushed; i-- {
			if r.entries[i].flags&logFlush != 0 && i < cut {
				for ; flushed <= i; flushed++ {
					r.apply(state, r.entries[flushed], 100, nil)
				}
				break
			}
		}
		now := bytes.Clone(state)
		for _, e := range r.entries[flushed : cut+1] {
			keep := []int{0, 100, rng.IntN(101)}[rng.IntN(3)]
			if e.flags&logFUA != 0 {
				keep = 100
			}
			r.apply(now, e, keep, rng)
		}
		if _, err := gpt.Read(bytes.NewReader(now), int64(len(now))); err == nil {
			if !bytes.Equal(now[:len(raw)], raw) {
				t.Fatalf("cut at entry %d of %d: a partition table is there before the image", cut, end)
			}
			whole++
		}
		if err := os.WriteFile(path, now, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := disk.Write(t.Context(), path, s.manifest, fetch, disk.Options{Done: claim})
		if err != nil {
			t.Fatalf("cut at entry %d of %d, then: %v", cut, end, err)
		}
		reused += got.Reused
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(after[:len(raw)], raw) {
			t.Fatalf("cut at entry %d of %d, then finished: the disk is not the image", cut, end)
		}
		finished++
	}
	t.Logf("%d entries, %d cuts: none with a partition table before the image was whole, %d with all of it, %d finished (%d MiB reused)",
		end, points, whole, finished, reused>>20)
	if reused == 0 {
		t.Error("nothing was reused: every cut was at the beginning")
	}
}
