package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"smelt/images"
)

// A stage is a tree of installed packages.
type stage struct {
	name     string // for progress
	pkgs     []Locked
	ask      []string // names of those that were asked for; the others follow
	exclude  []string
	include  []string
	files    []File
	commands []string
	remove   []string
	sources  string // the tree's own sources.list
}

// imageStage is the stage of the image itself.
func (b *builder) imageStage() stage {
	r := b.Recipe
	s := stage{
		name: "packages", pkgs: b.Lock.Packages, exclude: r.Exclude, include: r.Include,
		files: r.Files, commands: r.commands(), remove: r.Remove,
	}
	s.ask = asked(b.Lock.Packages)
	for _, src := range r.Sources {
		if src.Dir == "" {
			s.sources += strings.Join(src.lines(src.imageKey()), "\n") + "\n"
		}
	}
	return s
}

// asked returns the names of those that do not just follow from others.
func asked(pkgs []Locked) []string {
	var names []string
	for _, p := range pkgs {
		if p.Asked {
			names = append(names, p.Name)
		}
	}
	return names
}

// stageKey is what a stage follows from.
func (b *builder) stageKey(s stage) string {
	type pkg struct {
		Name string
		Sum  images.Digest
	}
	var pkgs []pkg
	for _, p := range s.pkgs {
		pkgs = append(pkgs, pkg{p.Name, p.SHA256})
	}
	return contentKey(builderVersion, b.Recipe.Suite, b.Lock.Date.Unix(), pkgs, s.ask, s.exclude, s.include, s.files, s.commands, s.remove, s.sources, b.Lock.Keys)
}

// tree returns the folder that holds a stage, building it when the cache has
// none.
func (b *builder) tree(ctx context.Context, s stage) (root string, cached bool, err error) {
	dir := filepath.Join(b.Cache, "rootfs", b.stageKey(s))
	root = filepath.Join(dir, "root")
	complete := filepath.Join(dir, "complete")
	if exists(complete) {
		b.tell(s.name, 1, "cached")
		return root, true, touch(complete) // keeps it from being pruned
	}
	debs, err := b.debs(ctx, s.pkgs)
	if err != nil {
		return "", false, err
	}
	// Unpacked, with the package files and room for what scripts make.
	var need int64 = 256 << 20
	for _, p := range s.pkgs {
		need += p.Installed<<10 + p.Size
	}
	if err := needSpace(b.Cache, need, "the tree of packages"); err != nil {
		return "", false, err
	}
	// Named like no finished one, on the same filesystem.
	work, err := os.MkdirTemp(b.Cache, "rootfs-*")
	if err != nil {
		return "", false, err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil { // apt fetches as a user of its own
		return "", false, err
	}
	if err := b.repository(ctx, filepath.Join(work, "repo"), s.pkgs, debs); err != nil {
		return "", false, err
	}
	if err := b.mmdebstrap(ctx, work, s); err != nil {
		return "", false, err
	}
	tree := filepath.Join(work, "root")
	if err := installed(tree, s.pkgs); err != nil {
		return "", false, err
	}
	if err := b.aptFiles(ctx, tree, s); err != nil {
		return "", false, err
	}
	if err := clean(tree, s.remove); err != nil {
		return "", false, err
	}
	return root, false, b.keep(tree, dir, keepTrees)
}

// repository makes a repository of exactly these packages: apt has nothing
// else to choose from.
func (b *builder) repository(ctx context.Context, dir string, pkgs []Locked, debs map[string]string) error {
	pool := filepath.Join(dir, "pool")
	lists := filepath.Join(dir, "dists", b.Recipe.Suite)
	for _, d := range []string{pool, filepath.Join(lists, "main", "binary-amd64")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	entries := make([]string, len(pkgs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range pkgs {
		g.Go(func() error {
			file := fmt.Sprintf("%s_%s.deb", p.Name, p.Arch)
			if err := os.Link(debs[p.Name], filepath.Join(pool, file)); err != nil {
				return err
			}
			c, err := control(ctx, debs[p.Name])
			if err != nil {
				return err
			}
			entries[i] = fmt.Sprintf("%sFilename: pool/%s\nSize: %d\nSHA256: %s\n\n", c, file, p.Size, p.SHA256)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	index := strings.Join(entries, "")
	if err := os.WriteFile(filepath.Join(lists, "main", "binary-amd64", "Packages"), []byte(index), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(lists, "Release"), fmt.Appendf(nil,
		"Suite: %[1]s\nCodename: %[1]s\nComponents: main\nArchitectures: amd64\nDate: %[2]s\nSHA256:\n %[3]x %[4]d main/binary-amd64/Packages\n",
		b.Recipe.Suite, b.Lock.Date.Format(time.RFC1123), sha256.Sum256([]byte(index)), len(index)), 0o644)
}

// installed holds what dpkg installed against the lock.
func installed(root string, pkgs []Locked) error {
	text, err := os.ReadFile(filepath.Join(root, "var/lib/dpkg/status"))
	if err != nil {
		return err
	}
	got := map[string]string{}
	if err := stanzas(string(text), func(f map[string]string) { got[f["Package"]] = f["Version"] }); err != nil {
		return err
	}
	for _, p := range pkgs {
		if got[p.Name] != p.Version {
			return fmt.Errorf("%s %s is locked, and installed is %q: %w", p.Name, p.Version, got[p.Name], ErrStale)
		}
		delete(got, p.Name)
	}
	for n, v := range got {
		return fmt.Errorf("%s %s is installed, and not locked: %w", n, v, ErrStale)
	}
	return nil
}

// aptFiles leave an image's apt as its owner would write it: the recipe's
// sources with their keys, and none of the builder's settings but the files
// that are never unpacked.
func (b *builder) aptFiles(ctx context.Context, root string, s stage) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.RemoveAll("etc/apt/sources.list.d"); err != nil {
		return err
	}
	for _, d := range []string{"etc/apt/sources.list.d", "etc/apt/keyrings", "etc/dpkg/dpkg.cfg.d"} {
		if err := r.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := r.WriteFile("etc/apt/sources.list", []byte(s.sources), 0o644); err != nil {
		return err
	}
	paths := ""
	for _, p := range s.exclude {
		paths += "path-exclude=" + p + "\n"
	}
	for _, p := range s.include {
		paths += "path-include=" + p + "\n"
	}
	if err := r.RemoveAll("etc/dpkg/dpkg.cfg.d/99mmdebstrap"); err != nil {
		return err
	}
	if paths != "" {
		if err := r.WriteFile("etc/dpkg/dpkg.cfg.d/smelt", []byte(paths), 0o644); err != nil {
			return err
		}
	}
	if s.sources == "" {
		return nil
	}
	for _, src := range b.Recipe.Sources {
		if !src.ownKey() {
			continue
		}
		from, err := fetchKey(ctx, b.Cache, src)
		if err != nil {
			return fmt.Errorf("source %s: %w", src.Name, err)
		}
		key, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("key of source %s: %w", src.Name, err)
		}
		if images.Digest(sha256.Sum256(key)) != b.Lock.Keys[src.Name] {
			return fmt.Errorf("key of source %s is not the one it was locked with: %w", src.Name, ErrStale)
		}
		if err := r.WriteFile(strings.TrimPrefix(src.imageKey(), "/"), key, 0o644); err != nil {
			return err
		}
	}
	return nil
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

func touch(stamp string) error {
	now := time.Now()
	return os.Chtimes(stamp, now, now)
}

// mmdebstrap makes work/root. Everything it writes is under work.
func (b *builder) mmdebstrap(ctx context.Context, work string, s stage) error {
	// Files would be dated before the newest package, and differ.
	if now := time.Now(); now.Before(b.Lock.Date) {
		return fmt.Errorf("this machine's clock says %s, which is before the packages were made (%s): set it",
			now.UTC().Format(time.DateTime), b.Lock.Date.Format(time.DateTime))
	}
	early := filepath.Join(work, "early")
	for _, f := range s.files {
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
	if err := os.WriteFile(aptConf, []byte("APT::Install-Recommends \"false\";\n"), 0o644); err != nil {
		return err
	}
	// The recipe's own settings win over a package's default, silently.
	dpkg := "force-confold\nforce-unsafe-io\n"
	for _, p := range s.exclude {
		dpkg += "path-exclude=" + p + "\n"
	}
	for _, p := range s.include {
		dpkg += "path-include=" + p + "\n"
	}
	dpkgConf := filepath.Join(work, "dpkg.cfg")
	if err := os.WriteFile(dpkgConf, []byte(dpkg), 0o644); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--architectures=amd64", "--format=directory",
		"--include=" + strings.Join(s.ask, ","),
		"--aptopt=" + aptConf, "--dpkgopt=" + dpkgConf,
		"--essential-hook=cp -a " + early + "/. \"$1\"",
	}
	for i, c := range s.commands {
		// Our chroot runner, the only way a recipe's command is run.
		script := filepath.Join(work, fmt.Sprintf("run-%d.sh", i))
		if err := os.WriteFile(script, []byte(c+"\n"), 0o644); err != nil {
			return err
		}
		args = append(args, "--customize-hook=chroot \"$1\" /bin/sh -eu -s <"+script)
	}
	// Copied: in the tree, dpkg does not see our folders.
	args = append(args, b.Recipe.Suite, filepath.Join(work, "root"),
		fmt.Sprintf("deb [trusted=yes] copy:%s %s main", filepath.Join(work, "repo"), b.Recipe.Suite))
	c := command{
		name: "mmdebstrap", args: args, jail: work, log: b.log, env: slices.Concat(b.env, []string{b.epoch()}),
		line: packageProgress(b.tell, s.name, 2*len(s.pkgs)),
	}
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", b.Recipe.path, err)
	}
	return nil
}

// packageProgress turns mmdebstrap's and dpkg's lines into progress. A package
// says "Unpacking" and later "Setting up".
func packageProgress(tell func(string, float64, string), stage string, total int) func(string) {
	var seen int
	return func(l string) {
		said, ok := strings.CutPrefix(l, "I: ")
		if !ok {
			if !strings.HasPrefix(l, "Unpacking ") && !strings.HasPrefix(l, "Setting up ") && !strings.HasPrefix(l, "update-initramfs: Generating") &&
				!strings.HasPrefix(l, "Building module") {
				return
			}
			seen++
			said = strings.TrimSuffix(l, " ...")
		}
		if strings.HasPrefix(said, "running --") { // a hook: its own lines say more
			said = "setting up the system"
		}
		tell(stage, min(0.97, float64(seen)/float64(total)), said)
	}
}

// clean removes what must not be shared by a hall of machines, and what nobody
// needs. It works through an os.Root: a link in the tree, such as Debian's own
// /var/run to /run, cannot lead it to the host's files.
func clean(root string, remove []string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, p := range append([]string{
		"/var/cache/apt/*", "/var/lib/apt/lists/*", "/var/log/*.log", "/var/log/apt/*", "/var/cache/debconf/*-old",
		"/var/lib/dpkg/*-old", "/etc/apt/apt.conf.d/99mmdebstrap", "/tmp/*", "/run/*",
		"/etc/munge/munge.key", // the package makes one: it would be every node's
		"/etc/ssh/ssh_host_*", "/var/lib/systemd/random-seed", "/var/lib/dbus/machine-id", "/etc/.pwd.lock",
	}, remove...) {
		name := strings.Trim(path.Clean(p), "/")
		found := []string{name}
		if strings.ContainsAny(name, `*?[\`) { // a plain name may be of a link that leads nowhere, which Glob passes over
			if found, err = fs.Glob(r.FS(), name); err != nil {
				return fmt.Errorf("remove %s: %w", p, err)
			}
		}
		for _, f := range found {
			if err := r.RemoveAll(f); err != nil {
				return fmt.Errorf("remove %s: %w", p, err)
			}
		}
	}
	// Empty, not absent and not "uninitialized": systemd then makes one up at
	// boot without calling it a first boot, which would enable every service
	// there is (machine-id(5), systemd.preset(5)).
	if err := r.RemoveAll("etc/machine-id"); err != nil {
		return err
	}
	return errors.Join(r.WriteFile("etc/machine-id", nil, 0o444), r.Chmod("etc/machine-id", 0o444)) // whatever our umask
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
