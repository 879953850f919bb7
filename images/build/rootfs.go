package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// packages returns the folder that holds the tree of the recipe's packages,
// files and commands, building it when the cache has none.
func (b *builder) packages(ctx context.Context) (string, error) {
	dir := filepath.Join(b.Cache, "rootfs", b.Recipe.packagesKey())
	root := filepath.Join(dir, "root")
	complete := filepath.Join(dir, "complete")
	if exists(complete) {
		b.tell("packages", 1, "cached")
		now := time.Now()
		return root, os.Chtimes(complete, now, now) // keeps it from being pruned
	}
	b.tell("packages", 0, "checking names")
	if err := b.checkPackages(ctx); err != nil {
		return "", err
	}
	// Named like no finished one, on the same filesystem.
	work, err := os.MkdirTemp(b.Cache, "rootfs-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil { // apt fetches as a user of its own
		return "", err
	}
	if err := b.mmdebstrap(ctx, work); err != nil {
		return "", err
	}
	if err := clean(filepath.Join(work, "root"), b.Recipe.Remove); err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil { // half of one
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(work, "root"), root); err != nil {
		return "", err
	}
	if err := os.WriteFile(complete, nil, 0o644); err != nil {
		return "", err
	}
	return root, prune(filepath.Join(b.Cache, "rootfs"), keepTrees)
}

// keepTrees is how many trees of packages, some 400 MB each, stay in the cache.
const keepTrees = 4

// prune removes all but the most recently used trees.
func prune(dir string, keep int) error {
	stamps, err := filepath.Glob(filepath.Join(dir, "*", "complete"))
	if err != nil {
		return err
	}
	used := func(stamp string) time.Time {
		i, err := os.Stat(stamp)
		if err != nil {
			return time.Time{}
		}
		return i.ModTime()
	}
	slices.SortFunc(stamps, func(a, b string) int { return used(b).Compare(used(a)) })
	for _, s := range stamps[min(keep, len(stamps)):] {
		// The stamp goes first: half a tree is none.
		if err := errors.Join(os.Remove(s), os.RemoveAll(filepath.Dir(s))); err != nil {
			return err
		}
	}
	return nil
}

var noPackage = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate)`)

// checkPackages finds a wrong name in two seconds instead of a minute, and
// says where it stands.
func (b *builder) checkPackages(ctx context.Context) error {
	unlock, err := lock(ctx, filepath.Join(b.Cache, "apt.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	a, err := openApt(ctx, b.Cache, b.Recipe.Sources)
	if err != nil {
		return err
	}
	if err := a.update(ctx); err != nil {
		return err
	}
	out, err := a.command("apt-get", append([]string{"-q", "-s", "install"}, b.Recipe.Packages...)...).run(ctx)
	if err == nil {
		return nil
	}
	var wrong []error
	for _, m := range noPackage.FindAllStringSubmatch(out, -1) {
		p := m[1] + m[2]
		wrong = append(wrong, fmt.Errorf("%s:%d: there is no package %s in %s", b.Recipe.path, b.Recipe.lines[p], p, b.Recipe.Suite))
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	return fmt.Errorf("%s: packages do not fit together: %w", b.Recipe.path, err)
}

// mmdebstrap makes work/root. Everything it writes is under work.
func (b *builder) mmdebstrap(ctx context.Context, work string) error {
	r := b.Recipe
	acquire, err := hostAcquire(ctx)
	if err != nil {
		return err
	}
	early := filepath.Join(work, "early")
	for _, f := range r.Files {
		p := filepath.Join(early, f.Path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(f.Content), f.Mode); err != nil {
			return err
		}
		if err := os.Chmod(p, f.Mode); err != nil { // whatever our umask
			return err
		}
	}
	if err := os.MkdirAll(early, 0o755); err != nil {
		return err
	}
	aptConf := filepath.Join(work, "apt.conf")
	if err := os.WriteFile(aptConf, []byte(acquire+"APT::Install-Recommends \"false\";\n"), 0o644); err != nil {
		return err
	}
	// The recipe's own settings win over a package's default, silently.
	dpkg := "force-confold\nforce-unsafe-io\n"
	for _, p := range r.Exclude {
		dpkg += "path-exclude=" + p + "\n"
	}
	for _, p := range r.Include {
		dpkg += "path-include=" + p + "\n"
	}
	dpkgConf := filepath.Join(work, "dpkg.cfg")
	if err := os.WriteFile(dpkgConf, []byte(dpkg), 0o644); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--architectures=amd64", "--format=directory",
		"--include=" + strings.Join(r.Packages, ","),
		"--aptopt=" + aptConf, "--dpkgopt=" + dpkgConf,
		"--essential-hook=cp -a " + early + "/. \"$1\"",
	}
	for i, c := range r.commands() {
		// Our chroot runner, the only way a recipe's command is run.
		script := filepath.Join(work, fmt.Sprintf("run-%d.sh", i))
		if err := os.WriteFile(script, []byte(c+"\n"), 0o644); err != nil {
			return err
		}
		args = append(args, "--customize-hook=chroot \"$1\" /bin/sh -eu -s <"+script)
	}
	args = append(args, r.Suite, filepath.Join(work, "root"), "-")
	sources, list := filepath.Join(work, "sources.list"), ""
	for _, s := range r.Sources {
		list += strings.Join(s.lines(s.Key), "\n") + "\n"
	}
	if err := os.WriteFile(sources, []byte(list), 0o644); err != nil {
		return err
	}
	c := command{
		name: "mmdebstrap", args: args, jail: work, stdin: sources,
		line: packageProgress(b.tell),
	}
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", r.path, err)
	}
	return nil
}

// packageProgress turns mmdebstrap's and dpkg's lines into progress. A package
// says "Unpacking" and later "Setting up"; how many there are is known from
// apt's "N newly installed".
func packageProgress(tell func(string, float64, string)) func(string) {
	var seen, total int
	newly := regexp.MustCompile(`(\d+) newly installed`)
	return func(l string) {
		if m := newly.FindStringSubmatch(l); m != nil {
			n := 0
			fmt.Sscan(m[1], &n)
			total += 2 * n
			return
		}
		said, ok := strings.CutPrefix(l, "I: ")
		if !ok {
			if !strings.HasPrefix(l, "Unpacking ") && !strings.HasPrefix(l, "Setting up ") && !strings.HasPrefix(l, "update-initramfs: Generating") {
				return
			}
			seen++
			said = strings.TrimSuffix(l, " ...")
		}
		// The essential packages come first and are not counted by apt: the
		// bar must not run ahead of the rest.
		tell("packages", min(0.95, float64(seen)/float64(max(total, 450))), said)
	}
}

// clean removes what must not be shared by a hall of machines, and what nobody
// needs.
func clean(root string, remove []string) error {
	for _, p := range append([]string{
		"/var/cache/apt/*", "/var/lib/apt/lists/*", "/var/log/*.log", "/var/log/apt/*", "/var/cache/debconf/*-old",
		"/var/lib/dpkg/*-old", "/etc/apt/apt.conf.d/99mmdebstrap", "/tmp/*", "/run/*",
		"/etc/munge/munge.key", // the package makes one: it would be every node's
		"/etc/ssh/ssh_host_*", "/var/lib/systemd/random-seed", "/var/lib/dbus/machine-id", "/etc/.pwd.lock",
	}, remove...) {
		found, err := filepath.Glob(filepath.Join(root, p))
		if err != nil {
			return fmt.Errorf("remove %s: %w", p, err)
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	// Empty, not absent and not "uninitialized": systemd then makes one up at
	// boot without calling it a first boot, which would enable every service
	// there is (machine-id(5), systemd.preset(5)).
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444)
}

// size adds up what a tree takes in an ext4 filesystem.
func size(root string) (bytes, files int64, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		files++
		switch {
		case i.Mode().IsRegular():
			bytes += (i.Size() + 4095) &^ 4095
		case i.IsDir():
			bytes += 4096
		}
		return nil
	})
	return bytes, files, err
}
