// Package remotetest holds what every remote.Remote promises, and starts real
// servers to try it on.
package remotetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"smelt/images/remote"
)

// Run holds a writable remote against the promises of remote.Remote.
func Run(t *testing.T, r remote.Remote) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	get := func(name string, off int64) ([]byte, error) {
		body, err := r.Get(ctx, name, off)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return io.ReadAll(body)
	}
	put := func(name string, b []byte) {
		t.Helper()
		if err := r.Put(ctx, name, bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatalf("put %s: %v", name, err)
		}
	}
	holds := func(name string, want []byte) {
		t.Helper()
		if b, err := get(name, 0); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s holds %d bytes, %v; want %d", name, len(b), err, len(want))
		}
		if n, err := r.Size(ctx, name); err != nil || n != int64(len(want)) {
			t.Errorf("%s is %d bytes long, %v; want %d", name, n, err, len(want))
		}
	}

	const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	if _, err := get("metadata/2.root.json", 0); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := r.Size(ctx, "blobs/"+digest); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("length of what is not there: %v", err)
	}

	// Larger than what S3 takes in one part, and no multiple of anything.
	blob := make([]byte, 17<<20+123)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{1}), blob); err != nil {
		t.Fatal(err)
	}
	put("blobs/"+digest, blob)
	holds("blobs/"+digest, blob)
	for _, off := range []int64{1, 4 << 20, int64(len(blob)) - 1} {
		if b, err := get("blobs/"+digest, off); err != nil || !bytes.Equal(b, blob[off:]) {
			t.Errorf("from %d on: %d bytes, %v", off, len(b), err)
		}
	}
	put("metadata/timestamp.json", []byte("one"))
	holds("metadata/timestamp.json", []byte("one"))
	put("metadata/timestamp.json", []byte("two, longer"))
	holds("metadata/timestamp.json", []byte("two, longer"))
	put("metadata/timestamp.json", []byte("one")) // what was there before, again
	holds("metadata/timestamp.json", []byte("one"))
	put("manifests/"+digest, nil) // no contents are contents too
	holds("manifests/"+digest, []byte{})

	// Half of an object is none.
	short := errors.New("the disk is gone")
	err := r.Put(ctx, "metadata/timestamp.json", brokenReader{short}, 8<<20)
	if err == nil {
		t.Error("what could not be read was put")
	}
	holds("metadata/timestamp.json", []byte("one"))

	for _, bad := range []string{"", "timestamp.json", "metadata/", "metadata/../blobs", "../x", "/etc/passwd", "a/b/c", "metadata/.hidden", "metadata/a..b", "Metadata/x", "metadata/x y"} {
		if _, err := get(bad, 0); err == nil {
			t.Errorf("%q was read", bad)
		}
		if _, err := r.Size(ctx, bad); err == nil {
			t.Errorf("%q has a length", bad)
		}
		if err := r.Put(ctx, bad, bytes.NewReader(nil), 0); err == nil {
			t.Errorf("%q was put", bad)
		}
	}
	gone, stop := context.WithCancel(ctx)
	stop()
	if err := r.Put(gone, "metadata/late.json", bytes.NewReader(blob), int64(len(blob))); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := r.Size(ctx, "metadata/late.json"); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("interrupted, and there: %v", err)
	}
}

// brokenReader gives a MiB and then fails.
type brokenReader struct{ err error }

func (r brokenReader) ReadAt(b []byte, off int64) (int, error) {
	if off >= 1<<20 {
		return 0, r.err
	}
	return min(len(b), int(1<<20-off)), nil
}
