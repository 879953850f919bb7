package build

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Source is a repository of packages, or a folder of them.
type Source struct {
	Name       string
	URL        string
	Suites     []string // one that ends in / is a flat repository without components
	Components []string

	// Key is the file of the keys that sign it. With Fingerprint, it may be an
	// https URL, and the key that counts is the one with this fingerprint.
	Key         string
	Fingerprint string

	Pin         string   // version that wins over newer ones: 580.*
	PinPackages []string // for which packages; all when empty
	Dir         string   // instead of URL: a folder of .deb files, trusted as they are
	Snapshot    string   // where what left the URL is kept by date, as snapshot.debian.org does
	Optional    bool     // an image may do without it where it cannot be reached

	line int
	repo string // of Dir, as a repository
}

type rawSource struct {
	Name        item   `yaml:"name"`
	URL         item   `yaml:"url"`
	Suites      []item `yaml:"suites"`
	Components  []item `yaml:"components"`
	Key         item   `yaml:"key"`
	Fingerprint item   `yaml:"fingerprint"`
	Pin         item   `yaml:"pin"`
	PinPackages []item `yaml:"pinPackages"`
	Dir         item   `yaml:"dir"`
	Snapshot    item   `yaml:"snapshot"`
	Optional    bool   `yaml:"optional"`
}

// nvidiaKey is the key of NVIDIA's repositories since 2022.
const nvidiaKey = "EB693B3035CD5710E231E123A4B469963BF863CC"

// debianKeys is where Debian's package debian-archive-keyring puts them.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// ubuntuKeys is where Debian's package ubuntu-archive-keyring and Ubuntu itself do.
const ubuntuKeys = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"

// debianSuites are those that have the sources debian and debian-security.
var debianSuites = []string{"bookworm", "trixie"}

// ubuntuSuites are the long-term ones; jammy has no usr-is-merged.
var ubuntuSuites = []string{"noble"}

// knownSource returns what is usual for a source of this name, so that a
// recipe need only say the name.
func knownSource(name, suite string) (Source, bool) {
	switch name {
	case "debian":
		return Source{URL: "http://deb.debian.org/debian", Snapshot: "http://snapshot.debian.org/archive/debian", Suites: []string{suite, suite + "-updates"},
			Components: []string{"main"}, Key: debianKeys}, true
	case "debian-security":
		return Source{URL: "http://deb.debian.org/debian-security", Snapshot: "http://snapshot.debian.org/archive/debian-security", Suites: []string{suite + "-security"},
			Components: []string{"main"}, Key: debianKeys}, true
	case "debian-backports":
		return Source{URL: "http://deb.debian.org/debian", Snapshot: "http://snapshot.debian.org/archive/debian", Suites: []string{suite + "-backports"},
			Components: []string{"main"}, Key: debianKeys}, true
	case "ubuntu":
		return Source{URL: "http://archive.ubuntu.com/ubuntu", Suites: []string{suite, suite + "-updates", suite + "-security"},
			Components: []string{"main", "restricted", "universe", "multiverse"}, Key: ubuntuKeys}, true
	case "nvidia":
		os := map[string]string{"bookworm": "debian12", "trixie": "debian13", "noble": "ubuntu2404"}[suite]
		if os == "" {
			return Source{}, false
		}
		url := "https://developer.download.nvidia.com/compute/cuda/repos/" + os + "/x86_64"
		return Source{URL: url, Suites: []string{"/"}, Key: url + "/3bf863cc.pub", Fingerprint: nvidiaKey}, true
	}
	return Source{}, false
}

// defaultSources are those of a recipe that names none: the distribution's own,
// with security fixes.
func defaultSources(suite string) []Source {
	var names []string
	switch {
	case slices.Contains(debianSuites, suite):
		names = []string{"debian", "debian-security"}
	case slices.Contains(ubuntuSuites, suite):
		names = []string{"ubuntu"}
	}
	var all []Source
	for _, n := range names {
		s, _ := knownSource(n, suite)
		s.Name = n
		all = append(all, s)
	}
	return all
}

var (
	sourceName      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	sourceSuite     = regexp.MustCompile(`^[A-Za-z0-9./_-]+$`)
	componentName   = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	fingerprintForm = regexp.MustCompile(`^[0-9A-F]{40}$`)
	pinForm         = regexp.MustCompile(`^[A-Za-z0-9.+:~*-]+$`)
	pinnedName      = regexp.MustCompile(`^[a-z0-9*][a-z0-9+.*-]*$`)
)

// sources checks the sources of a recipe and fills in what is known of them.
func (p parser) sources(suite string, raw []rawSource) ([]Source, error) {
	if len(raw) == 0 {
		all := defaultSources(suite)
		if all == nil {
			return nil, p.bad(0, "suite %s has no default sources: name them under sources", suite)
		}
		return all, nil
	}
	var all []Source
	for _, r := range raw {
		name := r.Name.Value
		switch {
		case !sourceName.MatchString(name):
			return nil, p.bad(r.Name.Line, "source %q: want a name of small letters, digits and dashes", name)
		case slices.ContainsFunc(all, func(o Source) bool { return o.Name == name }):
			return nil, p.bad(r.Name.Line, "source %s is there already", name)
		}
		s, known := knownSource(name, suite)
		s.Name, s.Optional, s.line = name, r.Optional, r.Name.Line
		if r.Dir.Line != 0 {
			if r.URL.Line != 0 || known || len(r.Suites) > 0 || r.Key.Line != 0 {
				return nil, p.bad(r.Dir.Line, "source %s: a folder has no url, suites, components or key", name)
			}
			if r.Dir.Value == "" || !oneLine.MatchString(r.Dir.Value) {
				return nil, p.bad(r.Dir.Line, "source %s: dir %q is no folder", name, r.Dir.Value)
			}
			s.Dir = p.beside(r.Dir.Value)
			all = append(all, s)
			continue
		}
		if r.URL.Line != 0 {
			s.URL = strings.TrimSuffix(r.URL.Value, "/")
		}
		if r.Snapshot.Line != 0 {
			s.Snapshot = strings.TrimSuffix(r.Snapshot.Value, "/")
		}
		if len(r.Suites) > 0 {
			s.Suites = words(r.Suites)
		}
		if len(r.Components) > 0 {
			s.Components = words(r.Components)
		}
		if r.Key.Line != 0 {
			s.Key, s.Fingerprint = r.Key.Value, ""
		}
		if r.Fingerprint.Line != 0 {
			s.Fingerprint = strings.ToUpper(strings.ReplaceAll(r.Fingerprint.Value, " ", ""))
		}
		s.Pin, s.PinPackages = r.Pin.Value, words(r.PinPackages)
		if err := p.source(r, &s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (p parser) source(r rawSource, s *Source) error {
	line := func(of item) int {
		if of.Line != 0 {
			return of.Line
		}
		return r.Name.Line
	}
	if err := checkMirror(s.URL); err != nil {
		return p.bad(line(r.URL), "source %s: %v", s.Name, err)
	}
	if s.Snapshot != "" {
		if err := checkMirror(s.Snapshot); err != nil {
			return p.bad(line(r.Snapshot), "snapshot of source %s: %v", s.Name, err)
		}
	}
	if len(s.Suites) == 0 {
		return p.bad(line(r.Name), "source %s: no suites are named", s.Name)
	}
	for _, n := range s.Suites {
		if !sourceSuite.MatchString(n) {
			return p.bad(line(r.Name), "source %s: suite %q: want a name such as bookworm, or / for a flat repository", s.Name, n)
		}
		if flat := strings.HasSuffix(n, "/"); flat != (len(s.Components) == 0) {
			return p.bad(line(r.Name), "source %s: suite %s and components %v: a suite has components, a flat repository (its suite ends in /) has none", s.Name, n, s.Components)
		}
	}
	for _, n := range s.Components {
		if !componentName.MatchString(n) {
			return p.bad(line(r.Name), "source %s: component %q: want a word such as main", s.Name, n)
		}
	}
	switch {
	case s.Key == "":
		return p.bad(line(r.Name), "source %s has no key: name the file of the keys that sign it under key", s.Name)
	case !oneLine.MatchString(s.Key) || strings.ContainsAny(s.Key, " \"]"):
		return p.bad(line(r.Key), "source %s: key %q: want a file without spaces, or an https URL", s.Name, s.Key)
	case s.Fingerprint != "" && !fingerprintForm.MatchString(s.Fingerprint):
		return p.bad(line(r.Fingerprint), "source %s: fingerprint %q: want 40 hexadecimal digits", s.Name, s.Fingerprint)
	case strings.HasPrefix(s.Key, "https://"):
		if s.Fingerprint == "" {
			return p.bad(line(r.Key), "source %s: a key that is fetched needs its fingerprint", s.Name)
		}
	case strings.Contains(s.Key, "://"):
		return p.bad(line(r.Key), "source %s: key %q: want a file or an https URL", s.Name, s.Key)
	default:
		s.Key = p.beside(s.Key)
	}
	if s.Pin != "" && !pinForm.MatchString(s.Pin) {
		return p.bad(line(r.Pin), "source %s: pin %q: want a version such as 580.*", s.Name, s.Pin)
	}
	for _, n := range r.PinPackages {
		if !pinnedName.MatchString(n.Value) {
			return p.bad(n.Line, "source %s: pinned package %q: want a name, with * for any", s.Name, n.Value)
		}
	}
	if s.Pin == "" && len(r.PinPackages) > 0 {
		return p.bad(line(r.Name), "source %s: packages are pinned to no version: add pin", s.Name)
	}
	return nil
}

// checkMirror refuses what apt could take for something else. A name and a
// password do not belong into a recipe or onto a command line: apt reads them
// from auth.conf (apt_auth.conf(5)).
func checkMirror(s string) error {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return fmt.Errorf("it has no url")
	case err != nil || !oneLine.MatchString(s) || strings.ContainsAny(s, " []\"") || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return fmt.Errorf("url %q: want http:// or https://", s)
	case u.User != nil:
		return fmt.Errorf("url of %s: no user and password here, they belong into apt's auth.conf", u.Host)
	}
	return nil
}

// lines are the source as apt's sources.list(5) has them; key is where its
// keys are.
func (s Source) lines(key string) []string {
	if s.Dir != "" {
		return []string{"deb [trusted=yes] file:" + s.repo + " ./"}
	}
	if s.Fingerprint != "" {
		key += "," + s.Fingerprint
	}
	var all []string
	for _, suite := range s.Suites {
		l := fmt.Sprintf("deb [signed-by=%s] %s %s", key, s.URL, suite)
		if len(s.Components) > 0 {
			l += " " + strings.Join(s.Components, " ")
		}
		all = append(all, l)
	}
	return all
}

// preferences are the source's pin as apt_preferences(5) has it: its version
// wins even over a newer one that is installed.
func (s Source) preferences() string {
	if s.Pin == "" {
		return ""
	}
	names := "*"
	if len(s.PinPackages) > 0 {
		names = strings.Join(s.PinPackages, " ")
	}
	return fmt.Sprintf("Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", names, s.Pin)
}

// Mirrored returns the recipe with other addresses for its sources, by name.
// What is locked does not change with the address it is fetched from.
func (r Recipe) Mirrored(mirrors map[string]string) (Recipe, error) {
	r.Sources = slices.Clone(r.Sources)
	for name, url := range mirrors {
		i := slices.IndexFunc(r.Sources, func(s Source) bool { return s.Name == name })
		if i < 0 {
			continue // another variant's, or the tools'
		}
		if err := checkMirror(url); err != nil {
			return r, fmt.Errorf("mirror of %s: %w", name, err)
		}
		r.Sources[i].URL = strings.TrimSuffix(url, "/")
	}
	return r, nil
}

// ownKey says whether an image gets the source's keys from the recipe; the
// distribution's own come with a package.
func (s Source) ownKey() bool { return s.Dir == "" && s.Key != debianKeys && s.Key != ubuntuKeys }

// imageKey is where the source's keys are in an image.
func (s Source) imageKey() string {
	if !s.ownKey() {
		return s.Key
	}
	if strings.HasSuffix(s.Key, ".gpg") {
		return "/etc/apt/keyrings/" + s.Name + ".gpg"
	}
	return "/etc/apt/keyrings/" + s.Name + ".asc"
}
