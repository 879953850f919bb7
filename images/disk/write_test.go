package disk

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/images"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is an image and a server of it.
type site struct {
	raw   []byte
	m     images.Manifest
	fetch Fetch
	base  string
	key   ed25519.PublicKey
	d     images.Digest
	// between stands between client and server.
	between atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]
}

func newSite(t testing.TB, chunks int) *site {
	t.Helper()
	s := &site{raw: make([]byte, chunks*images.ChunkSize-mib)}
	r := rand.New(rand.NewPCG(7, 7))
	for i := 0; i < len(s.raw); i += 512 {
		if c := i / images.ChunkSize; c%3 != 1 {
			for j := range 64 {
				s.raw[i+j] = byte(r.Uint32())
			}
		}
	}
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	priv := ed25519.NewKeyFromSeed(make([]byte, 32))
	s.key = priv.Public().(ed25519.PublicKey)
	s.d, err = store.Add(t.Context(), images.Manifest{Name: "test", Arch: "amd64", Created: time.Unix(1, 0).UTC()},
		bytes.NewReader(s.raw), int64(len(s.raw)), priv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.m, err = store.Manifest(s.d); err != nil {
		t.Fatal(err)
	}
	h := store.Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.between.Load(); f != nil {
			(*f)(w, r, h)
			return
		}
		h.ServeHTTP(w, r)
	}))
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(func() { tr.CloseIdleConnections(); srv.Close() })
	s.base = srv.URL
	s.fetch = HTTP(&http.Client{Transport: tr}, srv.URL+"/blob/"+s.m.Blob.String())
	return s
}

func (s *site) put(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.between.Store(&f)
}

// dirty makes a disk full of somebody else's data.
func dirty(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	b := bytes.Repeat([]byte("old tenant's data "), int(size)/18+1)[:size]
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func contents(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unbootable fails the test unless both ends of the disk are empty.
func unbootable(t *testing.T, path string) {
	t.Helper()
	b := contents(t, path)
	if !images.IsZero(b[:mib]) {
		t.Error("the first MiB is not empty")
	}
	if !images.IsZero(b[len(b)-mib:]) {
		t.Error("the last MiB is not empty: a backup partition table may be there")
	}
}

func same(t *testing.T, s *site, path string) {
	t.Helper()
	b := contents(t, path)
	if !bytes.Equal(b[:len(s.raw)], s.raw) {
		t.Error("the disk differs from the image")
	}
}

func TestWrite(t *testing.T) {
	s := newSite(t, 7)
	for _, tt := range []struct {
		name string
		size int64
		o    Options
	}{
		{"same size", s.m.Size, Options{}},
		{"bigger", s.m.Size + 9*mib, Options{ReadBack: true}},
		{"one worker", s.m.Size, Options{Workers: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := dirty(t, tt.size)
			var last Progress
			tt.o.Progress = func(p Progress) {
				if p.Stage == last.Stage && p.Done < last.Done || p.Done > p.Total {
					t.Errorf("progress went from %+v to %+v", last, p)
				}
				last = p
			}
			r, err := Write(t.Context(), path, s.m, s.fetch, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			same(t, s, path)
			if r.Written+r.Zeroed != s.m.Size || r.Reused != 0 {
				t.Errorf("result %+v", r)
			}
			if tt.o.ReadBack && r.ReadBack != s.m.Size {
				t.Errorf("read %d of %d back", r.ReadBack, s.m.Size)
			}
			if last.Map.Count() != len(s.m.Chunks) || last.Done != last.Total {
				t.Errorf("last progress %+v", last)
			}
			if b := contents(t, path); tt.size > s.m.Size && !images.IsZero(b[len(b)-mib:]) {
				t.Error("an old backup partition table survives")
			}
		})
	}
}

func TestManifestFetch(t *testing.T) {
	s := newSite(t, 2)
	client := &http.Client{}
	defer client.CloseIdleConnections()
	signers := images.Signers{Keys: []ed25519.PublicKey{s.key}}
	if m, err := Manifest(t.Context(), client, s.base, s.d, signers); err != nil || m.Blob != s.m.Blob {
		t.Fatalf("%+v, %v", m, err)
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)).Public().(ed25519.PublicKey)
	if _, err := Manifest(t.Context(), client, s.base, s.d, images.Signers{Keys: []ed25519.PublicKey{other}}); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("another's key: %v", err)
	}
	if _, err := Manifest(t.Context(), client, s.base, images.Digest{1}, signers); err == nil {
		t.Error("a manifest that is not there was found")
	}
	// A server that answers with another signed image.
	s.put(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.URL.Path = "/manifest/" + s.d.String()
		next.ServeHTTP(w, r)
	})
	if _, err := Manifest(t.Context(), client, s.base, images.Digest{1}, signers); err == nil {
		t.Error("another image was taken for the one asked for")
	}
}

// Killed in the middle, then continued with a map that claims too much.
func TestResume(t *testing.T) {
	s := newSite(t, 13)
	path := dirty(t, s.m.Size)
	ctx, cancel := context.WithCancel(t.Context())
	var fetched atomic.Int32
	var kept Map
	_, err := Write(ctx, path, s.m, func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		if fetched.Add(1) == 5 {
			cancel()
			return nil, ctx.Err()
		}
		return s.fetch(ctx, off, n)
	}, Options{Workers: 1, Progress: func(p Progress) { kept = p.Map }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("killed: %v", err)
	}
	unbootable(t, path)

	// A stored map survives its encoding; the throttled callback may not have
	// seen the last chunks, so claim everything and let them be verified.
	stored, err := kept.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var claim Map
	if err := claim.UnmarshalBinary(stored); err != nil {
		t.Fatal(err)
	}
	for i := range claim.Len() {
		claim.Set(i)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// One chunk that was written went bad meanwhile.
	if _, err := f.WriteAt([]byte("rot"), 2*images.ChunkSize+77); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r, err := Write(t.Context(), path, s.m, s.fetch, Options{Done: claim, ReadBack: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, s, path)
	if want := int64(5 * images.ChunkSize); r.Reused != want {
		t.Errorf("reused %d bytes, want %d", r.Reused, want)
	}
	// A map of another image is no reason to fail.
	if _, err := Write(t.Context(), path, s.m, s.fetch, Options{Done: NewMap(3)}); err != nil {
		t.Error(err)
	}
}

func TestFailuresNeverBoot(t *testing.T) {
	s := newSite(t, 6)
	var victim images.Chunk
	for _, c := range s.m.Chunks[2:] {
		if !c.Zero {
			victim = c
			break
		}
	}
	hits := func(r *http.Request) bool {
		return strings.HasPrefix(r.Header.Get("Range"), "bytes="+itoa(victim.BlobOff)+"-")
	}
	for _, tt := range []struct {
		name    string
		between func(w http.ResponseWriter, r *http.Request, next http.Handler)
		want    error
		text    string
	}{
		{"one flipped byte", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			if hits(r) {
				b[len(b)/2] ^= 1
			}
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			w.Write(b)
		}, ErrCorrupt, "3 times"},
		{"another chunk's bytes", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !hits(r) {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("Range"), "bytes=")+"/"+itoa(s.m.BlobLen))
			w.Header().Set("Content-Length", itoa(victim.BlobLen))
			r2 := r.Clone(r.Context())
			c := s.m.Chunks[0]
			r2.Header.Set("Range", "bytes="+itoa(c.BlobOff)+"-"+itoa(c.BlobOff+c.BlobLen-1))
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r2)
			b := append(rec.Body.Bytes(), make([]byte, victim.BlobLen)...)[:victim.BlobLen]
			w.WriteHeader(206)
			w.Write(b)
		}, ErrCorrupt, ""},
		{"ignores ranges", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.Header.Del("Range")
			next.ServeHTTP(w, r)
		}, nil, "ignores ranges"},
		{"answers another range", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.Header.Set("Range", "bytes=0-99")
			next.ServeHTTP(w, r)
		}, nil, "answers range"},
		{"image is gone", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			http.Error(w, "gone", http.StatusNotFound)
		}, nil, "404"},
		{"never recovers", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}, nil, "nothing arrived"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := dirty(t, s.m.Size)
			s.put(tt.between)
			_, err := Write(t.Context(), path, s.m, s.fetch, Options{Patience: 300 * time.Millisecond})
			if err == nil {
				t.Fatal("was written")
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error is %v", err)
			}
			unbootable(t, path)
		})
	}
}

// Connections that break and a server that restarts cost time, nothing else.
func TestRetries(t *testing.T) {
	s := newSite(t, 6)
	var n atomic.Int32
	s.put(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch n.Add(1) {
		case 1:
			http.Error(w, "starting", http.StatusBadGateway)
		case 2: // headers promise more than comes
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("Range"), "bytes=")+"/*")
			w.Header().Set("Content-Length", "1000000")
			w.WriteHeader(206)
			w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		case 3: // ends early and says so
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("Range"), "bytes=")+"/*")
			w.WriteHeader(206)
			w.Write([]byte{1, 2, 3})
		default:
			next.ServeHTTP(w, r)
		}
	})
	path := dirty(t, s.m.Size)
	r, err := Write(t.Context(), path, s.m, s.fetch, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Retries != 3 {
		t.Errorf("%d retries, want 3", r.Retries)
	}
	same(t, s, path)
}

func TestRefusedTargets(t *testing.T) {
	s := newSite(t, 2)
	dir := t.TempDir()
	missing := filepath.Join(dir, "sdz")
	if _, err := Write(t.Context(), missing, s.m, s.fetch, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing device: %v", err)
	}
	if _, err := os.Lstat(missing); err == nil {
		t.Error("a missing device became a file")
	}
	if _, err := Write(t.Context(), dir, s.m, s.fetch, Options{}); err == nil {
		t.Error("a folder was written")
	}
	if _, err := Write(t.Context(), "/dev/null", s.m, s.fetch, Options{}); err == nil {
		t.Error("a character device was written")
	}
	short := dirty(t, s.m.Size-mib)
	before := contents(t, short)
	if _, err := Write(t.Context(), short, s.m, s.fetch, Options{}); !errors.Is(err, ErrShort) {
		t.Errorf("short disk: %v", err)
	}
	if !bytes.Equal(before, contents(t, short)) {
		t.Error("a disk that is too short was touched")
	}
	m := s.m
	m.Chunks = m.Chunks[1:]
	if _, err := Write(t.Context(), short, m, s.fetch, Options{}); !errors.Is(err, images.ErrManifest) {
		t.Errorf("invalid manifest: %v", err)
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestMapRefuses(t *testing.T) {
	m := NewMap(11)
	m.Set(0)
	m.Set(10)
	b, _ := m.MarshalBinary()
	for name, bad := range map[string][]byte{
		"empty": nil, "version": append([]byte{9}, b[1:]...), "short": b[:len(b)-1], "long": append(b[:len(b):len(b)], 0),
		"stray bit": append(b[:len(b)-1:len(b)-1], 0xff), "huge": {1, 0xff, 0xff, 0xff, 0xff},
	} {
		if err := new(Map).UnmarshalBinary(bad); err == nil {
			t.Errorf("%s map was accepted", name)
		}
	}
}

func FuzzMap(f *testing.F) {
	m := NewMap(11)
	m.Set(3)
	b, _ := m.MarshalBinary()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Map
		if m.UnmarshalBinary(b) != nil {
			return
		}
		if m.Count() > m.Len() {
			t.Fatal("more bits than chunks")
		}
		if again, _ := m.MarshalBinary(); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
