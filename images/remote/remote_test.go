package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smelt/images/remote"
	"smelt/images/remote/remotetest"
)

func open(t *testing.T, address string, c remote.Credentials) remote.Remote {
	t.Helper()
	r, err := remote.Open(address, c)
	if err != nil {
		t.Fatal(err)
	}
	if r.String() != address || strings.Contains(r.String(), c.Password) && c.Password != "" {
		t.Errorf("%s calls itself %s", address, r)
	}
	return r
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	remotetest.Run(t, open(t, filepath.Join(dir, "images"), remote.Credentials{}))
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if strings.Contains(path, ".new-") {
			t.Errorf("%s was left behind", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestRegistry(t *testing.T) {
	address := remotetest.Registry(t)
	remotetest.Run(t, open(t, address, remotetest.Credentials))
	refusesStrangers(t, address)
}

func TestS3(t *testing.T) {
	address := remotetest.S3(t)
	remotetest.Run(t, open(t, address, remotetest.Credentials))
	refusesStrangers(t, address)
}

func refusesStrangers(t *testing.T, address string) {
	t.Helper()
	for name, c := range map[string]remote.Credentials{"nobody": {}, "a wrong password": {User: remotetest.Credentials.User, Password: "hunter3hunter3"}} {
		r, err := remote.Open(address, c)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Size(t.Context(), "metadata/timestamp.json")
		perr := r.Put(t.Context(), "metadata/timestamp.json", strings.NewReader("x"), 1)
		if !errors.Is(err, remote.ErrDenied) || !errors.Is(perr, remote.ErrDenied) {
			t.Errorf("%s: %v, %v", name, err, perr)
		}
		for _, e := range []error{err, perr} {
			if e != nil && c.Password != "" && strings.Contains(e.Error(), c.Password) {
				t.Errorf("a password in an error: %v", e)
			}
		}
	}
}

// A folder that a web server serves is the same to a site.
func TestWeb(t *testing.T) {
	dir := t.TempDir()
	f := remote.Folder(dir)
	blob := bytes.Repeat([]byte("0123456789"), 1000)
	if err := f.Put(t.Context(), "blobs/abc", bytes.NewReader(blob), int64(len(blob))); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(dir))
	ranges := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "secret"):
			http.Error(w, "no", http.StatusForbidden)
			return
		case strings.HasSuffix(r.URL.Path, "broken"):
			http.Error(w, "no", http.StatusBadGateway)
			return
		case !ranges:
			r.Header.Del("Range")
		}
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	r := open(t, srv.URL, remote.Credentials{})
	if n, err := r.Size(t.Context(), "blobs/abc"); err != nil || n != int64(len(blob)) {
		t.Errorf("%d, %v", n, err)
	}
	for _, ranges = range []bool{true, false} {
		for _, off := range []int64{0, 1, 4096} {
			body, err := r.Get(t.Context(), "blobs/abc", off)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			body.Close()
			if err != nil || !bytes.Equal(b, blob[off:]) {
				t.Errorf("ranges %v, from %d on: %d bytes, %v", ranges, off, len(b), err)
			}
		}
	}
	for name, want := range map[string]error{"blobs/none": remote.ErrNotFound, "blobs/secret": remote.ErrDenied} {
		if _, err := r.Get(t.Context(), name, 0); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Get(t.Context(), "blobs/broken", 0); err == nil || errors.Is(err, remote.ErrNotFound) {
		t.Errorf("a broken server: %v", err)
	}
	if err := r.Put(t.Context(), "blobs/abc", bytes.NewReader(nil), 0); !errors.Is(err, remote.ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Get(ctx, "blobs/abc", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, good := range []string{"/srv/images", "file:///srv/images", "https://images.example/a", "http://10.0.0.1:8080", "s3://s3.example/bucket", "s3+http://127.0.0.1:9000/bucket/a/b?region=eu", "oci://registry.example:5000/a/b"} {
		if _, err := remote.Open(good, remote.Credentials{}); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "images", "./images", "ftp://x/y", "https://", "https://u:hunter2@x/y", "s3://host", "s3:///bucket", "oci://host", "oci://host/UPPER", "file://host/x", "https://x/?a=b", "https://x/ :%zz"} {
		_, err := remote.Open(bad, remote.Credentials{})
		if err == nil {
			t.Errorf("%q is an address", bad)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a password in an error: %v", err)
		}
	}
}
