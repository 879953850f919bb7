package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"smelt/images"
)

// Lock is every package that an image is made of and with, down to its bytes.
// A build takes nothing else from any repository, so the same lock gives the
// same image wherever and whenever it is built.
type Lock struct {
	Image string // the recipe's title
	// Recipe is the digest of the part of the recipe that was resolved: a lock
	// of another recipe is refused.
	Recipe images.Digest
	// Date is that of the newest package list. It is the date of the image and
	// the newest date of any file in it, so that no clock leaves a trace.
	Date time.Time

	// Keys are the digests of the keys that the image's own apt will trust, by
	// source; those that a package brings are not among them.
	Keys map[string]images.Digest

	Packages []Locked // of the image
	Compile  []Locked // of the sealed stage that makes the driver's modules, base system and all
	Tools    []Locked // what the disk is made with: never the build host's own
}

// Locked is one package of a lock.
type Locked struct {
	Name      string        `json:"name"`
	Version   string        `json:"version"`
	Arch      string        `json:"arch"`
	SHA256    images.Digest `json:"sha256"`
	Size      int64         `json:"size"`             // of the .deb
	Installed int64         `json:"installedKiB"`     // as its maintainer says
	Origin    string        `json:"origin,omitempty"` // source package, when it is another name
	Asked     bool          `json:"asked,omitempty"`  // for by the recipe or as part of every system; the others follow
	Source    string        `json:"source"`           // name of the recipe's source
	Path      string        `json:"path"`             // below the source's URL or folder
}

// Upstream is the version without Debian's epoch and revision: 535.309.01 of
// 1:535.309.01-1~deb12u1 (Debian policy 5.6.12).
func (l Locked) Upstream() string {
	v := l.Version
	if i := strings.Index(v, ":"); i >= 0 {
		v = v[i+1:]
	}
	if i := strings.LastIndex(v, "-"); i >= 0 {
		v = v[:i]
	}
	return v
}

// Find returns the image's package of a name.
func (l Lock) Find(name string) (Locked, bool) { return find(l.Packages, name) }

func find(pkgs []Locked, name string) (Locked, bool) {
	i, ok := slices.BinarySearchFunc(pkgs, name, func(p Locked, n string) int { return strings.Compare(p.Name, n) })
	if !ok {
		return Locked{}, false
	}
	return pkgs[i], true
}

// lockInput is what a lock follows from, beside what the repositories hold.
func (r Recipe) lockInput() images.Digest {
	type source struct {
		Name                           string
		Suites, Components, PinPackage []string
		Pin                            string
		Folder                         bool
	}
	var sources []source
	for _, s := range r.Sources {
		sources = append(sources, source{s.Name, s.Suites, s.Components, s.PinPackages, s.Pin, s.Dir != ""})
	}
	var compile []string
	if r.GPU != nil {
		compile = r.GPU.Compile
	}
	d, err := images.ParseDigest(contentKey("lock", lockVersion, r.Arch, r.Suite, sources, r.Packages, compile))
	if err != nil {
		panic("build: lock: " + err.Error())
	}
	return d
}

// Fits says why the lock cannot be built from, if it is another recipe's.
func (l Lock) Fits(r Recipe) error {
	if l.Image != r.Title() {
		return fmt.Errorf("the lock is of image %s, not of %s", l.Image, r.Title())
	}
	if l.Recipe != r.lockInput() {
		return fmt.Errorf("packages, sources, kernel or driver of %s changed since it was locked: %w", r.path, ErrStale)
	}
	return nil
}

// ErrStale is wrapped where locking again would help.
var ErrStale = errors.New("lock it again: smelt image lock")

// LockPath is where the lock of a recipe lies: beside it, by the image's title.
func (r Recipe) LockPath() string { return filepath.Join(filepath.Dir(r.path), r.Title()+".lock") }

// lockVersion changes with what a lock holds: an older one is locked again.
const lockVersion = 1

// rawLock is the file. Packages are one line each, so that a version control
// system shows what changed.
type rawLock struct {
	Version  int               `yaml:"version"`
	Image    string            `yaml:"image"`
	Recipe   string            `yaml:"recipe"`
	Date     string            `yaml:"date"`
	Keys     map[string]string `yaml:"keys"`
	Packages []yaml.Node       `yaml:"packages"`
	Compile  []yaml.Node       `yaml:"compile"`
	Tools    []yaml.Node       `yaml:"tools"`
}

// Encode returns the file.
func (l Lock) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Every package of image %s. Made by smelt image lock: do not edit.\n", l.Image)
	fmt.Fprintf(&b, "version: %d\nimage: %s\nrecipe: %s\ndate: %q\n", lockVersion, l.Image, l.Recipe, l.Date.UTC().Format(time.RFC3339))
	if len(l.Keys) > 0 {
		b.WriteString("keys:\n")
		for _, n := range slices.Sorted(maps.Keys(l.Keys)) {
			fmt.Fprintf(&b, "  %s: %s\n", n, l.Keys[n])
		}
	}
	for _, s := range []struct {
		key  string
		pkgs []Locked
	}{{"packages", l.Packages}, {"compile", l.Compile}, {"tools", l.Tools}} {
		if len(s.pkgs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s:\n", s.key)
		for _, p := range s.pkgs {
			j, err := json.Marshal(p) // a JSON object is a YAML flow mapping (YAML 1.2, 1.3)
			if err != nil {
				panic("build: lock: " + err.Error())
			}
			fmt.Fprintf(&b, "- %s\n", j)
		}
	}
	return b.Bytes()
}

// Digest names the lock: that of the file.
func (l Lock) Digest() images.Digest { return sha256.Sum256(l.Encode()) }

var (
	debVersion = regexp.MustCompile(`^[0-9A-Za-z.+:~-]+$`) // Debian policy 5.6.12
	debArch    = regexp.MustCompile(`^(all|amd64|arm64)$`)
	debPath    = regexp.MustCompile(`^[A-Za-z0-9.+:~_%/-]+\.deb$`)
)

// ParseLock reads a lock file.
func ParseLock(file string) (Lock, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Lock{}, fmt.Errorf("lock: %w", err)
	}
	return parseLock(file, b)
}

func parseLock(file string, b []byte) (Lock, error) {
	p := parser{file}
	var raw rawLock
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&raw); err != nil {
		return Lock{}, fmt.Errorf("%s: %s", file, yamlMistake(err))
	}
	if raw.Version != lockVersion {
		return Lock{}, p.bad(0, "a lock of version %d, want %d: %w", raw.Version, lockVersion, ErrStale)
	}
	l := Lock{Image: raw.Image}
	var err error
	if !recipeName.MatchString(l.Image) {
		return Lock{}, p.bad(0, "image %q: want a name", l.Image)
	}
	if l.Recipe, err = images.ParseDigest(raw.Recipe); err != nil {
		return Lock{}, p.bad(0, "recipe: %v", err)
	}
	if l.Date, err = time.Parse(time.RFC3339, raw.Date); err != nil || l.Date.Unix() < 1 || l.Date.Year() > 9999 {
		return Lock{}, p.bad(0, "date %q: want a time such as 2026-11-21T00:53:02Z", raw.Date)
	}
	l.Date = l.Date.UTC()
	for n, v := range raw.Keys {
		d, err := images.ParseDigest(v)
		if err != nil || !sourceName.MatchString(n) {
			return Lock{}, p.bad(0, "key of source %q: want a digest", n)
		}
		if l.Keys == nil {
			l.Keys = map[string]images.Digest{}
		}
		l.Keys[n] = d
	}
	for _, s := range []struct {
		nodes []yaml.Node
		into  *[]Locked
	}{{raw.Packages, &l.Packages}, {raw.Compile, &l.Compile}, {raw.Tools, &l.Tools}} {
		for _, n := range s.nodes {
			one, err := lockedOf(n)
			if err != nil {
				return Lock{}, p.bad(n.Line, "%v", err)
			}
			if k := len(*s.into); k > 0 && (*s.into)[k-1].Name >= one.Name {
				return Lock{}, p.bad(n.Line, "package %s is out of order or there twice", one.Name)
			}
			*s.into = append(*s.into, one)
		}
	}
	if len(l.Packages) == 0 || len(l.Tools) == 0 {
		return Lock{}, p.bad(0, "it locks no packages, or no tools: %w", ErrStale)
	}
	return l, nil
}

func lockedOf(n yaml.Node) (Locked, error) {
	var raw struct {
		Name, Version, Arch, SHA256, Origin, Source, Path string
		Size                                              int64
		Asked                                             bool
		Installed                                         int64 `yaml:"installedKiB"`
	}
	known := []string{"name", "version", "arch", "sha256", "size", "installedKiB", "origin", "asked", "source", "path"}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Kind == yaml.MappingNode && !slices.Contains(known, n.Content[i].Value) {
			return Locked{}, fmt.Errorf("field %s is not known", n.Content[i].Value)
		}
	}
	if err := n.Decode(&raw); err != nil {
		return Locked{}, errors.New(yamlMistake(err))
	}
	l := Locked{Name: raw.Name, Version: raw.Version, Arch: raw.Arch, Size: raw.Size, Installed: raw.Installed,
		Origin: raw.Origin, Asked: raw.Asked, Source: raw.Source, Path: raw.Path}
	var err error
	l.SHA256, err = images.ParseDigest(raw.SHA256)
	if err != nil {
		return Locked{}, err
	}
	return l, l.check()
}

// check refuses what could make a build reach beyond its folders or its
// sources.
func (l Locked) check() error {
	switch {
	case !packageName.MatchString(l.Name) || bareName(l.Name) != l.Name:
		return fmt.Errorf("package %q: not a package name", l.Name)
	case !debVersion.MatchString(l.Version):
		return fmt.Errorf("version %q of %s", l.Version, l.Name)
	case !debArch.MatchString(l.Arch):
		return fmt.Errorf("architecture %q of %s: want amd64, arm64 or all", l.Arch, l.Name)
	case l.SHA256.IsZero() || l.Size <= 0 || l.Size > 1<<34 || l.Installed < 0 || l.Installed > 1<<34:
		return fmt.Errorf("size %d or digest of %s", l.Size, l.Name)
	case l.Origin != "" && !packageName.MatchString(l.Origin):
		return fmt.Errorf("origin %q of %s", l.Origin, l.Name)
	case !sourceName.MatchString(l.Source):
		return fmt.Errorf("source %q of %s", l.Source, l.Name)
	case !debPath.MatchString(l.Path) || strings.HasPrefix(l.Path, "/") || slices.Contains(strings.Split(l.Path, "/"), ".."):
		return fmt.Errorf("path %q of %s: want one below the source", l.Path, l.Name)
	}
	return nil
}
