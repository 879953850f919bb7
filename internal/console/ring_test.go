package console

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func secs(n int) time.Duration { return time.Duration(n) * time.Second }

var errCrash = errors.New("the process died here")

// crashing lets a ring write n more bytes and then die; emptying a file counts
// as one.
func crashing(r *ring, n int) {
	r.testOnlyEmpty = func(path string) error {
		if n--; n < 0 {
			return errCrash
		}
		return os.WriteFile(path, nil, 0o600)
	}
	r.testOnlyWrite = func(f *os.File, b []byte, at int64) (int, error) {
		k := min(n, len(b))
		n -= k
		if _, err := f.WriteAt(b[:k], at); err != nil {
			return 0, err
		}
		if k < len(b) {
			return k, errCrash
		}
		return k, nil
	}
}

func ringSize(t interface{ Fatal(...any) }, name string) (sum int64) {
	files, err := filepath.Glob(name + ".*")
	if err != nil || len(files) > 2 {
		t.Fatal(err, files)
	}
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += fi.Size()
	}
	return sum
}

// TestRingSurvives: whatever is appended and wherever the process dies, what is
// read is a piece without gaps that ends with the last entry that was
// acknowledged, or with the one that was on its way; the files stay within
// their limit, and nothing that is not an entry is ever read.
func TestRingSurvives(t *testing.T) {
	dir := t.TempDir()
	const limit = minLimit
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		name := filepath.Join(dir, fmt.Sprint(run))
		r := newRing(name, limit)
		var said [][]byte // acknowledged
		var onItsWay []byte
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "die") == 0 {
				crashing(r, rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 40<<10)).Draw(t, "after"))
			}
			// What a machine prints may look like an entry of ours.
			data := bytes.Repeat(Entry{Seq: 7, At: start, Kind: Output, Data: []byte("forged")}.marshal(), rapid.IntRange(1, 400).Draw(t, "repeat"))
			data = append(data, byte(len(said)))
			data = data[:min(len(data), maxData)]
			_, err := r.append(Output, start.Add(secs(len(said))), data)
			switch {
			case err == nil:
				said = append(said, data)
			case errors.Is(err, errCrash):
				onItsWay = data
				if rapid.Bool().Draw(t, "new process") {
					r = newRing(name, limit)
				} else { // the disk was full: the same process goes on
					r.testOnlyEmpty, r.testOnlyWrite = nil, nil
				}
			default:
				t.Fatal(err)
			}
			got, err := r.after(0)
			if err != nil {
				t.Fatal(err)
			}
			if onItsWay != nil {
				if n := len(got); n > 0 && bytes.Equal(got[n-1].Data, onItsWay) && int(got[n-1].Seq) == len(said)+1 {
					said = append(said, onItsWay)
				}
				onItsWay = nil
			}
			if n := len(said); n > 0 && len(got) == 0 {
				t.Fatalf("nothing is left of %d entries", n)
			}
			for i, e := range got {
				at := len(said) - len(got) + i
				if at < 0 || !bytes.Equal(e.Data, said[at]) || e.Seq != uint64(at+1) {
					t.Fatalf("entry %d of %d has number %d and %d bytes; %d were said", i, len(got), e.Seq, len(e.Data), len(said))
				}
			}
			if size := ringSize(t, name); size > limit {
				t.Fatalf("%d bytes on disk, limit %d", size, limit)
			}
		}
	})
}

func TestRingKeepsTheLastHalf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "n")
	r := newRing(name, 1<<20)
	line := bytes.Repeat([]byte("x"), 100)
	for range 30000 {
		if _, err := r.append(Output, start, line); err != nil {
			t.Fatal(err)
		}
	}
	if size := ringSize(t, name); size > 1<<20 {
		t.Errorf("%d bytes on disk", size)
	}
	got, err := newRing(name, 1<<20).after(0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got) * (len(line) + entryHead + entryTail); n < 1<<19-1000 || got[len(got)-1].Seq != 30000 {
		t.Errorf("%d bytes of entries are left, the last is number %d", n, got[len(got)-1].Seq)
	}
	if got, _ := r.after(29990); len(got) != 10 || got[0].Seq != 29991 {
		t.Errorf("after 29990: %d entries", len(got))
	}
	if got, _ := r.after(99999); len(got) == 0 {
		t.Error("a reader of a ring that is gone gets nothing")
	}
	fi, err := os.Stat(name + ".0")
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: others could read passwords", fi.Mode(), err)
	}
}

func TestRingSplitsWhatIsLong(t *testing.T) {
	r := newRing(filepath.Join(t.TempDir(), "n"), 1<<20)
	data := bytes.Repeat([]byte("0123456789"), 5000)
	got, err := r.append(Output, start, data)
	if err != nil || len(got) != 4 {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	back, err := r.after(0)
	var all []byte
	for _, e := range back {
		all = append(all, e.Data...)
	}
	if err != nil || !bytes.Equal(all, data) {
		t.Errorf("%d bytes come back of %d, %v", len(all), len(data), err)
	}
}

func FuzzHalf(f *testing.F) {
	e := Entry{Seq: 1, At: start, Kind: Output, Data: []byte("hello")}
	f.Add(append([]byte(magic+"\x01\x00\x00\x00\x00\x00\x00\x00"), e.marshal()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		gen, entries, size := parseHalf(b)
		if gen == 0 && len(entries) > 0 || size > int64(len(b)) {
			t.Fatalf("generation %d, %d entries, size %d of %d", gen, len(entries), size, len(b))
		}
		// What is read is what would be written.
		again := append([]byte{}, b[:min(len(b), headSize)]...)
		for _, e := range entries {
			again = append(again, e.marshal()...)
		}
		if len(entries) > 0 && !bytes.Equal(again, b[:size]) {
			t.Fatal("the entries do not make the bytes they were read from")
		}
	})
}
