package swarm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"smelt/images"
	"smelt/images/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is an image, its origin and its tracker, all real; its nodes are
// processes' worth of Clients on loopback.
type site struct {
	raw     []byte
	m       images.Manifest
	d       images.Digest
	origin  *httptest.Server
	sent    atomic.Int64
	tracker *Tracker
	deaf    atomic.Bool // the tracker does not answer
}

func newSite(t testing.TB, chunks int) *site {
	s := &site{raw: make([]byte, chunks*images.ChunkSize-1<<20), tracker: NewTracker(Limits{})}
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(s.raw); i += 4096 {
		if i/images.ChunkSize%5 != 2 {
			for j := range 512 {
				s.raw[i+j] = byte(r.Uint32())
			}
		}
	}
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.d, err = store.Add(t.Context(), images.Manifest{Name: "test", Arch: "amd64", Created: time.Unix(1, 0).UTC()},
		bytes.NewReader(s.raw), int64(len(s.raw)), ed25519.NewKeyFromSeed(make([]byte, 32)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.m, err = store.Manifest(s.d); err != nil {
		t.Fatal(err)
	}
	h := store.Handler()
	s.origin = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(counting{w, &s.sent}, r)
	}))
	t.Cleanup(s.origin.Close)
	return s
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

var loopback = netip.MustParseAddr("127.0.0.1")

func (s *site) report(id string) func(context.Context, Report) (Plan, error) {
	return func(_ context.Context, r Report) (Plan, error) {
		if s.deaf.Load() {
			return Plan{}, errors.New("no answer")
		}
		return s.tracker.Report(time.Now(), id, "rack", loopback, r, func(images.Digest) (images.Manifest, error) { return s.m, nil })
	}
}

// node writes the image to a file by the swarm.
func (s *site) node(ctx context.Context, t testing.TB, id string, memory int64) (*Client, string, disk.Result, error) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xa5}, len(s.raw)+1<<20), 0o600); err != nil {
		t.Error(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	origin := disk.HTTP(client, s.origin.URL+"/blob/"+s.m.Blob.String())
	c, err := Join(Config{Image: s.d, Manifest: s.m, Report: s.report(id), Origin: origin, Disk: path, Memory: memory, Log: slog.Default()})
	if err != nil {
		return nil, path, disk.Result{}, err
	}
	r, err := disk.Write(ctx, path, s.m, origin, disk.Options{Source: c, ReadBack: true, Workers: 4})
	return c, path, r, err
}

func (s *site) same(t testing.TB, path string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if !bytes.Equal(got[:len(s.raw)], s.raw) {
		t.Errorf("%s is not the image", path)
	}
}

// TestNodesFetchFromEachOther: six nodes, the server sends the image about once.
func TestNodesFetchFromEachOther(t *testing.T) {
	s := newSite(t, 24)
	var wg sync.WaitGroup
	clients := make([]*Client, 6)
	for i := range clients {
		wg.Go(func() {
			c, path, r, err := s.node(t.Context(), t, fmt.Sprint("n", i), 1) // no memory: peers get what the disk returns
			if err != nil {
				t.Error(err)
			}
			clients[i] = c
			s.same(t, path)
			t.Logf("n%d %+v; %+v", i, c.Stats(), r)
		})
	}
	wg.Wait()
	reread := 0
	for _, c := range clients {
		reread += c.Stats().Reread
		c.Close()
	}
	x := float64(s.sent.Load()) / float64(s.m.BlobLen)
	t.Logf("the origin sent %.2f images, %d chunks were read from disks again", x, reread)
	if x > 2 {
		t.Errorf("the origin sent the image %.2f times", x)
	}
	if reread == 0 {
		t.Error("no peer sent what it had on its disk")
	}
	if n := s.tracker.Stats().Nodes; n != 0 {
		t.Errorf("%d nodes did not leave", n)
	}
}

// peer answers for every chunk in its own way, and says that it holds all.
func (s *site) peer(t testing.TB, id string, h http.HandlerFunc) {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	r := Report{Image: s.d, Port: uint16(port), Map: bytes.Repeat([]byte{0xff}, (len(s.m.Chunks)+7)/8)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.report(id)(ctx, r); err != nil && !s.deaf.Load() {
				t.Error(err)
			}
			r.Map = nil
			select {
			case <-ctx.Done():
			case <-time.After(heartbeat / 2):
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// TestBadPeers: bytes that are wrong, too many, too few, too slow, none at all.
func TestBadPeers(t *testing.T) {
	s := newSite(t, 16)
	var asked atomic.Int64
	bad := func(f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { asked.Add(1); f(w, r) }
	}
	good := s.m.Chunks[0]
	file := make([]byte, good.BlobLen)
	resp, err := http.Get(s.origin.URL + "/blob/" + s.m.Blob.String())
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, file)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	s.sent.Store(0)
	send := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b)
		}
	}
	s.peer(t, "liar", bad(send(file))) // a good frame, of another chunk
	s.peer(t, "noise", bad(send(bytes.Repeat([]byte{0x28, 0xb5}, 5000))))
	s.peer(t, "short", bad(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		w.Write(file[:100])
	}))
	s.peer(t, "none", bad(func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }))
	s.peer(t, "away", bad(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
	}))
	s.peer(t, "large", bad(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000000")
		w.Write(file)
	}))
	s.peer(t, "silent", bad(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	var wg sync.WaitGroup
	var corrupt atomic.Int64
	for i := range 3 {
		wg.Go(func() {
			c, path, _, err := s.node(t.Context(), t, fmt.Sprint("n", i), 0)
			if err != nil {
				t.Error(err)
			}
			s.same(t, path)
			t.Logf("n%d %+v", i, c.Stats())
			corrupt.Add(int64(c.Stats().Failures[Corrupt]))
			c.Close()
		})
	}
	wg.Wait()
	if asked.Load() == 0 || corrupt.Load() == 0 {
		t.Errorf("bad peers were asked %d times, %d chunks came damaged: nothing is shown", asked.Load(), corrupt.Load())
	}
	t.Logf("the bad peers were asked %d times, the origin sent %.2f images", asked.Load(), float64(s.sent.Load())/float64(s.m.BlobLen))
}

// TestNoTracker: without an answer the image comes from the origin.
func TestNoTracker(t *testing.T) {
	s := newSite(t, 6)
	old := patience
	patience = 300 * time.Millisecond
	defer func() { patience = old }()
	s.deaf.Store(true)
	c, path, r, err := s.node(t.Context(), t, "n", 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.same(t, path)
	if c.Stats().FromOrigin != 0 || r.Fetched == 0 {
		t.Errorf("%+v, %+v", c.Stats(), r)
	}
}

// TestForgottenNode: a tracker that starts again is told everything again.
func TestForgottenNode(t *testing.T) {
	s := newSite(t, 8)
	c, path, _, err := s.node(t.Context(), t, "n", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.same(t, path)
	s.tracker.mu.Lock()
	s.tracker.images = map[images.Digest]*swarm{}
	s.tracker.mu.Unlock()
	c.nudge()
	c2, path2, _, err := s.node(t.Context(), t, "m", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	s.same(t, path2)
	if c2.Stats().FromPeers == 0 {
		t.Errorf("nothing came from the node that the tracker had forgotten: %+v", c2.Stats())
	}
}

// TestDiskThatForgets: a peer sends nothing that its disk has changed.
func TestDiskThatForgets(t *testing.T) {
	s := newSite(t, 8)
	c, path, _, err := s.node(t.Context(), t, "n", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("changed"), images.ChunkSize+4096)
	f.Close()
	get := func(i int) *http.Response {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/chunk/%s", c.port, s.m.Chunks[i].Digest))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	defer http.DefaultClient.CloseIdleConnections()
	if r := get(3); r.StatusCode != 200 || r.Header.Get("ETag") != `"`+s.m.Chunks[3].Digest.String()+`"` || r.Header.Get("Cache-Control") == "" {
		t.Errorf("a good chunk: %s %v", r.Status, r.Header)
	}
	if r := get(1); r.StatusCode != http.StatusNotFound {
		t.Errorf("a changed chunk: %s", r.Status)
	}
	for range 100 {
		c.nudge()
		s.tracker.mu.Lock()
		has := s.tracker.images[s.d].byID["n"].has(1)
		s.tracker.mu.Unlock()
		if !has {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the tracker still believes that it holds the chunk")
}

// TestNodeCap: what a node sends is capped as the tracker says, and uncapped
// when it says nothing.
func TestNodeCap(t *testing.T) {
	s := newSite(t, 3)
	s.tracker = NewTracker(Limits{Node: 5 << 20})
	c, _, _, err := s.node(t.Context(), t, "n", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.limit.Limit(); got != 5<<20 {
		t.Errorf("the cap is %v bytes a second", got)
	}
	c.obey(Plan{})
	if got := c.limit.Limit(); got != rate.Inf {
		t.Errorf("without a cap it is %v", got)
	}
}
