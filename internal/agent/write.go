package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/inventory"
)

// device is the path of a disk.
func (a *Agent) device(d inventory.Disk) string {
	return filepath.Join("/", a.c.System.Root, "dev", d.Name)
}

// wipe clears the named disks, one after the other.
func (a *Agent) wipe(ctx context.Context, o api.Order) api.Result {
	w := o.Wipe
	if w == nil {
		return failed("other", errors.New("the order says nothing about what to wipe"))
	}
	level, err := disk.ParseLevel(w.Level)
	if err != nil {
		return failed("other", err)
	}
	if r := a.authorise(ctx, o, destruction{action: api.OrderWipe, disks: w.Disks, allow: w.Allow}); r != nil {
		return failed(r.cause, r)
	}
	res := api.Result{OK: true, Evidence: map[string]string{}}
	for i, want := range w.Disks {
		one := a.with(ctx, want, w.Allow, func(h *held) api.Result {
			began := time.Now()
			got, err := disk.Wipe(ctx, h.path(), level, func(done, total int64) {
				a.progress(o, (float64(i)+frac(done, total))/float64(len(w.Disks)), "wiping "+h.Name+" ("+level.String()+")", rate(done, began))
			})
			// A weaker level than asked is reported and is a failure.
			if got.Reached != 0 {
				res.Wiped = append(res.Wiped, api.Wiped{Disk: want, Level: got.Reached.String(), Took: got.Elapsed})
			}
			if err != nil {
				return failed("disk", err)
			}
			res.Evidence["wipe "+want.String()] = fmt.Sprintf("%s, %d bytes, sample reads as zeros: %t", got.Reached, got.Bytes, got.Zeros)
			return api.Result{OK: true}
		})
		if !one.OK {
			one.Wiped = res.Wiped
			return one
		}
	}
	return res
}

func frac(done, total int64) float64 {
	if total <= 0 {
		return 0
	}
	return float64(done) / float64(total)
}

func rate(done int64, since time.Time) float64 {
	if s := time.Since(since).Seconds(); s > 0.2 {
		return float64(done) / s
	}
	return 0
}

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
	client := &http.Client{} // plain HTTP is enough: every byte is verified
	if err := retry(ctx, 5, func() error {
		m, err = disk.Manifest(ctx, client, w.Base, want, a.c.ImageKeys...)
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
	got, err := disk.Write(ctx, h.path(), m, disk.HTTP(client, strings.TrimSuffix(w.Base, "/")+"/blob/"+m.Blob.String()), disk.Options{
		Done: chunks,
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

// Paths in the installed system.
const (
	handoffFile  = "var/lib/smelt/agent.json"
	hostnameFile = "etc/hostname"
)

// Handed is agent.json: what the agent of the installed system starts with.
type Handed struct {
	api.Handoff
	Base string `json:"base,omitempty"` // image store, for the network check
}

// ReadHandoff reads what the RAM system left.
func ReadHandoff(file string) (Handed, error) {
	var h Handed
	b, err := os.ReadFile(file)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%s: %v", file, err)
	}
	if h.Node == "" || h.Session == "" {
		return h, fmt.Errorf("%s names no node or session", file)
	}
	return h, nil
}

// handOver grows the root file system to the end of the disk and writes into
// it who the machine is. Only after this is the order done; a power cut before
// leaves a whole image that nobody takes for a converted node.
func (a *Agent) handOver(ctx context.Context, h *held, m images.Manifest, w *api.ImageOrder) error {
	if err := reread(ctx, h.path()); err != nil {
		return err
	}
	last, err := disk.Grow(h.path())
	if err != nil {
		return err
	}
	part := disk.PartitionPath(a.device(h.Disk), last.Number)
	if err := appears(ctx, part); err != nil {
		return err
	}
	// A partition can be found by name only: is that still the name?
	if err := a.named(h); err != nil {
		return err
	}
	if uuid, err := ext4UUID(part); err != nil {
		return err
	} else if m.Root != "" && !strings.EqualFold(uuid, m.Root) {
		return fmt.Errorf("the last partition of %s is file system %s, the image's root is %s", h.Name, uuid, m.Root)
	}
	dir, err := os.MkdirTemp("", "smelt-root-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount(part, dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %v", part, err)
	}
	err = fill(dir, part, w)
	unix.Sync()
	if e := unix.Unmount(dir, 0); e != nil {
		err = errors.Join(err, fmt.Errorf("unmount %s: %v", part, e))
	}
	return errors.Join(err, h.f.Sync())
}

func fill(dir, part string, w *api.ImageOrder) error {
	if err := disk.GrowFilesystem(dir, part); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	b, err := json.Marshal(Handed{w.Handoff, w.Base})
	if err != nil {
		return err
	}
	if err := root.MkdirAll(filepath.Dir(handoffFile), 0o755); err != nil {
		return err
	}
	if err := put(root, handoffFile, b, 0o600); err != nil {
		return err
	}
	// What an earlier installed agent kept belongs to an earlier life.
	_ = root.RemoveAll("var/lib/smelt/agent")
	return put(root, hostnameFile, []byte(string(w.Handoff.Node)+"\n"), 0o644)
}

func put(root *os.Root, name string, b []byte, mode os.FileMode) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// reread makes the kernel see the new partitions. Whoever else looks at the
// disk in this moment makes it busy.
func reread(ctx context.Context, dev string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		err := disk.Reread(dev)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

func appears(ctx context.Context, path string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// ext4UUID reads the UUID from the superblock (s_magic at 0x38, s_uuid at 0x68).
func ext4UUID(part string) (string, error) {
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, 1024); err != nil && err != io.EOF {
		return "", err
	}
	if b[0x38] != 0x53 || b[0x39] != 0xef {
		return "", fmt.Errorf("%s holds no ext4", part)
	}
	u := b[0x68:0x78]
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]), nil
}
