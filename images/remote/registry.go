package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// registry keeps each object as an artifact (OCI image-spec 1.1, "Guidelines
// for Artifact Usage") with one layer, tagged with the object's name: what no
// tag holds, a registry may collect.
type registry struct {
	repo    *remote.Repository
	address string
}

// artifactType is what the artifacts are.
const artifactType = "application/vnd.smelt.object.v1"

func newRegistry(host, repository string, secure bool, c Credentials) (Remote, error) {
	repo, err := remote.NewRepository(host + "/" + repository)
	if err != nil {
		return nil, fmt.Errorf("oci://%s/%s: %w", host, repository, err)
	}
	repo.PlainHTTP = !secure
	cl := &auth.Client{Client: &http.Client{Transport: client.Transport}, Cache: auth.NewCache()}
	if c != (Credentials{}) {
		cl.Credential = auth.StaticCredential(host, auth.Credential{Username: c.User, Password: c.Password})
	}
	repo.Client = cl
	scheme := "oci+http"
	if secure {
		scheme = "oci"
	}
	return &registry{repo, scheme + "://" + host + "/" + repository}, nil
}

func (r *registry) String() string { return r.address }

// tag is the name of an object as a tag: [A-Za-z0-9_][A-Za-z0-9._-]{0,127}.
func tag(name string) (string, error) { return strings.Replace(name, "/", "-", 1), checkName(name) }

func (r *registry) fail(name string, err error) error {
	if errors.Is(err, errdef.ErrNotFound) {
		return fmt.Errorf("%w: %s/%s", ErrNotFound, r.address, name)
	}
	var resp *errcode.ErrorResponse
	if errors.As(err, &resp) && (resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized) || errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return fmt.Errorf("%s/%s: %w: %v", r.address, name, ErrDenied, err)
	}
	return fmt.Errorf("%s/%s: %w", r.address, name, err)
}

// layer finds the one layer of an object.
func (r *registry) layer(ctx context.Context, name string) (ocispec.Descriptor, error) {
	t, err := tag(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_, b, err := oras.FetchBytes(ctx, r.repo, t, oras.FetchBytesOptions{MaxBytes: 1 << 20})
	if err != nil {
		return ocispec.Descriptor{}, r.fail(name, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return ocispec.Descriptor{}, r.fail(name, err)
	}
	if m.ArtifactType != artifactType || len(m.Layers) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("%s:%s is no artifact of Smelt's", r.address, t)
	}
	return m.Layers[0], nil
}

func (r *registry) Get(ctx context.Context, name string, off int64) (io.ReadCloser, error) {
	d, err := r.layer(ctx, name)
	if err != nil {
		return nil, err
	}
	body, err := r.repo.Blobs().Fetch(ctx, d)
	if err != nil {
		return nil, r.fail(name, err)
	}
	if off > 0 {
		if s, ok := body.(io.Seeker); ok {
			_, err = s.Seek(off, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, body, off)
		}
		if err != nil {
			body.Close()
			return nil, r.fail(name, err)
		}
	}
	return body, nil
}

func (r *registry) Size(ctx context.Context, name string) (int64, error) {
	d, err := r.layer(ctx, name)
	return d.Size, err
}

func (r *registry) Put(ctx context.Context, name string, in io.ReaderAt, size int64) error {
	t, err := tag(name)
	if err != nil {
		return err
	}
	sum, err := digest.Canonical.FromReader(cancelled{ctx, io.NewSectionReader(in, 0, size)})
	if err != nil {
		return r.fail(name, err)
	}
	d := ocispec.Descriptor{
		MediaType: "application/octet-stream", Digest: sum, Size: size,
		Annotations: map[string]string{ocispec.AnnotationTitle: name[strings.Index(name, "/")+1:]},
	}
	there, err := r.repo.Blobs().Exists(ctx, d)
	if err == nil && !there {
		err = r.repo.Blobs().Push(ctx, d, io.NewSectionReader(in, 0, size))
	}
	if err != nil {
		return r.fail(name, err)
	}
	m, err := oras.PackManifest(ctx, r.repo, oras.PackManifestVersion1_1, artifactType, oras.PackManifestOptions{
		Layers: []ocispec.Descriptor{d},
		// The same object is the same artifact, whenever it is put.
		ManifestAnnotations: map[string]string{ocispec.AnnotationCreated: "1970-01-01T00:00:00Z", "vnd.smelt.name": name},
	})
	if err == nil {
		err = r.repo.Tag(ctx, m, t)
	}
	if err != nil {
		return r.fail(name, err)
	}
	return nil
}
