package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"smelt/images"
)

// image is what is spread.
type image struct {
	store string
	d     images.Digest
	m     images.Manifest
	raw   [32]byte // SHA-256 of the disk image
}

func newImage(ctx context.Context, dir string, data int64) (*image, error) {
	img := &image{store: filepath.Join(dir, "store")}
	path := filepath.Join(dir, "raw")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	defer f.Close()
	// Two fifths noise, the rest zeros in small pieces: no chunk is zero, and
	// each is about as long as those of a real image (1.6 MB).
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 1<<20)
	for off := int64(0); off < data; off += int64(len(b)) {
		clear(b)
		for i := 0; i < len(b); i += 4096 {
			for j := i; j < i+1640; j++ {
				b[j] = byte(r.Uint32())
			}
		}
		if _, err := f.Write(b); err != nil {
			return nil, err
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	img.raw = [32]byte(sum.Sum(nil))
	s, err := images.OpenStore(img.store)
	if err != nil {
		return nil, err
	}
	img.d, err = s.Add(ctx, images.Manifest{Name: "bench", Arch: "amd64", Created: time.Unix(1e9, 0).UTC()}, f, data, ed25519.NewKeyFromSeed(make([]byte, 32)), nil)
	if err != nil {
		return nil, err
	}
	img.m, err = s.Manifest(img.d)
	return img, err
}
