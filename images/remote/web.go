package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// web reads from a web server.
type web struct{ base string }

// client gives up on a server that says nothing; how long a blob takes is not known.
var client = &http.Client{Transport: func() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 60 * time.Second
	return impatient{t, 60 * time.Second}
}()}

var errSilent = errors.New("the server stopped in the middle of an answer")

// impatient ends an answer of which nothing comes for a while. A mirror that
// begins to answer and falls silent would keep its site waiting for ever, and
// the site's log quiet.
type impatient struct {
	http.RoundTripper
	wait time.Duration
}

func (t impatient) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.RoundTripper.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &waited{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, wait: t.wait}
	return resp, nil
}

type waited struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	wait   time.Duration
}

// Read starts the clock anew: how long the caller takes is its own affair.
func (w *waited) Read(b []byte) (int, error) {
	timer := time.AfterFunc(w.wait, func() { w.cancel(errSilent) })
	n, err := w.ReadCloser.Read(b)
	timer.Stop()
	if err != nil && err != io.EOF && errors.Is(context.Cause(w.ctx), errSilent) {
		err = errSilent
	}
	return n, err
}

func (w *waited) Close() error {
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

func (w web) String() string { return w.base }

func (w web) do(ctx context.Context, method, name string, off int64) (*http.Response, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, w.base+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	// A proxy that packs would change lengths and make ranges useless.
	req.Header.Set("Accept-Encoding", "identity")
	if off > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("%w: %s", ErrNotFound, req.URL)
	case resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized:
		err = fmt.Errorf("%s: %s: %w", req.URL, resp.Status, ErrDenied)
	case off > 0 && resp.StatusCode == http.StatusOK:
		// No ranges there: what was read already comes again.
		if _, err = io.CopyN(io.Discard, resp.Body, off); err == nil {
			return resp, nil
		}
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent:
		err = fmt.Errorf("%s: %s", req.URL, resp.Status)
	default:
		return resp, nil
	}
	resp.Body.Close()
	return nil, err
}

func (w web) Get(ctx context.Context, name string, off int64) (io.ReadCloser, error) {
	resp, err := w.do(ctx, http.MethodGet, name, off)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (w web) Size(ctx context.Context, name string) (int64, error) {
	resp, err := w.do(ctx, http.MethodHead, name, 0)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	if resp.ContentLength < 0 {
		return 0, fmt.Errorf("%s/%s: the server does not say how long it is", w.base, name)
	}
	return resp.ContentLength, nil
}

func (w web) Put(context.Context, string, io.ReaderAt, int64) error {
	return fmt.Errorf("%s: %w", w.base, ErrReadOnly)
}
