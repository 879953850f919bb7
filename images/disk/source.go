package disk

import (
	"context"
	"errors"
	"fmt"
)

// A Source brings chunks in an order of its own, such as from other machines
// that write the same image. It is asked before anything is fetched; what it
// does not bring is fetched as if there were none. Its methods are called by
// several goroutines.
type Source interface {
	// Next leaves the plain bytes of some chunk that holds data in b, which has
	// room for one, and says which chunk it is and how many bytes travelled. It
	// need not be right: Write verifies. io.EOF, like any other error, says that
	// no more will come from here.
	Next(ctx context.Context, b []byte) (i int, travelled int64, err error)
	// Took says what became of chunk i: nil when it is verified and can be read
	// from the disk at its offset (the first and last chunk: will be soon),
	// ErrCorrupt when Next brought something else. Chunks that an earlier try
	// had written are reported too, before the first Next.
	Took(i int, err error)
}

// fromSource writes what o.Source brings.
func (w *writer) fromSource(ctx context.Context) error {
	src := w.o.Source
	if src == nil {
		return nil
	}
	last := len(w.m.Chunks) - 1
	var earlier []task
	for i := 1; i < last; i++ {
		if w.o.Done.Has(i) && !w.m.Chunks[i].Zero {
			earlier = append(earlier, task{i, i + 1})
		}
	}
	err := w.parallel(ctx, earlier, func(_ context.Context, t task, buf *buffers) error {
		if w.there(t.from, buf) {
			src.Took(t.from, nil)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// As many workers as there may be, each until the source has no more.
	return w.parallel(ctx, make([]task, w.o.Workers), func(ctx context.Context, _ task, buf *buffers) error {
		for {
			i, n, err := src.Next(ctx, buf.all)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return nil // the rest is fetched
			}
			if err := w.take(i, n, buf.all); err != nil {
				src.Took(i, err)
				if !errors.Is(err, ErrCorrupt) {
					return err
				}
				continue
			}
			src.Took(i, nil)
		}
	})
}

// take writes chunk i, n bytes of which travelled, if b begins with it.
func (w *writer) take(i int, n int64, b []byte) error {
	if i < 0 || i >= len(w.m.Chunks) || w.m.Chunks[i].Zero {
		return fmt.Errorf("%w: there is no data in chunk %d", ErrCorrupt, i)
	}
	c := w.m.Chunks[i]
	b = b[:c.Length]
	if !c.Holds(b) {
		w.mu.Lock()
		w.result.Retries++
		w.mu.Unlock()
		return fmt.Errorf("%w: digest of chunk %d differs from the manifest's", ErrCorrupt, i)
	}
	w.arrived(n)
	return w.put(i, b)
}
