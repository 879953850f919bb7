package images

import (
	"errors"
	"fmt"
	"regexp"
)

// What a manifest may claim. A node believes none of it before Validate: the
// signature says who wrote it, not that its author's builder was right.
const (
	maxSize  = 1 << 46 // 64 TiB
	maxFrame = ChunkSize + ChunkSize/128
	// A partition table needs 34 sectors at each end.
	minSize   = 1 << 20
	blockSize = 512
)

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	keyForm    = regexp.MustCompile(`^[0-9a-f]{0,64}$`)
	uuidForm   = regexp.MustCompile(`^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?$`)
	archForm   = regexp.MustCompile(`^(amd64|arm64)$`)
	driverForm = regexp.MustCompile(`^[0-9]{3,4}(\.[0-9]{1,4}){1,2}$`)
	cudaForm   = regexp.MustCompile(`^[0-9]{1,2}\.[0-9]{1,2}$`)
	kernelForm = regexp.MustCompile(`^[0-9A-Za-z.+~_-]{0,64}$`)
)

// ErrManifest is wrapped by every refusal of a manifest's contents.
var ErrManifest = errors.New("manifest is invalid")

// Validate refuses a manifest that could make a writer leave a gap, write
// outside the image, or read outside the blob.
func (m Manifest) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...))
	}
	switch {
	case !nameForm.MatchString(m.Name):
		return bad("name %q: want small letters, digits, dots and dashes", m.Name)
	case m.Variant != "" && !nameForm.MatchString(m.Variant) || len(m.Title()) > 64:
		return bad("variant %q of %s: want small letters, digits, dots and dashes, 64 with the name", m.Variant, m.Name)
	case !archForm.MatchString(m.Arch):
		return bad("architecture %q: want amd64 or arm64", m.Arch)
	case !keyForm.MatchString(m.Key):
		return bad("key %q", m.Key)
	case !uuidForm.MatchString(m.Root):
		return bad("root %q is not a UUID", m.Root)
	case !kernelForm.MatchString(m.Kernel):
		return bad("kernel %q", m.Kernel)
	case m.Driver != nil && !(driverForm.MatchString(m.Driver.Version) && cudaForm.MatchString(m.Driver.CUDA)):
		return bad("driver %q for CUDA %q", m.Driver.Version, m.Driver.CUDA)
	case m.Driver != nil && m.Driver.Modules != "open" && m.Driver.Modules != "proprietary":
		return bad("driver modules %q: want open or proprietary", m.Driver.Modules)
	case m.Size < minSize || m.Size > maxSize || m.Size%blockSize != 0:
		return bad("size %d", m.Size)
	case m.Blob.IsZero() || m.BlobLen <= 0 || m.BlobLen > maxSize:
		return bad("blob %s of %d bytes", m.Blob.Short(), m.BlobLen)
	case int64(len(m.Chunks)) != (m.Size+ChunkSize-1)/ChunkSize:
		return bad("%d chunks for %d bytes", len(m.Chunks), m.Size)
	}
	var end int64 // of the frames so far
	for i, c := range m.Chunks {
		off := int64(i) * ChunkSize
		if c.Offset != off || c.Length != min(ChunkSize, m.Size-off) {
			return bad("chunk %d is %d bytes at %d", i, c.Length, c.Offset)
		}
		if c.Zero {
			if !c.Digest.IsZero() || c.BlobOff != 0 || c.BlobLen != 0 {
				return bad("chunk %d is zero and has data", i)
			}
			continue
		}
		if c.Digest.IsZero() {
			return bad("chunk %d has no digest", i)
		}
		if c.BlobLen <= 0 || c.BlobLen > maxFrame || c.BlobOff < end || c.BlobOff > m.BlobLen-c.BlobLen {
			return bad("chunk %d lies at %d, %d bytes, in a blob of %d", i, c.BlobOff, c.BlobLen, m.BlobLen)
		}
		end = c.BlobOff + c.BlobLen
	}
	return nil
}

// Data returns how many bytes of the image are not in zero chunks.
func (m Manifest) Data() int64 {
	var n int64
	for _, c := range m.Chunks {
		if !c.Zero {
			n += c.Length
		}
	}
	return n
}
