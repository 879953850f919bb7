package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"smelt/images"
	"smelt/images/release"
)

// TestServeReleases runs smelt serve on a site that takes released images: what
// machines boot carries the release keys, new ones while the server runs, and
// the server hands out what was released and nothing else.
func TestServeReleases(t *testing.T) {
	h := newHall(t)
	ci := h.path("ci")
	publisher := func(args ...string) string {
		t.Helper()
		return h.run(h.path("smelt"), append([]string{"image", "--state", ci}, args...)...)
	}
	for _, k := range []string{"anna", "ben", "carla", "online"} {
		publisher("trust", "key", h.path(k), "--plain")
	}
	publisher("trust", "init", "--root", h.path("anna.pub"), "--release", h.path("anna.pub")+","+h.path("ben.pub"), "--release-threshold", "2",
		"--canary", h.path("anna.pub"), "--stable", h.path("anna.pub"), "--online", h.path("online.pub"))
	publisher("trust", "sign", "--key", h.path("anna"))
	publisher("trust", "sign", "--key", h.path("ben"))
	st, err := images.OpenStore(ci + "/images")
	if err != nil {
		t.Fatal(err)
	}
	key, err := siteKey(ci)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 8<<20)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{}), raw); err != nil {
		t.Fatal(err)
	}
	d, err := st.Add(t.Context(), images.Manifest{Name: "ai-node", Arch: "amd64"}, bytes.NewReader(raw), int64(len(raw)), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	publisher("sign", "ai-node", "--key", h.path("anna"))
	publisher("sign", "ai-node", "--key", h.path("ben"))
	publisher("promote", "ai-node", "canary", "--key", h.path("anna"))
	publisher("promote", "ai-node", "stable", "--key", h.path("anna"))
	publisher("publish", h.path("remote"), "--key", h.path("online"), "--root", h.path("root.json"))

	site := strings.Replace(fmt.Sprintf(hallSite, h.path("state")), "listen:", fmt.Sprintf("images: {remote: %s, root: %s, every: 10s}\nlisten:", h.path("remote"), h.path("root.json")), 1)
	site = strings.Replace(site, "classes: []", "classes: [{name: rig, target: slurm-batch, image: ai-node, profile: standard}]", 1)
	h.write(h.path("site.yaml"), []byte(site))
	h.up()
	h.log.wait(t, 30*time.Second, "stable/ai-node is "+d.Short())

	// What a machine loads, as it loads it.
	booted := func(threshold string, names ...string) {
		t.Helper()
		want := []byte(`"imageKeys":[` + strings.Join(quoted(t, h, names), ",") + `]`)
		packed := h.run("ip", "netns", "exec", h.ns, "curl", "-sSf", "http://10.78.0.1/boot/file/agent.cpio.zst")
		dec, err := zstd.NewReader(strings.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		plain, err := io.ReadAll(dec)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(plain, want) || !bytes.Contains(plain, []byte(`"imageThreshold":`+threshold)) {
			i := bytes.Index(plain, []byte(`"imageKeys"`))
			t.Errorf("machines boot with %.300q; want %s", plain[max(i, 0):], want)
		}
	}
	booted("2", "anna", "ben")

	// Ben's key is lost.
	k, err := release.ReadPublicKey(h.path("ben.pub"))
	if err != nil {
		t.Fatal(err)
	}
	publisher("trust", "keys", "release", "--add", h.path("carla.pub"), "--remove", images.KeyID(k))
	publisher("trust", "sign", "--key", h.path("anna"))
	publisher("sign", "--all", "--key", h.path("carla"))
	publisher("publish", h.path("remote"), "--key", h.path("online"))
	h.log.wait(t, time.Minute, "release keys changed")
	booted("2", "anna", "carla")
	h.down()

	// The server starts without its remote, with what it has.
	if err := os.Rename(h.path("remote"), h.path("away")); err != nil {
		t.Fatal(err)
	}
	h.up()
	h.log.wait(t, 30*time.Second, "those that are here stay in use")
	booted("2", "anna", "carla")
	h.run(h.path("smelt"), "image", "--state", h.path("state"), "verify", "stable/ai-node")
}

// quoted are public keys as JSON has them.
func quoted(t *testing.T, h *hall, names []string) []string {
	t.Helper()
	var out []string
	for _, n := range names {
		k, err := release.ReadPublicKey(h.path(n + ".pub"))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, `"`+base64.StdEncoding.EncodeToString(k)+`"`)
	}
	return out
}
