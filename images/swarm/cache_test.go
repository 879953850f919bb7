package swarm

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"smelt/images"
	"smelt/images/disk"
)

// cache is a Cache of a site, behind HTTP.
func (s *site) cache(t testing.TB, dir, upstream string, max int64) (*Cache, string) {
	t.Helper()
	c, err := OpenCache(dir, upstream, max, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(c.Handler())
	t.Cleanup(func() { srv.Close(); c.Close(); http.DefaultClient.CloseIdleConnections() })
	return c, srv.URL
}

func get(t testing.TB, url, rng string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rng != "" {
		r.Header.Set("Range", rng)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// TestCache: a rack's nodes write from it, and the image crosses its uplink once.
func TestCache(t *testing.T) {
	s := newSite(t, 14)
	dir := t.TempDir()
	_, url := s.cache(t, dir, s.origin.URL, 1<<30)
	manifest, blob := url+"/manifest/"+s.d.String(), url+"/blob/"+s.m.Blob.String()
	if r, _ := get(t, blob, ""); r.StatusCode != http.StatusNotFound {
		t.Errorf("a blob whose manifest nobody asked for: %s", r.Status)
	}
	if r, b := get(t, manifest, ""); r.StatusCode != 200 || !bytes.Contains(b, []byte("payload")) || r.Header.Get("Cache-Control") == "" {
		t.Fatalf("the manifest: %s", r.Status)
	}
	s.sent.Store(0)
	write := func() {
		t.Helper()
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, len(s.raw)), 0o600); err != nil {
			t.Error(err)
		}
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		if _, err := disk.Write(t.Context(), path, s.m, disk.HTTP(client, blob), disk.Options{ReadBack: true}); err != nil {
			t.Error(err)
		}
		s.same(t, path)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(write)
	}
	wg.Wait()
	if n := s.sent.Load(); n > s.m.BlobLen {
		t.Errorf("%d bytes crossed the uplink, the blob has %d", n, s.m.BlobLen)
	}

	_, want := get(t, s.origin.URL+"/blob/"+s.m.Blob.String(), "")
	for _, r := range []struct{ h, want string }{
		{"", string(want)},
		{"bytes=0-0", string(want[:1])},
		{"bytes=5-", string(want[5:])},
		{fmt.Sprintf("bytes=%d-%d", s.m.Chunks[3].BlobOff-3, s.m.Chunks[3].BlobOff+3), string(want[s.m.Chunks[3].BlobOff-3 : s.m.Chunks[3].BlobOff+4])},
		{fmt.Sprintf("bytes=%d-%d", len(want)-2, len(want)+100), string(want[len(want)-2:])},
	} {
		if resp, got := get(t, blob, r.h); string(got) != r.want || (r.h == "") != (resp.StatusCode == 200) {
			t.Errorf("%q: %s, %d bytes, want %d", r.h, resp.Status, len(got), len(r.want))
		}
	}
	for _, h := range []string{"bytes=-5", "bytes=9-3", "bytes=99999999999-", "lines=1-2", "bytes=1-2,4-5", "bytes=a-b"} {
		if resp, _ := get(t, blob, h); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("%q: %s", h, resp.Status)
		}
	}

	// What the folder returns is not believed, and the other store may be gone.
	frames, err := filepath.Glob(filepath.Join(dir, "frames", "*", "*"))
	if err != nil || len(frames) < 8 {
		t.Fatalf("kept are %v, %v", frames, err)
	}
	b, err := os.ReadFile(frames[1])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(frames[1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(frames[0]), "new-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, url := s.cache(t, dir, s.origin.URL, 1<<30)
	blob = url + "/blob/" + s.m.Blob.String()
	write()
	if st := c.Stats(); st.Rejected != 1 || st.Fetched == 0 || st.Fetched > s.m.BlobLen/3 {
		t.Errorf("with one damaged frame: %+v", st)
	}
	s.origin.Close()
	write()
	if _, err := os.Stat(filepath.Join(filepath.Dir(frames[0]), "new-123")); err == nil {
		t.Error("half of a frame is still there")
	}
	if r, _ := get(t, url+"/manifest/"+images.Digest{1}.String(), ""); r.StatusCode != http.StatusBadGateway {
		t.Errorf("a manifest that cannot be had: %s", r.Status)
	}
}

// TestCacheKeepsNothingWrong: what the other store sends is verified, and a node
// with a mirror that cannot deliver takes it from the origin.
func TestCacheKeepsNothingWrong(t *testing.T) {
	s := newSite(t, 6)
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/manifest/") {
			http.Redirect(w, r, s.origin.URL+r.URL.Path, http.StatusFound)
			return
		}
		from, to, err := oneRange(r.Header.Get("Range"), s.m.BlobLen)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, s.m.BlobLen))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(make([]byte, to-from))
	}))
	defer liar.Close()
	dir := t.TempDir()
	c, url := s.cache(t, dir, liar.URL, 1<<30)
	get(t, url+"/manifest/"+s.d.String(), "")
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, len(s.raw)), 0o600); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	fetch := Mirrored(disk.HTTP(client, url+"/blob/"+s.m.Blob.String()), disk.HTTP(client, s.origin.URL+"/blob/"+s.m.Blob.String()))
	if _, err := disk.Write(t.Context(), path, s.m, fetch, disk.Options{}); err != nil {
		t.Fatal(err)
	}
	s.same(t, path)
	if st := c.Stats(); st.Rejected == 0 || st.Served != 0 {
		t.Errorf("%+v", st)
	}
	if kept, _ := filepath.Glob(filepath.Join(dir, "frames", "*", "*")); len(kept) > 0 {
		t.Errorf("it keeps %v", kept)
	}
}

// TestCacheIsBounded: the least recently used goes first, also after a restart.
func TestCacheIsBounded(t *testing.T) {
	s := newSite(t, 14)
	dir := t.TempDir()
	most := s.m.BlobLen / 2
	c, url := s.cache(t, dir, s.origin.URL, most)
	get(t, url+"/manifest/"+s.d.String(), "")
	for range 2 {
		get(t, url+"/blob/"+s.m.Blob.String(), "")
	}
	size := func() int64 {
		var n int64
		files, _ := filepath.Glob(filepath.Join(dir, "frames", "*", "*"))
		for _, f := range files {
			if i, err := os.Stat(f); err == nil {
				n += i.Size()
			}
		}
		return n
	}
	if n := size(); n > most || n < most/2 || n != c.size {
		t.Errorf("it keeps %d bytes (counts %d), at most %d are allowed", n, c.size, most)
	}
	s.cache(t, dir, s.origin.URL, most/2)
	if n := size(); n > most/2 {
		t.Errorf("with less allowed it keeps %d bytes", n)
	}
}

// FuzzRange: whatever is asked, the pieces are exactly that range of the blob.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=5-17", "bytes=-3", "bytes=99-100", "bytes=1-2,3-4", "", "bytes=9223372036854775807-"} {
		f.Add(s)
	}
	b := &blob{len: 100, chunks: []images.Chunk{{BlobOff: 10, BlobLen: 20}, {BlobOff: 30, BlobLen: 5}, {BlobOff: 60, BlobLen: 40}}}
	f.Fuzz(func(t *testing.T, h string) {
		from, to, err := oneRange(h, b.len)
		if err != nil {
			return
		}
		at := from
		for _, p := range b.pieces(from, to) {
			if p.from != at || p.to <= p.from || p.chunk != nil && (p.from < p.chunk.BlobOff || p.to > p.chunk.BlobOff+p.chunk.BlobLen) {
				t.Fatalf("%q: piece %+v at %d", h, p, at)
			}
			at = p.to
		}
		if at != to || to > b.len || from < 0 {
			t.Fatalf("%q: %d to %d, pieces end at %d", h, from, to, at)
		}
	})
}
