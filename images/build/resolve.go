package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/images"
)

// tools are the packages that a disk is made with, of Debian 13: its mke2fs is
// the first that reads a tar and keeps the clock out of the filesystem (1.47.2),
// for which it needs libarchive.
var tools = []string{
	"e2fsprogs", "libarchive13t64", "dosfstools", "mtools",
	"grub-common", "grub-pc-bin", "grub-efi-amd64-bin",
}

// base is what every system has: what mmdebstrap calls minbase, packages that
// are essential or required, and apt. The last says that /usr is merged, and
// keeps out usrmerge, which would do it and bring all of perl.
var base = []string{"?essential", "?priority(required)", "apt", "usr-is-merged"}

// toolSources are where the tools come from.
var toolSources = defaultSources("trixie")

// Resolver finds the packages of recipes.
type Resolver struct {
	Cache   string            // folder for what can be made again
	Mirrors map[string]string // other addresses of sources, by name
	Warn    func(string)      // told of sources that were left out
	Log     io.Writer         // takes what the tools say; may be nil
}

// Resolve asks the sources of one image's recipe, as they are now, for
// everything that it is made of and with.
func (v Resolver) Resolve(ctx context.Context, r Recipe) (Lock, error) {
	l, err := v.resolve(ctx, r)
	if err != nil {
		return Lock{}, fmt.Errorf("lock %s: %w", r.Title(), err)
	}
	return l, nil
}

func (v Resolver) resolve(ctx context.Context, r Recipe) (Lock, error) {
	if len(r.images) > 0 {
		return Lock{}, errors.New("the recipe has variants: each is locked for itself")
	}
	r, err := r.Mirrored(v.Mirrors)
	if err != nil {
		return Lock{}, err
	}
	if v.Cache, err = filepath.Abs(v.Cache); err != nil {
		return Lock{}, err
	}
	if err := os.MkdirAll(v.Cache, 0o755); err != nil {
		return Lock{}, err
	}
	unlock, err := flock(ctx, filepath.Join(v.Cache, "apt.lock"))
	if err != nil {
		return Lock{}, err
	}
	defer unlock()

	l := Lock{Image: r.Title(), Recipe: r.lockInput()}
	a, err := v.open(ctx, &r)
	if err != nil {
		return Lock{}, err
	}
	if l.Date, err = a.date(r.Sources); err != nil {
		return Lock{}, err
	}
	for _, s := range r.Sources {
		if s.ownKey() {
			d, err := fileDigest(s.Key)
			if err != nil {
				return Lock{}, fmt.Errorf("key of source %s: %w", s.Name, err)
			}
			if l.Keys == nil {
				l.Keys = map[string]images.Digest{}
			}
			l.Keys[s.Name] = d
		}
	}
	if l.Packages, err = a.closure(ctx, r, slices.Concat(base, r.Packages)); err != nil {
		return Lock{}, err
	}
	if r.GPU != nil && len(r.GPU.Compile) > 0 {
		if l.Compile, err = a.closure(ctx, r, slices.Concat(base, r.GPU.Compile)); err != nil {
			return Lock{}, err
		}
	}
	mirrored, err := Recipe{Suite: "trixie", Sources: toolSources, path: "the builder's tools"}.Mirrored(v.Mirrors)
	if err != nil {
		return Lock{}, err
	}
	t, err := v.open(ctx, &mirrored)
	if err != nil {
		return Lock{}, err
	}
	if l.Tools, err = t.closure(ctx, mirrored, tools); err != nil {
		return Lock{}, err
	}
	return l, l.agree(r)
}

// open returns an apt with the recipe's sources as they are now. A source that
// cannot be read and is optional is left out of r.
func (v Resolver) open(ctx context.Context, r *Recipe) (apt, error) {
	for i := range r.Sources {
		s := &r.Sources[i]
		if s.Dir != "" {
			if err := v.folder(ctx, s); err != nil {
				return apt{}, fmt.Errorf("%s:%d: source %s: %w", r.path, s.line, s.Name, err)
			}
			continue
		}
		key, err := fetchKey(ctx, v.Cache, *s)
		if err != nil && s.Optional {
			v.warn("%s: source %s is left out: %v", r.path, s.Name, err)
			r.Sources = slices.Delete(slices.Clone(r.Sources), i, i+1)
			return v.open(ctx, r)
		}
		if err != nil {
			return apt{}, fmt.Errorf("%s:%d: source %s: %w", r.path, s.line, s.Name, err)
		}
		s.Key = key
	}
	a, err := openApt(ctx, v.Cache, r.Sources)
	if err != nil {
		return apt{}, err
	}
	a.log = v.Log
	out, err := a.refresh(ctx)
	if err == nil {
		return a, nil
	}
	if ctx.Err() != nil {
		return apt{}, err
	}
	for i, s := range r.Sources {
		why := said(out, s.URL)
		if s.Dir != "" || why == "" {
			continue
		}
		if strings.Contains(why, "NO_PUBKEY") && s.Key == debianKeys {
			why += " (a newer debian-archive-keyring may have it: apt-get install debian-archive-keyring)"
		}
		if s.Optional {
			v.warn("%s: source %s is left out: %s", r.path, s.Name, why)
			r.Sources = slices.Delete(slices.Clone(r.Sources), i, i+1)
			return v.open(ctx, r)
		}
		at := r.path
		if s.line > 0 {
			at += ":" + strconv.Itoa(s.line)
		}
		return apt{}, fmt.Errorf("%s: source %s cannot be read: %s", at, s.Name, why)
	}
	return apt{}, err
}

func (v Resolver) warn(format string, args ...any) {
	if v.Warn != nil {
		v.Warn(fmt.Sprintf(format, args...))
	}
}

// said returns what apt complains of about a URL.
func said(out, url string) string {
	for l := range strings.Lines(out) {
		for _, p := range []string{"E: ", "W: "} {
			if m, ok := strings.CutPrefix(l, p); ok && strings.Contains(m, url) {
				return strings.TrimSpace(m)
			}
		}
	}
	return ""
}

// fetchKey returns the file of a source's keys.
func fetchKey(ctx context.Context, cache string, s Source) (string, error) {
	if !strings.HasPrefix(s.Key, "https://") {
		if _, err := os.Stat(s.Key); err != nil {
			hint := "put the keys that sign it there"
			if pkg := map[string]string{debianKeys: "debian-archive-keyring", ubuntuKeys: "ubuntu-archive-keyring"}[s.Key]; pkg != "" {
				hint = "apt-get install " + pkg
			}
			return "", fmt.Errorf("its key %s is not there: %s", s.Key, hint)
		}
		return s.Key, nil
	}
	// Whoever answered: apt takes no key of it but the one with the fingerprint.
	dir := filepath.Join(cache, "keys")
	for _, ext := range []string{".asc", ".gpg"} {
		if p := filepath.Join(dir, s.Fingerprint+ext); exists(p) {
			return p, nil
		}
	}
	tmp, err := os.MkdirTemp(cache, "key-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "key")
	if _, err := (command{name: aptHelper, args: []string{"-q", "download-file", s.Key, file}}).run(ctx); err != nil {
		return "", fmt.Errorf("its key cannot be fetched: %w", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	ext := ".gpg"
	if strings.HasPrefix(string(b), "-----BEGIN PGP") {
		ext = ".asc" // apt goes by the name (sources.list(5))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	p := filepath.Join(dir, s.Fingerprint+ext)
	return p, os.Rename(file, p)
}

// folder makes a repository of a folder of .deb files, beside it in the cache.
func (v Resolver) folder(ctx context.Context, s *Source) error {
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return fmt.Errorf("there is no .deb file in %s", dir)
	}
	repo := filepath.Join(v.Cache, "folder-"+contentKey(dir)[:12])
	if err := os.RemoveAll(repo); err != nil {
		return err
	}
	if err := os.MkdirAll(repo, 0o755); err != nil {
		return err
	}
	var index strings.Builder
	for _, d := range debs {
		if !debPath.MatchString(filepath.Base(d)) {
			return fmt.Errorf("%s: not a name that a repository can have", d)
		}
		c, err := control(ctx, d)
		if err != nil {
			return err
		}
		sum, err := fileDigest(d)
		if err != nil {
			return err
		}
		i, err := os.Stat(d)
		if err != nil {
			return err
		}
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %s\n\n", c, filepath.Base(d), i.Size(), sum)
		if err := os.Symlink(d, filepath.Join(repo, filepath.Base(d))); err != nil {
			return err
		}
	}
	s.repo = repo
	return os.WriteFile(filepath.Join(repo, "Packages"), []byte(index.String()), 0o644)
}

// control is a package's own description, with a line's end.
func control(ctx context.Context, deb string) (string, error) {
	out, err := command{name: "dpkg-deb", args: []string{"-f", deb}}.run(ctx)
	if err != nil {
		return "", fmt.Errorf("%s is no package: %w", deb, err)
	}
	return strings.TrimRight(out, "\n") + "\n", nil
}

// date is that of the newest package list (the Date of its Release file), or
// of the newest file in a folder of packages.
func (a apt) date(sources []Source) (time.Time, error) {
	var newest time.Time
	for _, s := range sources {
		if s.Dir == "" {
			continue
		}
		debs, err := filepath.Glob(filepath.Join(s.Dir, "*.deb"))
		if err != nil {
			return newest, err
		}
		for _, d := range debs {
			if i, err := os.Stat(d); err == nil && i.ModTime().After(newest) {
				newest = i.ModTime().Truncate(time.Second)
			}
		}
	}
	for _, glob := range []string{"*_InRelease", "*_Release"} {
		files, err := filepath.Glob(filepath.Join(a.dir, "lists", glob))
		if err != nil {
			return newest, err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return newest, err
			}
			for l := range strings.Lines(string(b)) {
				if v, ok := strings.CutPrefix(l, "Date: "); ok {
					d, err := time.Parse(time.RFC1123, strings.TrimSpace(v))
					if err == nil && d.After(newest) {
						newest = d
					}
					break
				}
			}
		}
	}
	if newest.IsZero() {
		return newest, errors.New("no package list says when it was made")
	}
	return newest.UTC(), nil
}

var (
	noPackage = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate|(?:Version|Release) '\S+' for '(\S+)' was not found)`)
	installs  = regexp.MustCompile(`(?m)^Inst ([^ :]+)(?::\S+)? (?:\[[^\]]*\] )?\((\S+) [^)]*\[([a-z0-9]+)\]\)`)
)

// closure returns what apt would install for some names into an empty system,
// by name.
func (a apt) closure(ctx context.Context, r Recipe, names []string) ([]Locked, error) {
	out, err := a.command("apt-get", slices.Concat([]string{"-q", "-s", "install"}, names)...).run(ctx)
	if err != nil {
		var wrong []error
		for _, m := range noPackage.FindAllStringSubmatch(out, -1) {
			p := m[1] + m[2] + m[3]
			at := r.path
			if n := r.lines[p]; n > 0 {
				at += ":" + strconv.Itoa(n)
			}
			what := p
			if i := slices.IndexFunc(names, func(n string) bool { return bareName(n) == p }); i >= 0 {
				what = names[i]
			}
			wrong = append(wrong, fmt.Errorf("%s: there is no package %s in %s of %s", at, what, r.Suite, sourceNames(r.Sources)))
		}
		if len(wrong) > 0 {
			return nil, errors.Join(wrong...)
		}
		return nil, fmt.Errorf("%s: the packages do not fit together: %w", r.path, err)
	}
	index, err := a.index(ctx)
	if err != nil {
		return nil, err
	}
	var all []Locked
	for _, m := range installs.FindAllStringSubmatch(out, -1) {
		l, ok := index[[3]string{m[1], m[2], m[3]}]
		if !ok {
			return nil, fmt.Errorf("apt chose %s %s for %s, which no list has", m[1], m[2], m[3])
		}
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("package lists: %w", err)
		}
		l.Asked = l.Asked || slices.ContainsFunc(names, func(n string) bool { return bareName(n) == l.Name })
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Locked) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(all); i++ {
		if all[i].Name == all[i-1].Name {
			return nil, fmt.Errorf("%s is chosen for two architectures, of which a lock holds one", all[i].Name)
		}
	}
	return all, nil
}

func sourceNames(all []Source) string {
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

// index reads the lists: every package there is, by name, version and
// architecture. Of two that are the same, the earlier source's counts.
func (a apt) index(ctx context.Context) (map[[3]string]Locked, error) {
	out, err := a.command("apt-get", "indextargets", "--format", "$(SOURCESENTRY) $(FILENAME)", "Created-By: Packages").run(ctx)
	if err != nil {
		return nil, err
	}
	all := map[[3]string]Locked{}
	for l := range strings.Lines(out) {
		entry, file, ok := strings.Cut(strings.TrimSpace(l), " ")
		if !ok || !exists(file) {
			continue // a suite without packages for this architecture
		}
		n, err := strconv.Atoi(entry[strings.LastIndex(entry, ":")+1:])
		if err != nil || n < 1 || n > len(a.entries) {
			return nil, fmt.Errorf("apt has a source at %q", entry)
		}
		text, err := a.command(aptHelper, "cat-file", file).run(ctx)
		if err != nil {
			return nil, err
		}
		if err := stanzas(text, func(f map[string]string) {
			p := lockedFrom(f, a.entries[n-1])
			k := [3]string{p.Name, p.Version, p.Arch}
			if _, ok := all[k]; !ok {
				all[k] = p
			}
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
}

// lockedFrom reads one entry of a package list.
func lockedFrom(f map[string]string, source string) Locked {
	p := Locked{Name: f["Package"], Version: f["Version"], Arch: f["Architecture"], Source: source, Path: strings.TrimPrefix(f["Filename"], "./")}
	// Of the list, not of the package: the archive overrides what that says.
	p.Asked = f["Priority"] == "required" || f["Essential"] == "yes"
	p.Size, _ = strconv.ParseInt(f["Size"], 10, 64) // what is wrong is refused by check
	p.Installed, _ = strconv.ParseInt(f["Installed-Size"], 10, 64)
	p.SHA256, _ = images.ParseDigest(f["SHA256"])
	if o, _, _ := strings.Cut(f["Source"], " "); o != p.Name {
		p.Origin = o
	}
	return p
}

// indexFields are those of a package list that are read.
var indexFields = []string{"Package", "Version", "Architecture", "Filename", "Size", "Installed-Size", "SHA256", "Source", "Priority", "Essential"}

// stanzas reads a file of deb822(5) and hands out the fields of interest.
func stanzas(text string, each func(map[string]string)) error {
	f := map[string]string{}
	s := bufio.NewScanner(strings.NewReader(text))
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		l := s.Text()
		if l == "" {
			if len(f) > 0 {
				each(f)
				f = map[string]string{}
			}
			continue
		}
		if k, v, ok := strings.Cut(l, ":"); ok && l[0] != ' ' && l[0] != '\t' && slices.Contains(indexFields, k) {
			f[k] = strings.TrimSpace(v)
		}
	}
	if len(f) > 0 {
		each(f)
	}
	return s.Err()
}

var kernelImage = regexp.MustCompile(`^linux-image-(?:unsigned-)?([0-9].*)$`)

// agree holds the parts of a lock that must be of one version against each
// other: what was in step when the recipe was written need not be today.
func (l Lock) agree(r Recipe) error {
	var kernels []string
	for _, p := range l.Packages {
		if m := kernelImage.FindStringSubmatch(p.Name); m != nil {
			kernels = append(kernels, m[1])
		}
	}
	at := r.path
	if n := r.lines[bareName(r.Kernel)]; n > 0 {
		at += ":" + strconv.Itoa(n)
	}
	if len(kernels) != 1 {
		return fmt.Errorf("%s: %s brings %d kernels %v, want one", at, r.Kernel, len(kernels), kernels)
	}
	for _, p := range l.Compile {
		if own, ok := l.Find(p.Name); ok && own.SHA256 != p.SHA256 {
			return fmt.Errorf("%s: the image has %s %s, and the modules are made with %s", r.path, p.Name, own.Version, p.Version)
		}
	}
	if len(l.Compile) > 0 {
		if _, ok := find(l.Compile, "linux-headers-"+kernels[0]); !ok {
			return fmt.Errorf("%s: the modules would be made for another kernel than %s: gpu.compile needs its headers (linux-headers-amd64), from the source that the kernel is of",
				at, kernels[0])
		}
	}
	return l.driverAgrees(r)
}
