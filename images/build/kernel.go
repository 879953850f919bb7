package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// KernelFiles is a kernel as the RAM system's initramfs needs it.
type KernelFiles struct {
	Release string // 6.1.0-56-amd64
	Vmlinuz string
	Modules string // the lib/modules/RELEASE folder, with modules.dep and modules.alias
}

// kernelPackage is Debian's server kernel. Never the cloud kernel: it has no
// server NICs, no AHCI and no IPMI.
const kernelPackage = "linux-image-amd64"

// Kernel returns Debian's current server kernel out of cache, fetching it the
// first time. Remove cache/kernel to get a newer one.
func Kernel(ctx context.Context, cache string) (KernelFiles, error) {
	k, err := cached(ctx, cache, "kernel", openKernel, fetchKernel)
	if err != nil {
		return KernelFiles{}, fmt.Errorf("kernel of the RAM system: %w", err)
	}
	return k, nil
}

// openKernel reads the folder that fetchKernel leaves.
func openKernel(dir string) (KernelFiles, error) {
	b, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return KernelFiles{}, err
	}
	r := strings.TrimSpace(string(b))
	k := KernelFiles{
		Release: r,
		Vmlinuz: filepath.Join(dir, "boot", "vmlinuz-"+r),
		Modules: filepath.Join(dir, "lib", "modules", r),
	}
	for _, f := range []string{k.Vmlinuz, filepath.Join(k.Modules, "modules.dep")} {
		if _, err := os.Stat(f); err != nil {
			return KernelFiles{}, err
		}
	}
	return k, nil
}

func fetchKernel(ctx context.Context, cache, tmp string) error {
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
	deps, err := a.depends(ctx, kernelPackage)
	if err != nil {
		return err
	}
	pkg := ""
	for _, d := range deps {
		if strings.HasPrefix(d, "linux-image-") {
			pkg = d
		}
	}
	if pkg == "" {
		return fmt.Errorf("%s depends on no kernel: %q", kernelPackage, deps)
	}
	debs, err := a.download(ctx, tmp, pkg)
	if err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	if _, err := (command{name: "dpkg-deb", args: []string{"-x", debs[0], root}}).run(ctx); err != nil {
		return err
	}
	release := strings.TrimPrefix(pkg, "linux-image-")
	if err := depmod(ctx, a, tmp, root, release); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "release"), []byte(release+"\n"), 0o644)
}

// depmod writes modules.dep and modules.alias, which the package's own scripts
// would do on installation. A build container has no kmod as a rule, and
// installing packages on the host is not ours to do: it runs from the package.
func depmod(ctx context.Context, a apt, tmp, root, release string) error {
	c := command{name: "depmod", args: []string{"-b", root, release}}
	if _, err := findTool("depmod"); err != nil {
		debs, err := a.download(ctx, tmp, "kmod", "libkmod2")
		if err != nil {
			return err
		}
		tool := filepath.Join(tmp, "kmod")
		for _, d := range debs {
			if _, err := (command{name: "dpkg-deb", args: []string{"-x", d, tool}}).run(ctx); err != nil {
				return err
			}
		}
		// The package's own link is absolute: it would leave the folder.
		c.name = filepath.Join(tool, "depmod")
		if err := os.Symlink("bin/kmod", c.name); err != nil {
			return err
		}
		c.env = []string{"LD_LIBRARY_PATH=" + filepath.Join(tool, "lib", "x86_64-linux-gnu") + ":" +
			filepath.Join(tool, "usr", "lib", "x86_64-linux-gnu")}
	}
	_, err := c.run(ctx)
	return err
}
