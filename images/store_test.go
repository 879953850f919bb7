package images

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestStore(t *testing.T) {
	s, dir := tempStore(t)
	pub, priv := key(1)
	raw := disk(3)
	d, err := s.Add(t.Context(), described(), bytes.NewReader(raw), int64(len(raw)), priv, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"ai-node", d.String(), "sha256:" + d.String(), d.Short()} {
		if got, err := s.Resolve(ref); err != nil || got != d {
			t.Errorf("%s resolves to %v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "stable", "../names/ai-node", "ffffff", d.String()[:5], "names/ai-node"} {
		if _, err := s.Resolve(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if err := s.Name("stable", d); err != nil {
		t.Fatal(err)
	}
	if err := s.Name("../../x", d); err == nil {
		t.Error("a path became a name")
	}
	if err := s.Name("canary", Digest{1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that is not there got a name: %v", err)
	}
	b, err := s.Envelope(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := Open(b, pub); err != nil || got != d {
		t.Errorf("stored envelope: %v, %v", got, err)
	}
	if err := s.Verify(d); err != nil {
		t.Error(err)
	}

	doc, err := s.PutDocument([]byte("bill of materials"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.Document(doc); err != nil || string(b) != "bill of materials" {
		t.Errorf("document: %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs", doc.String()), []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Document(doc); err == nil {
		t.Error("a damaged document was returned")
	}

	// Another site's key: the same image, signed again.
	pub2, priv2 := key(2)
	if err := s.Resign(d, priv2); err != nil {
		t.Fatal(err)
	}
	b, _ = s.Envelope(d)
	if _, got, err := Open(b, pub2); err != nil || got != d {
		t.Errorf("signed again: %v, %v", got, err)
	}

	// A release key beside it; the image is built again, and keeps both.
	pub3, priv3 := key(3)
	if err := s.Cosign(d, priv3); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(must(Sign(m, priv2)), nil); err != nil {
		t.Fatal(err)
	}
	b, _ = s.Envelope(d)
	if _, got, err := (Signers{Keys: []ed25519.PublicKey{pub2, pub3}, Threshold: 2}).Open(b); err != nil || got != d {
		t.Errorf("signed by two: %v, %v", got, err)
	}

	list, err := s.List()
	if err != nil || len(list) != 1 || strings.Join(list[0].Names, " ") != "ai-node stable" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("%d files left behind", len(left))
	}

	blob := must(os.ReadFile(s.blob(m.Blob)))
	if err := os.WriteFile(s.blob(m.Blob), bytes.Repeat([]byte("x"), len(blob)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(d); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged blob verifies: %v", err)
	}
	// It is offered to nobody, so that it is built or fetched again.
	if s.Has(m) {
		t.Error("a damaged blob is still in the store")
	}
	if err := s.Verify(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("a blob that was put aside: %v", err)
	}
	if _, err := s.Put(must(Sign(m, priv)), bytes.NewReader(blob)); err != nil {
		t.Error(err)
	} else if err := s.Verify(d); err != nil {
		t.Error(err)
	}
}

func TestPutRefusesAnotherBlob(t *testing.T) {
	s, dir := tempStore(t)
	_, priv := key(1)
	m, blob := valid(t, 2)
	e := must(Sign(m, priv))
	flipped := bytes.Clone(blob)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{"flipped": flipped, "short": blob[:len(blob)-1], "long": append(bytes.Clone(blob), 0)} {
		if _, err := s.Put(e, bytes.NewReader(b)); err == nil {
			t.Errorf("%s blob was stored", name)
		}
	}
	if _, err := s.Put(e, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("manifest without blob: %v", err)
	}
	for _, f := range []string{"blobs", "manifests", "names", "tmp"} {
		if left, _ := os.ReadDir(filepath.Join(dir, f)); len(left) != 0 {
			t.Errorf("%s holds %d files", f, len(left))
		}
	}
	if d, err := s.Put(e, bytes.NewReader(blob)); err != nil {
		t.Error(err)
	} else if err := s.Verify(d); err != nil {
		t.Error(err)
	}
}

func TestHandler(t *testing.T) {
	s, dir := tempStore(t)
	_, priv := key(1)
	m, blob := valid(t, 3)
	d, err := s.Put(must(Sign(m, priv)), bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "secret"), []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.StripPrefix("/images", s.Handler()))
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	do := func(method, path, ranges string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranges != "" {
			r.Header.Set("Range", ranges)
		}
		resp, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	c := m.Chunks[2]
	path := "/images/blob/" + m.Blob.String()
	resp, b := do("GET", path, "bytes="+strconv.FormatInt(c.BlobOff, 10)+"-"+strconv.FormatInt(c.BlobOff+c.BlobLen-1, 10))
	if resp.StatusCode != 206 || !bytes.Equal(b, blob[c.BlobOff:c.BlobOff+c.BlobLen]) {
		t.Errorf("range: %s, %d bytes", resp.Status, len(b))
	}
	if !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || resp.Header.Get("ETag") == "" {
		t.Errorf("headers: %v", resp.Header)
	}
	if resp, b := do("HEAD", path, ""); resp.StatusCode != 200 || resp.ContentLength != m.BlobLen || len(b) != 0 {
		t.Errorf("head: %s, %d", resp.Status, resp.ContentLength)
	}
	if resp, b := do("GET", "/images/manifest/"+d.String(), ""); resp.StatusCode != 200 || !bytes.Contains(b, []byte("payload")) {
		t.Errorf("manifest: %s", resp.Status)
	}
	// A cache must not answer with signatures that were replaced.
	before, _ := do("GET", "/images/manifest/"+d.String(), "")
	_, again := key(2)
	if err := s.Resign(d, again); err != nil {
		t.Fatal(err)
	}
	after, _ := do("GET", "/images/manifest/"+d.String(), "")
	if before.Header.Get("ETag") == after.Header.Get("ETag") || !strings.Contains(after.Header.Get("Cache-Control"), "no-cache") {
		t.Errorf("manifest after signing again: %v, before: %v", after.Header, before.Header)
	}
	for _, p := range []string{
		"/images/blob/" + d.String(), "/images/manifest/" + m.Blob.String(), "/images/manifest/ai-node",
		"/images/blob/..%2f..%2fsecret", "/images/blob/../../secret", "/images/", "/images/names/ai-node", "/images/tmp/",
	} {
		if resp, b := do("GET", p, ""); resp.StatusCode < 400 || bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("%s: %s", p, resp.Status)
		}
	}
	for _, method := range []string{"PUT", "POST", "DELETE"} {
		if resp, _ := do(method, path, ""); resp.StatusCode != 405 {
			t.Errorf("%s: %s", method, resp.Status)
		}
	}
}

// A store that follows a channel knows the names of that channel, and takes no
// image that the release keys did not sign.
func TestFollow(t *testing.T) {
	s, dir := tempStore(t)
	built, priv := key(1)
	pub, release := key(2)
	add := func(n int) Digest {
		raw := disk(n)
		d, err := s.Add(t.Context(), described(), bytes.NewReader(raw), int64(len(raw)), priv, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old, next, local := add(1), add(2), add(3)
	for _, d := range []Digest{old, next} {
		if err := s.Cosign(d, release); err != nil {
			t.Fatal(err)
		}
	}
	for channel, names := range map[string]map[string]Digest{"stable": {"ai-node": old, "gone": old}, "canary": {"ai-node": next, "ai-node.r535": next}} {
		if err := s.SetChannel(channel, names); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetChannel("stable", map[string]Digest{"ai-node": old, "rescue": local}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../names", "", "Stable"} {
		if s.SetChannel(bad, nil) == nil {
			t.Errorf("%q is a channel", bad)
		}
	}
	if s.SetChannel("stable", map[string]Digest{"../x": old}) == nil {
		t.Error("a path became a title")
	}
	if d, err := s.Resolve("ai-node"); err != nil || d != local {
		t.Errorf("before: %s, %v", d.Short(), err)
	}
	s.Follow("stable", Signers{Keys: []ed25519.PublicKey{pub}})
	for ref, want := range map[string]Digest{"ai-node": old, "stable/ai-node": old, "canary/ai-node": next, old.String(): old} {
		if d, err := s.Resolve(ref); err != nil || d != want {
			t.Errorf("%s: %s, %v", ref, d.Short(), err)
		}
	}
	for ref, want := range map[string]error{"gone": ErrNotFound, "stable/gone": ErrNotFound, "canary/../names/ai-node": ErrNotFound,
		local.String(): ErrUnsigned, "stable/rescue": ErrUnsigned, "beta/ai-node": ErrNotFound} {
		if d, err := s.Resolve(ref); !errors.Is(err, want) {
			t.Errorf("%s: %s, %v; want %v", ref, d.Short(), err, want)
		}
	}
	for name, want := range map[string]string{"ai-node": "ai-node", "canary/ai-node": "canary/ai-node canary/ai-node.r535"} {
		if got, err := s.Titles(name); err != nil || strings.Join(got, " ") != want {
			t.Errorf("titles of %s: %v, %v", name, got, err)
		}
	}
	// Other keys: what was good is looked at again.
	s.Follow("stable", Signers{Keys: []ed25519.PublicKey{pub, built}, Threshold: 2})
	if d, err := s.Resolve("ai-node"); err != nil || d != old {
		t.Errorf("by two: %s, %v", d.Short(), err)
	}
	other, _ := key(3)
	s.Follow("stable", Signers{Keys: []ed25519.PublicKey{other}})
	if _, err := s.Resolve("ai-node"); !errors.Is(err, ErrUnsigned) {
		t.Errorf("by another: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "channels", "stable", "ai-node"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("ai-node"); err == nil {
		t.Error("a damaged name resolves")
	}
}
