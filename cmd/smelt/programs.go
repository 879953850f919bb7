package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"smelt/images/build"
	"smelt/internal/convert"
	"smelt/internal/secureboot"
	"smelt/internal/server"
	"smelt/pxe"
)

// Names under which programs are served.
const (
	memtestBIOS = "memtest.bin"
	memtestEFI  = "memtest.efi"
	busybox     = "busybox"
)

// addPrograms serves the memory test, with the site's signature for firmware
// that wants one, and the tools of a rescue.
func addPrograms(ctx context.Context, dir, cache, boot string, key secureboot.Key, files *pxe.Files) (convert.Memtest, server.Rescue, error) {
	fail := func(err error) (convert.Memtest, server.Rescue, error) {
		return convert.Memtest{}, server.Rescue{}, err
	}
	p, err := build.Programs(ctx, cache)
	if err != nil {
		return fail(err)
	}
	program, err := os.ReadFile(p.MemtestEFI)
	if err != nil {
		return fail(err)
	}
	signed := filepath.Join(dir, memtestEFI)
	if err := writeSigned(signed, program, key); err != nil {
		return fail(err)
	}
	tools, err := os.ReadFile(p.Busybox)
	if err != nil {
		return fail(err)
	}
	for name, path := range map[string]string{memtestBIOS: p.MemtestBIOS, memtestEFI: signed} {
		if err := files.AddFile(name, path); err != nil {
			return fail(err)
		}
	}
	if err := files.Add(busybox, tools); err != nil {
		return fail(err)
	}
	sum := sha256.Sum256(tools)
	return convert.Memtest{BIOS: memtestBIOS, EFI: memtestEFI}, server.Rescue{Tools: boot + "/boot/file/" + busybox, Digest: hex.EncodeToString(sum[:])}, nil
}
