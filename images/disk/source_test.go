package disk

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"smelt/images"
)

// scripted brings the chunks of a site in the order of its list; a negative
// number brings that chunk damaged.
type scripted struct {
	s *site

	mu   sync.Mutex
	list []int
	took map[int][]error
}

func (f *scripted) Next(_ context.Context, b []byte) (int, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) == 0 {
		return 0, 0, io.EOF
	}
	i := f.list[0]
	f.list = f.list[1:]
	wrong := i < 0
	if wrong {
		i = -i
	}
	if i < len(f.s.m.Chunks) {
		c := f.s.m.Chunks[i]
		copy(b, f.s.raw[c.Offset:c.Offset+c.Length])
	}
	if wrong {
		b[77] ^= 1
	}
	return i, 1000, nil
}

func (f *scripted) Took(i int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took[i] = append(f.took[i], err)
}

// TestSource: what a source brings is verified and written, what it does not
// bring is fetched, and it is told about each.
func TestSource(t *testing.T) {
	s := newSite(t, 12) // chunks 1, 4, 7, 10 are zero
	path := dirty(t, int64(len(s.raw))+5*mib)
	// 11 is the last, 0 the first; 3 comes damaged and then well, 5 only
	// damaged, 4 and 99 do not exist, 6 was there before, 8 and 9 never come.
	src := &scripted{s: s, list: []int{2, 11, -3, 3, 2, 0, -5, 4, 99}, took: map[int][]error{}}
	done := NewMap(len(s.m.Chunks))
	done.Set(6)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := s.m.Chunks[6]
	f.WriteAt(s.raw[c.Offset:c.Offset+c.Length], c.Offset)
	f.Close()

	var fetched []int64
	var mu sync.Mutex
	fetch := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		mu.Lock()
		fetched = append(fetched, off)
		mu.Unlock()
		return s.fetch(ctx, off, n)
	}
	r, err := Write(t.Context(), path, s.m, fetch, Options{Source: src, Done: done, ReadBack: true, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	same(t, s, path)
	for i, want := range map[int]int{2: 2, 11: 1, 3: 2, 0: 1, 5: 1, 4: 1, 99: 1, 6: 1} {
		if len(src.took[i]) != want {
			t.Errorf("chunk %d was told of %d times, want %d", i, len(src.took[i]), want)
		}
	}
	for _, i := range []int{5, 4, 99} {
		if !errors.Is(src.took[i][0], ErrCorrupt) {
			t.Errorf("chunk %d: told %v, want ErrCorrupt", i, src.took[i][0])
		}
	}
	if !errors.Is(src.took[3][0], ErrCorrupt) || src.took[3][1] != nil {
		t.Errorf("chunk 3: told %v", src.took[3])
	}
	slices.Sort(fetched)
	var want []int64
	for _, i := range []int{5, 8} { // 9 comes with 8
		want = append(want, s.m.Chunks[i].BlobOff)
	}
	if !slices.Equal(fetched, want) {
		t.Errorf("fetched at %v, want %v", fetched, want)
	}
	if r.Reused != images.ChunkSize {
		t.Errorf("reused %d bytes", r.Reused)
	}
}
