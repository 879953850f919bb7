package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestMirrored: a mirror is asked first, one that fails is left out, and what
// it sent once and was asked for again comes from elsewhere.
func TestMirrored(t *testing.T) {
	var asked []string
	store := func(name string, err error) Fetch {
		return func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			asked = append(asked, fmt.Sprint(name, off))
			return io.NopCloser(strings.NewReader(name)), err
		}
	}
	down := errors.New("no answer")
	f := Mirrored(store("a", nil), store("b", down), store("origin", down))
	for _, off := range []int64{0, 10, 10, 10, 20} {
		_, err := f(t.Context(), off, 5)
		if (err != nil) != (len(asked) > 0 && strings.HasPrefix(asked[len(asked)-1], "origin")) {
			t.Errorf("asked %v: error %v", asked, err)
		}
	}
	if got, want := fmt.Sprint(asked), "[a0 a10 b10 origin10 origin10 a20]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}
