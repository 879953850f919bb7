package swarm

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"smelt/images"
)

// Cache is an image store for a rack: it fetches what is asked of it from
// another store, once, and keeps it in a folder. It is not trusted, and trusts
// nobody: a manifest must have the digest it is asked by, a frame must unpack
// to the chunk that the manifest names before it is kept or sent, and what the
// folder returns is held against that again once a process. Nodes ask it for
// the manifest first, which is how it learns of a blob's frames.
//
//	manifests/DIGEST     signed manifests, as they came
//	frames/BLOB/OFFSET   frames of blobs
//
// A file under its final name is complete; what a full disk does not take is
// sent all the same.
type Cache struct {
	dir, upstream string
	max           int64
	log           *slog.Logger
	client        *http.Client
	fetches       singleflight.Group

	mu    sync.Mutex
	blobs map[images.Digest]*blob
	size  int64
	files map[string]*list.Element // of cached
	used  *list.List               // the front was used last
	full  time.Time                // when the disk was last found full
	stats CacheStats
}

// CacheStats count bytes of frames.
type CacheStats struct {
	Served   int64
	Fetched  int64 // from the other store
	Rejected int   // frames that were not their chunk's, from there or from the folder
}

type cached struct {
	name    string // BLOB/OFFSET
	size    int64
	checked bool // held against its chunk by this process
}

// blob is what a manifest says of one.
type blob struct {
	len    int64
	chunks []images.Chunk // with data, by offset in the blob
}

// fetchTime bounds the fetch of one frame: 4 MiB at 140 kB/s.
const fetchTime = 30 * time.Second

// OpenCache opens or makes the folder of a cache. upstream is the URL of an
// image store, as in BASE/blob/DIGEST; max bounds the bytes that are kept.
func OpenCache(dir, upstream string, max int64, log *slog.Logger) (*Cache, error) {
	c := &Cache{
		dir: dir, upstream: strings.TrimSuffix(upstream, "/"), max: max, log: log,
		blobs: map[images.Digest]*blob{}, files: map[string]*list.Element{}, used: list.New(),
		client: &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, MaxIdleConnsPerHost: 16,
			IdleConnTimeout: time.Minute, ResponseHeaderTimeout: fetchTime, DisableCompression: true,
		}},
	}
	for _, d := range []string{"manifests", "frames"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("image cache: %w", err)
		}
	}
	type old struct {
		cached
		at time.Time
	}
	var found []old
	err := filepath.WalkDir(filepath.Join(dir, "frames"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if strings.HasPrefix(e.Name(), "new-") {
			return os.Remove(path) // half of a frame: the process was killed
		}
		i, err := e.Info()
		if err != nil {
			return err
		}
		found = append(found, old{cached{name: filepath.Join(filepath.Base(filepath.Dir(path)), e.Name()), size: i.Size()}, i.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	slices.SortFunc(found, func(a, b old) int { return a.at.Compare(b.at) })
	for _, f := range found {
		c.files[f.name] = c.used.PushFront(&f.cached)
		c.size += f.size
	}
	names, err := os.ReadDir(filepath.Join(dir, "manifests"))
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	for _, n := range names {
		if d, err := images.ParseDigest(n.Name()); err == nil {
			if b, err := os.ReadFile(filepath.Join(dir, "manifests", n.Name())); err == nil {
				_ = c.learn(d, b) // what is damaged is fetched again when it is asked for
			}
		}
	}
	c.evict()
	return c, nil
}

// Close ends idle connections.
func (c *Cache) Close() { c.client.CloseIdleConnections() }

// Stats returns the counts.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Handler serves GET and HEAD of /manifest/DIGEST and /blob/DIGEST, like
// images.Store.
func (c *Cache) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /manifest/{digest}", c.manifest)
	mux.HandleFunc("GET /blob/{digest}", c.blob)
	return mux
}

// learn remembers the frames of the blob that a manifest names.
func (c *Cache) learn(d images.Digest, envelope []byte) error {
	payload, err := images.Payload(envelope)
	if err != nil {
		return err
	}
	if images.Digest(sha256.Sum256(payload)) != d {
		return fmt.Errorf("manifest %s: another came", d.Short())
	}
	var m images.Manifest
	if err := json.Unmarshal(payload, &m); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return err
	}
	b := &blob{len: m.BlobLen}
	for _, k := range m.Chunks {
		if !k.Zero {
			b.chunks = append(b.chunks, k)
		}
	}
	c.mu.Lock()
	c.blobs[m.Blob] = b
	c.mu.Unlock()
	return nil
}

func immutable(w http.ResponseWriter, d images.Digest, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("ETag", `"`+d.String()+`"`)
	h.Set("Cache-Control", "public, max-age=31536000, immutable, no-transform")
}

func (c *Cache) manifest(w http.ResponseWriter, r *http.Request) {
	d, err := images.ParseDigest(r.PathValue("digest"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := filepath.Join(c.dir, "manifests", d.String())
	b, err := os.ReadFile(path)
	if err == nil {
		err = c.learn(d, b)
	}
	if err != nil {
		v, err, _ := c.fetches.Do(d.String(), func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), fetchTime)
			defer cancel()
			body, err := c.get(ctx, "/manifest/"+d.String(), "")
			if err != nil {
				return nil, err
			}
			defer body.Close()
			b, err := io.ReadAll(io.LimitReader(body, images.MaxEnvelope+1))
			if err != nil {
				return nil, err
			}
			if err := c.learn(d, b); err != nil {
				return nil, err
			}
			return b, c.write(path, b)
		})
		if b, _ = v.([]byte); b == nil {
			c.log.Warn("image cache: manifest", "digest", d.Short(), "err", err)
			http.Error(w, "no "+d.Short()+" here", http.StatusBadGateway)
			return
		}
	}
	immutable(w, d, "application/vnd.dsse.envelope.v1+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

// get asks the other store; rng is of a Range header, or empty.
func (c *Cache) get(ctx context.Context, path, rng string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.upstream+path, nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if rng != "" {
		r.Header.Set("Range", "bytes="+rng)
		want = http.StatusPartialContent
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want || rng != "" && !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+rng+"/") {
		resp.Body.Close()
		return nil, fmt.Errorf("%s%s answers %s %s", c.upstream, path, resp.Status, resp.Header.Get("Content-Range"))
	}
	return resp.Body, nil
}

// blob serves a range of a blob, or all of it, frame by frame.
func (c *Cache) blob(w http.ResponseWriter, r *http.Request) {
	d, err := images.ParseDigest(r.PathValue("digest"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	b := c.blobs[d]
	c.mu.Unlock()
	if b == nil {
		// It cannot be verified, so it is not ours to send: the node fetches it
		// from the next store, and the manifest before the next image.
		http.Error(w, "the manifest of "+d.Short()+" was not fetched here: fetch it first", http.StatusNotFound)
		return
	}
	from, to, code := int64(0), b.len, http.StatusOK
	if h := r.Header.Get("Range"); h != "" {
		if from, to, err = oneRange(h, b.len); err != nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", b.len))
			http.Error(w, err.Error(), http.StatusRequestedRangeNotSatisfiable)
			return
		}
		code = http.StatusPartialContent
	}
	pieces := b.pieces(from, to)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// The next frame is fetched while one is sent.
	type result struct {
		b   []byte
		err error
	}
	queue := make(chan chan result, 2)
	go func() {
		defer close(queue)
		for _, p := range pieces {
			place := make(chan result, 1)
			select {
			case queue <- place:
			case <-ctx.Done():
				return
			}
			go func() {
				f, err := c.piece(ctx, d, p)
				place <- result{f, err}
			}()
		}
	}()
	started := false
	for place := range queue {
		got := <-place
		if got.err != nil {
			if ctx.Err() == nil {
				c.log.Warn("image cache: blob", "digest", d.Short(), "err", got.err)
			}
			if !started {
				http.Error(w, "the image store behind this cache does not send it", http.StatusBadGateway)
				return
			}
			// The length was promised: only a broken connection says that this
			// is not all.
			panic(http.ErrAbortHandler)
		}
		if !started {
			started = true
			immutable(w, d, "application/zstd")
			w.Header().Set("Accept-Ranges", "bytes")
			w.Header().Set("Content-Length", strconv.FormatInt(to-from, 10))
			if code == http.StatusPartialContent {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, b.len))
			}
			w.WriteHeader(code)
			if r.Method == http.MethodHead {
				return
			}
		}
		if _, err := w.Write(got.b); err != nil {
			return
		}
		c.mu.Lock()
		c.stats.Served += int64(len(got.b))
		c.mu.Unlock()
	}
}

// oneRange reads "bytes=A-B"; what has several ranges or none is refused.
func oneRange(h string, size int64) (from, to int64, err error) {
	a, b, ok := strings.Cut(strings.TrimPrefix(h, "bytes="), "-")
	from, err1 := strconv.ParseInt(a, 10, 64)
	to = size - 1
	var err2 error
	if b != "" {
		to, err2 = strconv.ParseInt(b, 10, 64)
	}
	if !ok || !strings.HasPrefix(h, "bytes=") || err1 != nil || err2 != nil || from < 0 || from >= size || to < from {
		return 0, 0, fmt.Errorf("range %.40q of %d bytes", h, size)
	}
	return from, min(to, size-1) + 1, nil
}

// piece is a part of a frame, or of what lies between frames (frames of zeros).
type piece struct {
	chunk    *images.Chunk // nil: between frames
	from, to int64         // in the blob
}

func (b *blob) pieces(from, to int64) []piece {
	i, _ := slices.BinarySearchFunc(b.chunks, from, func(k images.Chunk, at int64) int {
		switch {
		case k.BlobOff+k.BlobLen <= at:
			return -1
		case k.BlobOff > at:
			return 1
		}
		return 0
	})
	var out []piece
	for from < to {
		end := to
		var k *images.Chunk
		if i < len(b.chunks) {
			switch c := &b.chunks[i]; {
			case c.BlobOff > from:
				end = min(end, c.BlobOff)
			default:
				k, end = c, min(end, c.BlobOff+c.BlobLen)
				i++
			}
		}
		out = append(out, piece{k, from, end})
		from = end
	}
	return out
}

func (c *Cache) piece(ctx context.Context, d images.Digest, p piece) ([]byte, error) {
	if p.chunk == nil {
		if p.to-p.from > images.ChunkSize {
			return nil, fmt.Errorf("%d bytes without a frame", p.to-p.from)
		}
		b := make([]byte, p.to-p.from)
		return b, c.load(ctx, d, p.from, b)
	}
	k := p.chunk
	name := filepath.Join(d.String(), strconv.FormatInt(k.BlobOff, 10))
	if b, ok := c.kept(name, *k); ok {
		return b[p.from-k.BlobOff : p.to-k.BlobOff], nil
	}
	// Whoever asked first may go away: the others still wait for it.
	ch := c.fetches.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		b := make([]byte, k.BlobLen)
		if err := c.load(ctx, d, k.BlobOff, b); err != nil {
			return nil, err
		}
		if err := unpacks(b, *k); err != nil {
			c.reject()
			return nil, fmt.Errorf("%s sent a frame that is not its chunk's: %w", c.upstream, err)
		}
		c.keep(name, b)
		return b, nil
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]byte)[p.from-k.BlobOff : p.to-k.BlobOff], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// load fills b with the blob's bytes from off on, from the other store.
func (c *Cache) load(ctx context.Context, d images.Digest, off int64, b []byte) error {
	body, err := c.get(ctx, "/blob/"+d.String(), fmt.Sprintf("%d-%d", off, off+int64(len(b))-1))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b); err != nil {
		return err
	}
	c.mu.Lock()
	c.stats.Fetched += int64(len(b))
	c.mu.Unlock()
	return nil
}

func (c *Cache) reject() {
	c.mu.Lock()
	c.stats.Rejected++
	c.mu.Unlock()
}

// kept returns a frame from the folder.
func (c *Cache) kept(name string, k images.Chunk) ([]byte, bool) {
	c.mu.Lock()
	e := c.files[name]
	checked := e != nil && e.Value.(*cached).checked
	if e != nil {
		c.used.MoveToFront(e)
	}
	c.mu.Unlock()
	if e == nil {
		return nil, false
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "frames", name))
	if err == nil && int64(len(b)) != k.BlobLen {
		err = errors.New("another length")
	}
	if err == nil && !checked {
		err = unpacks(b, k)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.files[name] == e { // nobody else evicted it
			c.log.Warn("image cache: a kept frame is damaged; it is fetched again", "frame", name, "err", err)
			c.stats.Rejected++
			c.forget(e)
		}
		return nil, false
	}
	e.Value.(*cached).checked = true
	return b, true
}

// keep writes a frame into the folder. Where that fails, it is only not kept.
func (c *Cache) keep(name string, b []byte) {
	path := filepath.Join(c.dir, "frames", name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = c.write(path, b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if time.Since(c.full) > time.Minute {
			c.log.Warn("image cache: a frame is not kept", "err", err)
			c.full = time.Now()
		}
		return
	}
	if c.files[name] == nil {
		c.files[name] = c.used.PushFront(&cached{name, int64(len(b)), true})
		c.size += int64(len(b))
	}
	c.evict()
}

// evict removes what was not used for longest, with c.mu held or not shared yet.
func (c *Cache) evict() {
	for c.size > c.max && c.used.Len() > 0 {
		c.forget(c.used.Back())
	}
}

func (c *Cache) forget(e *list.Element) {
	f := e.Value.(*cached)
	c.used.Remove(e)
	delete(c.files, f.name)
	c.size -= f.size
	_ = os.Remove(filepath.Join(c.dir, "frames", f.name))
}

// write makes a file in one step. It is not synced: what a power cut damages is
// found and fetched again.
func (c *Cache) write(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone by then, when all went well
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// unpacks says whether b is a frame of chunk k.
func unpacks(b []byte, k images.Chunk) error {
	dec := verifiers.Get().(*verifier)
	defer verifiers.Put(dec)
	_, err := dec.d.Chunk(bytes.NewReader(b), k, dec.b)
	return err
}

type verifier struct {
	d *images.Decoder
	b []byte
}

var verifiers = sync.Pool{New: func() any {
	d, err := images.NewDecoder()
	if err != nil {
		panic(err) // its options are constants
	}
	return &verifier{d, make([]byte, images.ChunkSize)}
}}
