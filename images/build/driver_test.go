package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smelt/images"
	"smelt/inventory/triage"
)

const cudaRecipe = `name: ai-node
suite: bookworm
packages: [systemd, libcuda1, nvidia-smi]
variants:
  - name: r535
    gpu: {branch: "535", compile: [linux-headers-amd64, nvidia-kernel-dkms]}
  - name: r580-open
    gpu: {branch: "580", modules: open, compile: [linux-headers-amd64, nvidia-kernel-open-dkms]}
`

func driverRecipe(t *testing.T, text string) Recipe {
	t.Helper()
	r, err := parseRecipe("ai.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func variantOf(t *testing.T, text, name string) Recipe {
	t.Helper()
	r, err := driverRecipe(t, text).Image(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// locked makes packages of "name version" lines.
func locked(lines ...string) []Locked {
	var out []Locked
	for _, l := range lines {
		name, version, _ := strings.Cut(l, " ")
		out = append(out, Locked{Name: name, Version: version})
	}
	return out
}

// goodLock is what Debian 12's packages were on one day of 2026.
func goodLock() Lock {
	return Lock{
		Packages: locked("firmware-nvidia-gsp 535.309.01-0+deb12u1", "libcuda1 535.309.01-0+deb12u1", "libnvidia-ml1 535.309.01-0+deb12u1",
			"linux-image-6.1.0-56-amd64 6.1.192-2", "linux-image-amd64 6.1.192-2", "nvidia-persistenced 535.171.04-1~deb12u1", "nvidia-smi 535.309.01-0+deb12u1"),
		Compile: locked("dkms 3.0.10-8+deb12u1", "linux-headers-6.1.0-56-amd64 6.1.192-2", "nvidia-kernel-dkms 535.309.01-0+deb12u1"),
	}
}

// swap exchanges or adds packages.
func swap(pkgs []Locked, lines ...string) []Locked {
	for _, p := range locked(lines...) {
		var kept []Locked
		for _, o := range pkgs {
			if o.Name != p.Name {
				kept = append(kept, o)
			}
		}
		if pkgs = kept; p.Version != "" {
			at := 0
			for at < len(pkgs) && pkgs[at].Name < p.Name {
				at++
			}
			pkgs = append(pkgs[:at:at], append([]Locked{p}, pkgs[at:]...)...)
		}
	}
	return pkgs
}

func TestDriverOfLock(t *testing.T) {
	r := variantOf(t, cudaRecipe, "r535")
	d, err := goodLock().driver(r)
	if err != nil || *d != (images.Driver{Version: "535.309.01", Modules: "proprietary", CUDA: "12.2"}) {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*Lock)
		want  string
	}{
		{"headers of another kernel", func(l *Lock) {
			l.Compile = swap(l.Compile, "linux-headers-6.1.0-56-amd64", "linux-headers-6.1.0-55-amd64 6.1.190-1")
		}, "brings no linux-headers-6.1.0-56-amd64"},
		{"headers of another build of the kernel", func(l *Lock) { l.Compile = swap(l.Compile, "linux-headers-6.1.0-56-amd64 6.1.192-1") }, "are of version 6.1.192-1, the kernel is 6.1.192-2"},
		{"two kernels", func(l *Lock) { l.Packages = swap(l.Packages, "linux-image-6.1.0-55-amd64 6.1.190-1") }, "two kernels"},
		{"no kernel", func(l *Lock) { l.Packages = swap(l.Packages, "linux-image-6.1.0-56-amd64") }, "no kernel"},
		// What Debian's archive really had in November 2026.
		{"modules of another patch level", func(l *Lock) { l.Compile = swap(l.Compile, "nvidia-kernel-dkms 535.261.03-1") }, "libcuda1 is 535.309.01, nvidia-kernel-dkms is 535.261.03"},
		{"one library of another patch level", func(l *Lock) { l.Packages = swap(l.Packages, "libnvidia-ml1 535.261.03-1") }, "libnvidia-ml1 is 535.261.03"},
		{"firmware of another patch level", func(l *Lock) { l.Packages = swap(l.Packages, "firmware-nvidia-gsp 535.261.03-1") }, "firmware-nvidia-gsp"},
		{"another branch", func(l *Lock) {
			l.Packages = swap(l.Packages, "firmware-nvidia-gsp", "libnvidia-ml1", "nvidia-smi", "libcuda1 550.163.01-2")
			l.Compile = swap(l.Compile, "nvidia-kernel-dkms 550.163.01-2")
		}, "the driver is 550.163.01, the recipe wants branch 535"},
		{"no modules", func(l *Lock) { l.Compile = swap(l.Compile, "nvidia-kernel-dkms") }, "no package of the lock has the driver's modules"},
		{"modules of the other kind", func(l *Lock) {
			l.Compile = swap(l.Compile, "nvidia-kernel-dkms", "nvidia-open-kernel-dkms 535.309.01-1")
		}, "has the open modules"},
		{"both kinds", func(l *Lock) { l.Compile = swap(l.Compile, "nvidia-open-kernel-dkms 535.309.01-1") }, "both bring"},
		{"the compiler would be shipped", func(l *Lock) { l.Packages = swap(l.Packages, "dkms 3.0.10-8+deb12u1") }, "dkms would be shipped"},
		{"no libcuda", func(l *Lock) { l.Packages = swap(l.Packages, "libcuda1") }, "no package of the lock has libcuda"},
		{"a toolkit that nobody asked for", func(l *Lock) { l.Packages = swap(l.Packages, "nvidia-cuda-toolkit 11.8.89~11.8.0-5~deb12u1") }, "the recipe says none, the packages bring 11.8"},
	} {
		l := goodLock()
		c.spoil(&l)
		if d, err := l.driver(r); err == nil || d != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %q", c.name, d, err, c.want)
		}
	}
	r.GPU.Toolkit = "11.8"
	l := goodLock()
	l.Packages = swap(l.Packages, "nvidia-cuda-toolkit 11.8.89~11.8.0-5~deb12u1")
	if _, err := l.driver(r); err != nil {
		t.Error(err)
	}
	if d, err := l.driver(Recipe{}); d != nil || err != nil {
		t.Errorf("a recipe without a driver: %v, %v", d, err)
	}
}

// Ubuntu compiles and signs the modules itself: no stage, no headers.
func TestDriverOfUbuntu(t *testing.T) {
	r := variantOf(t, `name: ai-node
suite: noble
kernel: linux-image-generic
packages: [systemd]
variants:
  - name: r580-open
    packages: [linux-modules-nvidia-580-server-open-generic, libnvidia-compute-580-server, nvidia-utils-580-server]
    gpu: {branch: "580", modules: open}
`, "r580-open")
	l := Lock{Packages: locked("libnvidia-compute-580-server 580.105.08-0ubuntu0.24.04.1", "linux-image-6.8.0-90-generic 6.8.0-90.91",
		"linux-modules-nvidia-580-server-open-6.8.0-90-generic 6.8.0-90.91", "linux-modules-nvidia-580-server-open-generic 6.8.0-90.91", "nvidia-utils-580-server 580.105.08-0ubuntu0.24.04.1")}
	d, err := l.driver(r)
	if err != nil || d.Version != "580.105.08" || d.Modules != "open" || d.CUDA != "13.0" {
		t.Errorf("%+v, %v", d, err)
	}
	l.Packages[2].Name = "linux-modules-nvidia-580-server-open-6.8.0-88-generic"
	if _, err := l.driver(r); err == nil || !strings.Contains(err.Error(), "for another kernel than 6.8.0-90-generic") {
		t.Error(err)
	}
}

func TestStack(t *testing.T) {
	for _, c := range []struct{ gpu, want string }{
		{`{branch: "535", compile: [nvidia-kernel-dkms]}`, ""},
		{`{branch: "570", compile: [nvidia-kernel-open-dkms], toolkit: "12.8"}`, ""},
		{`{branch: "536", compile: [nvidia-kernel-dkms]}`, "no driver branch 536"},
		{`{branch: "535", compile: [nvidia-open-kernel-dkms]}`, "preview"},
		{`{branch: "580", modules: open, compile: [nvidia-kernel-dkms]}`, "are to be open, nvidia-kernel-dkms brings the proprietary"},
		{`{branch: "580"}`, "no package brings the driver's modules"},
		{`{branch: "580", compile: [nvidia-kernel-dkms, nvidia-kernel-open-dkms]}`, "name one"},
		{`{branch: "570", compile: [nvidia-kernel-open-dkms], toolkit: "13.0"}`, "CUDA 13.0 needs driver 580"},
	} {
		r := driverRecipe(t, "name: x\nsuite: bookworm\npackages: [systemd]\ngpu: "+c.gpu+"\n")
		if s, err := r.Stack(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", c.gpu, s, err, c.want)
		}
	}
}

func TestRecipeCovers(t *testing.T) {
	r := driverRecipe(t, cudaRecipe)
	if err := r.Covers(map[string]string{"rig": "GTX 1080", "server": "NVIDIA GeForce RTX 5090", "old": "RX 6600"}); err != nil {
		t.Error(err)
	}
	r.images = r.images[:1]
	err := r.Covers(map[string]string{"rig": "GTX 1080", "server": "RTX 5090", "odd": "RTX 9999"})
	if err == nil || strings.Contains(err.Error(), "class rig") {
		t.Fatal(err)
	}
	for _, want := range []string{"class server: image ai-node does not run its cards", "needs driver 570", "class odd", "does not know the card RTX 9999"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// moduleFile is the smallest relocatable object with a .modinfo.
func moduleFile(info string, signed bool) []byte {
	const head = 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	off := uint64(head + len(info) + len(names))
	ident := [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	write(elf.Header64{Ident: ident, Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: off, Ehsize: head, Shentsize: 64, Shnum: 3, Shstrndx: 2})
	b.WriteString(info + names)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head, Size: uint64(len(info)), Addralign: 1})
	write(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(head + len(info)), Size: uint64(len(names)), Addralign: 1})
	if signed {
		b.WriteString("signature" + signatureMark)
	}
	return b.Bytes()
}

func nvidiaModule(name, version, release string) []byte {
	return moduleFile("version="+version+"\x00license=NVIDIA\x00name="+name+"\x00vermagic="+release+" SMP preempt mod_unload modversions \x00", false)
}

func TestParseModule(t *testing.T) {
	m, err := parseModule(bytes.NewReader(nvidiaModule("nvidia_uvm", "535.309.01", "6.1.0-56-amd64")))
	if err != nil || m.Name != "nvidia_uvm" || m.Version != "535.309.01" || m.Release() != "6.1.0-56-amd64" || m.Signed {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := parseModule(bytes.NewReader(moduleFile("name=x\x00vermagic=1 \x00", true))); err != nil || !m.Signed {
		t.Errorf("%+v, %v", m, err)
	}
	for _, b := range [][]byte{nil, []byte("#!/bin/sh"), moduleFile("", false), moduleFile("name=x\x00", false)} {
		if m, err := parseModule(bytes.NewReader(b)); err == nil {
			t.Errorf("%.20q is module %+v", b, m)
		}
	}
}

func FuzzParseModule(f *testing.F) {
	f.Add(nvidiaModule("nvidia", "535.309.01", "6.1.0-56-amd64"))
	f.Add(moduleFile("name=x\x00vermagic=1 \x00", true))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseModule(bytes.NewReader(b))
		if err == nil && (m.Name == "" || m.Vermagic == "") {
			t.Errorf("%+v", m)
		}
		if err != nil && m != (kernelModule{}) {
			t.Errorf("half a module: %+v", m)
		}
	})
}

// driverTree is an image's tree with a driver in it.
func driverTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	put(t, root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current.ko", nvidiaModule("nvidia", "535.309.01", "6.1.0-56-amd64"))
	put(t, root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current-uvm.ko", nvidiaModule("nvidia_uvm", "535.309.01", "6.1.0-56-amd64"))
	for _, f := range []string{"x86_64-linux-gnu/nvidia/current/libcuda.so.535.309.01", "x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.309.01", "x86_64-linux-gnu/nvidia/current/libnvidia-ptxjitcompiler.so.535.309.01"} {
		put(t, root, "usr/lib/"+f, nil)
	}
	put(t, root, "usr/bin/nvidia-smi", nil)
	return root
}

func put(t *testing.T, root, name string, b []byte) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDriverInTree(t *testing.T) {
	want := images.Driver{Version: "535.309.01", Modules: "proprietary", CUDA: "12.2"}
	const release = "6.1.0-56-amd64"
	if err := driverIn(driverTree(t), release, want); err != nil {
		t.Fatal(err)
	}
	if err := driverIn(t.TempDir(), release, want); err == nil {
		t.Error("an empty tree has a driver")
	}
	for _, c := range []struct {
		name  string
		spoil func(root string)
		want  string
	}{
		{"module for another kernel", func(root string) {
			put(t, root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current-uvm.ko", nvidiaModule("nvidia_uvm", "535.309.01", "6.1.0-55-amd64"))
		}, "nvidia_uvm is for kernel 6.1.0-55-amd64"},
		{"module of another driver", func(root string) {
			put(t, root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current.ko", nvidiaModule("nvidia", "535.261.03", release))
		}, "nvidia is of driver 535.261.03"},
		{"no uvm", func(root string) {
			os.Remove(filepath.Join(root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current-uvm.ko"))
		}, "without which CUDA does not start"},
		{"a second libcuda", func(root string) { put(t, root, "usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01", nil) }, "535.309.01 and 550.163.01"},
		{"no ptxjitcompiler", func(root string) {
			os.Remove(filepath.Join(root, "usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ptxjitcompiler.so.535.309.01"))
		}, "libnvidia-ptxjitcompiler.so is there in version none"},
		{"no nvidia-smi", func(root string) { os.Remove(filepath.Join(root, "usr/bin/nvidia-smi")) }, "nvidia-smi"},
		{"a module that is none", func(root string) {
			put(t, root, "lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-drm.ko", []byte("no"))
		}, "not a kernel module"},
	} {
		root := driverTree(t)
		c.spoil(root)
		if err := driverIn(root, release, want); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// What compiled the modules does not reach a node; least of all the key that
// DKMS makes to sign them with.
func TestSealed(t *testing.T) {
	r := variantOf(t, cudaRecipe, "r535")
	if err := r.sealed(driverTree(t)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"var/lib/dkms/mok.key", "usr/src/linux-headers-6.1.0-56-amd64/Makefile", "lib/modules/6.1.0-56-amd64/build", "usr/bin/gcc-12", "usr/sbin/dkms", "usr/src/nvidia-current-535.309.01/dkms.conf"} {
		root := driverTree(t)
		put(t, root, f, nil)
		if err := r.sealed(root); err == nil || !strings.Contains(err.Error(), strings.Join(strings.Split(f, "/")[:3], "/")) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
	root := driverTree(t)
	put(t, root, "usr/bin/gcc-12", nil)
	r.GPU.Toolkit = "11.8" // nvcc calls it
	if err := r.sealed(root); err != nil {
		t.Error(err)
	}
}

// The recipes that come with Smelt name drivers that exist, whose parts go
// together, and among them one for every card that there is a driver for.
func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("../recipes/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		r, err := ParseRecipe(f)
		if err != nil {
			t.Error(err)
			continue
		}
		models := map[string]string{}
		for _, i := range r.Images() {
			if _, err := i.Stack(); err != nil {
				t.Errorf("%s: %v", i.Title(), err)
			}
			if i.GPU == nil {
				continue
			}
			if _, err := i.cuda(); err != nil {
				t.Errorf("%s: %v", i.Title(), err)
			}
			for _, c := range triage.Cards() {
				if c.Use != triage.IGPU {
					models[c.Model] = c.Model
				}
			}
		}
		if err := r.Covers(models); err != nil {
			t.Error(err)
		}
	}
}

// Images that need NVIDIA's or Ubuntu's repository are locked here against a
// folder of empty packages with the names that their recipes ask for: every
// part of the driver is found, agrees, and becomes what the manifest says.
func TestLockOfForeignVariants(t *testing.T) {
	folders(t) // the tools
	for _, c := range []struct {
		recipe, variant, version string
		want                     images.Driver
	}{
		{"debian-12-cuda", "r580", "580.95.05-1", images.Driver{Version: "580.95.05", Modules: "proprietary", CUDA: "13.0"}},
		{"ubuntu-24.04-cuda", "r580-open", "580.95.05-0ubuntu0.24.04.1", images.Driver{Version: "580.95.05", Modules: "open", CUDA: "13.0"}},
	} {
		t.Run(c.recipe+"."+c.variant, func(t *testing.T) {
			r, err := ParseRecipe("../recipes/" + c.recipe + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			if r, err = r.Image(c.variant); err != nil {
				t.Fatal(err)
			}
			debs := t.TempDir()
			deb(t, debs, "base", "1", "Essential: yes\n")
			deb(t, debs, "apt", "1", "Priority: required\n")
			const release = "6.8.0-90-generic"
			deb(t, debs, "linux-image-"+release, "6.8", "")
			deb(t, debs, "linux-headers-"+release, "6.8", "")
			for _, n := range slices.Concat(r.Packages, r.GPU.Compile) {
				version, fields := "1", ""
				switch {
				case n == r.Kernel:
					fields = "Depends: linux-image-" + release + "\n"
				case n == "linux-headers-amd64":
					fields = "Depends: linux-headers-" + release + "\n"
				case strings.HasPrefix(n, "linux-modules-nvidia-"):
					own := strings.TrimSuffix(n, "generic") + release
					deb(t, debs, own, "6.8", "")
					fields = "Depends: " + own + "\n"
				case driverLibrary.MatchString(n), moduleSource.MatchString(n):
					version = c.version
				}
				deb(t, debs, n, version, fields)
			}
			r.Sources = []Source{{Name: "ours", Dir: debs}}
			v := Resolver{Cache: t.TempDir()}
			l, err := v.Resolve(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			d, err := l.driver(r)
			if err != nil || *d != c.want {
				t.Errorf("%+v, %v; want %+v", d, err, c.want)
			}
		})
	}
}
