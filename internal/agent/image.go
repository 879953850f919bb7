package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"time"

	"smelt/images"
	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/inventory"
)

// image writes an image, verified chunk by chunk, and leaves the handoff in it.
func (a *Agent) image(ctx context.Context, o api.Order) api.Result {
	w := o.Image
	if w == nil {
		return failed("other", errors.New("the order says nothing about what to write"))
	}
	want, err := images.ParseDigest(w.Manifest)
	if err != nil {
		return failed("other", err)
	}
	if w.Handoff.Node != a.node() {
		return failed("identity", fmt.Errorf("the handoff is for node %q, this is %q", w.Handoff.Node, a.node()))
	}
	// Everything that can fail without touching the disk comes before the permit.
	var m images.Manifest
	client := disk.NewClient()
	defer client.CloseIdleConnections()
	if err := retry(ctx, 5, func() error {
		m, err = manifest(ctx, client, w, want, a.c.Images)
		return err
	}, func(err error) bool {
		return errors.Is(err, images.ErrUnsigned) || errors.Is(err, images.ErrEnvelope) || errors.Is(err, images.ErrManifest)
	}); err != nil {
		cause := "network"
		if errors.Is(err, images.ErrUnsigned) || errors.Is(err, images.ErrEnvelope) || errors.Is(err, images.ErrManifest) {
			cause = "verify"
		}
		return failed(cause, err)
	}
	if m.Size > w.Target.Size {
		return failed("disk", fmt.Errorf("%w: image %s needs %d bytes, the disk has %d", disk.ErrShort, m.Name, m.Size, w.Target.Size))
	}
	if m.Arch != runtime.GOARCH {
		return failed("verify", fmt.Errorf("image %s is for %s, this machine is %s: name another image", m.Title(), m.Arch, runtime.GOARCH))
	}
	chunks := a.chunkMap(ctx, len(m.Chunks))

	// No foreign signature may be left where the plan's wipe has been: none is allowed.
	if r := a.authorise(ctx, o, destruction{action: api.OrderImage, disks: []inventory.DiskID{w.Target}, image: w.Manifest}); r != nil {
		return failed(r.cause, r)
	}
	return a.with(ctx, w.Target, nil, func(h *held) api.Result { return a.writeImage(ctx, o, h, m, chunks, client) })
}

// writeImage writes image m to the disk that is held and hands over.
func (a *Agent) writeImage(ctx context.Context, o api.Order, h *held, m images.Manifest, chunks disk.Map, client *http.Client) api.Result {
	w := o.Image
	saver := a.saveChunks(ctx)
	began := time.Now()
	fetch, peers, leave := a.sources(w, m, h.path(), client)
	defer leave()
	got, err := disk.Write(ctx, h.path(), m, fetch, disk.Options{
		ReadBack: w.ReadBack,
		Done:     chunks, Source: peers,
		Progress: func(p disk.Progress) {
			saver.set(p.Map)
			doing, done := "writing image "+m.Name, 0.9*frac(p.Done, p.Total)
			if p.Stage == "verify" {
				doing, done = "verifying image "+m.Name, 0.9+0.05*frac(p.Done, p.Total)
			}
			a.progress(o, done, doing, rate(p.Fetched, began))
		},
	})
	saver.stop(ctx)
	if err != nil {
		return failed(causeOfWrite(err, w.Base), err)
	}
	leave() // from here on the disk is not the image any more
	a.progress(o, 0.96, "growing and handing over", 0)
	if err := a.handOver(ctx, h, m, w); err != nil {
		return failed("disk", err)
	}
	return api.Result{OK: true, Evidence: map[string]string{
		"image":   w.Manifest,
		"disk":    w.Target.String(),
		"written": fmt.Sprint(got.Written), "zeroed": fmt.Sprint(got.Zeroed), "reused": fmt.Sprint(got.Reused),
		"fetched": fmt.Sprint(got.Fetched), "retries": fmt.Sprint(got.Retries), "readBack": fmt.Sprint(got.ReadBack),
		"took": got.Elapsed.Round(time.Millisecond).String(),
	}}
}

// retry tries f a few times, unless its error is of a kind that stays.
func retry(ctx context.Context, tries int, f func() error, stays func(error) bool) error {
	var b backoff
	for i := 1; ; i++ {
		err := f()
		if err == nil || i == tries || stays(err) || ctx.Err() != nil {
			return err
		}
		b.wait(ctx)
	}
}

// chunkMap asks the server what an earlier boot had written. It is a hint:
// what it claims is read and verified again. Without it everything is written.
func (a *Agent) chunkMap(ctx context.Context, n int) disk.Map {
	none := disk.NewMap(n)
	b, err := a.client.send(ctx, http.MethodGet, api.PathChunks, "", nil)
	if err != nil || len(b) == 0 {
		return none
	}
	m := none
	if err := m.UnmarshalBinary(b); err != nil || m.Len() != n {
		return none
	}
	return m
}

// chunkSaver keeps the server's copy of the chunk map at most 2 s behind.
type chunkSaver struct {
	a    *Agent
	mu   sync.Mutex
	next *disk.Map
	quit chan struct{}
	done chan struct{}
}

func (a *Agent) saveChunks(ctx context.Context) *chunkSaver {
	s := &chunkSaver{a: a, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		t := time.NewTicker(2 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-s.quit:
				return
			case <-ctx.Done():
				return
			case <-t.C:
				s.send(ctx)
			}
		}
	}()
	return s
}

func (s *chunkSaver) set(m disk.Map) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = &m
}

func (s *chunkSaver) send(ctx context.Context) {
	s.mu.Lock()
	m := s.next
	s.next = nil
	s.mu.Unlock()
	if m == nil {
		return
	}
	b, err := m.MarshalBinary()
	if err == nil {
		c, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err = s.a.client.send(c, http.MethodPut, api.PathChunks, "application/octet-stream", bytes.NewReader(b))
		cancel()
	}
	if err != nil && ctx.Err() == nil {
		s.a.log.Warn("chunk map", "err", err)
	}
}

// stop ends the saver; what was set last is sent.
func (s *chunkSaver) stop(ctx context.Context) {
	close(s.quit)
	<-s.done
	s.send(ctx)
}
