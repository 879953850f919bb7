package build

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"smelt/images"
	"smelt/inventory/triage"
)

// A driver has three parts that are of one version or do not work at all: the
// kernel's headers that its modules are compiled with, the modules, and the
// libraries. They come from packages that nothing keeps together: Debian's
// security suite had libraries of 535.309 beside open modules of 535.261. So
// the lock is refused unless they agree (Lock.driver), and what was really
// built is held against itself once more (driverIn).

var (
	// Packages with the modules' source, as Debian, NVIDIA and Ubuntu name them.
	moduleSource = regexp.MustCompile(`^(nvidia-kernel-dkms|nvidia-open-kernel-dkms|nvidia-kernel-open-dkms|nvidia-dkms-[0-9]+(-server)?(-open)?)$`)
	// Ubuntu compiles them itself, and signs them.
	moduleBinary = regexp.MustCompile(`^linux-modules-nvidia-([0-9]+)(-server)?(-open)?-([0-9].*)$`)
	// Packages that must be of the version of the modules. nvidia-persistenced,
	// nvidia-modprobe and the container toolkit have versions of their own.
	driverLibrary = regexp.MustCompile(`^(libcuda1|libnvidia-(ml|cfg|ptxjitcompiler|nvvm|gpucomp|pkcs11-openssl)[0-9]*|nvidia-smi|nvidia-alternative|nvidia-(open-)?kernel-support|firmware-nvidia-gsp|nvidia-driver-(cuda|bin|libs)|libnvidia-compute-[0-9]+(-server)?|nvidia-utils-[0-9]+(-server)?|nvidia-kernel-common-[0-9]+(-server)?|nvidia-headless-no-dkms-[0-9]+(-server)?(-open)?)$`)
	toolkitName   = regexp.MustCompile(`^(nvidia-cuda-toolkit|cuda-toolkit-([0-9]+)-([0-9]+))$`)
)

// kindOf is the kind of modules that a package has, by its name.
func kindOf(name string) string {
	if strings.Contains(name, "-open") {
		return triage.OpenModules
	}
	return triage.ProprietaryModules
}

// modules is the kind of modules that the recipe compiles or installs: auto is
// decided by the package that it names, and without any by the branch.
func (r Recipe) modules() (string, error) {
	var found []string
	for _, n := range slices.Concat(r.GPU.Compile, r.Packages) {
		if n = bareName(n); moduleSource.MatchString(n) || strings.HasPrefix(n, "linux-modules-nvidia-") {
			found = append(found, n)
		}
	}
	switch {
	case len(found) > 1:
		return "", fmt.Errorf("gpu: %s all bring the driver's modules: name one", strings.Join(found, ", "))
	case len(found) == 0:
		return "", fmt.Errorf("gpu: no package brings the driver's modules: under compile, name nvidia-kernel-dkms for the proprietary ones, or nvidia-kernel-open-dkms for the open ones")
	}
	kind := kindOf(found[0])
	if r.GPU.Modules != "auto" && r.GPU.Modules != kind {
		return "", fmt.Errorf("gpu: modules are to be %s, %s brings the %s ones", r.GPU.Modules, found[0], kind)
	}
	return kind, nil
}

// Stack is what the image brings for GPUs, in the words of triage, or why its
// parts do not go together.
func (r Recipe) Stack() (triage.Stack, error) {
	s := triage.Stack{Image: r.Title()}
	if r.GPU == nil {
		return s, nil
	}
	var err error
	if s.Branch, err = strconv.Atoi(r.GPU.Branch); err != nil {
		return s, fmt.Errorf("gpu: branch %q: want a number such as 580", r.GPU.Branch)
	}
	if s.Modules, err = r.modules(); err != nil {
		return s, err
	}
	if r.GPU.Toolkit != "none" {
		if s.Toolkit, err = triage.ParseCUDA(r.GPU.Toolkit); err != nil {
			return s, fmt.Errorf("gpu: toolkit: %w", err)
		}
	}
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("gpu: %w", err)
	}
	return s, nil
}

// cuda is the newest CUDA that the image's programs may use.
func (r Recipe) cuda() (triage.CUDA, error) {
	n, err := strconv.Atoi(r.GPU.Branch)
	if err != nil {
		return triage.CUDA{}, err
	}
	b, err := triage.BranchNumbered(n)
	if err != nil || r.GPU.CUDA == "" {
		return b.CUDA, err
	}
	v, err := triage.ParseCUDA(r.GPU.CUDA)
	if err == nil && v.Compare(b.CUDA) > 0 {
		err = fmt.Errorf("CUDA %s is newer than driver %d runs: %s is its newest", v, n, b.CUDA)
	}
	return v, err
}

// Covers says which classes of a site have cards that none of the recipe's
// images runs; models are the models of cards by class.
func (r Recipe) Covers(models map[string]string) error {
	var stacks []triage.Stack
	for _, i := range r.Images() {
		s, err := i.Stack()
		if err != nil {
			return fmt.Errorf("%s:%d: %w", r.path, i.GPU.line, err)
		}
		stacks = append(stacks, s)
	}
	var wrong []error
	for _, class := range slices.Sorted(maps.Keys(models)) {
		card, ok := triage.CardByModel(models[class])
		if !ok {
			wrong = append(wrong, fmt.Errorf("class %s: this smelt does not know the card %s, so nobody can say which driver runs it", class, models[class]))
			continue
		}
		if _, err := triage.Pick(stacks, []triage.Card{card}); err != nil {
			wrong = append(wrong, fmt.Errorf("class %s: image %s does not run its cards: %w", class, r.Name, err))
		}
	}
	return errors.Join(wrong...)
}

// driverAgrees holds the packages of the driver against each other.
func (l Lock) driverAgrees(r Recipe) error {
	_, err := l.driver(r)
	return err
}

// driver says what driver an image has, for its manifest, or why the parts of
// it do not go together: kernel = headers, modules = libraries = branch. nil
// is an image without one.
func (l Lock) driver(r Recipe) (*images.Driver, error) {
	if r.GPU == nil {
		return nil, nil
	}
	stack, err := r.Stack()
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", r.path, r.GPU.line, err)
	}
	kind := stack.Modules
	cuda, err := r.cuda()
	if err != nil {
		return nil, fmt.Errorf("%s:%d: gpu: %w", r.path, r.GPU.line, err)
	}
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }

	release, kernel := "", Locked{}
	for _, p := range l.Packages {
		if m := kernelImage.FindStringSubmatch(p.Name); m != nil {
			if release != "" {
				bad("two kernels, %s and %s: the modules are for one", release, m[1])
			}
			release, kernel = m[1], p
		}
	}
	if release == "" {
		return nil, errors.New("the lock has no kernel for the driver's modules")
	}

	// The modules: compiled here, or by the distribution.
	version, modules := "", ""
	for _, p := range l.Compile {
		if moduleSource.MatchString(p.Name) {
			if modules != "" {
				bad("%s and %s both bring the driver's modules", modules, p.Name)
			}
			version, modules = p.Upstream(), p.Name
		}
	}
	binary := false
	for _, p := range l.Packages {
		switch m := moduleBinary.FindStringSubmatch(p.Name); {
		case m != nil && m[4] != release:
			bad("%s is for another kernel than %s", p.Name, release)
		case m != nil && modules != "":
			bad("%s and %s both bring the driver's modules", modules, p.Name)
		case m != nil:
			modules, binary = p.Name, true // its own version is the kernel's
		case moduleSource.MatchString(p.Name), strings.HasPrefix(p.Name, "linux-headers-"), p.Name == "dkms":
			bad("%s would be shipped, with the compiler that it needs: name it under gpu compile, and the libraries without it", p.Name)
		}
	}
	switch {
	case modules == "":
		bad("no package of the lock has the driver's modules")
	case kindOf(modules) != kind:
		bad("%s has the %s modules, the recipe wants the %s ones", modules, kindOf(modules), kind)
	}
	if !binary && modules != "" {
		switch h, ok := find(l.Compile, "linux-headers-"+release); {
		case !ok:
			bad("the modules would be compiled for another kernel: the image's is %s, and gpu compile brings no linux-headers-%s", release, release)
		case h.Version != kernel.Version:
			bad("headers %s are of version %s, the kernel is %s", h.Name, h.Version, kernel.Version)
		}
	}

	// The libraries.
	cudaLib := false
	for _, p := range l.Packages {
		cudaLib = cudaLib || p.Name == "libcuda1" || strings.HasPrefix(p.Name, "libnvidia-compute-")
		if !driverLibrary.MatchString(p.Name) {
			continue
		}
		if version == "" {
			version = p.Upstream()
		}
		if p.Upstream() != version {
			bad("%s is %s, %s is %s: module and libraries must be of one version", p.Name, p.Upstream(), modules, version)
		}
	}
	if !cudaLib {
		bad("no package of the lock has libcuda: name libcuda1")
	}
	if branch, _, _ := strings.Cut(version, "."); version != "" && branch != r.GPU.Branch {
		bad("the driver is %s, the recipe wants branch %s: pin it, or name a source that has it", version, r.GPU.Branch)
	}
	toolkit := ""
	for _, p := range l.Packages {
		switch m := toolkitName.FindStringSubmatch(p.Name); {
		case m == nil:
		case m[2] != "":
			toolkit = m[2] + "." + m[3]
		default:
			major, rest, _ := strings.Cut(p.Upstream(), ".")
			minor, _, _ := strings.Cut(rest, ".")
			toolkit = major + "." + minor
		}
	}
	if want := strings.TrimPrefix(r.GPU.Toolkit, "none"); toolkit != want {
		bad("CUDA toolkit: the recipe says %s, the packages bring %s", r.GPU.Toolkit, orNone(toolkit))
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("%s:%d: the parts of the driver do not fit together:\n%w", r.path, r.GPU.line, errors.Join(wrong...))
	}
	return &images.Driver{Version: version, Modules: kind, CUDA: cuda.String()}, nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// unsealed are the traces that the stage which compiles the modules must not
// leave in an image: whoever has the key that signs modules, and every node
// would, signs what every node's kernel then trusts.
var unsealed = []string{
	"/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/*", "/var/lib/dkms/*", "/usr/sbin/dkms",
	"/usr/src/linux-headers-*", "/usr/src/nvidia-*", "/lib/modules/*/build", "/lib/modules/*/source",
}

// compilers may be in an image only because its toolkit needs one.
var compilers = []string{"/usr/bin/gcc*", "/usr/bin/cc", "/usr/bin/x86_64-linux-gnu-gcc*", "/usr/lib/gcc/x86_64-linux-gnu/*/cc1"}

// sealed says what of the module's stage is left in the tree of an image.
func (r Recipe) sealed(root string) error {
	globs := unsealed
	if r.GPU.Toolkit == "none" {
		globs = slices.Concat(globs, compilers)
	}
	var left []string
	for _, g := range globs {
		found, err := filepath.Glob(filepath.Join(root, g))
		if err != nil {
			return err
		}
		for _, f := range found {
			left = append(left, strings.TrimPrefix(f, root))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("what only compiles the driver's modules would be shipped: %s", strings.Join(left, ", "))
	}
	return nil
}

// driverIn holds what is in the tree of an image against its manifest: every
// module of the driver is for this kernel and of this version, and so are the
// libraries.
func driverIn(root, release string, want images.Driver) error {
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	mods, err := nvidiaModules(filepath.Join(root, "lib/modules"))
	if err != nil {
		return err
	}
	core, uvm := false, false
	for _, path := range mods {
		m, err := readModule(path)
		if err != nil {
			return err
		}
		core, uvm = core || m.Name == "nvidia", uvm || m.Name == "nvidia_uvm"
		if m.Release() != release {
			bad("module %s is for kernel %s, the image has %s", m.Name, m.Release(), release)
		}
		if m.Version != want.Version {
			bad("module %s is of driver %s, the image has %s", m.Name, orNone(m.Version), want.Version)
		}
	}
	if !core || !uvm {
		bad("the image lacks the modules nvidia and nvidia_uvm, without which CUDA does not start")
	}
	for _, lib := range []string{"libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so"} {
		found := map[string]bool{}
		for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/nvidia/current", "usr/lib64"} {
			all, err := filepath.Glob(filepath.Join(root, dir, lib+".*.*"))
			if err != nil {
				return err
			}
			for _, f := range all {
				found[strings.TrimPrefix(filepath.Base(f), lib+".")] = true
			}
		}
		if !found[want.Version] || len(found) > 1 {
			bad("%s is there in version %s, the driver is %s", lib, orNone(strings.Join(slices.Sorted(maps.Keys(found)), " and ")), want.Version)
		}
	}
	if !exists(filepath.Join(root, "usr/bin/nvidia-smi")) {
		bad("the image lacks nvidia-smi, without which nobody at the node can look at its cards")
	}
	return errors.Join(wrong...)
}

// nvidiaModules finds the driver's modules below a folder. Debian's are called
// nvidia-current.ko, NVIDIA's nvidia.ko; DKMS of other kernels compresses them.
func nvidiaModules(dir string) ([]string, error) {
	var out []string
	for _, g := range []string{"*/updates/dkms/nvidia*.ko*", "*/updates/nvidia*.ko*", "*/kernel/drivers/video/nvidia*.ko*", "*/kernel/nvidia-*/nvidia*.ko*"} {
		found, err := filepath.Glob(filepath.Join(dir, g))
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}
