package build

import (
	"context"
	"os"
	"path/filepath"
)

// ProgramFiles are programs of Debian that machines load from the network.
type ProgramFiles struct {
	MemtestBIOS string // memtest86+, which boots as a Linux kernel does
	MemtestEFI  string
	Busybox     string // static
}

// Programs returns them out of cache, fetching them the first time.
func Programs(ctx context.Context, cache string) (ProgramFiles, error) {
	return cached(ctx, cache, "programs", openPrograms, fetchPrograms)
}

// openPrograms reads the folder that fetchPrograms leaves.
func openPrograms(dir string) (ProgramFiles, error) {
	p := ProgramFiles{
		MemtestBIOS: filepath.Join(dir, "boot/memtest86+x64.bin"),
		MemtestEFI:  filepath.Join(dir, "boot/memtest86+x64.efi"),
		Busybox:     filepath.Join(dir, "bin/busybox"),
	}
	for _, f := range []string{p.MemtestBIOS, p.MemtestEFI, p.Busybox} {
		if _, err := os.Stat(f); err != nil {
			return ProgramFiles{}, err
		}
	}
	return p, nil
}

func fetchPrograms(ctx context.Context, cache, tmp string) error {
	unlock, err := flock(ctx, filepath.Join(cache, "apt.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	a, err := openApt(ctx, cache, defaultSources("bookworm"))
	if err != nil {
		return err
	}
	if err := a.update(ctx); err != nil {
		return err
	}
	debs, err := a.download(ctx, tmp, "memtest86+", "busybox-static")
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
