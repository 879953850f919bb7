package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// s3 keeps objects under a prefix of a bucket.
type s3 struct {
	core    minio.Core
	address string
	bucket  string
	prefix  string
}

func newS3(host, bucket, prefix, region string, secure bool, c Credentials) (Remote, error) {
	// Without keys requests are anonymous: a bucket may be readable for all.
	cl, err := minio.New(host, &minio.Options{
		Creds: credentials.NewStaticV4(c.User, c.Password, ""), Secure: secure, Region: region,
		BucketLookup: minio.BucketLookupAuto, Transport: client.Transport,
	})
	if err != nil {
		return nil, fmt.Errorf("s3://%s: %w", host, err)
	}
	scheme := "s3+http"
	if secure {
		scheme = "s3"
	}
	return s3{minio.Core{Client: cl}, fmt.Sprintf("%s://%s", scheme, path.Join(host, bucket, prefix)), bucket, prefix}, nil
}

func (s s3) String() string { return s.address }

func (s s3) key(name string) (string, error) {
	return path.Join(s.prefix, name), checkName(name)
}

func (s s3) fail(name string, err error) error {
	r := minio.ToErrorResponse(err)
	switch {
	case r.Code == minio.NoSuchKey, r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket:
		return fmt.Errorf("%w: %s/%s", ErrNotFound, s.address, name)
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s/%s: %w: %s", s.address, name, ErrDenied, r.Code)
	}
	return fmt.Errorf("%s/%s: %w", s.address, name, err)
}

func (s s3) Get(ctx context.Context, name string, off int64) (io.ReadCloser, error) {
	key, err := s.key(name)
	if err != nil {
		return nil, err
	}
	var o minio.GetObjectOptions
	if off > 0 {
		if err := o.SetRange(off, 0); err != nil {
			return nil, err
		}
	}
	body, _, _, err := s.core.GetObject(ctx, s.bucket, key, o)
	if err != nil {
		return nil, s.fail(name, err)
	}
	return body, nil
}

func (s s3) Size(ctx context.Context, name string) (int64, error) {
	key, err := s.key(name)
	if err != nil {
		return 0, err
	}
	i, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return 0, s.fail(name, err)
	}
	return i.Size, nil
}

func (s s3) Put(ctx context.Context, name string, r io.ReaderAt, size int64) error {
	key, err := s.key(name)
	if err != nil {
		return err
	}
	if _, err := s.core.Client.PutObject(ctx, s.bucket, key, io.NewSectionReader(r, 0, size), size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", SendContentMd5: true,
	}); err != nil {
		return s.fail(name, err)
	}
	return nil
}
