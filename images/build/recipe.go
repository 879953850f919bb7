package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Recipe says what an image holds. It is a file that people write, so every
// mistake in it names its line.
type Recipe struct {
	Name    string
	Variant string // which of the recipe's images this is; "" when it has one
	Arch    string // amd64

	Suite    string // of the base system: bookworm
	Kernel   string // package: linux-image-amd64
	Sources  []Source
	Packages []string // the kernel's and the cluster's too
	Exclude  []string // dpkg path-exclude patterns: files that are never unpacked
	Include  []string // dpkg path-include patterns: exceptions
	Files    []File   // there before the packages are configured
	Users    []User
	Services Services
	Run      []string // shell commands inside the image, after the packages
	Remove   []string // paths removed at the end, with globs
	Cluster  string   // slurm, kubernetes or none: whose software it carries
	GPU      *GPU     // nil: no driver
	Cmdline  string   // of the kernel, after root=
	Free     int64    // bytes left free in the root filesystem, which nodes grow
	Budget   int64    // bytes that the image may take compressed; 0 for no limit

	path   string
	lines  map[string]int // package -> line
	images []Recipe       // one for each variant
}

// GPU is the NVIDIA driver of an image.
type GPU struct {
	Branch  string   // of the driver: 535
	Modules string   // open, proprietary, or auto: what the branch's cards take
	CUDA    string   // the newest CUDA that programs may use; "" for what the branch has
	Toolkit string   // version of the CUDA toolkit to install; none as a rule
	Compile []string // packages of the sealed stage that makes the modules; never shipped
	line    int
}

// File is a file of the recipe.
type File struct {
	Path    string
	Mode    os.FileMode
	Content string
}

// User is an account of the image. It has no password: people log in with
// their keys.
type User struct {
	Name   string
	UID    int // 0: the next free one
	Groups []string
	Shell  string
	Sudo   bool // without a password
	Keys   []string
}

// Services says which systemd units start with the system.
type Services struct {
	Enable, Disable, Mask []string
}

// An item is a word of the file, with its line.
type item struct {
	Value string
	Line  int
}

func (i *item) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: want one word or line of text", n.Line)}}
	}
	i.Value, i.Line = n.Value, n.Line
	return nil
}

// rawRecipe is the file as written.
type rawRecipe struct {
	Name     item `yaml:"name"`
	Arch     item `yaml:"arch"`
	rawBody  `yaml:",inline"`
	Variants []rawVariant `yaml:"variants"`
}

// rawVariant says how one image of the recipe differs: what is one value takes
// the place of the recipe's, what is a list comes after it. A source takes the
// place of the one with its name.
type rawVariant struct {
	Name    item `yaml:"name"`
	rawBody `yaml:",inline"`
}

type rawBody struct {
	Suite     item        `yaml:"suite"`
	Kernel    item        `yaml:"kernel"`
	Sources   []rawSource `yaml:"sources"`
	Packages  []item      `yaml:"packages"`
	Exclude   []item      `yaml:"exclude"`
	Include   []item      `yaml:"include"`
	Files     []rawFile   `yaml:"files"`
	Users     []rawUser   `yaml:"users"`
	Services  rawServices `yaml:"services"`
	Run       []string    `yaml:"run"`
	Remove    []item      `yaml:"remove"`
	Cluster   item        `yaml:"cluster"`
	GPU       *rawGPU     `yaml:"gpu"`
	Cmdline   item        `yaml:"cmdline"`
	FreeMiB   *int64      `yaml:"freeMiB"`
	BudgetMiB *int64      `yaml:"budgetMiB"`
}

type rawFile struct {
	Path    item   `yaml:"path"`
	Mode    string `yaml:"mode"`
	Content string `yaml:"content"`
}

type rawUser struct {
	Name   item   `yaml:"name"`
	UID    int    `yaml:"uid"`
	Groups []item `yaml:"groups"`
	Shell  item   `yaml:"shell"`
	Sudo   bool   `yaml:"sudo"`
	Keys   []item `yaml:"keys"`
}

type rawServices struct {
	Enable  []item `yaml:"enable"`
	Disable []item `yaml:"disable"`
	Mask    []item `yaml:"mask"`
}

type rawGPU struct {
	Branch  item   `yaml:"branch"`
	Modules item   `yaml:"modules"`
	CUDA    item   `yaml:"cuda"`
	Toolkit item   `yaml:"toolkit"`
	Compile []item `yaml:"compile"`
}

// rawTypes are those whose keys an error message lists.
var rawTypes = []any{rawRecipe{}, rawVariant{}, rawFile{}, rawUser{}, rawServices{}, rawGPU{}, rawSource{}}

var (
	recipeName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	variantName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	// Debian policy 5.6.7, with what apt-get(8) takes behind it: a version, which
	// may end in *, or a suite. With a dash at its end, apt-get would remove it.
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+.]([=/][A-Za-z0-9][A-Za-z0-9.+:~*-]*)?$`)
	suiteName   = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	oneLine     = regexp.MustCompile(`^[ -~]*$`)
	userName    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`) // useradd(8)
	unitName    = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]+$`)    // systemd.unit(5)
	sshKey      = regexp.MustCompile(`^(ssh-(ed25519|rsa)|ecdsa-sha2-[a-z0-9]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*( [ -~]*)?$`)
	branchForm  = regexp.MustCompile(`^[0-9]{3,4}$`)
	cudaForm    = regexp.MustCompile(`^[0-9]{1,2}\.[0-9]{1,2}$`)
)

// clusters are the systems whose software an image may carry. Nothing of it
// starts by itself: the agent starts it after a PASS.
var clusters = map[string]struct{ packages, disable []string }{
	"none":       {},
	"slurm":      {[]string{"munge", "slurmd"}, []string{"munge", "slurmd"}},
	"kubernetes": {[]string{"containerd", "kubelet", "kubeadm"}, []string{"kubelet"}},
}

// ParseRecipe reads a recipe file.
func ParseRecipe(file string) (Recipe, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Recipe{}, fmt.Errorf("recipe: %w", err)
	}
	return parseRecipe(file, b)
}

// Images returns the recipe of each image that the file describes: of each
// variant, or of the only one.
func (r Recipe) Images() []Recipe {
	if len(r.images) == 0 {
		return []Recipe{r}
	}
	return r.images
}

// Image returns the recipe of one variant; "" is for a recipe without any.
func (r Recipe) Image(variant string) (Recipe, error) {
	var names []string
	for _, i := range r.Images() {
		if i.Variant == variant {
			return i, nil
		}
		names = append(names, i.Variant)
	}
	if len(r.images) == 0 {
		return Recipe{}, fmt.Errorf("%s: the recipe has no variants, and none named %s", r.path, variant)
	}
	if variant == "" {
		return Recipe{}, fmt.Errorf("%s: say which variant: %s", r.path, strings.Join(names, ", "))
	}
	return Recipe{}, fmt.Errorf("%s: there is no variant %s: want %s", r.path, variant, strings.Join(names, ", "))
}

// Title names the image in lists and stores, like the manifest's.
func (r Recipe) Title() string {
	if r.Variant == "" {
		return r.Name
	}
	return r.Name + "." + r.Variant
}

// Path is the file that the recipe was read from.
func (r Recipe) Path() string { return r.path }

// a parser turns one file into recipes; its errors name the file's lines.
type parser struct {
	file string
}

func (p parser) bad(line int, format string, args ...any) error {
	at := p.file
	if line > 0 {
		at += ":" + strconv.Itoa(line)
	}
	return fmt.Errorf("%s: %w", at, fmt.Errorf(format, args...))
}

func parseRecipe(file string, b []byte) (Recipe, error) {
	p := parser{file}
	var raw rawRecipe
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&raw); err != nil {
		return Recipe{}, fmt.Errorf("%s: %s", file, yamlMistake(err))
	}
	if err := d.Decode(new(yaml.Node)); err == nil {
		return Recipe{}, p.bad(0, "a second document follows the recipe")
	}
	if !recipeName.MatchString(raw.Name.Value) {
		return Recipe{}, p.bad(raw.Name.Line, "name %q: want small letters, digits, dots and dashes", raw.Name.Value)
	}
	switch raw.Arch.Value {
	case "", "amd64":
	default:
		return Recipe{}, p.bad(raw.Arch.Line, "arch %s: the builder makes images for amd64 only", raw.Arch.Value)
	}
	if len(raw.Variants) == 0 {
		return p.recipe(raw.Name.Value, "", raw.rawBody)
	}
	r := Recipe{Name: raw.Name.Value, Arch: "amd64", path: file}
	for _, v := range raw.Variants {
		name := v.Name.Value
		if !variantName.MatchString(name) {
			return Recipe{}, p.bad(v.Name.Line, "variant %q: want a name of small letters, digits and dashes", name)
		}
		if slices.ContainsFunc(r.images, func(o Recipe) bool { return o.Variant == name }) {
			return Recipe{}, p.bad(v.Name.Line, "variant %s is there already", name)
		}
		one, err := p.recipe(r.Name, name, raw.with(v.rawBody))
		if err != nil {
			return Recipe{}, err
		}
		if len(one.Title()) > 64 {
			return Recipe{}, p.bad(v.Name.Line, "%s: want at most 64 letters in the name of recipe and variant", one.Title())
		}
		r.images = append(r.images, one)
	}
	return r, nil
}

// with returns b changed by a variant.
func (b rawBody) with(v rawBody) rawBody {
	for _, w := range []struct{ to, from *item }{
		{&b.Suite, &v.Suite}, {&b.Kernel, &v.Kernel}, {&b.Cluster, &v.Cluster}, {&b.Cmdline, &v.Cmdline},
	} {
		if w.from.Line != 0 {
			*w.to = *w.from
		}
	}
	if v.GPU != nil {
		b.GPU = v.GPU
	}
	if v.FreeMiB != nil {
		b.FreeMiB = v.FreeMiB
	}
	if v.BudgetMiB != nil {
		b.BudgetMiB = v.BudgetMiB
	}
	b.Packages = slices.Concat(b.Packages, v.Packages)
	b.Exclude = slices.Concat(b.Exclude, v.Exclude)
	b.Include = slices.Concat(b.Include, v.Include)
	b.Files = slices.Concat(b.Files, v.Files)
	b.Users = slices.Concat(b.Users, v.Users)
	b.Services.Enable = slices.Concat(b.Services.Enable, v.Services.Enable)
	b.Services.Disable = slices.Concat(b.Services.Disable, v.Services.Disable)
	b.Services.Mask = slices.Concat(b.Services.Mask, v.Services.Mask)
	b.Run = slices.Concat(b.Run, v.Run)
	b.Remove = slices.Concat(b.Remove, v.Remove)
	own := v.Sources
	var kept []rawSource
	for _, s := range b.Sources {
		if i := slices.IndexFunc(own, func(o rawSource) bool { return o.Name.Value == s.Name.Value }); i >= 0 {
			s = own[i]
			own = slices.Delete(slices.Clone(own), i, i+1)
		}
		kept = append(kept, s)
	}
	b.Sources = append(kept, own...)
	return b
}

// recipe checks one image's recipe and fills in what is usual.
func (p parser) recipe(name, variant string, raw rawBody) (Recipe, error) {
	r := Recipe{
		Name: name, Variant: variant, Arch: "amd64", Suite: raw.Suite.Value, Kernel: raw.Kernel.Value,
		Run: raw.Run, Cluster: raw.Cluster.Value, Cmdline: raw.Cmdline.Value,
		Exclude: words(raw.Exclude), Include: words(raw.Include), Remove: words(raw.Remove),
		path: p.file, lines: map[string]int{},
	}
	bad := func(line int, format string, args ...any) (Recipe, error) {
		return Recipe{}, p.bad(line, format, args...)
	}
	switch {
	case !suiteName.MatchString(r.Suite):
		return bad(raw.Suite.Line, "suite %q: want a code name such as bookworm", r.Suite)
	case !oneLine.MatchString(r.Cmdline):
		return bad(raw.Cmdline.Line, "cmdline %q: want one line of ASCII", r.Cmdline)
	case len(raw.Packages) == 0:
		return bad(0, "packages: none are named")
	}
	for _, n := range []struct {
		key  string
		mib  *int64
		into *int64
	}{{"freeMiB", raw.FreeMiB, &r.Free}, {"budgetMiB", raw.BudgetMiB, &r.Budget}} {
		if n.mib == nil {
			continue
		}
		if *n.mib < 0 || *n.mib > 1<<20 {
			return bad(0, "%s %d: want 0 to %d", n.key, *n.mib, 1<<20)
		}
		*n.into = *n.mib << 20
	}
	if r.Free == 0 {
		r.Free = 256 << 20
	}
	if r.Cluster == "" {
		r.Cluster = "none"
	}
	cluster, ok := clusters[r.Cluster]
	if !ok {
		return bad(raw.Cluster.Line, "cluster %q: want slurm, kubernetes or none", r.Cluster)
	}
	var err error
	if r.Sources, err = p.sources(r.Suite, raw.Sources); err != nil {
		return Recipe{}, err
	}

	if r.Kernel == "" {
		r.Kernel = kernelPackage
	}
	if !strings.HasPrefix(r.Kernel, "linux-") || !packageName.MatchString(r.Kernel) || strings.Contains(r.Kernel, "cloud") {
		return bad(raw.Kernel.Line, "kernel %q: want a package such as linux-image-amd64, and never the cloud kernel, which has no server NICs, no AHCI and no IPMI", r.Kernel)
	}
	add := func(name string, line int) error {
		bare := bareName(name)
		if l, ok := r.lines[bare]; ok {
			return p.bad(line, "package %s is named in line %d already", bare, l)
		}
		r.lines[bare] = line
		r.Packages = append(r.Packages, name)
		return nil
	}
	if err := add(r.Kernel, raw.Kernel.Line); err != nil {
		return Recipe{}, err
	}
	for _, n := range cluster.packages {
		if err := add(n, raw.Cluster.Line); err != nil {
			return Recipe{}, err
		}
	}
	for _, n := range raw.Packages {
		switch {
		case !packageName.MatchString(n.Value):
			return bad(n.Line, "package %q: not a package name", n.Value)
		case strings.HasPrefix(n.Value, "linux-image-"):
			return bad(n.Line, "package %s: the kernel is named by kernel, which is %s", n.Value, r.Kernel)
		}
		if err := add(n.Value, n.Line); err != nil {
			return Recipe{}, err
		}
	}
	if r.GPU, err = p.gpu(raw.GPU); err != nil {
		return Recipe{}, err
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
	for _, n := range slices.Concat(raw.Exclude, raw.Include, raw.Remove) {
		if !strings.HasPrefix(n.Value, "/") || !oneLine.MatchString(n.Value) || slices.Contains(strings.Split(n.Value, "/"), "..") {
			return bad(n.Line, "path %q: want an absolute path in the image", n.Value)
		}
	}
	if r.Users, err = p.users(raw.Users, r); err != nil {
		return Recipe{}, err
	}
	for _, n := range slices.Concat(raw.Services.Enable, raw.Services.Disable, raw.Services.Mask) {
		if !unitName.MatchString(n.Value) || strings.HasPrefix(n.Value, "-") {
			return bad(n.Line, "service %q: want the name of a systemd unit", n.Value)
		}
	}
	r.Services = Services{
		Enable:  words(raw.Services.Enable),
		Disable: slices.Concat(cluster.disable, words(raw.Services.Disable)),
		Mask:    words(raw.Services.Mask),
	}
	return r, nil
}

func (p parser) gpu(raw *rawGPU) (*GPU, error) {
	if raw == nil {
		return nil, nil
	}
	g := GPU{Branch: raw.Branch.Value, Modules: raw.Modules.Value, CUDA: raw.CUDA.Value, Toolkit: raw.Toolkit.Value,
		Compile: words(raw.Compile), line: raw.Branch.Line}
	if g.Modules == "" {
		g.Modules = "auto"
	}
	if g.Toolkit == "" {
		g.Toolkit = "none"
	}
	switch {
	case !branchForm.MatchString(g.Branch):
		return nil, p.bad(raw.Branch.Line, "gpu branch %q: want the first part of a driver's version, such as \"535\"", g.Branch)
	case g.Modules != "auto" && g.Modules != "open" && g.Modules != "proprietary":
		return nil, p.bad(raw.Modules.Line, "gpu modules %q: want open (Turing and newer), proprietary or auto", g.Modules)
	case g.CUDA != "" && !cudaForm.MatchString(g.CUDA):
		return nil, p.bad(raw.CUDA.Line, "gpu cuda %q: want a version such as \"12.2\"", g.CUDA)
	case g.Toolkit != "none" && !cudaForm.MatchString(g.Toolkit):
		return nil, p.bad(raw.Toolkit.Line, "gpu toolkit %q: want none or a version such as \"11.8\"", g.Toolkit)
	}
	for _, n := range raw.Compile {
		if !packageName.MatchString(n.Value) {
			return nil, p.bad(n.Line, "package %q: not a package name", n.Value)
		}
	}
	return &g, nil
}

func (p parser) users(raw []rawUser, r Recipe) ([]User, error) {
	var users []User
	for _, u := range raw {
		line := u.Name.Line
		switch {
		case !userName.MatchString(u.Name.Value):
			return nil, p.bad(line, "user %q: want small letters, digits and dashes", u.Name.Value)
		case slices.ContainsFunc(users, func(o User) bool { return o.Name == u.Name.Value }):
			return nil, p.bad(line, "user %s is there already", u.Name.Value)
		case u.UID != 0 && (u.UID < 1000 || u.UID > 59999): // Debian policy 9.2.2
			return nil, p.bad(line, "uid %d of %s: want 1000 to 59999", u.UID, u.Name.Value)
		case u.Shell.Line != 0 && checkDest(u.Shell.Value) != nil:
			return nil, p.bad(u.Shell.Line, "shell %q of %s: want a path such as /bin/bash", u.Shell.Value, u.Name.Value)
		case u.Sudo && !slices.ContainsFunc(r.Packages, func(n string) bool { return bareName(n) == "sudo" }):
			return nil, p.bad(line, "user %s may use sudo, which is not among the packages: add sudo", u.Name.Value)
		}
		for _, g := range u.Groups {
			if !userName.MatchString(g.Value) {
				return nil, p.bad(g.Line, "group %q of %s: want small letters, digits and dashes", g.Value, u.Name.Value)
			}
		}
		for _, k := range u.Keys {
			if !sshKey.MatchString(k.Value) {
				return nil, p.bad(k.Line, "key of %s: want a public SSH key such as \"ssh-ed25519 AAAA... name\"", u.Name.Value)
			}
		}
		one := User{Name: u.Name.Value, UID: u.UID, Groups: words(u.Groups), Shell: u.Shell.Value, Sudo: u.Sudo, Keys: words(u.Keys)}
		if one.Shell == "" {
			one.Shell = "/bin/bash"
		}
		users = append(users, one)
	}
	return users, nil
}

// commands are what is run in the image after the packages: users, services,
// then the recipe's own.
func (r Recipe) commands() []string {
	var all []string
	for _, u := range r.Users {
		c := "useradd --create-home --password '*' --shell " + u.Shell
		if u.UID != 0 {
			c += " --uid " + strconv.Itoa(u.UID)
		}
		if len(u.Groups) > 0 {
			c += " --groups " + strings.Join(u.Groups, ",")
		}
		c += " " + u.Name
		if len(u.Keys) > 0 {
			c += fmt.Sprintf("\ninstall -d -m 0700 -o %[1]s -g %[1]s ~%[1]s/.ssh\ncat >~%[1]s/.ssh/authorized_keys <<'KEYS'\n%[2]s\nKEYS\nchown %[1]s:%[1]s ~%[1]s/.ssh/authorized_keys\nchmod 0600 ~%[1]s/.ssh/authorized_keys",
				u.Name, strings.Join(u.Keys, "\n"))
		}
		if u.Sudo {
			c += fmt.Sprintf("\necho '%[1]s ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/%[1]s\nchmod 0440 /etc/sudoers.d/%[1]s", u.Name)
		}
		all = append(all, c)
	}
	for _, s := range []struct {
		verb  string
		units []string
	}{{"enable", r.Services.Enable}, {"disable", r.Services.Disable}, {"mask", r.Services.Mask}} {
		if len(s.units) > 0 {
			all = append(all, "systemctl "+s.verb+" '"+strings.Join(s.units, "' '")+"'")
		}
	}
	return slices.Concat(all, r.Run)
}

// checkDest refuses a path in the image that is not clean and absolute.
func checkDest(p string) error {
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" || !oneLine.MatchString(p) {
		return fmt.Errorf("path %q: want a clean absolute path in the image", p)
	}
	return nil
}

// bareName is a package's name without version or suite.
func bareName(p string) string {
	if i := strings.IndexAny(p, "=/"); i >= 0 {
		return p[:i]
	}
	return p
}

func words(items []item) []string {
	var s []string
	for _, i := range items {
		s = append(s, i.Value)
	}
	return s
}

// beside is where a file that the recipe names lies.
func (p parser) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(p.file), name)
}

var unknownField = regexp.MustCompile(`field (\S+) not found in type build\.(\w+)`)

// yamlMistake puts yaml.v3's words into ours.
func yamlMistake(err error) string {
	var t *yaml.TypeError
	if !errors.As(err, &t) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	return unknownField.ReplaceAllStringFunc(strings.Join(t.Errors, "; "), func(s string) string {
		m := unknownField.FindStringSubmatch(s)
		want := "another key"
		for _, v := range rawTypes {
			if t := reflect.TypeOf(v); t.Name() == m[2] {
				k := keysOf(t)
				want = strings.Join(k[:len(k)-1], ", ") + " or " + k[len(k)-1]
			}
		}
		return fmt.Sprintf("field %s is not known: want %s", m[1], want)
	})
}

// keysOf lists the YAML keys of a struct.
func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if f.Anonymous {
			keys = append(keys, keysOf(f.Type)...)
		} else if tag != "" {
			keys = append(keys, tag)
		}
	}
	return keys
}
