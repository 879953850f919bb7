package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tools returns a folder with the locked tools, unpacked. They run from there:
// what the build host has installed makes no difference to a disk.
func (b *builder) tools(ctx context.Context) (string, error) {
	dir := filepath.Join(b.Cache, "tools", contentKey(b.Lock.Tools))
	root, complete := filepath.Join(dir, "root"), filepath.Join(dir, "complete")
	if exists(complete) {
		return root, touch(complete)
	}
	b.tell("tools", 0, "unpacking what makes the disk")
	debs, err := b.debs(ctx, b.Lock.Tools)
	if err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(b.Cache, "tools-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	for i, p := range b.Lock.Tools {
		b.tell("tools", float64(i)/float64(len(b.Lock.Tools)), "unpacking "+p.Name)
		if _, err := (command{name: "dpkg-deb", args: []string{"-x", debs[p.Name], work}, log: b.log}).run(ctx); err != nil {
			return "", err
		}
	}
	return root, b.keep(work, dir, 2)
}

// sweep removes what a build left that was killed. Only who holds the cache's
// build lock may.
func sweep(cache string) error {
	for _, n := range []string{"rootfs-*", "tools-*", "disk-*"} {
		left, err := filepath.Glob(filepath.Join(cache, n))
		if err != nil {
			return err
		}
		for _, d := range left {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep moves a finished tree to its place in the cache, beside which only the
// most recently used ones stay.
func (b *builder) keep(work, dir string, n int) error {
	if err := os.RemoveAll(dir); err != nil { // half of one
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	if err := os.Rename(work, filepath.Join(dir, "root")); err != nil {
		return err
	}
	// Durable before it counts: after a power cut, files that were not written
	// would be empty ones of a tree that says it is complete.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644); err != nil {
		return err
	}
	return prune(filepath.Dir(dir), n)
}
