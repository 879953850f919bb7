// Package remote keeps published images where sites fetch them: in a folder,
// on a web server in front of one, in an S3 bucket or in an OCI registry.
// Nothing that comes from there is trusted: smelt/images/release verifies it.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// Remote is a flat set of named objects. Names are two words with a slash
// between them, such as blobs/DIGEST. All methods may be called at once.
type Remote interface {
	// Get reads an object from byte off on. The caller closes it. It wraps
	// ErrNotFound when there is no such object, and ErrDenied when we may not
	// know.
	Get(ctx context.Context, name string, off int64) (io.ReadCloser, error)

	// Size returns an object's length, or wraps ErrNotFound.
	Size(ctx context.Context, name string) (int64, error)

	// Put stores the first size bytes of r, in place of what had the name. A
	// reader sees the old object or the new one, never a part. It wraps
	// ErrReadOnly where nothing can be stored.
	Put(ctx context.Context, name string, r io.ReaderAt, size int64) error

	// String is the address, without anything secret.
	String() string
}

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("there is no such object")
	ErrDenied   = errors.New("access is denied: check user and password of the images' address")
	ErrReadOnly = errors.New("this address can only be read; publish to a folder, s3:// or oci://")
)

// Credentials are for S3 (access key and secret key) and registries. Both empty:
// nobody in particular.
type Credentials struct{ User, Password string }

// Open looks at an address and returns what is there. It talks to nobody yet.
//
//	/srv/images or file:///srv/images   a folder
//	https://images.example/release      a web server, to read only; http:// too: all of it is verified
//	s3://HOST/BUCKET/PREFIX             S3 by HTTPS; s3+http:// without; ?region=NAME
//	oci://HOST/REPOSITORY               a registry by HTTPS; oci+http:// without
func Open(address string, c Credentials) (Remote, error) {
	if filepath.IsAbs(address) {
		return Folder(address), nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address of the images is no URL") // what was given may hold a password
	}
	if u.User != nil {
		return nil, errors.New("the address of the images holds a user or a password: they belong into secrets")
	}
	bad := func(want string) (Remote, error) { return nil, fmt.Errorf("%q: want %s", address, want) }
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return bad("file:///PATH")
		}
		return Folder(u.Path), nil
	case "http", "https":
		if u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return bad(u.Scheme + "://HOST/PATH")
		}
		return web{strings.TrimSuffix(address, "/")}, nil
	case "s3", "s3+http":
		bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
		if u.Host == "" || bucket == "" {
			return bad(u.Scheme + "://HOST/BUCKET or " + u.Scheme + "://HOST/BUCKET/PREFIX")
		}
		return newS3(u.Host, bucket, prefix, u.Query().Get("region"), u.Scheme == "s3", c)
	case "oci", "oci+http":
		if u.Host == "" || strings.Trim(u.Path, "/") == "" {
			return bad(u.Scheme + "://HOST/REPOSITORY")
		}
		return newRegistry(u.Host, strings.Trim(u.Path, "/"), u.Scheme == "oci", c)
	}
	return bad("a folder (/srv/images), https://, s3:// or oci://")
}

var nameForm = regexp.MustCompile(`^[a-z]{1,16}/[0-9A-Za-z][0-9A-Za-z._-]{0,99}$`)

// checkName keeps a name from leading anywhere else.
func checkName(name string) error {
	if !nameForm.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%q is no name of an object", name)
	}
	return nil
}

// ReadAll reads an object of at most limit bytes.
func ReadAll(ctx context.Context, r Remote, name string, limit int64) ([]byte, error) {
	body, err := r.Get(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", r, name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %s is longer than %d bytes", r, name, limit)
	}
	return b, nil
}
