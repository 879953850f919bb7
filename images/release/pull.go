package release

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"smelt/images"
	"smelt/images/remote"
)

// Pull brings the images that channels name into the store, and makes the
// names of the channels stand for them. An image that cannot be had keeps its
// old name, as long as that is still released, and is an error.
func (v *View) Pull(ctx context.Context, st *images.Store, from remote.Remote, channels []Role, want func(channel Role, title string) bool, said func(string)) error {
	var errs []error
	for _, c := range channels {
		old, err := st.Channel(string(c))
		if err != nil {
			return err
		}
		names := map[string]images.Digest{}
		for _, title := range slices.Sorted(maps.Keys(v.Channels[c])) {
			if !want(c, title) {
				continue
			}
			d := v.Channels[c][title]
			if err := v.fetch(ctx, d, title, st, from, said); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				errs = append(errs, fmt.Errorf("image %s %s of channel %s: %w", title, d.Short(), c, err))
				if before, ok := old[title]; ok && v.Released[before] == title {
					names[title] = before
				}
				continue
			}
			if old[title] != d {
				said(fmt.Sprintf("%s/%s is %s", c, title, d.Short()))
			}
			names[title] = d
		}
		if err := v.newest(ctx, func() error { return st.SetChannel(string(c), names) }); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// fetch brings one image, unless it is there.
func (v *View) fetch(ctx context.Context, d images.Digest, title string, st *images.Store, from remote.Remote, said func(string)) error {
	envelope, err := st.Envelope(d)
	if err == nil {
		if _, _, err = v.Signers.Open(envelope); err == nil {
			if m, err := st.Manifest(d); err == nil && st.Has(m) {
				return nil
			}
		}
	}
	if envelope, err = remote.ReadAll(ctx, from, manifestPath(d), images.MaxEnvelope); err != nil {
		return err
	}
	m, got, err := v.Signers.Open(envelope)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", from, ErrUntrusted, err)
	}
	if got != d || m.Title() != title {
		return fmt.Errorf("%s: %w: it sent %s, which is %s", from, ErrUntrusted, got.Short(), m.Title())
	}
	for _, doc := range []images.Digest{m.SBOM, m.Provenance} {
		if doc.IsZero() {
			continue
		}
		if _, err := st.Document(doc); err == nil {
			continue
		}
		b, err := remote.ReadAll(ctx, from, blobPath(doc), images.MaxDocument)
		if err != nil {
			return err
		}
		if images.Digest(sha256.Sum256(b)) != doc {
			return fmt.Errorf("%s: %w: document %s is another", from, ErrDamaged, doc.Short())
		}
		if _, err := st.PutDocument(b); err != nil {
			return err
		}
	}
	if st.Has(m) { // only its signatures were not enough
		_, err := st.Receive(envelope, nil)
		return err
	}
	said(fmt.Sprintf("%s: %d MiB from %s", title, m.BlobLen>>20, from))
	r := &resuming{ctx: ctx, from: from, name: blobPath(m.Blob), size: m.BlobLen}
	defer r.close()
	_, err = st.Receive(envelope, r)
	return err
}

// resuming reads an object to its end over connections that break.
type resuming struct {
	ctx  context.Context
	from remote.Remote
	name string
	size int64

	off  int64
	body io.ReadCloser
	fail int // in a row, without a byte between
}

const maxFails = 6

// pause doubles after each failure: six take about 12 seconds.
var pause = 400 * time.Millisecond

func (r *resuming) Read(b []byte) (int, error) {
	for {
		if r.off >= r.size {
			return 0, io.EOF // a remote that has more to say is not listened to
		}
		if r.body == nil {
			body, err := r.from.Get(r.ctx, r.name, r.off)
			if err != nil {
				if errors.Is(err, remote.ErrNotFound) || errors.Is(err, remote.ErrDenied) || !r.again() {
					return 0, err
				}
				continue
			}
			r.body = body
		}
		n, err := r.body.Read(b[:min(int64(len(b)), r.size-r.off)])
		r.off += int64(n)
		if n > 0 {
			r.fail = 0
		}
		if err != nil {
			r.close()
			if n == 0 && !r.again() {
				if errors.Is(err, io.EOF) {
					err = fmt.Errorf("%w: %s ends after %d of %d bytes", ErrDamaged, r.name, r.off, r.size)
				}
				return 0, err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// again waits before another try, unless there were enough.
func (r *resuming) again() bool {
	if r.fail++; r.fail >= maxFails {
		return false
	}
	select {
	case <-r.ctx.Done():
		return false
	case <-time.After(pause << (r.fail - 1)):
		return true
	}
}

func (r *resuming) close() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}
