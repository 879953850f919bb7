package console

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Kind says what an Entry is.
type Kind uint8

// The kinds. Numbers are stored: never reuse or change one.
const (
	Output Kind = 1 // what the machine printed
	Mark   Kind = 2 // what the recorder says of itself: a session began, was lost
)

// An Entry is what came at one moment.
type Entry struct {
	Seq  uint64 // rises by one with each entry of a machine, also over restarts
	At   time.Time
	Kind Kind
	Data []byte
}

// A ring is the last of what one machine printed: two files of which the newer
// is appended to, and the older is emptied and becomes the newer one when that
// is full. So it holds between one and two halves of its limit, and a process
// that dies at any write leaves all entries but the one it was writing: each
// carries a checksum, and reading a file ends at the first one that is broken.
// Nothing is synced: a power cut may cost the last seconds.
//
//	file:  magic, generation u64
//	entry: length of data u32, sequence u64, microseconds since 1970 i64,
//	       kind u8, data, CRC-32C of all before u32    (little endian)
//
// Files are opened for each write: two thousand machines hold no descriptors,
// and the memory of a ring is that of its fields.
type ring struct {
	name string // path without the ending
	half int64  // limit of one file

	mu     sync.Mutex
	loaded bool
	now    int    // which file is the newer one
	gen    uint64 // its generation
	size   int64  // of what is whole in it
	seq    uint64 // of the newest entry

	testOnlyWrite func(f *os.File, b []byte, at int64) (int, error)
	testOnlyEmpty func(path string) error
}

const (
	magic     = "smeltcn1"
	headSize  = len(magic) + 8
	entryHead = 4 + 8 + 8 + 1
	entryTail = 4

	// maxData is the longest entry; more is several.
	maxData = 16 << 10
	// minLimit is the smallest ring that makes sense.
	minLimit = 4 * (maxData + int64(entryHead+entryTail) + int64(headSize))
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newRing(name string, limit int64) *ring {
	return &ring{name: name, half: max(limit, minLimit) / 2}
}

func (r *ring) path(i int) string { return fmt.Sprintf("%s.%d", r.name, i) }

// append adds data as of at. It returns the entries that are written, which
// is all of data unless there is an error.
func (r *ring) append(kind Kind, at time.Time, data []byte) ([]Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(); err != nil {
		return nil, err
	}
	var out []Entry
	for len(data) > 0 {
		e := Entry{Seq: r.seq + 1, At: at.UTC().Truncate(time.Microsecond), Kind: kind, Data: data[:min(len(data), maxData)]}
		data = data[len(e.Data):]
		if err := r.write(e.marshal()); err != nil {
			r.loaded = false // whatever half of it is there is cut off before the next one
			return out, err
		}
		r.seq = e.Seq
		out = append(out, e)
	}
	return out, nil
}

// write puts one entry behind the last one that is whole.
func (r *ring) write(b []byte) error {
	if r.size+int64(len(b)) > r.half || r.gen == 0 {
		if err := r.turn(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(r.path(r.now), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err = r.writeAt(f, b, r.size); err == nil {
		r.size += int64(len(b))
	}
	return errors.Join(err, f.Close())
}

func (r *ring) writeAt(f *os.File, b []byte, at int64) error {
	write := (*os.File).WriteAt
	if r.testOnlyWrite != nil {
		write = r.testOnlyWrite
	}
	_, err := write(f, b, at)
	return err
}

// turn empties the older file and goes on there. Until its new head is whole,
// it has no generation and the other file stays the newer one.
func (r *ring) turn() error {
	next := 1 - r.now
	if r.testOnlyEmpty != nil {
		if err := r.testOnlyEmpty(r.path(next)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(r.path(next), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint64([]byte(magic), r.gen+1)
	if err := errors.Join(r.writeAt(f, head, 0), f.Close()); err != nil {
		return err
	}
	r.now, r.gen, r.size = next, r.gen+1, int64(headSize)
	return nil
}

// load finds out, once, where the last process stopped, and cuts off what it
// left half written.
func (r *ring) load() error {
	if r.loaded {
		return nil
	}
	var newest uint64
	r.gen = 0
	for i := range 2 {
		entries, gen, size, err := readHalf(r.path(i))
		if err != nil {
			return err
		}
		if gen > r.gen {
			r.now, r.gen, r.size = i, gen, size
		}
		if n := len(entries); n > 0 {
			newest = max(newest, entries[n-1].Seq)
		}
	}
	if r.gen > 0 {
		if err := os.Truncate(r.path(r.now), r.size); err != nil {
			return err
		}
	}
	r.seq, r.loaded = newest, true
	return nil
}

// after returns the entries behind seq, the oldest first.
func (r *ring) after(seq uint64) ([]Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(); err != nil {
		return nil, err
	}
	if seq > r.seq {
		seq = 0 // a reader of a ring that is gone
	}
	var out []Entry
	for _, i := range []int{1 - r.now, r.now} {
		entries, _, _, err := readHalf(r.path(i))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Seq > seq {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// readHalf reads one file: its whole entries, its generation (0: it is none of
// ours, or empty) and where the whole entries end.
func readHalf(path string) (entries []Entry, gen uint64, size int64, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, 0, nil
	}
	if err != nil {
		return nil, 0, 0, err
	}
	gen, entries, size = parseHalf(b)
	return entries, gen, size, nil
}

func parseHalf(b []byte) (gen uint64, entries []Entry, size int64) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok || len(rest) < 8 {
		return 0, nil, 0
	}
	if gen, rest = binary.LittleEndian.Uint64(rest), rest[8:]; gen == 0 {
		return 0, nil, 0 // it was never begun
	}
	size = int64(headSize)
	for {
		e, n := parseEntry(rest)
		if n == 0 {
			return gen, entries, size
		}
		entries, rest, size = append(entries, e), rest[n:], size+int64(n)
	}
}

func (e Entry) marshal() []byte {
	b := make([]byte, 0, entryHead+len(e.Data)+entryTail)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	b = binary.LittleEndian.AppendUint64(b, e.Seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.At.UnixMicro()))
	b = append(b, byte(e.Kind))
	b = append(b, e.Data...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseEntry reads the entry that b begins with; n is 0 when none is whole.
func parseEntry(b []byte) (e Entry, n int) {
	if len(b) < entryHead+entryTail {
		return Entry{}, 0
	}
	size := binary.LittleEndian.Uint32(b)
	if size == 0 || size > maxData || len(b) < entryHead+int(size)+entryTail {
		return Entry{}, 0
	}
	n = entryHead + int(size)
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return Entry{}, 0
	}
	return Entry{
		Seq: binary.LittleEndian.Uint64(b[4:]), At: time.UnixMicro(int64(binary.LittleEndian.Uint64(b[12:]))).UTC(),
		Kind: Kind(b[20]), Data: b[entryHead:n:n],
	}, n + entryTail
}

// makeDir makes the folder of the rings, for the server's user alone.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(filepath.Clean(dir), 0o700)
}
