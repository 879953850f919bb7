package swarm

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Fetch returns n bytes of an image's blob from off on, like disk.Fetch.
type Fetch = func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// ErrRefused is wrapped by an error of Config.Report that trying again will not
// mend.
var ErrRefused = errors.New("the tracker refuses this node")

// shunned is how long a mirror that does not answer is not asked.
const shunned = 30 * time.Second

// Mirrored asks the first of several image stores that answers. The last is the
// origin: its errors are the ones returned. What is asked for again was not
// right, or did not come: it is fetched from the next, so that a mirror that
// sends wrong bytes costs one try a chunk at most.
func Mirrored(stores ...Fetch) Fetch {
	var mu sync.Mutex
	down := make([]time.Time, len(stores))
	tried := map[int64]int{}
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		origin := len(stores) - 1
		mu.Lock()
		at := min(tried[off], origin)
		tried[off] = at + 1
		mu.Unlock()
		for ; at < origin; at++ {
			mu.Lock()
			skip := time.Now().Before(down[at])
			mu.Unlock()
			if skip {
				continue
			}
			body, err := stores[at](ctx, off, n)
			if err == nil {
				return body, nil
			}
			if ctx.Err() != nil {
				return nil, err
			}
			mu.Lock()
			down[at] = time.Now().Add(shunned)
			mu.Unlock()
		}
		return stores[origin](ctx, off, n)
	}
}
