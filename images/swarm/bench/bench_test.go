package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"smelt/images/swarm/bench/hall"
)

// TestTwentyNodes is the bench with a smaller image: 20 nodes behind capped
// links get it from a server that sends it twice at most, and all of them get
// it with three peers that send noise and three nodes that are killed on the
// way.
func TestTwentyNodes(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("20 network namespaces: set SMELT_TEST_E2E=1")
	}
	if os.Getuid() != 0 {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	exe := filepath.Join(dir, "bench")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	img, err := newImage(t.Context(), dir, 96<<20)
	if err != nil {
		t.Fatal(err)
	}
	const nodes = 20
	h, err := hall.New(hall.Config{Nodes: nodes + liars, Mbit: 100, Dir: dir, Exe: exe, Helper: exe})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for what, most := range map[string]float64{"swarm": 2, "bad": 4} {
		r, err := scenario(t.Context(), h, img, what, nodes)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		x := float64(r.ServerSent) / float64(img.m.BlobLen)
		t.Logf("%s: %.1f s, the server sent %.2f images, CPU %.1f s, %d MiB", what, r.Took.Seconds(), x, r.CPU.Seconds(), r.PeakMiB)
		if r.Verified != nodes {
			t.Errorf("%s: %d of %d disks are the image", what, r.Verified, nodes)
		}
		if x > most {
			t.Errorf("%s: the server sent the image %.2f times, want at most %g", what, x, most)
		}
	}
}
