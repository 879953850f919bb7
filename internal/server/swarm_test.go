package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"smelt/images"
	"smelt/images/swarm"
	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// TestSwarmReport: who writes an image is told whom to ask, by the address it
// really has; nobody else is.
func TestSwarmReport(t *testing.T) {
	x := newSite(t)
	image := images.Digest{7}
	for _, id := range []inventory.NodeID{"rig-01", "rig-02"} {
		if err := x.Store.PutAgent(t.Context(), store.Agent{Node: id, Mode: "convert", Session: hash("token-" + string(id)), Expires: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	post := func(id, body string) (int, swarm.Plan, string) {
		t.Helper()
		resp, text := x.ask(t, "POST", x.agent.URL+api.PathSwarm, "token-"+id, body)
		var p swarm.Plan
		if resp.StatusCode == 200 {
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode, p, text
	}
	join := `{"image":"` + image.String() + `","port":4000,"map":"Aw==","want":3}`
	if code, _, _ := post("rig-01", join); code != 404 {
		t.Errorf("a site without swarm answers %d", code)
	}
	m := images.Manifest{Chunks: []images.Chunk{{BlobLen: 1}, {BlobLen: 1}, {BlobLen: 1}, {Zero: true}}}
	x.Swarm = Swarm{
		Tracker:  swarm.NewTracker(swarm.Limits{}),
		Manifest: func(images.Digest) (images.Manifest, error) { return m, nil },
		Rack:     func(id inventory.NodeID) string { return "A3" },
		Mirrors:  func(rack string) []string { return []string{"http://cache-" + rack + "/images"} },
	}
	if code, _, _ := post("nobody", join); code != 401 {
		t.Errorf("a stranger is answered %d", code)
	}
	if code, _, text := post("rig-01", join); code != 409 || !strings.Contains(text, "does not write image") {
		t.Errorf("a node that writes nothing is answered %d %s", code, text)
	}
	x.fake.setOrder(convert.Order{ID: "o1", Kind: api.OrderImage, Plan: &inventory.Plan{Image: image.String()}})
	code, p, text := post("rig-01", join)
	if code != 200 || len(p.Tasks) != 1 || p.Tasks[0].Peer != "" || p.Tasks[0].Chunk != 2 {
		t.Errorf("the first node: %d %s", code, text)
	}
	code, p, text = post("rig-02", strings.Replace(join, "Aw==", "AA==", 1))
	if code != 200 || len(p.Tasks) != 2 || p.Tasks[0].Peer != "127.0.0.1:4000" {
		t.Errorf("the second node: %d %s", code, text)
	}
	if code, _, _ := post("rig-01", strings.Replace(join, "Aw==", "AwM=", 1)); code != 422 {
		t.Errorf("a map of another length is answered %d", code)
	}
	if code, _, _ := post("rig-01", strings.Replace(join, image.String(), images.Digest{8}.String(), 1)); code != 409 {
		t.Errorf("another image is answered %d", code)
	}
	o := x.wire(store.Agent{Node: "rig-01"}, x.fake.order)
	if !o.Image.Swarm || len(o.Image.Mirrors) != 1 || o.Image.Mirrors[0] != "http://cache-A3/images" || o.Image.Base != x.ImageURL {
		t.Errorf("the order says %+v", o.Image)
	}
}
