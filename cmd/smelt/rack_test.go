package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"smelt/images"
)

// TestRackCache: the cache serves under the path that a site's server has, and
// the image comes from there once.
func TestRackCache(t *testing.T) {
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw := bytes.Repeat([]byte("image"), 2<<20)
	raw = raw[:len(raw)&^511]
	d, err := store.Add(t.Context(), images.Manifest{Name: "x", Arch: "amd64", Created: time.Unix(1, 0).UTC()}, bytes.NewReader(raw), int64(len(raw)), ed25519.NewKeyFromSeed(make([]byte, 32)), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]int{}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path]++
		http.StripPrefix("/images", store.Handler()).ServeHTTP(w, r)
	}))
	defer origin.Close()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	r := rackCache{origin: origin.URL + "/", listen: addr, keep: 1}
	go func() { ended <- r.serve(ctx, t.TempDir(), slog.New(slog.DiscardHandler)) }()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string) []byte {
		t.Helper()
		var err error
		for range 100 {
			var resp *http.Response
			if resp, err = http.Get("http://" + addr + path); err == nil {
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("%s: %s %v", path, resp.Status, err)
				}
				return b
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatal(err)
		return nil
	}
	want, err := store.Envelope(d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get("/images/manifest/"+d.String()), want) {
		t.Error("the manifest is another")
	}
	blob := "/images/blob/" + m.Blob.String()
	first, n := get(blob), 0
	for path, times := range asked {
		if path == blob {
			n = times
		}
	}
	if int64(len(first)) != m.BlobLen || !bytes.Equal(get(blob), first) || asked[blob] != n || n == 0 {
		t.Errorf("%d bytes, want %d; the origin was asked %d times, then %d", len(first), m.BlobLen, n, asked[blob])
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
