package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Recipe says what an image holds. It is a file that people write, so every
// mistake in it names its line.
type Recipe struct {
	Name     string
	Suite    string
	Sources  []string // apt source lines; DefaultSources when empty
	Packages []string
	Exclude  []string // dpkg path-exclude patterns: files that are never unpacked
	Include  []string // dpkg path-include patterns: exceptions
	Files    []File   // there before the packages are configured
	Run      []string // shell commands inside the image, after the packages
	Remove   []string // paths removed at the end, with globs
	Cmdline  string   // of the kernel, after root=
	Free     int64    // bytes left free in the root filesystem, which nodes grow

	path  string
	lines map[string]int // package -> line
}

// File is a file of the recipe.
type File struct {
	Path    string
	Mode    os.FileMode
	Content string
}

// rawRecipe is the file as written.
type rawRecipe struct {
	Name     string      `yaml:"name"`
	Suite    string      `yaml:"suite"`
	Sources  []string    `yaml:"sources"`
	Packages []yaml.Node `yaml:"packages"`
	Exclude  []string    `yaml:"exclude"`
	Include  []string    `yaml:"include"`
	Files    []rawFile   `yaml:"files"`
	Run      []string    `yaml:"run"`
	Remove   []string    `yaml:"remove"`
	Cmdline  string      `yaml:"cmdline"`
	FreeMiB  int64       `yaml:"freeMiB"`
}

type rawFile struct {
	Path    yaml.Node `yaml:"path"`
	Mode    string    `yaml:"mode"`
	Content string    `yaml:"content"`
}

var (
	recipeName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`) // Debian policy 5.6.7
	suiteName   = regexp.MustCompile(`^[a-z]+$`)
	oneLine     = regexp.MustCompile(`^[ -~]*$`)
)

// ParseRecipe reads a recipe file.
func ParseRecipe(file string) (Recipe, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Recipe{}, fmt.Errorf("recipe: %w", err)
	}
	return parseRecipe(file, b)
}

func parseRecipe(file string, b []byte) (Recipe, error) {
	bad := func(line int, format string, args ...any) (Recipe, error) {
		at := file
		if line > 0 {
			at += ":" + strconv.Itoa(line)
		}
		return Recipe{}, fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...))
	}
	var raw rawRecipe
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&raw); err != nil {
		return Recipe{}, fmt.Errorf("%s: %s", file, yamlMistake(err))
	}
	if err := d.Decode(new(yaml.Node)); err == nil {
		return bad(0, "a second document follows the recipe")
	}
	r := Recipe{
		Name: raw.Name, Suite: raw.Suite, Sources: raw.Sources, Exclude: raw.Exclude, Include: raw.Include,
		Run: raw.Run, Remove: raw.Remove, Cmdline: raw.Cmdline, Free: raw.FreeMiB << 20,
		path: file, lines: map[string]int{},
	}
	switch {
	case !recipeName.MatchString(r.Name):
		return bad(0, "name %q: want small letters, digits, dots and dashes", r.Name)
	case !suiteName.MatchString(r.Suite):
		return bad(0, "suite %q: want a Debian code name such as bookworm", r.Suite)
	case !oneLine.MatchString(r.Cmdline):
		return bad(0, "cmdline %q: want one line of ASCII", r.Cmdline)
	case raw.FreeMiB < 0 || raw.FreeMiB > 1<<20:
		return bad(0, "freeMiB %d: want 0 to %d", raw.FreeMiB, 1<<20)
	case len(raw.Packages) == 0:
		return bad(0, "packages: none are named")
	}
	if r.Free == 0 {
		r.Free = 256 << 20
	}
	if len(r.Sources) == 0 {
		if r.Suite != "bookworm" {
			return bad(0, "suite %s has no default sources: name them under sources", r.Suite)
		}
		r.Sources = DefaultSources
	}
	for _, s := range r.Sources {
		if !oneLine.MatchString(s) || !strings.HasPrefix(s, "deb ") {
			return bad(0, "sources: %q is no apt source line (deb [signed-by=...] URL SUITE main)", s)
		}
	}
	for _, n := range raw.Packages {
		if n.Kind != yaml.ScalarNode || !packageName.MatchString(n.Value) {
			return bad(n.Line, "package %q: not a Debian package name", n.Value)
		}
		if l, ok := r.lines[n.Value]; ok {
			return bad(n.Line, "package %s is named in line %d already", n.Value, l)
		}
		r.lines[n.Value] = n.Line
		r.Packages = append(r.Packages, n.Value)
	}
	for _, f := range raw.Files {
		mode := os.FileMode(0o644)
		if f.Mode != "" {
			m, err := strconv.ParseUint(f.Mode, 8, 9)
			if err != nil {
				return bad(f.Path.Line, "mode %q of %s: want octal such as \"0644\"", f.Mode, f.Path.Value)
			}
			mode = os.FileMode(m)
		}
		if err := checkDest(f.Path.Value); err != nil {
			return bad(f.Path.Line, "%v", err)
		}
		r.Files = append(r.Files, File{f.Path.Value, mode, f.Content})
	}
	for _, p := range slices.Concat(r.Exclude, r.Include, r.Remove) {
		if !strings.HasPrefix(p, "/") || !oneLine.MatchString(p) || slices.Contains(strings.Split(p, "/"), "..") {
			return bad(0, "path %q: want an absolute path in the image", p)
		}
	}
	return r, nil
}

// checkDest refuses a path in the image that is not clean and absolute.
func checkDest(p string) error {
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" || !oneLine.MatchString(p) {
		return fmt.Errorf("path %q: want a clean absolute path in the image", p)
	}
	return nil
}

// yamlMistake puts yaml.v3's words into ours.
func yamlMistake(err error) string {
	var t *yaml.TypeError
	if !errors.As(err, &t) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	s := strings.Join(t.Errors, "; ")
	s = strings.ReplaceAll(s, " not found in type build.rawRecipe", " is not known: want name, suite, sources, packages, exclude, include, files, run, remove, cmdline or freeMiB")
	return strings.ReplaceAll(s, " not found in type build.rawFile", " is not known: want path, mode or content")
}

// builderVersion is part of every key: raise it when the builder makes
// something else of the same recipe.
const builderVersion = 1

// packagesKey is the key of the stage that takes minutes.
func (r Recipe) packagesKey() string {
	return contentKey(builderVersion, r.Suite, r.Sources, r.Packages, r.Exclude, r.Include, r.Files, r.Run, r.Remove)
}

// Key is what an image follows from: two builds with the same key may share
// one image. extra are the SHA-256 of the extra files by destination.
func (r Recipe) key(extra []extraKey) string {
	return contentKey(r.packagesKey(), r.Name, r.Cmdline, r.Free, extra)
}

func contentKey(parts ...any) string {
	b, err := json.Marshal(parts)
	if err != nil {
		panic("build: key: " + err.Error())
	}
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}
