package build

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"smelt/images"
)

func someLock() Lock {
	return Lock{
		Image: "x", Recipe: images.Digest{7}, Date: time.Date(2026, 11, 21, 0, 53, 2, 0, time.UTC),
		Packages: []Locked{
			{Name: "adduser", Version: "3.134", Arch: "all", SHA256: images.Digest{1}, Size: 10, Installed: 2, Asked: true, Source: "debian", Path: "pool/main/a/adduser/adduser_3.134_all.deb"},
			{Name: "libc6", Version: "1:2.36-9+deb12u14~x", Arch: "amd64", SHA256: images.Digest{2}, Size: 20, Installed: 3, Origin: "glibc", Source: "debian-security", Path: "pool/g/libc6.deb"},
		},
		Tools: []Locked{{Name: "mtools", Version: "4", Arch: "amd64", SHA256: images.Digest{3}, Size: 30, Source: "debian", Path: "m.deb"}},
	}
}

func TestLockRoundTrip(t *testing.T) {
	want := someLock()
	got, err := parseLock("x.lock", want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !bytes.Equal(got.Encode(), want.Encode()) || got.Digest() != want.Digest() {
		t.Error("it is written otherwise the second time")
	}
	if p, ok := got.Find("libc6"); !ok || p.Upstream() != "2.36" {
		t.Errorf("%+v, %s", p, p.Upstream())
	}
}

func TestLockMistakes(t *testing.T) {
	good := string(someLock().Encode())
	for _, tt := range []struct{ name, old, new, want string }{
		{"other version", "version: 1", "version: 99", "a lock of version 99, want 1"},
		{"unknown key", "image: x", "image: x\nfoo: 1", "field foo is not known"},
		{"unknown field", `"arch":"all"`, `"arch":"all","run":"rm"`, "x.lock:7: field run is not known"},
		{"no digest", strings.Repeat("0", 2) + images.Digest{1}.String()[4:], "", "digest"},
		{"path outside", "pool/g/libc6.deb", "../libc6.deb", `x.lock:8: path "../libc6.deb" of libc6`},
		{"absolute path", "pool/g/libc6.deb", "/libc6.deb", "want one below the source"},
		{"option as name", `"name":"libc6"`, `"name":"--x"`, `package "--x"`},
		{"order", `"name":"adduser"`, `"name":"zadduser"`, "x.lock:8: package libc6 is out of order"},
		{"twice", `"name":"libc6"`, `"name":"adduser"`, "there twice"},
		{"no size", `"size":10`, `"size":0`, "size 0"},
		{"no tools", "tools:", "compile:", "it locks no packages, or no tools"},
		{"bad date", "2026-11-21T00:53:02Z", "yesterday", `date "yesterday"`},
		{"a list", "packages:", "packages: []\ncompile: []\nx:", "field x is not known"},
	} {
		if !strings.Contains(good, tt.old) {
			t.Fatalf("%s: %q is not in the lock", tt.name, tt.old)
		}
		_, err := parseLock("x.lock", []byte(strings.Replace(good, tt.old, tt.new, 1)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\n\twant %s", tt.name, err, tt.want)
		}
	}
}

func FuzzLock(f *testing.F) {
	f.Add(someLock().Encode())
	f.Add([]byte("version: 1\nimage: x\npackages: [[a], {name: b}]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLock("x.lock", b)
		if err != nil {
			return
		}
		again, err := parseLock("x.lock", l.Encode())
		if err != nil {
			t.Fatalf("what was read is refused when written: %v", err)
		}
		if d := cmp.Diff(l, again); d != "" {
			t.Error(d)
		}
		for _, p := range append(l.Packages, l.Tools...) {
			if strings.Contains(p.Path, "..") && !filepath.IsLocal(p.Path) || strings.ContainsAny(p.Path+p.Version, " \n\"'") {
				t.Errorf("%+v", p)
			}
		}
	})
}

func FuzzStanzas(f *testing.F) {
	f.Add("Package: a\nVersion: 1\n more\n\nPackage: b\n")
	f.Fuzz(func(t *testing.T, s string) {
		_ = stanzas(s, func(m map[string]string) {
			if len(m) == 0 {
				t.Error("an empty entry")
			}
		})
	})
}

func TestPackageChanges(t *testing.T) {
	a := []Locked{{Name: "a", Version: "1"}, {Name: "b", Version: "1"}, {Name: "d", Version: "1"}, {Name: "e", Version: "1"}}
	b := []Locked{{Name: "b", Version: "2"}, {Name: "c", Version: "1"}, {Name: "d", Version: "1"}, {Name: "e", Version: "1", SHA256: images.Digest{1}}}
	var got []string
	for _, c := range PackageChanges(a, b) {
		got = append(got, c.String())
	}
	want := []string{"- a 1", "~ b 1 -> 2", "+ c 1", "~ e 1 (000000000000) -> 1 (010000000000)"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A lock is of one image of one recipe.
func TestLockFits(t *testing.T) {
	r, err := parseRecipe("r.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	l := someLock()
	l.Recipe = r.lockInput()
	if err := l.Fits(r); err != nil {
		t.Error(err)
	}
	other, err := parseRecipe("r.yaml", []byte(small+"  - zstd\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Fits(other); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "lock it again: smelt image lock") {
		t.Error(err)
	}
	l.Image = "y"
	if err := l.Fits(r); err == nil {
		t.Error("another image's lock fits")
	}
	// What is not about packages needs no new lock.
	same, err := parseRecipe("r.yaml", []byte(small+"run: [\"true\"]\ncmdline: quiet\nbudgetMiB: 9\n"))
	if err != nil || same.lockInput() != r.lockInput() {
		t.Errorf("a command changes the lock: %v", err)
	}
}

func TestTreeIsTheSameTwice(t *testing.T) {
	date := time.Unix(1e9, 0)
	make := func(reverse bool) []byte {
		t.Helper()
		dir := t.TempDir()
		names := []string{"b", "a/c", "a/d", "link", "hard"}
		if reverse {
			names = []string{"hard", "link", "a/d", "a/c", "b"}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, n := range names {
			p := filepath.Join(dir, n)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			switch n {
			case "link":
				err = os.Symlink("b", p)
			default:
				err = os.WriteFile(p, []byte(n), 0o640)
			}
			if err != nil {
				t.Fatal(err)
			}
			when := time.Now().Add(-time.Duration(i) * time.Hour)
			if n == "b" {
				when = time.Unix(5e8, 123) // a package's own, older than the date
			}
			if n != "link" {
				if err := os.Chtimes(p, when, when); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.Remove(filepath.Join(dir, "hard")); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "hard")); err != nil {
			t.Fatal(err)
		}
		// As in a build: all files have a second name in the cache.
		if err := os.Link(filepath.Join(dir, "a/c"), filepath.Join(t.TempDir(), "cached")); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := writeTar(&b, dir, date); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	a, b := make(false), make(true)
	if !bytes.Equal(a, b) {
		t.Error("the same files give other bytes")
	}
	for _, want := range []string{"./a/c", "./hard", "./link"} {
		if !bytes.Contains(a, []byte(want)) {
			t.Errorf("%s is missing", want)
		}
	}
	if bytes.Count(a, []byte("./b")) != 2 { // itself, and where hard leads
		t.Errorf("a hard link is not one: ./b is there %d times", bytes.Count(a, []byte("./b")))
	}
}

// What dpkg installed is what the lock says, no more and no less.
func TestInstalled(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg"), 0o755); err != nil {
		t.Fatal(err)
	}
	status := func(s string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	good := "Package: adduser\nStatus: install ok installed\nVersion: 3.134\n\nPackage: libc6\nVersion: 1:2.36-9+deb12u14~x\nDescription: c\n Version: 9\n"
	status(good)
	if err := installed(root, someLock().Packages); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct{ status, want string }{
		{strings.Replace(good, "3.134", "3.135", 1), `adduser 3.134 is locked, and installed is "3.135"`},
		{good + "\nPackage: telnetd\nVersion: 1\n", "telnetd 1 is installed, and not locked"},
		{"Package: adduser\nVersion: 3.134\n", `libc6 1:2.36-9+deb12u14~x is locked, and installed is ""`},
	} {
		status(tt.status)
		if err := installed(root, someLock().Packages); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v\n\twant %s", err, tt.want)
		}
	}
}

func TestBudget(t *testing.T) {
	l := someLock()
	l.Packages[1].Installed = 5 << 10
	b := &builder{Options: Options{Lock: l, Recipe: Recipe{path: "r.yaml", Budget: 10 * mib}}}
	if err := b.budget(images.Manifest{BlobLen: 10 * mib}); err != nil {
		t.Error(err)
	}
	err := b.budget(images.Manifest{BlobLen: 10*mib + 1})
	if err == nil || !strings.Contains(err.Error(), "r.yaml: it takes 11 MiB compressed, and its budgetMiB is 10; the largest packages, installed: libc6 5 MiB, adduser 0 MiB") {
		t.Error(err)
	}
	b.Recipe.Budget = 0
	if err := b.budget(images.Manifest{BlobLen: 1 << 40}); err != nil {
		t.Error(err)
	}
}
