package main

import (
	"context"
	"time"

	"smelt/images/build"
	"smelt/pxe"
)

// loadersTime is how long a start of the server waits for Debian's mirror when
// the loaders are not in the cache yet.
const loadersTime = time.Minute

// addDebianLoaders serves what machines need that accept neither our signature
// nor an unsigned program. Without a way to Debian's mirror, and with nothing
// in the cache, the others boot all the same.
func addDebianLoaders(ctx context.Context, cache string, files *pxe.Files) error {
	ctx, cancel := context.WithTimeout(ctx, loadersTime)
	defer cancel()
	l, err := build.Loaders(ctx, cache)
	if err != nil {
		return err
	}
	for name, path := range map[string]string{pxe.LoaderShim: l.Shim, pxe.LoaderGRUB: l.GRUB, pxe.LoaderARM64: l.ARM64} {
		if err := files.AddFile(name, path); err != nil {
			return err
		}
	}
	return nil
}
