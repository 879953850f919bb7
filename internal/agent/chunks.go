package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

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
	// The network check asks from several goroutines.
	type unpacker struct {
		dec   *images.Decoder
		plain []byte
	}
	var idle sync.Pool
	fetch := disk.HTTP(client, strings.TrimSuffix(base, "/")+"/blob/"+m.Blob.String())
	return func(ctx context.Context, i int) (int64, error) {
		u, ok := idle.Get().(*unpacker)
		if !ok {
			dec, err := images.NewDecoder()
			if err != nil {
				return 0, err
			}
			u = &unpacker{dec, make([]byte, images.ChunkSize)}
		}
		defer idle.Put(u)
		c := data[i%len(data)]
		body, err := fetch(ctx, c.BlobOff, c.BlobLen)
		if err != nil {
			return 0, err
		}
		defer body.Close()
		n, err := u.dec.Chunk(body, c, u.plain)
		if err != nil {
			return n, fmt.Errorf("chunk at %d: %w", c.Offset, err)
		}
		return n, nil
	}, nil
}
