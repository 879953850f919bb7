package build

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"smelt/images"
	"smelt/images/disk"
)

// need skips where a tool is missing.
func need(t *testing.T, path string) string {
	t.Helper()
	p := path
	var err error
	if !filepath.IsAbs(path) {
		p, err = findTool(path)
	} else {
		_, err = os.Stat(path)
	}
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return p
}

// The lab's recipe, built, served, written to a dirty disk over HTTP, and
// booted by both kinds of firmware.
func TestBuildAndBoot(t *testing.T) {
	endToEnd(t)
	root(t)
	qemu := need(t, "qemu-system-x86_64")
	ovmf := need(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	dir := t.TempDir()

	agent := filepath.Join(dir, "agent")
	cmd := exec.Command("go", "build", "-o", agent, "./testdata/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := ParseRecipe("../recipes/debian-12-lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("SMELT_TEST_CACHE")
	if cache == "" {
		cache = filepath.Join(dir, "cache")
	}
	store, err := images.OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var stages []string
	o := Options{
		Recipe: r, Cache: cache, Out: store, Key: key,
		Extra: []Extra{{"/usr/lib/smelt/smelt-agent", agent, 0o755}},
		Progress: func(p Progress) {
			if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
				stages = append(stages, p.Stage)
			}
			if p.Done < 0 || p.Done > 1 || p.Line == "" {
				t.Errorf("progress %+v", p)
			}
		},
	}
	d, info, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: kernel %s, %d MB, %d MB of data, %d MB compressed, in %.1f s (packages cached: %v)", d.Short(), info.Kernel,
		info.Size/1e6, info.Data/1e6, info.Compressed/1e6, info.Elapsed.Seconds(), info.Packages)
	if got := strings.Join(stages, " "); got != "packages rootfs disk compress" {
		t.Errorf("stages: %s", got)
	}
	if info.Hit || info.Data > 500e6 || info.Compressed > 160e6 {
		t.Errorf("%+v is too big, or a hit", info)
	}
	again, info, err := Build(t.Context(), o)
	if err != nil || again != d || !info.Hit || info.Elapsed > time.Second {
		t.Errorf("second build: %v, %+v, %v", again, info, err)
	}
	// Another site's key takes the same image.
	pub2, key2, _ := ed25519.GenerateKey(nil)
	o.Key = key2
	if again, info, err := Build(t.Context(), o); err != nil || again != d || !info.Hit {
		t.Errorf("build with another key: %v, %+v, %v", again, info, err)
	}
	env, err := store.Envelope(d)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := images.Open(env, pub2)
	if err != nil {
		t.Fatal(err)
	}

	srv := httptest.NewServer(store.Handler())
	defer srv.Close()
	for _, firmware := range []string{"SeaBIOS", "OVMF"} {
		t.Run(firmware, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "disk")
			const size = 4 << 30
			if err := os.WriteFile(target, bytes.Repeat([]byte("old tenant "), 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(target, size); err != nil {
				t.Fatal(err)
			}
			w, err := disk.Write(t.Context(), target, m, disk.HTTP(http.DefaultClient, srv.URL+"/blob/"+m.Blob.String()), disk.Options{ReadBack: true})
			http.DefaultClient.CloseIdleConnections()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("written in %.1f s", w.Elapsed.Seconds())
			second := filepath.Join(t.TempDir(), "second")
			if err := os.WriteFile(second, bytes.Repeat([]byte("old tenant's data "), 64<<20/18+1)[:64<<20], 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{
				"-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "1024", "-display", "none",
				"-monitor", "none", "-serial", "stdio", "-no-reboot",
				"-drive", "if=none,id=d,format=raw,cache=unsafe,file=" + target, "-device", "nvme,drive=d,serial=smelt,bootindex=0",
				"-drive", "if=none,id=e,format=raw,cache=unsafe,file=" + second, "-device", "nvme,drive=e,serial=second",
				"-netdev", "user,id=n", "-device", "e1000e,netdev=n,romfile=",
			}
			if firmware == "OVMF" {
				vars := filepath.Join(t.TempDir(), "vars")
				b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(vars, b, 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+ovmf, "-drive", "if=pflash,format=raw,unit=1,file="+vars)
			}
			said := boot(t, qemu, args)
			for what, want := range map[string]string{
				"grow":    `grow partition=3 end=42[0-9]{8} err=<nil>`,
				"growfs":  `growfs err=<nil>`,
				"root":    `root bytes=(3[89]|4)[0-9]+`,
				"wipe":    `secure wipe reached=secure zeros=true err=<nil>`,
				"state":   `state=running `,
				"failed":  `failed=""`,
				"kernel":  `kernel=` + regexp.QuoteMeta(m.Kernel) + ` machine-id=32 hostname=node`,
				"units":   `slurmd=disabled.* munge=disabled.* agent=enabled`,
				"secret":  `munge.key=open /etc/munge/munge.key: no such file`,
				"root pw": `shadow=!?\*`,
				"address": `address=\S+ UP 10\.0\.2\.15/24`,
			} {
				if !regexp.MustCompile(`smelt-test: ` + want).MatchString(said) {
					t.Errorf("%s: no line matches %s", what, want)
				}
			}
			if b, err := os.ReadFile(second); err != nil || bytes.Contains(b, []byte("old tenant")) {
				t.Error("the second disk still holds the old tenant's data", err)
			}
			for l := range strings.Lines(said) {
				if s, ok := strings.CutPrefix(l, "smelt-test: "); ok {
					t.Log(strings.TrimSpace(s))
				}
			}
			if t.Failed() {
				t.Logf("console:\n%s", tail(said, 60))
			}
		})
	}
}

// boot runs a machine until it switches itself off, and returns its console.
func boot(t *testing.T, qemu string, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var console bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.Stdout, cmd.Stderr = &console, &console
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("qemu: %v\n%s", err, tail(console.String(), 40))
	}
	t.Logf("from power on to power off: %.1f s, %.1f s of CPU", time.Since(began).Seconds(),
		(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	return console.String()
}

// A wrong package is found before anything is built, and the recipe's line is named.
func TestMissingPackage(t *testing.T) {
	endToEnd(t)
	root(t)
	cache := os.Getenv("SMELT_TEST_CACHE")
	if cache == "" {
		cache = t.TempDir()
	}
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRecipe("r.yaml", []byte(small+"  - no-such-package-here\n  - slurmd\n"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, _, err = Build(t.Context(), Options{Recipe: r, Cache: cache, Out: store, Key: ed25519.NewKeyFromSeed(make([]byte, 32))})
	if err == nil || !strings.Contains(err.Error(), "r.yaml:5: there is no package no-such-package-here in bookworm") {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %s", fmt.Sprint(took))
	}
}

// A hook that forgets where it is must not write to the build host.
func TestHookCannotEscape(t *testing.T) {
	endToEnd(t)
	root(t)
	const escape = "/etc/smelt-escape"
	work := t.TempDir()
	if err := os.Chmod(work, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &builder{Options{Cache: work, Recipe: Recipe{
		Name: "x", Suite: "bookworm", Sources: defaultSources("bookworm"), Packages: []string{"dash"}, path: "r.yaml",
		Run: []string{"echo inside >" + escape, "exit 0"},
	}}}
	if err := b.mmdebstrap(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	if exists(escape) {
		os.Remove(escape)
		t.Error("the recipe's command wrote to the host")
	}
	if !exists(filepath.Join(work, "root", escape)) {
		t.Error("the recipe's command did not run inside")
	}
	b.Recipe.Run = []string{"exit 3"}
	work = t.TempDir()
	if err := b.mmdebstrap(t.Context(), work); err == nil {
		t.Error("a failed command is no error")
	}
}
