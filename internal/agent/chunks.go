package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"smelt/images"
	"smelt/images/disk"
)

// newChunks returns a function that fetches the i-th chunk of an image (any i)
// as it travels, verifies it, and returns how many bytes travelled.
func newChunks(ctx context.Context, client *http.Client, base, digest string, signers images.Signers) (func(context.Context, int) (int64, error), error) {
	want, err := images.ParseDigest(digest)
	if err != nil {
		return nil, err
	}
	m, err := disk.Manifest(ctx, client, base, want, signers)
	if err != nil {
		return nil, err
	}
	var data []images.Chunk
	for _, c := range m.Chunks {
		if !c.Zero {
			data = append(data, c)
		}
	}
	if len(data) == 0 {
		return nil, errors.New("the image holds no data")
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(images.ChunkSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	fetch := disk.HTTP(client, strings.TrimSuffix(base, "/")+"/blob/"+m.Blob.String())
	return func(ctx context.Context, i int) (int64, error) {
		c := data[i%len(data)]
		body, err := fetch(ctx, c.BlobOff, c.BlobLen)
		if err != nil {
			return 0, err
		}
		defer body.Close()
		frame, err := io.ReadAll(io.LimitReader(body, c.BlobLen+1))
		if err != nil {
			return int64(len(frame)), err
		}
		if int64(len(frame)) != c.BlobLen {
			return int64(len(frame)), fmt.Errorf("chunk at %d came with %d bytes instead of %d", c.Offset, len(frame), c.BlobLen)
		}
		plain, err := dec.DecodeAll(frame, make([]byte, 0, c.Length))
		if err != nil {
			return c.BlobLen, fmt.Errorf("chunk at %d came damaged: %v", c.Offset, err)
		}
		if images.Digest(sha256.Sum256(plain)) != c.Digest {
			return c.BlobLen, fmt.Errorf("chunk at %d came with other contents", c.Offset)
		}
		return c.BlobLen, nil
	}, nil
}
