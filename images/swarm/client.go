package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"smelt/images"
)

// Config is what a Client starts with.
type Config struct {
	Image    images.Digest   // of the manifest
	Manifest images.Manifest // verified
	// Report sends a report to the tracker and returns its plan.
	Report func(context.Context, Report) (Plan, error)
	// Origin returns n bytes of the image's blob from off on.
	Origin Fetch
	// Disk is where the image is being written: chunks that are not in memory
	// any more are read from there again. Empty: only memory is served.
	Disk string
	// Memory bounds the frames that are kept to be sent. 0 is 64 MiB.
	Memory int64
	Log    *slog.Logger
}

// Client is a node in a swarm: a disk.Source for the writer, and a server for
// the peers until Close.
type Client struct {
	c       Config
	index   map[images.Digest][]int
	peers   *http.Client
	srv     *http.Server
	port    uint16
	served  chan struct{}
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	limit   *rate.Limiter
	sends   chan struct{} // one element a running send
	rereads singleflight.Group

	tasks chan Task
	wake  chan struct{} // there is something to tell or to ask
	over  chan struct{} // closed: nothing more will come
	once  sync.Once

	mu      sync.Mutex
	news    Report
	held    []bool
	lost    []bool // held, and the disk does not return it
	missing int
	waiting int // workers without a task
	pace    time.Duration
	speed   float64 // chunks a second, smoothed
	counted int     // chunks since the last report
	flying  map[int]*transfer
	usual   time.Duration // a transfer from a peer takes
	moved   time.Time     // when a chunk last came
	frames  frames
	hosts   map[string]chan struct{} // sends to each
	stats   ClientStats
}

// patience is how long no word from the tracker may come, and a third of how
// long no chunk may: then the swarm is no help, and the rest comes from the
// origin.
var patience = 20 * time.Second

// ClientStats count bytes of frames.
type ClientStats struct {
	FromOrigin int64
	FromPeers  int64
	ToPeers    int64
	Reread     int // chunks read from the disk again to be sent
	Failures   map[Why]int
}

type transfer struct {
	task  Task
	frame []byte
	took  time.Duration
}

const (
	// A transfer may take slowest at first, and later several times of what is
	// usual here; but no byte may come for no longer than still.
	slowest, fastest = time.Minute, 2 * time.Second
	still            = 4 * time.Second
	sending          = 16               // transfers to peers at once
	sendTime         = 30 * time.Second // one of them
	maxFrame         = images.ChunkSize + images.ChunkSize/128
	parting          = 2 * time.Second
	conns            = 256
	memory           = 64 << 20
	chunkPath        = "/chunk/"
)

// Join starts serving and talking to the tracker. Close ends both.
func Join(c Config) (*Client, error) {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	if c.Memory <= 0 {
		c.Memory = memory
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Client{
		c: c, index: map[images.Digest][]int{}, port: uint16(ln.Addr().(*net.TCPAddr).Port), served: make(chan struct{}), cancel: cancel,
		limit: rate.NewLimiter(rate.Inf, 256<<10), sends: make(chan struct{}, sending),
		tasks: make(chan Task, maxWant), wake: make(chan struct{}, 1), over: make(chan struct{}),
		held: make([]bool, len(c.Manifest.Chunks)), lost: make([]bool, len(c.Manifest.Chunks)), flying: map[int]*transfer{}, hosts: map[string]chan struct{}{}, moved: time.Now(),
		frames: frames{max: c.Memory, byChunk: map[int]*frame{}}, stats: ClientStats{Failures: map[Why]int{}},
		peers: &http.Client{
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				MaxIdleConnsPerHost: 4, MaxIdleConns: 256, IdleConnTimeout: 30 * time.Second,
				DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
			},
			// A peer has no business to send us elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	for i, k := range c.Manifest.Chunks {
		if !k.Zero {
			s.index[k.Digest] = append(s.index[k.Digest], i)
			s.missing++
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+chunkPath+"{digest}", s.send)
	s.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	go func() {
		defer close(s.served)
		_ = s.srv.Serve(netutil.LimitListener(ln, conns))
	}()
	s.wg.Go(func() { s.talk(ctx) })
	return s, nil
}

// Close ends the serving, with a moment for the transfers that are running:
// from here on the disk may change.
func (s *Client) Close() {
	s.end()
	s.cancel()
	s.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), parting)
	defer cancel()
	_, _ = s.c.Report(ctx, Report{Image: s.c.Image, Port: s.port, Leave: true}) // the tracker notices anyway
	if s.srv.Shutdown(ctx) != nil {
		_ = s.srv.Close()
	}
	<-s.served
	s.peers.CloseIdleConnections()
}

// Stats returns the counts.
func (s *Client) Stats() ClientStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Failures = map[Why]int{}
	for k, v := range s.stats.Failures {
		out.Failures[k] = v
	}
	return out
}

func (s *Client) end() { s.once.Do(func() { close(s.over) }) }

// talk reports to the tracker: soon when there is a worker without a task, in
// time when there is nothing to tell.
func (s *Client) talk(ctx context.Context) {
	full := true // the tracker wants the whole map
	heard := time.Now()
	last := time.Now()
	var wait time.Duration
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-s.wake:
			// What else is about to be told travels along.
			t.Reset(max(5*time.Millisecond, s.paced()-time.Since(last)))
			select {
			case <-ctx.Done():
			case <-t.C:
			}
		case <-t.C:
		}
		t.Stop()
		r := s.report(full, time.Since(last))
		last = time.Now()
		c, cancel := context.WithTimeout(ctx, 10*time.Second)
		p, err := s.c.Report(c, r)
		cancel()
		now := time.Now()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// What was in the report is lost, but not in the map.
			full = true
			wait = time.Second
			if now.Sub(heard) > patience || errors.Is(err, ErrRefused) {
				s.c.Log.Warn("swarm: no word from the tracker: the rest comes from the origin", "err", err)
				s.end()
				wait = heartbeat
			}
			continue
		}
		heard = now
		full = p.Map
		if p.Map {
			wait = 0
			continue
		}
		s.obey(p)
		s.mu.Lock()
		stuck := s.missing > 0 && now.Sub(s.moved) > 3*patience
		s.mu.Unlock()
		if stuck {
			s.c.Log.Warn("swarm: no chunk arrives by it: the rest comes from the origin")
			s.end()
		}
		wait = min(max(time.Duration(p.Wait)*time.Millisecond, 20*time.Millisecond), heartbeat)
	}
}

func (s *Client) report(full bool, since time.Duration) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since > 0 {
		s.speed += (float64(s.counted)/since.Seconds() - s.speed) / 4
		s.counted = 0
	}
	r := s.news
	s.news = Report{}
	r.Image, r.Port = s.c.Image, s.port
	if full {
		r.Got, r.Lost, r.Failed = nil, nil, nil
		r.Map = make([]byte, (len(s.held)+7)/8)
		for i, h := range s.held {
			if h && !s.lost[i] {
				r.Map[i/8] |= 1 << (i % 8)
			}
		}
	}
	select {
	case <-s.over:
	default:
		// More than there are hands: the next is there when one is free.
		most := min(s.missing-len(s.flying), s.waiting+s.ahead(), cap(s.tasks))
		r.Want = max(0, most-len(s.tasks))
	}
	return r
}

func (s *Client) paced() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pace
}

// ahead is how many chunks come between two reports.
func (s *Client) ahead() int { return 2 + min(int(s.speed*s.pace.Seconds()), maxWant/2) }

func (s *Client) obey(p Plan) {
	s.mu.Lock()
	s.pace = min(max(time.Duration(p.Pace)*time.Millisecond, 10*time.Millisecond), heartbeat)
	s.mu.Unlock()
	if p.Upload > 0 {
		s.limit.SetLimit(rate.Limit(p.Upload))
	} else {
		s.limit.SetLimit(rate.Inf)
	}
	for _, t := range p.Tasks {
		if t.Chunk < 0 || t.Chunk >= len(s.held) || s.c.Manifest.Chunks[t.Chunk].Zero {
			continue // the tracker has another manifest: it is not believed
		}
		select {
		case s.tasks <- t:
		default:
		}
	}
}

func (s *Client) tell(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	s.nudge()
}

func (s *Client) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next implements disk.Source.
func (s *Client) Next(ctx context.Context, b []byte) (int, int64, error) {
	dec := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(dec)
	for {
		t, err := s.task(ctx)
		if err != nil {
			return 0, 0, err
		}
		s.mu.Lock()
		_, busy := s.flying[t.Chunk]
		if busy || s.held[t.Chunk] {
			s.mu.Unlock()
			continue
		}
		f := &transfer{task: t}
		s.flying[t.Chunk] = f
		s.mu.Unlock()

		n, why, err := s.fetch(ctx, f, b, dec)
		if err == nil {
			return t.Chunk, n, nil
		}
		s.fail(t.Chunk, why)
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		s.c.Log.Debug("swarm: transfer", "chunk", t.Chunk, "peer", t.Peer, "why", why, "err", err)
	}
}

// task waits for one. io.EOF: there will be none.
func (s *Client) task(ctx context.Context) (Task, error) {
	select {
	case t := <-s.tasks:
		s.mu.Lock()
		low := len(s.tasks) <= s.ahead()/2
		s.mu.Unlock()
		if low {
			s.nudge()
		}
		return t, nil
	default:
	}
	s.tell(func() { s.waiting++ })
	defer func() {
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}()
	select {
	case t := <-s.tasks:
		return t, nil
	case <-s.over:
		return Task{}, io.EOF
	case <-ctx.Done():
		return Task{}, ctx.Err()
	}
}

// Took implements disk.Source.
func (s *Client) Took(i int, err error) {
	if err != nil {
		s.fail(i, Corrupt)
		return
	}
	s.tell(func() {
		f := s.flying[i]
		delete(s.flying, i)
		if s.held[i] {
			return
		}
		s.held[i] = true
		s.missing--
		s.counted++
		s.moved = time.Now()
		got := Got{Chunk: i}
		if f != nil {
			got.Ms = int(f.took / time.Millisecond)
			n := int64(len(f.frame))
			// The first and the last chunk are on the disk only at the end.
			s.frames.put(i, f.frame, i == 0 || i == len(s.held)-1)
			if f.task.Peer == "" {
				s.stats.FromOrigin += n
			} else {
				s.stats.FromPeers += n
				if s.usual == 0 {
					s.usual = f.took
				}
				s.usual += (f.took - s.usual) / 8
			}
		}
		s.news.Got = append(s.news.Got, got)
		if s.missing == 0 {
			s.end()
		}
	})
}

func (s *Client) fail(i int, why Why) {
	s.tell(func() {
		delete(s.flying, i)
		s.stats.Failures[why]++
		if len(s.news.Failed) < maxListed {
			s.news.Failed = append(s.news.Failed, Failure{i, why})
		}
	})
}

// deadline is how long a transfer may take.
func (s *Client) deadline() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usual == 0 {
		return slowest
	}
	return min(max(6*s.usual, fastest), slowest)
}

// decoders are made for one frame at a time. The limit makes a frame that
// unpacks to more than a chunk an error before it is memory.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(images.ChunkSize),
		zstd.WithDecoderMaxWindow(images.ChunkSize), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}}

// fetch leaves a chunk in b. Whether it is the right one, the writer says.
func (s *Client) fetch(ctx context.Context, f *transfer, b []byte, dec *zstd.Decoder) (int64, Why, error) {
	began := time.Now()
	k := s.c.Manifest.Chunks[f.task.Chunk]
	limit, quiet := slowest, slowest/2 // the origin: everybody's last resort is not given up fast
	if f.task.Peer != "" {
		limit, quiet = s.deadline(), still
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errSlow)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watch := time.AfterFunc(quiet, func() { stop(errSlow) })
	defer watch.Stop()
	slow := func(err error) (int64, Why, error) {
		if errors.Is(context.Cause(ctx), errSlow) {
			return 0, Slow, fmt.Errorf("not there after %s: %w", time.Since(began).Round(time.Millisecond), err)
		}
		return 0, Gone, err
	}
	var body io.ReadCloser
	var err error
	size := k.BlobLen
	if f.task.Peer == "" {
		body, err = s.c.Origin(ctx, k.BlobOff, k.BlobLen)
	} else {
		body, size, err = s.ask(ctx, f.task.Peer, k.Digest)
	}
	if err != nil {
		return slow(err)
	}
	defer body.Close()
	f.frame = make([]byte, size)
	for at := 0; at < len(f.frame); {
		n, err := body.Read(f.frame[at:])
		at += n
		if n > 0 {
			watch.Reset(quiet)
		}
		if err != nil && at < len(f.frame) {
			return slow(err)
		}
	}
	// From here on it is the sender's fault.
	plain, err := dec.DecodeAll(f.frame, b[:0:k.Length])
	if err != nil {
		return 0, Corrupt, err
	}
	if int64(len(plain)) != k.Length {
		return 0, Corrupt, fmt.Errorf("%d bytes, want %d", len(plain), k.Length)
	}
	f.took = time.Since(began)
	return size, "", nil
}

// ask asks a peer for a frame.
func (s *Client) ask(ctx context.Context, peer string, d images.Digest) (io.ReadCloser, int64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+peer+chunkPath+d.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := s.peers.Do(r)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 || resp.ContentLength > maxFrame {
		resp.Body.Close()
		return nil, 0, fmt.Errorf("peer %s answers %s with %d bytes", peer, resp.Status, resp.ContentLength)
	}
	return resp.Body, resp.ContentLength, nil
}

var errSlow = errors.New("too slow")

var errNotHeld = errors.New("no such chunk here")

// send serves GET /chunk/DIGEST: the frame of a chunk that this node holds.
func (s *Client) send(w http.ResponseWriter, r *http.Request) {
	d, err := images.ParseDigest(r.PathValue("digest"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// Nobody takes all of us for itself by reading slowly.
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	for _, slots := range []chan struct{}{s.ofHost(host), s.sends} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-r.Context().Done():
			return
		}
	}
	b, err := s.frame(d)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	// Who reads slowly must not keep others waiting.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTime))
	h := w.Header()
	h.Set("Content-Type", "application/zstd")
	h.Set("Content-Length", fmt.Sprint(len(b)))
	h.Set("ETag", `"`+d.String()+`"`)
	h.Set("Cache-Control", "public, max-age=31536000, immutable, no-transform")
	for rest := b; len(rest) > 0; {
		n := min(len(rest), 64<<10)
		if s.limit.WaitN(r.Context(), n) != nil {
			return
		}
		if _, err := w.Write(rest[:n]); err != nil {
			return
		}
		rest = rest[n:]
	}
	s.mu.Lock()
	s.stats.ToPeers += int64(len(b))
	s.mu.Unlock()
}

func (s *Client) ofHost(host string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hosts[host] == nil {
		s.hosts[host] = make(chan struct{}, sending/2)
	}
	return s.hosts[host]
}

// frame returns the frame of a chunk that is held, from memory or made again
// from the disk.
func (s *Client) frame(d images.Digest) ([]byte, error) {
	s.mu.Lock()
	at := -1
	var b []byte
	for _, i := range s.index[d] {
		if s.held[i] && !s.lost[i] {
			at, b = i, s.frames.get(i)
		}
		if b != nil {
			break
		}
	}
	s.mu.Unlock()
	if at < 0 {
		return nil, errNotHeld
	}
	if b != nil {
		return b, nil
	}
	v, err, _ := s.rereads.Do(d.String(), func() (any, error) { return s.reread(at) })
	if err != nil {
		s.c.Log.Warn("swarm: the disk does not return a chunk; it is not served any more", "chunk", at, "err", err)
		s.tell(func() {
			s.lost[at] = true
			s.news.Lost = append(s.news.Lost, at)
		})
		return nil, errNotHeld
	}
	b = v.([]byte)
	s.mu.Lock()
	s.frames.put(at, b, false)
	s.stats.Reread++
	s.mu.Unlock()
	return b, nil
}

var encoders = sync.Pool{New: func() any {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(images.ChunkSize), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err)
	}
	return e
}}

// frames are kept up to max bytes, the least recently asked for go first.
type frames struct {
	max     int64
	size    int64
	byChunk map[int]*frame
	clock   int64
}

type frame struct {
	b    []byte
	used int64
	pin  bool
}

func (f *frames) get(i int) []byte {
	x := f.byChunk[i]
	if x == nil {
		return nil
	}
	f.clock++
	x.used = f.clock
	return x.b
}

func (f *frames) put(i int, b []byte, pin bool) {
	if f.byChunk[i] != nil {
		return
	}
	f.clock++
	f.byChunk[i] = &frame{b, f.clock, pin}
	f.size += int64(len(b))
	for f.size > f.max {
		// The map is small: at most max / a frame's size.
		oldest, at := int64(-1), -1
		for i, x := range f.byChunk {
			if !x.pin && (at < 0 || x.used < oldest) {
				oldest, at = x.used, i
			}
		}
		if at < 0 {
			return
		}
		f.size -= int64(len(f.byChunk[at].b))
		delete(f.byChunk, at)
	}
}
