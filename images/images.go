// Package images names, signs and stores OS images. An image is one file of
// independent 4 MiB zstd frames (still readable by zstd -d) plus a signed
// Manifest that lists each chunk with its digest, so that every chunk is
// verified before it is written and any peer or cache is a safe source.
package images

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// ChunkSize is the length of a chunk of the disk image; only the last may be shorter.
const ChunkSize = 4 << 20

// A Digest is a SHA-256.
type Digest [32]byte

// ParseDigest reads 64 hexadecimal digits, with or without "sha256:".
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) > 7 && s[:7] == "sha256:" {
		s = s[7:]
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, fmt.Errorf("digest %q: want 64 hexadecimal digits", s)
	}
	copy(d[:], b)
	return d, nil
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is enough for people.
func (d Digest) Short() string { return d.String()[:12] }

// IsZero says whether d is not set.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes the hexadecimal form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// Manifest describes one image. The SHA-256 of its JSON, as it was signed,
// names the image everywhere.
type Manifest struct {
	Name    string    `json:"name"`              // of the recipe: ai-node
	Variant string    `json:"variant,omitempty"` // of the recipe: r535
	Arch    string    `json:"arch"`              // GOARCH word: amd64
	Created time.Time `json:"created"`           // of what it was built from, so that two builds agree
	Key     string    `json:"key"`               // content key of the recipe it was built from
	Size    int64     `json:"size"`              // of the disk image, bytes
	Blob    Digest    `json:"blob"`              // of the compressed file
	BlobLen int64     `json:"blobLen"`
	Root    string    `json:"root"`             // UUID of the root filesystem
	Kernel  string    `json:"kernel"`           // release, for example 6.1.0-56-amd64
	Driver  *Driver   `json:"driver,omitempty"` // of its GPUs; nil for an image without one

	// Documents about the image, blobs of the store that are not written to
	// disks: a bill of materials (SPDX) and what was built by whom from what.
	SBOM       Digest `json:"sbom,omitzero"`
	Provenance Digest `json:"provenance,omitzero"`

	Chunks []Chunk `json:"chunks"`
}

// Title is the name in lists and in the store: the variants of one recipe are
// images of their own.
func (m Manifest) Title() string {
	if m.Variant == "" {
		return m.Name
	}
	return m.Name + "." + m.Variant
}

// Driver is the NVIDIA driver in an image. Its branch and kind of modules
// decide which cards it runs.
type Driver struct {
	Version string `json:"version"` // 535.309.01
	Modules string `json:"modules"` // open (Turing and newer) or proprietary
	CUDA    string `json:"cuda"`    // the newest CUDA it runs: 12.2
}

// Branch is the first part of the version: 535.
func (d Driver) Branch() string {
	b, _, _ := strings.Cut(d.Version, ".")
	return b
}

// Chunk is Length bytes of the disk image at Offset. The frame of a zero chunk
// is in the blob for zstd -d alone: nobody need fetch it, so it is not located.
type Chunk struct {
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Zero    bool   `json:"zero,omitempty"`
	Digest  Digest `json:"digest,omitzero"`   // ChunkDigest of the Length bytes
	BlobOff int64  `json:"blobOff,omitempty"` // the frame in the blob
	BlobLen int64  `json:"blobLen,omitempty"`
}
