package build

import (
	"bytes"
	"context"
	"crypto/ed25519"
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
	cache := testCache(t)
	l, err := Resolver{Cache: cache}.Resolve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
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
		Recipe: r, Lock: l, Cache: cache, Out: store, Key: key,
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
	if got := strings.Join(stages, " "); !strings.HasSuffix(got, "packages rootfs disk compress documents") {
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
				"wipe":    `secure wipe reached=purge zeros=true err=<nil>`,
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

// A build host with another clock, under another path, makes the same image:
// the manifest's digest is that of every bit of it and of its documents. The
// other clock is 400 days ahead for everything that runs in and for the image.
func TestReproducible(t *testing.T) {
	endToEnd(t)
	root(t)
	const preload = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
	need(t, preload)
	cache := testCache(t)
	r, err := parseRecipe("r.yaml", []byte(small+`  - systemd-sysv
  - udev
  - kmod
  - initramfs-tools
  - zstd
  - sudo
users:
  - {name: ops, sudo: true, keys: ["ssh-ed25519 AAAAC3Nz ops"]}
exclude: [/usr/share/doc/*, /usr/share/man/*, /usr/share/locale/*, "/lib/modules/*/kernel/drivers/*", "/lib/modules/*/kernel/sound/*"]
run: ["date +%Y >/etc/late", "echo the clock says $(date +%Y)", "passwd -l root"]
`))
	if err != nil {
		t.Fatal(err)
	}
	lib, err := os.ReadFile(preload)
	if err != nil {
		t.Fatal(err)
	}
	r.Files = append(r.Files, File{preload, 0o644, string(lib)})
	r.Remove = append(r.Remove, filepath.Dir(preload), "/etc/late")
	l, err := Resolver{Cache: cache}.Resolve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	extra := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(extra, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	built := func(cache string, env ...string) (images.Digest, string) {
		t.Helper()
		store, err := images.OpenStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Recipe: r, Lock: l, Cache: cache, Out: store, Key: key, Extra: []Extra{{"/usr/lib/agent", extra, 0o755}}}
		id, err := Key(r, l, o.Extra)
		if err != nil {
			t.Fatal(err)
		}
		b := &builder{Options: o, env: env}
		if b.log, err = openLog(t.TempDir(), r.Title()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		d, _, err := b.build(t.Context(), id)
		b.log.close(err)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s in %.1f s", d.Short(), time.Since(began).Seconds())
		return d, b.log.path
	}
	top := t.TempDir()
	one, other := filepath.Join(top, "one"), filepath.Join(top, "another", "place", "altogether")
	for _, d := range []string{one, other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first, _ := built(one)
	if err := os.Rename(filepath.Join(one, "debs"), filepath.Join(other, "debs")); err != nil {
		t.Fatal(err)
	}
	second, log := built(other, "LD_PRELOAD="+preload, "FAKETIME=+400d", "FAKETIME_DISABLE_SHM=1", "NO_FAKE_STAT=1")
	if first != second {
		t.Errorf("%s the first time, %s the second", first, second)
	}
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "the clock says "+time.Now().AddDate(0, 0, 400).Format("2006")) {
		t.Errorf("the other clock was not seen: %v", err)
	}
}

// A wrong package is found before anything is built, and the recipe's line is named.
func TestMissingPackage(t *testing.T) {
	endToEnd(t)
	root(t)
	r, err := parseRecipe("r.yaml", []byte(small+"  - no-such-package-here\n  - slurmd\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Resolver{Cache: testCache(t)}.Resolve(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "r.yaml:5: there is no package no-such-package-here in bookworm of debian, debian-security") {
		t.Errorf("error is %v", err)
	}
	// A signature by another key than the recipe's is none.
	r.Sources[0].Fingerprint = nvidiaKey
	_, err = Resolver{Cache: testCache(t)}.Resolve(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "source debian cannot be read") {
		t.Errorf("a wrong fingerprint: %v", err)
	}
}

// A hook that forgets where it is must not write to the build host.
func TestHookCannotEscape(t *testing.T) {
	endToEnd(t)
	root(t)
	const escape = "/etc/smelt-escape"
	r, err := parseRecipe("r.yaml", []byte("name: x\nsuite: bookworm\npackages: [dash]\nrun: [\"echo inside >"+escape+"; cat "+escape+"\", \"exit 3\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	cache := testCache(t)
	// The base system alone, for speed.
	a, err := Resolver{Cache: cache}.open(t.Context(), &r)
	if err != nil {
		t.Fatal(err)
	}
	l := Lock{Date: time.Now()}
	if l.Packages, err = a.closure(t.Context(), r, base); err != nil {
		t.Fatal(err)
	}
	b := &builder{Options: Options{Cache: cache, Recipe: r, Lock: l}}
	_, _, err = b.tree(t.Context(), b.imageStage())
	if err == nil || !strings.Contains(err.Error(), "r.yaml: mmdebstrap: exit status") {
		t.Errorf("a failed command: %v", err)
	} else if !strings.Contains(err.Error(), "\ninside\n") {
		t.Errorf("the recipe's command did not run inside: %v", err)
	}
	if exists(escape) {
		os.Remove(escape)
		t.Error("the recipe's command wrote to the host")
	}
}
