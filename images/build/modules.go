package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// moduleStage is the tree in which the driver's modules are compiled: a base
// system, the kernel's headers, a compiler and DKMS, which the modules' package
// starts when it is configured. Nothing but the modules leaves it.
func (b *builder) moduleStage() stage {
	return stage{
		name: "modules", pkgs: b.Lock.Compile, ask: asked(b.Lock.Compile),
		exclude: []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"},
		files:   []File{{"/etc/dkms/framework.conf.d/smelt.conf", 0o644, dkmsConf}},
		// The kernels of some suites want their modules compressed; those of
		// ours take both.
		commands: []string{"find /lib/modules -path '*/updates/*' -name 'nvidia*.ko.xz' -exec xz --decompress {} +"},
	}
}

// dkmsConf is read by dkms(8) as shell. Without a program to sign with it
// makes no key: one of its own would be random in every build, so that no two
// modules are equal, and whoever enrolled it would trust whoever finds it.
// The rest is what a build of the kernel would put in of clock and host.
const dkmsConf = `sign_file=/nonexistent
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=smelt KBUILD_BUILD_HOST=smelt
`

// modules makes the driver's modules in a tree of their own, from
// Lock.Compile, and puts them into the image's tree; compiler and keys stay
// where they are. It runs after the packages and before the caller's files.
func (b *builder) modules(ctx context.Context, root, kernel string) error {
	want, err := b.Lock.driver(b.Recipe)
	if err != nil || want == nil {
		return err
	}
	if len(b.Lock.Compile) > 0 {
		b.tell("modules", 0, "compiling the driver's modules: takes minutes, and says nothing on the way")
		tree, cached, err := b.tree(ctx, b.moduleStage())
		if err != nil {
			return fmt.Errorf("the driver's modules: %w", err)
		}
		if err := takeModules(tree, root, kernel); err != nil {
			return fmt.Errorf("the driver's modules: %w", err)
		}
		// By the image's own kmod, which is the one that will read it.
		c := command{name: "chroot", args: []string{root, "/sbin/depmod", kernel}, jail: root, log: b.log}
		if _, err := c.run(ctx); err != nil {
			return fmt.Errorf("the driver's modules: %w (is kmod among the packages?)", err)
		}
		if !cached {
			b.tell("modules", 1, fmt.Sprintf("driver %s, %s, for kernel %s: compiler and key stay behind", want.Version, want.Modules, kernel))
		}
	}
	if err := b.Recipe.sealed(root); err != nil {
		return err
	}
	return driverIn(root, kernel, *want)
}

// takeModules copies the driver's modules, and nothing else, out of the tree
// that they were compiled in.
func takeModules(from, root, kernel string) error {
	found, err := nvidiaModules(filepath.Join(from, "lib/modules"))
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(p string) bool { return !strings.HasPrefix(p, filepath.Join(from, "lib/modules", kernel)+"/") })
	if len(found) == 0 {
		log, _ := filepath.Glob(filepath.Join(from, "var/lib/dkms/*/*/build/make.log"))
		said := ""
		if len(log) > 0 {
			if b, err := os.ReadFile(log[0]); err == nil {
				said = ":\n" + tail(string(b), 20)
			}
		}
		return fmt.Errorf("none came out of the packages under gpu compile for kernel %s%s", kernel, said)
	}
	// Through an os.Root: a link in the tree cannot lead it to the host's files.
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, p := range found {
		m, err := readModule(p)
		if err != nil {
			return err
		}
		if m.Signed {
			return fmt.Errorf("%s is signed, by a key that its own build made", filepath.Base(p))
		}
		to := filepath.Join("lib/modules", kernel, "updates/dkms", filepath.Base(p))
		if err := r.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyTo(r, to, p); err != nil {
			return err
		}
	}
	return nil
}

func copyTo(r *os.Root, to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := r.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.Chmod(0o644); err != nil { // whatever our umask
		return err
	}
	return dst.Close()
}
