package build

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/images"
)

// deb makes a real package that installs nothing.
func deb(t *testing.T, dir, name, version, fields string) {
	t.Helper()
	need(t, "dpkg-deb")
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: Nobody <n@example.com>\nInstalled-Size: 4\nDescription: of a test\n%s", name, version, fields)
	if err := os.WriteFile(filepath.Join(root, "DEBIAN", "control"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, name+"_"+strings.ReplaceAll(version, ":", "")+"_amd64.deb")
	if b, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", root, out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

// folders makes a folder of packages for a recipe, and one for the tools, so
// that nothing is asked of the network.
func folders(t *testing.T) (debs string) {
	t.Helper()
	need(t, aptHelper)
	debs, own := t.TempDir(), t.TempDir()
	deb(t, debs, "base", "1", "Essential: yes\n")
	deb(t, debs, "req", "1", "Priority: required\nDepends: base\n")
	deb(t, debs, "apt", "2", "")
	deb(t, debs, "usr-is-merged", "35", "")
	deb(t, debs, "linux-image-amd64", "6.1", "Depends: linux-image-6.1.0-56-amd64\n")
	deb(t, debs, "linux-image-6.1.0-56-amd64", "6.1", "")
	deb(t, debs, "systemd", "252", "Source: systemd-src\nDepends: libthing (>= 1)\n")
	deb(t, debs, "libthing", "2:1.0", "")
	deb(t, debs, "linux-headers-amd64", "6.1", "Depends: linux-headers-6.1.0-56-amd64\n")
	deb(t, debs, "linux-headers-6.1.0-56-amd64", "6.1", "")
	deb(t, debs, "dkms", "3", "")
	deb(t, debs, "linux-image-6.9.0-1-amd64", "6.9", "")
	deb(t, debs, "extra", "1", "Depends: linux-image-6.9.0-1-amd64\n")
	deb(t, debs, "broken", "1", "Depends: nothing-has-this\n")
	for _, n := range tools {
		deb(t, own, n, "1", "")
	}
	old := toolSources
	t.Cleanup(func() { toolSources = old })
	toolSources = []Source{{Name: "tools", Dir: own}}
	return debs
}

const folderRecipe = "name: x\nsuite: bookworm\nsources:\n  - {name: ours, dir: %s}\npackages:\n  - systemd\n"

func TestResolve(t *testing.T) {
	debs := folders(t)
	resolve := func(more string) (Lock, error) {
		t.Helper()
		r, err := parseRecipe("r.yaml", fmt.Appendf(nil, folderRecipe+more, debs))
		if err != nil {
			t.Fatal(err)
		}
		return Resolver{Cache: t.TempDir()}.Resolve(t.Context(), r)
	}
	l, err := resolve("")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range l.Packages {
		n := p.Name
		if p.Asked {
			n += "!"
		}
		names = append(names, n)
	}
	if got := strings.Join(names, " "); got != "apt! base! libthing linux-image-6.1.0-56-amd64 linux-image-amd64! req! systemd! usr-is-merged!" {
		t.Errorf("locked: %s", got)
	}
	if len(l.Tools) != len(tools) || len(l.Compile) != 0 {
		t.Errorf("%d tools, %d to compile with", len(l.Tools), len(l.Compile))
	}
	p, _ := l.Find("libthing")
	if p.Version != "2:1.0" || p.Path != "libthing_21.0_amd64.deb" || p.Source != "ours" || p.Installed != 4 {
		t.Errorf("%+v", p)
	}
	if d, err := fileDigest(filepath.Join(debs, p.Path)); err != nil || d != p.SHA256 {
		t.Errorf("digest: %v", err)
	}
	if p, _ := l.Find("systemd"); p.Origin != "systemd-src" {
		t.Errorf("%+v", p)
	}
	if l.Date.IsZero() || l.Date.After(time.Now()) {
		t.Errorf("date %s", l.Date)
	}
	again, err := parseLock("l", l.Encode())
	if err != nil || again.Digest() != l.Digest() {
		t.Error(err)
	}

	for _, tt := range []struct{ name, more, want string }{
		{"unknown package", "  - zstd\n  - munge\n", "r.yaml:7: there is no package zstd in bookworm of ours\nr.yaml:8: there is no package munge"},
		{"unknown version", "  - dkms=4*\n", "r.yaml:7: there is no package dkms=4* in bookworm"},
		{"unmet dependency", "  - broken\n", "nothing-has-this"},
		{"two kernels", "  - extra\nkernel: linux-image-amd64\n", "r.yaml:8: linux-image-amd64 brings 2 kernels [6.1.0-56-amd64 6.9.0-1-amd64], want one"},
		{"no kernel", "kernel: linux-headers-amd64\n", "r.yaml:7: linux-headers-amd64 brings 0 kernels"},
		{"unknown kernel", "kernel: linux-image-arm64\n", "r.yaml:7: there is no package linux-image-arm64"},
		{"modules without headers", "gpu: {branch: 535, compile: [dkms]}\n", "r.yaml: the modules would be made for another kernel than 6.1.0-56-amd64"},
	} {
		_, err := resolve(tt.more)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\n\twant %s", tt.name, err, tt.want)
		}
	}

	// A newer kernel than its headers.
	deb(t, debs, "linux-image-6.1.0-57-amd64", "6.1", "")
	deb(t, debs, "linux-image-amd64", "6.2", "Depends: linux-image-6.1.0-57-amd64\n")
	if _, err := resolve("gpu: {branch: 535, compile: [dkms, linux-headers-amd64]}\n"); err == nil || !strings.Contains(err.Error(), "another kernel than 6.1.0-57-amd64") {
		t.Errorf("a newer kernel than its headers: %v", err)
	}
	// A package whose file is not what the list said.
	r, err := parseRecipe("r.yaml", fmt.Appendf(nil, folderRecipe, debs))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(debs, "libthing_21.0_amd64.deb"), []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := &builder{Options: Options{Recipe: r, Lock: l, Cache: t.TempDir()}}
	if _, err := b.debs(t.Context(), l.Packages); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "libthing 2:1.0 (ours)") {
		t.Errorf("a changed package: %v", err)
	}
}

// A source without its key is named, with what to do; an optional one is left
// out, which is said.
func TestSourceKeys(t *testing.T) {
	debs := folders(t)
	recipe := fmt.Sprintf(strings.Replace(folderRecipe, "sources:\n", "sources:\n  - {name: site, url: http://127.0.0.1:9/d, suites: [/], key: no.asc}\n", 1), debs)
	r, err := parseRecipe("r.yaml", []byte(recipe))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Resolver{Cache: t.TempDir()}.Resolve(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "r.yaml:4: source site: its key no.asc is not there: put the keys") {
		t.Errorf("%v", err)
	}
	if r, err = parseRecipe("r.yaml", []byte(strings.Replace(recipe, "no.asc}", "no.asc, optional: true}", 1))); err != nil {
		t.Fatal(err)
	}
	var warned string
	if _, err = (Resolver{Cache: t.TempDir(), Warn: func(s string) { warned += s }}).Resolve(t.Context(), r); err != nil || !strings.Contains(warned, "source site is left out") {
		t.Errorf("%v, %q", err, warned)
	}
}

// mirror serves packages, and counts who asks for what.
type mirror struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	asked []string
}

func newMirror(t *testing.T) *mirror {
	m := &mirror{files: map[string][]byte{}}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.asked = append(m.asked, r.URL.Path)
		b, ok := m.files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(b)
	}))
	t.Cleanup(m.Close)
	return m
}

func (m *mirror) put(path, content string) Locked {
	m.files[path] = []byte(content)
	sum, _ := fileDigestOf([]byte(content))
	return Locked{Name: strings.TrimSuffix(filepath.Base(path), ".deb"), Version: "1", Arch: "all", SHA256: sum, Size: int64(len(content)), Source: "debian", Path: strings.TrimPrefix(path, "/")}
}

func fileDigestOf(b []byte) (images.Digest, error) {
	f, err := os.CreateTemp("", "")
	if err != nil {
		return images.Digest{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return images.Digest{}, err
	}
	return fileDigest(f.Name())
}

// Locked packages come out of the cache, from the mirror, or from where Debian
// keeps what it removed; whoever sends other bytes is not believed.
func TestFetch(t *testing.T) {
	need(t, aptHelper)
	m := newMirror(t)
	a, gone, forged := m.put("/pool/a.deb", "package a"), m.put("/pool/gone.deb", "package gone"), m.put("/pool/forged.deb", "package forged")
	date := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	b := &builder{Options: Options{
		Cache: t.TempDir(), Lock: Lock{Date: date},
		Recipe: Recipe{Sources: []Source{{Name: "debian", URL: m.URL, Snapshot: m.URL + "/snapshot"}}},
	}}
	delete(m.files, "/pool/gone.deb")
	m.files["/snapshot/20261122T000000Z/pool/gone.deb"] = []byte("package gone")
	files, err := b.debs(t.Context(), []Locked{a, gone})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(files["gone"]); err != nil || string(text) != "package gone" {
		t.Errorf("%q, %v", text, err)
	}
	before := len(m.asked)
	if _, err := b.debs(t.Context(), []Locked{a, gone}); err != nil || len(m.asked) != before {
		t.Errorf("the second time: %v, asked for %v", err, m.asked[before:])
	}
	// Somebody changed the cache.
	if err := os.WriteFile(files["a"], []byte("not a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if files, err = b.debs(t.Context(), []Locked{a}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(files["a"]); err != nil || string(text) != "package a" {
		t.Errorf("%q, %v", text, err)
	}
	m.files["/pool/forged.deb"] = []byte("package FORGED")
	_, err = b.debs(t.Context(), []Locked{a, forged})
	if !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "1 locked packages cannot be had: forged 1 (debian)") || !strings.Contains(err.Error(), "smelt image lock") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(b.Cache, "debs", forged.SHA256.String()+".deb")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the forged package is in the cache")
	}
	// Another address of the same source.
	near := newMirror(t)
	c := near.put("/pool/c.deb", "package c")
	b.Mirrors = map[string]string{"debian": near.URL + "/"}
	if _, err := b.debs(t.Context(), []Locked{c}); err != nil || len(near.asked) != 1 {
		t.Errorf("%v, %v", err, near.asked)
	}
}

// What would end in a full disk does not begin.
func TestNeedSpace(t *testing.T) {
	if err := needSpace(t.TempDir(), 1, "nothing"); err != nil {
		t.Error(err)
	}
	err := needSpace(t.TempDir(), 1<<60, "the disk image")
	if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "--cache") {
		t.Error(err)
	}
}
