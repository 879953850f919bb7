package convert_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/images"
	"smelt/internal/convert"
	"smelt/inventory"
)

var twoDrivers = map[string]images.Driver{
	"r535":      {Version: "535.309.01", Modules: "proprietary", CUDA: "12.2"},
	"r560-open": {Version: "560.35.05", Modules: "open", CUDA: "12.6"},
}

// Machines of one class get the variant of its image that runs their cards;
// one that none of the variants runs is refused before anything is written.
func TestVariantByCards(t *testing.T) {
	h := newHall(t, layout{Nodes: 3, Max: 3, Cards: []string{"GTX 1080", "RTX 3090", "RTX 5090"}, Drivers: twoDrivers})
	for i, want := range []string{"ai-node.r535", "ai-node.r560-open"} {
		id := nodeID(i)
		h.on(id)
		h.reach(id, inventory.Inspected)
		h.must(id, "approve", nil)
		n := h.reach(id, inventory.InService)
		s, err := images.OpenStore(filepath.Join(h.l.Dir, "images"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Resolve(want)
		if err != nil || n.Image != d.String() {
			t.Errorf("%s with %s runs %.12s, want %s, %s (%v)", id, h.l.card(i), n.Image, want, d.Short(), err)
		}
	}
	id := nodeID(2)
	h.on(id)
	n := h.reach(id, inventory.NeedsWork)
	r := n.Verdict.Reasons[slices.IndexFunc(n.Verdict.Reasons, func(r inventory.Reason) bool { return r.Item == "image" })]
	if n.Failure.Cause != "triage" || r.OK || !strings.Contains(r.Got, "RTX 5090 needs driver 570 or later") || !strings.Contains(r.Fix, "branch") {
		t.Errorf("failure %+v, reason %+v", n.Failure, r)
	}
	if w := h.machines[id].Writes(); len(w) != 0 {
		t.Errorf("its disk was written: %+v", w)
	}
	tasks, err := h.s.Tasks(t.Context(), id)
	if err != nil || len(tasks) != 1 || !strings.Contains(tasks[0].Why, "RTX 5090") {
		t.Errorf("tasks %+v, %v", tasks, err)
	}
}

// A name stands for its own variants only, and naming a variant or a digest
// takes exactly that.
func TestVariants(t *testing.T) {
	s, err := imageStore(t.Context(), t.TempDir(), twoDrivers)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 1<<20)
	add := func(name string) images.Digest {
		d, err := s.Add(t.Context(), images.Manifest{Name: name, Arch: "amd64", Created: time.Unix(1e9, 0).UTC()}, bytes.NewReader(raw), 1<<20, siteKey(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	other := add("ai-node.next") // a recipe with a dot in its name
	if err := s.Name("stable", other); err != nil {
		t.Fatal(err)
	}
	c := convert.WithImages(s)
	for _, w := range []struct {
		name string
		want []string
	}{
		{"ai-node", []string{"ai-node.r535", "ai-node.r560-open"}},
		{"ai-node.r535", []string{"ai-node.r535"}},
		{"ai-node.next", []string{"ai-node.next"}},
		{"stable", []string{"ai-node.next"}},
		{other.String(), []string{"ai-node.next"}},
		{"ai", nil}, {"ai-node.r9", nil}, {"../ai", nil},
	} {
		got, err := c.Titles(w.name)
		if !slices.Equal(got, w.want) || (err != nil) != (w.want == nil) || err != nil && !errors.Is(err, images.ErrNotFound) {
			t.Errorf("%s stands for %q, %v; want %q", w.name, got, err, w.want)
		}
	}
	add("ai-node") // what was built before the recipe had variants
	if got, err := c.Titles("ai-node"); err != nil || !slices.Equal(got, []string{"ai-node", "ai-node.r535", "ai-node.r560-open"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// An image for another architecture, or one that does not fit, is refused when
// it is approved: before anything is wiped.
func TestImageThatCannotRun(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Max: 1})
	id := nodeID(0)
	a := h.inspectedAs(0)
	s, err := images.OpenStore(filepath.Join(h.l.Dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	small := make([]byte, 1<<20)
	if _, err := s.Add(t.Context(), images.Manifest{Name: "grace", Arch: "arm64"}, bytes.NewReader(small), 1<<20, siteKey(), nil); err != nil {
		t.Fatal(err)
	}
	env, err := images.Sign(bigManifest(images.Manifest{Name: "big", Arch: "amd64"}, a.hw.Disks[0].Size&^511+images.ChunkSize), siteKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(env, strings.NewReader("smelt")); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{"grace": "image grace is for arm64, it is amd64", "big": "the image needs"} {
		if err := h.do(id, "approve", map[string]string{"image": image}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", image, err, want)
		}
	}
	if n := h.node(id); n.State != inventory.Inspected {
		t.Errorf("it is %s", n.State)
	}
}

// bigManifest is of an image of zeros.
func bigManifest(m images.Manifest, size int64) images.Manifest {
	m.Size, m.Blob, m.BlobLen = size, sha256.Sum256([]byte("smelt")), 5
	for off := int64(0); off < size; off += images.ChunkSize {
		m.Chunks = append(m.Chunks, images.Chunk{Offset: off, Length: min(images.ChunkSize, size-off), Zero: true})
	}
	return m
}
