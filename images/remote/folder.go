package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Folder keeps objects in a folder, which any web server can serve.
type Folder string

func (f Folder) String() string { return string(f) }

func (f Folder) path(name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	return filepath.Join(string(f), filepath.FromSlash(name)), nil
}

// Get implements Remote.
func (f Folder) Get(_ context.Context, name string, off int64) (io.ReadCloser, error) {
	path, err := f.path(name)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, missing(err)
	}
	if _, err := file.Seek(off, io.SeekStart); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Size implements Remote.
func (f Folder) Size(_ context.Context, name string) (int64, error) {
	path, err := f.path(name)
	if err != nil {
		return 0, err
	}
	i, err := os.Stat(path)
	if err != nil {
		return 0, missing(err)
	}
	return i.Size(), nil
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %v", ErrNotFound, err)
	}
	return err
}

// Put implements Remote.
func (f Folder) Put(ctx context.Context, name string, r io.ReaderAt, size int64) error {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	t, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(t.Name()) // gone by then, when all went well
	defer t.Close()
	n, err := io.Copy(t, cancelled{ctx, io.NewSectionReader(r, 0, size)})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if n != size {
		return fmt.Errorf("%s: %d bytes came, not %d", path, n, size)
	}
	if err := errors.Join(t.Chmod(0o644), t.Sync()); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c cancelled) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
