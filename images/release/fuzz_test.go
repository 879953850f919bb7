package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"smelt/images/remote"
)

// memory is a remote whose every object is bytes at hand.
type memory map[string][]byte

func (m memory) String() string { return "memory" }

func (m memory) Get(_ context.Context, name string, off int64) (io.ReadCloser, error) {
	b, ok := m[name]
	if !ok || off > int64(len(b)) {
		return nil, fmt.Errorf("%s: %w", name, remote.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b[off:])), nil
}

func (m memory) Size(_ context.Context, name string) (int64, error) {
	b, ok := m[name]
	if !ok {
		return 0, remote.ErrNotFound
	}
	return int64(len(b)), nil
}

func (m memory) Put(context.Context, string, io.ReaderAt, int64) error { return remote.ErrReadOnly }

// inMemory is a folder where flushing costs nothing, if there is one.
func inMemory() string {
	if i, err := os.Stat("/dev/shm"); err == nil && i.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// names of what is published first, plus a root that is not there.
var fuzzed = []string{"timestamp.json", "1.snapshot.json", "1.targets.json", "1.canary.json", "1.stable.json", "2.root.json"}

// FuzzUpdate puts any bytes in the place of one file: a site refuses, or knows
// exactly what the publisher said.
func FuzzUpdate(f *testing.F) {
	dir := f.TempDir()
	keys := map[Role]Keys{}
	for i, role := range Roles {
		keys[role] = Keys{[]ed25519.PublicKey{public(key(byte(100 + i)))}, 1}
	}
	now := time.Now()
	repo, err := NewRepository(filepath.Join(dir, "release"), keys)
	if err != nil {
		f.Fatal(err)
	}
	for i := range Roles[:4] {
		if _, err := repo.SignAll(key(byte(100 + i))); err != nil {
			f.Fatal(err)
		}
	}
	if _, err := repo.Publish(key(104)); err != nil {
		f.Fatal(err)
	}
	honest := memory{}
	files, err := os.ReadDir(filepath.Join(repo.dir, "metadata"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(repo.dir, "metadata", file.Name()))
		if err != nil {
			f.Fatal(err)
		}
		honest["metadata/"+file.Name()] = b
	}
	root := honest["metadata/1.root.json"]
	update := func(t testing.TB, from memory) (*View, error) {
		dir, err := os.MkdirTemp(inMemory(), "smelt-fuzz-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		return (&Client{Dir: dir, Root: root, From: from, now: func() time.Time { return now }}).Update(context.Background())
	}
	want, err := update(f, honest)
	if err != nil {
		f.Fatal(err)
	}
	for i, name := range fuzzed {
		b := honest["metadata/"+name]
		if b == nil {
			b = root
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), b[:len(b)/2])
		f.Add(uint8(i), bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2`), 1))
		f.Add(uint8(i), bytes.Replace(b, []byte(`"signatures"`), []byte(`"signature"`), 1))
		f.Add(uint8(i), []byte(`{"signed":{"_type":"timestamp"},"signatures":[{"keyid":"","sig":""}]}`))
		f.Add(uint8(i), []byte("null"))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		name := "metadata/" + fuzzed[int(which)%len(fuzzed)]
		from := memory{}
		for n, b := range honest {
			from[n] = b
		}
		from[name] = b
		got, err := update(t, from)
		if err != nil {
			if got != nil {
				t.Fatal("an error came with an answer")
			}
			return
		}
		said := *got
		if said.client = want.client; !reflect.DeepEqual(&said, want) {
			t.Fatalf("%s made the site believe %+v, the publisher said %+v", name, got, want)
		}
	})
}

// FuzzKey reads any bytes as a key file.
func FuzzKey(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"plain", "sealed"} {
		pass := map[string]string{"sealed": "x"}[name]
		if _, err := NewKey(filepath.Join(dir, name), pass); err != nil {
			f.Fatal(err)
		}
		for _, file := range []string{name, name + ".pub"} {
			b, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Contains(b, []byte("scrypt")) {
			return // its work factor is the file's: a person waits, and sees it
		}
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := ReadKey(file, func() (string, error) { return "", errors.New("nobody is here") })
		if (err == nil) != (len(k) == ed25519.PrivateKeySize) {
			t.Fatalf("a key of %d bytes, %v", len(k), err)
		}
		p, err := ReadPublicKey(file)
		if (err == nil) != (len(p) == ed25519.PublicKeySize) {
			t.Fatalf("a public key of %d bytes, %v", len(p), err)
		}
	})
}
