package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"smelt/images"
	"smelt/images/release"
	"smelt/images/remote"
	"smelt/internal/config"
)

// A server that pulls: it starts without its remote, gets the images that its
// file names, and gives nodes new keys before it plans with what they signed.
func TestServeFollows(t *testing.T) {
	dir := t.TempDir()
	key := func(seed byte) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	}
	one := func(k ed25519.PrivateKey) release.Keys {
		return release.Keys{Public: []ed25519.PublicKey{k.Public().(ed25519.PublicKey)}, Threshold: 1}
	}
	const rootK, releaseK, channelK, onlineK, nextK = 1, 2, 3, 4, 5
	st, err := images.OpenStore(filepath.Join(dir, "ci"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := release.NewRepository(filepath.Join(dir, "release"), map[release.Role]release.Keys{
		release.Root: one(key(rootK)), release.Release: one(key(releaseK)), release.Canary: one(key(channelK)), release.Stable: one(key(channelK)), release.Online: one(key(onlineK))})
	if err != nil {
		t.Fatal(err)
	}
	d, err := st.Add(t.Context(), images.Manifest{Name: "debian-12-ai", Variant: "r535", Arch: "amd64"}, bytes.NewReader(make([]byte, 1<<20)), 1<<20, key(99), nil)
	if err != nil {
		t.Fatal(err)
	}
	to := remote.Folder(filepath.Join(dir, "remote"))
	publish := func(keys ...byte) {
		t.Helper()
		for _, k := range keys {
			if _, err := repo.SignAll(key(k)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := repo.Publish(key(onlineK)); err != nil {
			t.Fatal(err)
		}
		if err := repo.Upload(t.Context(), st, to, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	publish(rootK, releaseK, channelK)
	root, err := repo.FirstRoot()
	if err != nil {
		t.Fatal(err)
	}
	rootFile := filepath.Join(dir, "root.json")
	if err := os.WriteFile(rootFile, root, 0o644); err != nil {
		t.Fatal(err)
	}
	site := &config.Site{State: filepath.Join(dir, "hall"), Classes: map[string]config.Class{"rig": {Image: "debian-12-ai"}},
		Images: &config.Images{Remote: string(to), Root: rootFile, Channel: "stable", Every: time.Hour}}
	hall, err := images.OpenStore(filepath.Join(site.State, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(string(to), string(to)+".away"); err != nil {
		t.Fatal(err)
	}
	task, err := follow(site, nil, hall, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if len(task.keys.Keys) != 1 || !task.keys.Keys[0].Equal(key(releaseK).Public()) {
		t.Errorf("nodes start with %+v", task.keys)
	}
	if err := task.pull(t.Context()); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("without a remote: %v", err)
	}
	if err := os.Rename(string(to)+".away", string(to)); err != nil {
		t.Fatal(err)
	}
	if err := task.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := hall.Resolve("debian-12-ai.r535"); !errors.Is(err, images.ErrNotFound) {
		t.Errorf("before it was promoted: %v", err)
	}
	if err := repo.SignImage(st, d, key(releaseK)); err != nil {
		t.Fatal(err)
	}
	b, err := st.Envelope(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Promote(release.Stable, b); err != nil {
		t.Fatal(err)
	}
	publish(channelK)
	if err := task.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := hall.Resolve("debian-12-ai.r535"); err != nil || got != d {
		t.Fatalf("%s, %v", got.Short(), err)
	}

	// Another release key: nodes get it first; where that fails nothing changes.
	if err := repo.SetKeys(release.Release, one(key(nextK)).Public, []string{images.KeyID(key(releaseK).Public().(ed25519.PublicKey))}, 0); err != nil {
		t.Fatal(err)
	}
	if err := repo.SignImage(st, d, key(nextK)); err != nil {
		t.Fatal(err)
	}
	publish(rootK)
	full := errors.New("no space")
	task.rekey = func(context.Context, images.Signers) error { return full }
	if err := task.pull(t.Context()); !errors.Is(err, full) {
		t.Errorf("nodes did not get the keys: %v", err)
	}
	e, err := hall.Envelope(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := images.Open(e, key(nextK).Public().(ed25519.PublicKey)); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("what nodes do not know was fetched: %v", err)
	}
	var got images.Signers
	task.rekey = func(_ context.Context, s images.Signers) error { got = s; return nil }
	if err := task.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(got.Keys) != 1 || !got.Keys[0].Equal(key(nextK).Public()) {
		t.Errorf("nodes got %+v", got)
	}
	if now, err := hall.Resolve("debian-12-ai.r535"); err != nil || now != d {
		t.Errorf("by the next key: %s, %v", now.Short(), err)
	}
	// A restart begins with the keys of now, the file being the same.
	task, err = follow(site, nil, hall, slog.New(slog.DiscardHandler))
	if err != nil || !task.keys.Keys[0].Equal(key(nextK).Public()) {
		t.Errorf("after a restart: %v", err)
	}
	if now, err := hall.Resolve("debian-12-ai.r535"); err != nil || now != d {
		t.Errorf("after a restart: %s, %v", now.Short(), err)
	}
}
