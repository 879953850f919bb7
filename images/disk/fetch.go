package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"smelt/images"
)

// Fetch returns n bytes of an image's blob from off on. It need not be
// trusted, and does not retry: Write verifies and retries.
type Fetch func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// permanent is a failure that trying again will not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// NewClient returns a client for HTTP and Manifest. Unlike Go's default it
// keeps as many connections as there are workers: a new one begins slowly. It
// uses no proxy, and plain HTTP is enough: every byte is verified.
func NewClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: stall}).DialContext,
		ResponseHeaderTimeout: stall,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
	}}
}

// HTTP fetches from a URL that takes ranges, such as BASE/blob/DIGEST of an
// image store or any cache in front of one.
func HTTP(client *http.Client, url string) Fetch {
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, permanent{err}
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		want := fmt.Sprintf("bytes %d-%d/", off, off+n-1)
		switch {
		case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), want):
			return resp.Body, nil
		case resp.StatusCode == http.StatusPartialContent:
			err = permanent{fmt.Errorf("%s answers range %q, not %q", url, resp.Header.Get("Content-Range"), want)}
		case resp.StatusCode == http.StatusOK:
			err = permanent{fmt.Errorf("%s ignores ranges: put a cache in front that does not, or none", url)}
		case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
			err = fmt.Errorf("%s: %s", url, resp.Status)
		default:
			err = permanent{fmt.Errorf("%s: %s", url, resp.Status)}
		}
		resp.Body.Close()
		return nil, err
	}
}

// Manifest fetches BASE/manifest/DIGEST and verifies that enough of signers signed
// it and that it is the one asked for.
func Manifest(ctx context.Context, client *http.Client, base string, want images.Digest, signers images.Signers) (images.Manifest, error) {
	fail := func(err error) (images.Manifest, error) {
		return images.Manifest{}, fmt.Errorf("manifest of image %s: %w", want.Short(), err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/manifest/"+want.String(), nil)
	if err != nil {
		return fail(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(errors.New(resp.Status))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, images.MaxEnvelope+1))
	if err != nil {
		return fail(err)
	}
	m, got, err := signers.Open(b)
	if err != nil {
		return fail(err)
	}
	if got != want {
		return fail(fmt.Errorf("the server sent %s", got.Short()))
	}
	return m, nil
}
