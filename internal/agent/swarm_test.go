package agent_test

import (
	"bytes"
	"crypto/ed25519"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smelt/images"
	"smelt/images/swarm"
	"smelt/internal/agent"
	"smelt/internal/api"
	"smelt/inventory"
)

// TestImageFromEachOther: two agents that are ordered to write the same image
// fetch it about once between them, although the mirror they are told of is
// down. The disks are files, so the handing over after the writing fails.
func TestImageFromEachOther(t *testing.T) {
	const size = 28 << 20
	raw := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(raw)
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := store.Add(t.Context(), images.Manifest{Name: "x", Arch: "amd64", Created: time.Unix(1, 0).UTC()}, bytes.NewReader(raw), size, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		store.Handler().ServeHTTP(counted{w, &sent}, r)
	}))
	t.Cleanup(origin.Close)
	tracker := swarm.NewTracker(swarm.Limits{})

	var give []func()
	for _, id := range []string{"a", "b"} {
		f := newFakeServer(t, nil)
		f.key = key
		old := f.srv.Config.Handler
		f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != api.PathSwarm {
				old.ServeHTTP(w, r)
				return
			}
			var rep swarm.Report
			if !decode(w, r, &rep) {
				return
			}
			p, err := tracker.Report(time.Now(), id, "", netip.MustParseAddr("127.0.0.1"), rep, store.Manifest)
			if err != nil {
				t.Error(err)
			}
			answer(w, p)
		})
		mach := newMachine(t)
		target := mach.disk("vda", "TARGET-"+id, "old ")
		target.Size = size + 4<<20
		sizes, err := filepath.Glob(filepath.Join(mach.root, "sys/devices/pci0000:00/*/virtio1/block/vda/size"))
		if err != nil || len(sizes) != 1 {
			t.Fatal(sizes, err)
		}
		if err := os.WriteFile(sizes[0], []byte("65536\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		dev := filepath.Join(mach.root, "dev/vda")
		if err := os.Truncate(dev, target.Size); err != nil {
			t.Fatal(err)
		}
		start(t, f, mach, agent.Convert, t.TempDir())
		p := inventory.Permit{ID: "permit-" + id, Node: f.node, Agent: agent.Fingerprint(f.agentKey()), Action: "image", Disks: []inventory.DiskID{target},
			Plan: "plan-1", Image: d.String(), Fence: f.fence, Issued: time.Now(), NotAfter: time.Now().Add(5 * time.Minute)}
		o := f.sign(api.Order{ID: "image-" + id, Kind: api.OrderImage, Fence: f.fence, Image: &api.ImageOrder{
			Manifest: d.String(), Base: origin.URL, Target: target, Swarm: true, Mirrors: []string{"http://127.0.0.1:1"},
			Handoff: api.Handoff{Node: f.node, Image: d.String()},
		}}, p, f.key)
		give = append(give, func() {
			f.give(o)
			// What follows, in a disk without partitions, is not waited for.
			for range 300 {
				got, err := os.ReadFile(dev)
				if err != nil {
					t.Error(err)
					return
				}
				if bytes.Equal(got[:size], raw) && tracker.Stats().Nodes == 0 {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("disk of %s is not the image", id)
		})
	}
	var wg sync.WaitGroup
	for _, f := range give {
		wg.Go(f)
	}
	wg.Wait()
	x := float64(sent.Load()) / float64(m.BlobLen)
	t.Logf("the origin sent %.2f images to two agents: %+v", x, tracker.Stats())
	if st := tracker.Stats(); x > 1.6 || st.PeerTasks == 0 || st.Nodes != 0 {
		t.Errorf("the origin sent %.2f images, and the tracker counts %+v", x, st)
	}
}

type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}
