package build

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// What a real kernel says to modules, on a machine without the hardware: "no
// such device" to one that is made for it, which is how an image's driver is
// proven where there is no GPU, and "exec format error" to one that is not.
//
// With SMELT_TEST_MODULES, a folder of NVIDIA's modules for Debian's current
// kernel, those are tried too.
func TestKernelAnswersModules(t *testing.T) {
	endToEnd(t)
	qemu := need(t, "qemu-system-x86_64")
	cache := os.Getenv("SMELT_TEST_CACHE")
	if cache == "" {
		cache = t.TempDir()
	}
	k, err := Kernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	fits, err := os.ReadFile(filepath.Join(k.Modules, "kernel/drivers/hwmon/coretemp.ko")) // of Intel's CPUs, which -cpu max is none of
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(unsigned(fits), []byte(k.Release+" SMP preempt "), []byte(k.Release+" SMP Preempt "), 1)
	if !bytes.Contains(other, []byte("Preempt")) {
		t.Fatal("coretemp says nothing of its kernel")
	}
	want := map[string]string{"00-fits.ko": "no such device", "01-other-kernel.ko": "exec format error", "02-broken.ko": "exec format error"}
	files := map[string][]byte{"00-fits.ko": fits, "01-other-kernel.ko": other, "02-broken.ko": []byte("no module")}
	if dir := os.Getenv("SMELT_TEST_MODULES"); dir != "" {
		// nvidia needs drm, which other modules bring here.
		for i, m := range append(dependsOn(t, k, "kernel/drivers/gpu/drm/drm.ko"), "kernel/drivers/gpu/drm/drm.ko") {
			b, err := os.ReadFile(filepath.Join(k.Modules, m))
			if err != nil {
				t.Fatal(err)
			}
			files[fmt.Sprintf("1%d-%s", i, filepath.Base(m))] = b
		}
		found, err := filepath.Glob(filepath.Join(dir, "nvidia*.ko"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no modules in %s: %v", dir, err)
		}
		for _, p := range found {
			m, err := readModule(p)
			if err != nil {
				t.Fatal(err)
			}
			if m.Name != "nvidia" {
				continue // they need nvidia, which goes away again
			}
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			files["20-"+filepath.Base(p)] = b
			want["20-"+filepath.Base(p)] = "no such device"
			t.Logf("%s: driver %s for kernel %s", filepath.Base(p), m.Version, m.Release())
		}
	}

	init := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-o", init, "./testdata/insmod")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(init)
	if err != nil {
		t.Fatal(err)
	}
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.Directory("modules", 0o755), cpio.StaticFile("init", string(program), 0o755)}
	for name, b := range files {
		records = append(records, cpio.StaticFile("modules/"+name, string(b), 0o644))
	}
	var initrd bytes.Buffer
	w := cpio.Newc.Writer(&initrd)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(archive, initrd.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	said := boot(t, qemu, []string{
		"-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "768", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none",
		"-kernel", k.Vmlinuz, "-initrd", archive, "-append", "console=ttyS0 panic=-1",
	})
	for name, w := range want {
		if !regexp.MustCompile(`smelt-test: ` + regexp.QuoteMeta(name) + `: ` + w).MatchString(said) {
			t.Errorf("%s: the kernel did not say %q", name, w)
		}
	}
	for l := range strings.Lines(said) {
		if strings.Contains(l, "smelt-test: ") || strings.Contains(l, "NVRM") || strings.Contains(l, "vermagic") {
			t.Log(strings.TrimSpace(l))
		}
	}
	if t.Failed() {
		t.Logf("console:\n%s", tail(said, 40))
	}
}

// unsigned cuts the signature off (struct module_signature, in
// kernel/module_signature.c: its length is the last number, big-endian):
// it would be wrong for a changed module, which is another refusal.
func unsigned(module []byte) []byte {
	b, ok := bytes.CutSuffix(module, []byte(signatureMark))
	if !ok {
		return module
	}
	n := int(binary.BigEndian.Uint32(b[len(b)-4:]))
	return bytes.Clone(b[:len(b)-12-n])
}

// dependsOn are the modules that a module needs loaded first, in their order.
func dependsOn(t *testing.T, k KernelFiles, module string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.Modules, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, module+":"); ok {
			deps := strings.Fields(rest)
			slices.Reverse(deps) // modules.dep has the last needed first
			return deps
		}
	}
	t.Fatalf("modules.dep does not name %s", module)
	return nil
}
