package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"smelt/images"
	"smelt/images/swarm"
	"smelt/internal/config"
)

// TestShareImages: the site file says who shares, where the racks are, and
// which caches they have.
func TestShareImages(t *testing.T) {
	b, err := os.ReadFile("../../site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	read := func(from, to string) *config.Site {
		t.Helper()
		if !strings.Contains(string(b), from) {
			t.Fatalf("the example does not hold %q", from)
		}
		path := filepath.Join(t.TempDir(), "site.yaml")
		if err := os.WriteFile(path, []byte(strings.Replace(string(b), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := config.Load(path, known())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := shareImages(read("# caches:      ", `  caches: [{url: "http://10.20.3.1:80", racks: [A3]}] #`), store)
	if s.Tracker == nil || s.Rack("rig-01") != "A3" || s.Rack("srv-01") != "A1" || s.Rack("nobody") != "" {
		t.Errorf("racks are %q, %q, %q", s.Rack("rig-01"), s.Rack("srv-01"), s.Rack("nobody"))
	}
	if m := s.Mirrors("A3"); len(m) != 1 || m[0] != "http://10.20.3.1:80/images" || s.Mirrors("A1") != nil {
		t.Errorf("caches of A3 are %v, of A1 %v", m, s.Mirrors("A1"))
	}
	if s := shareImages(read("peers: true ", "peers: false "), store); s.Tracker != nil {
		t.Error("peers: false, and nodes share")
	}

	reg := prometheus.NewRegistry()
	reg.MustRegister(swarmMetrics{s.Tracker})
	m := images.Manifest{Chunks: []images.Chunk{{BlobLen: 7}}}
	if _, err := s.Tracker.Report(time.Now(), "n", "", netip.Addr{}, swarm.Report{Map: []byte{0}, Want: 1}, func(images.Digest) (images.Manifest, error) { return m, nil }); err != nil {
		t.Fatal(err)
	}
	list, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range list {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if got["smelt_swarm_nodes"] != 1 || got["smelt_swarm_planned_bytes_total"] != 7 || len(got) != 3 {
		t.Errorf("metrics are %v", got)
	}
	prometheus.NewRegistry().MustRegister(swarmMetrics{nil})
}
