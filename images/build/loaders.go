package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// LoaderFiles are first loaders that Debian signed, and had signed.
type LoaderFiles struct {
	Shim  string // signed with the key that vendors ship in their firmware
	GRUB  string // 2.12, signed with Debian's key, which shim carries
	ARM64 string // iPXE for 64-bit ARM; unsigned
}

// loaderSources are of Debian 13: the signed GRUB of Debian 12 is 2.06, with
// all its updates, and has no module for HTTP; Secure Boot lets it load none.
var loaderSources = defaultSources("trixie")

// Loaders returns Debian's current loaders out of cache, fetching them the
// first time. Remove cache/loaders to get newer ones: firmware refuses old ones
// once they are revoked.
func Loaders(ctx context.Context, cache string) (LoaderFiles, error) {
	return cached(ctx, cache, "loaders", openLoaders, fetchLoaders)
}

// openLoaders reads the folder that fetchLoaders leaves.
func openLoaders(dir string) (LoaderFiles, error) {
	l := LoaderFiles{
		Shim:  filepath.Join(dir, "usr/lib/shim/shimx64.efi.signed"),
		GRUB:  filepath.Join(dir, "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"),
		ARM64: filepath.Join(dir, "usr/lib/ipxe/ipxe-arm64.efi"),
	}
	for _, f := range []string{l.Shim, l.GRUB, l.ARM64} {
		if _, err := os.Stat(f); err != nil {
			return LoaderFiles{}, err
		}
	}
	return l, nil
}

func fetchLoaders(ctx context.Context, cache, tmp string) error {
	unlock, err := flock(ctx, filepath.Join(cache, "apt.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	a, err := openApt(ctx, cache, loaderSources)
	if err != nil {
		return err
	}
	if err := a.update(ctx); err != nil {
		return err
	}
	debs, err := a.download(ctx, tmp, "shim-signed", "grub-efi-amd64-signed", "ipxe")
	if err != nil {
		return err
	}
	for _, d := range debs {
		if _, err := (command{name: "dpkg-deb", args: []string{"-x", d, filepath.Join(tmp, "root")}}).run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cached returns what open finds in the folder name of cache. The first time
// fetch makes it, as the folder root in one of its own, and it is then moved
// into place whole.
func cached[T any](ctx context.Context, cache, name string, open func(dir string) (T, error), fetch func(ctx context.Context, cache, tmp string) error) (T, error) {
	var none T
	cache, err := filepath.Abs(cache)
	if err != nil {
		return none, err
	}
	dir := filepath.Join(cache, name)
	if v, err := open(dir); err == nil {
		return v, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return none, err
	}
	unlock, err := flock(ctx, filepath.Join(cache, name+".lock"))
	if err != nil {
		return none, err
	}
	defer unlock()
	if v, err := open(dir); err == nil {
		return v, nil // another process was first
	}
	tmp, err := os.MkdirTemp(cache, name+"-*")
	if err != nil {
		return none, err
	}
	defer os.RemoveAll(tmp)
	if err := fetch(ctx, cache, tmp); err != nil {
		return none, fmt.Errorf("fetch %s: %w", name, err)
	}
	os.RemoveAll(dir) // open refused it
	if err := os.Rename(filepath.Join(tmp, "root"), dir); err != nil {
		return none, err
	}
	return open(dir)
}
