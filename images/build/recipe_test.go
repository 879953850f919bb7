package build

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"smelt/images"
)

func TestRecipesInTheTree(t *testing.T) {
	files, err := filepath.Glob("../recipes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no recipes", err)
	}
	for _, f := range files {
		r, err := ParseRecipe(f)
		if err != nil {
			t.Error(err)
		} else if want := strings.TrimSuffix(filepath.Base(f), ".yaml"); r.Name != want {
			t.Errorf("%s is named %s", f, r.Name)
		}
	}
}

const small = `name: x
suite: bookworm
packages:
  - systemd
`

func TestRecipeMistakes(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", small + "pakages: [a]\n", "r.yaml: line 5: field pakages is not known: want name"},
		{"unknown file key", small + "files:\n  - {path: /a, contents: x}\n", "line 6: field contents is not known: want path, mode or content"},
		{"wrong type", small + "freeMiB: lots\n", "line 5: cannot unmarshal"},
		{"duplicate key", small + "name: y\n", `line 5: mapping key "name" already defined`},
		{"no YAML", "name: [", "r.yaml: line 1"},
		{"list for a word", small + "cluster: [slurm]\n", "line 5: want one word"},
		{"package that apt would remove", small + "  - nano-\n", `r.yaml:5: package "nano-": not a package name`},
		{"bad package", small + "  - Foo Bar\n", `r.yaml:5: package "Foo Bar": not a package name`},
		{"package option", small + "  - --allow-downgrades\n", "r.yaml:5"},
		{"package twice", small + "  - systemd=252.*\n", "r.yaml:5: package systemd is named in line 4 already"},
		{"package of the cluster", small + "  - slurmd\ncluster: slurm\n", "r.yaml:5: package slurmd is named in line 6 already"},
		{"kernel among packages", small + "  - linux-image-amd64\n", "r.yaml:5: package linux-image-amd64: the kernel is named by kernel"},
		{"cloud kernel", small + "kernel: linux-image-cloud-amd64\n", "r.yaml:5: kernel \"linux-image-cloud-amd64\""},
		{"relative file", small + "files:\n  - path: etc/x\n", "r.yaml:6: path \"etc/x\""},
		{"file outside", small + "files:\n  - path: /../x\n", "r.yaml:6"},
		{"setuid file", small + "files:\n  - {path: /x, mode: \"4755\"}\n", "r.yaml:6: mode"},
		{"remove outside", small + "remove: [/a/../../etc]\n", "r.yaml:5: path \"/a/../../etc\": want an absolute path"},
		{"two-line cmdline", small + "cmdline: \"a\\nb\"\n", "r.yaml:5: cmdline"},
		{"bad name", strings.Replace(small, "name: x", "name: ../x", 1), "r.yaml:1: name \"../x\""},
		{"other suite", strings.Replace(small, "bookworm", "sarge", 1), "no default sources"},
		{"wrong architecture", small + "arch: arm64\n", "r.yaml:5: arch arm64: the builder makes images for amd64 only"},
		{"no packages", "name: x\nsuite: bookworm\n", "none are named"},
		{"second document", small + "---\nname: y\n", "second document"},
		{"budget below zero", small + "budgetMiB: -1\n", "budgetMiB -1"},
		{"unknown cluster", small + "cluster: nomad\n", "r.yaml:5: cluster \"nomad\": want slurm, kubernetes or none"},

		{"source as a line", small + "sources: [\"deb http://x y z\"]\n", "line 5: cannot unmarshal"},
		{"source without url", small + "sources:\n  - {name: site}\n", "r.yaml:6: source site: it has no url"},
		{"source twice", small + "sources:\n  - {name: debian}\n  - {name: debian}\n", "r.yaml:7: source debian is there already"},
		{"source without key", small + "sources:\n  - {name: site, url: http://m/d, suites: [x], components: [main]}\n", "r.yaml:6: source site has no key"},
		{"fetched key without fingerprint", small + "sources:\n  - {name: site, url: http://m/d, suites: [/], key: https://m/k}\n", "r.yaml:6: source site: a key that is fetched needs its fingerprint"},
		{"key by http", small + "sources:\n  - {name: site, url: http://m/d, suites: [/], key: http://m/k}\n", "want a file or an https URL"},
		{"bad fingerprint", small + "sources:\n  - {name: site, url: http://m/d, suites: [/], key: k.asc, fingerprint: abc}\n", "fingerprint \"ABC\": want 40"},
		{"password in a url", small + "sources:\n  - {name: debian, url: \"http://u:secret@m/d\"}\n", "r.yaml:6: source debian: url of m: no user and password"},
		{"option in a url", small + "sources:\n  - {name: debian, url: \"http://m/ [trusted=yes]\"}\n", "want http:// or https://"},
		{"flat with components", small + "sources:\n  - {name: debian, suites: [/]}\n", "a flat repository"},
		{"bad pin", small + "sources:\n  - {name: debian, pin: \"580 or so\"}\n", "pin \"580 or so\""},
		{"pin of nothing", small + "sources:\n  - {name: debian, pinPackages: [nvidia-*]}\n", "add pin"},
		{"folder with url", small + "sources:\n  - {name: l, dir: ./debs, url: http://m/}\n", "a folder has no url"},

		{"root by another name", small + "users:\n  - {name: Root}\n", "r.yaml:6: user \"Root\""},
		{"private key", small + "users:\n  - {name: ops, keys: [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]}\n", "r.yaml:6: key of ops: want a public SSH key"},
		{"key of two lines", small + "users:\n  - {name: ops, keys: [\"ssh-ed25519 AAAA x\\nKEYS\"]}\n", "want a public SSH key"},
		{"low uid", small + "users:\n  - {name: ops, uid: 0010}\n", "uid 8 of ops"},
		{"sudo without sudo", small + "users:\n  - {name: ops, sudo: true}\n", "add sudo"},
		{"bad service", small + "services:\n  enable: [\"a b\"]\n", "r.yaml:6: service \"a b\""},
		{"unknown service key", small + "services:\n  start: [a]\n", "line 6: field start is not known: want enable, disable or mask"},

		{"bad branch", small + "gpu: {branch: latest}\n", "r.yaml:5: gpu branch \"latest\""},
		{"bad modules", small + "gpu: {branch: 535, modules: nouveau}\n", "r.yaml:5: gpu modules \"nouveau\""},
		{"bad toolkit", small + "gpu: {branch: 535, toolkit: all}\n", "gpu toolkit \"all\""},
		{"bad cuda", small + "gpu: {branch: 535, cuda: 12}\n", "gpu cuda \"12\""},
		{"nameless variant", small + "variants:\n  - {gpu: {branch: 535}}\n", "variant \"\""},
		{"variant twice", small + "variants:\n  - {name: a}\n  - {name: a}\n", "r.yaml:7: variant a is there already"},
		{"variant's package", small + "variants:\n  - name: a\n    packages: [systemd]\n", "r.yaml:7: package systemd is named in line 4 already"},
		{"variant's unknown key", small + "variants:\n  - {name: a, arch: amd64}\n", "line 6: field arch is not known"},
	} {
		_, err := parseRecipe("r.yaml", []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\n\twant %s", tt.name, err, tt.want)
		}
	}
	if _, err := parseRecipe("r.yaml", []byte(small)); err != nil {
		t.Error(err)
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte(whole))
	b, err := os.ReadFile("../recipes/debian-12-lab.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecipe("r.yaml", b)
		if err != nil {
			return
		}
		for _, r := range r.Images() {
			check(t, r)
		}
	})
}

func check(t *testing.T, r Recipe) {
	for _, s := range r.Sources {
		for _, l := range append(s.lines(s.Key), s.preferences()) {
			if strings.Count(l, "[") > 1 || strings.Count(strings.TrimSuffix(l, "\n\n"), "\n") > 2 {
				t.Errorf("source %q", l)
			}
		}
	}
	for _, f := range r.Files {
		if !filepath.IsAbs(f.Path) || strings.Contains(f.Path, "/../") || f.Mode&^0o777 != 0 {
			t.Errorf("file %q %o", f.Path, f.Mode)
		}
	}
	for _, p := range r.Packages {
		if strings.HasPrefix(p, "-") || strings.ContainsAny(p, ", ") {
			t.Errorf("package %q", p)
		}
	}
}

const whole = small + `  - sudo
kernel: linux-image-generic
cluster: slurm
budgetMiB: 400
sources:
  - name: debian
    components: [main, contrib]
  - name: debian-security
  - {name: site, url: "https://mirror.site/cuda/", suites: [/], key: keys/site.asc, pin: "535.*", pinPackages: ["nvidia-*"], optional: true}
  - {name: ours, dir: debs}
users:
  - {name: ops, uid: 2000, groups: [adm], sudo: true, keys: ["ssh-ed25519 AAAAC3Nz ops@site"]}
services: {enable: [a.service], mask: [b.timer]}
run: ["true"]
variants:
  - name: r535
    gpu: {branch: 535, modules: proprietary, cuda: "12.2", compile: [nvidia-kernel-dkms]}
    packages: [nvidia-smi]
  - name: r580
    gpu: {branch: "580"}
    sources: [{name: nvidia, pin: 580.*}, {name: site, url: "http://other/", suites: [x], components: [y], key: /k}]
    budgetMiB: 500
    services: {disable: [c]}
`

// The whole schema, once.
func TestVariants(t *testing.T) {
	r, err := parseRecipe("dir/r.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.Images()); n != 2 {
		t.Fatalf("%d images", n)
	}
	if _, err := r.Image(""); err == nil || !strings.Contains(err.Error(), "say which variant: r535, r580") {
		t.Error(err)
	}
	a, err := r.Image("r535")
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Image("r580")
	if err != nil {
		t.Fatal(err)
	}
	if a.Title() != "x.r535" || a.Kernel != "linux-image-generic" || a.Budget != 400<<20 || b.Budget != 500<<20 {
		t.Errorf("%+v", a)
	}
	if got := strings.Join(a.Packages, " "); got != "linux-image-generic munge slurmd systemd sudo nvidia-smi" {
		t.Errorf("packages: %s", got)
	}
	if got := strings.Join(b.Packages, " "); got != "linux-image-generic munge slurmd systemd sudo" {
		t.Errorf("packages: %s", got)
	}
	if a.GPU.Branch != "535" || a.GPU.Toolkit != "none" || b.GPU.Modules != "auto" || len(a.GPU.Compile) != 1 {
		t.Errorf("gpu: %+v, %+v", a.GPU, b.GPU)
	}
	var lines []string
	for _, s := range a.Sources[:3] {
		lines = append(lines, s.lines(s.Key)...)
	}
	want := []string{
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main contrib",
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-updates main contrib",
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main",
		"deb [signed-by=dir/keys/site.asc] https://mirror.site/cuda /",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if got := a.Sources[2].preferences(); got != "Package: nvidia-*\nPin: version 535.*\nPin-Priority: 1001\n\n" {
		t.Errorf("preferences: %q", got)
	}
	if a.Sources[3].Dir != "dir/debs" || !a.Sources[2].Optional {
		t.Errorf("%+v", a.Sources)
	}
	if s := b.Sources[2]; s.URL != "http://other" || s.Optional {
		t.Errorf("the variant's source did not take the place of the recipe's: %+v", s)
	}
	if s := b.Sources[4]; s.Fingerprint != nvidiaKey || s.URL != "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64" || s.Pin != "580.*" {
		t.Errorf("%+v", s)
	}
	if got := strings.Join(b.Services.Disable, " "); got != "munge slurmd c" {
		t.Errorf("disabled: %s", got)
	}
	if _, err := r.Image("r999"); err == nil || !strings.Contains(err.Error(), "want r535, r580") {
		t.Error(err)
	}
	m, err := a.Mirrored(map[string]string{"debian": "http://near/debian/", "nvidia": "http://near/nvidia"})
	if err != nil || m.Sources[0].URL != "http://near/debian" || a.Sources[0].URL != "http://deb.debian.org/debian" {
		t.Errorf("%v, %+v", err, m.Sources[0])
	}
}

// A change of what a stage is made of changes its key, and of nothing else.
func TestKeys(t *testing.T) {
	r, err := parseRecipe("r.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(t.TempDir(), "agent")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(agent, []byte(s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	extra := []Extra{{"/agent", agent, 0o755}}
	lock := func(r Recipe) Lock {
		return Lock{Image: r.Title(), Recipe: r.lockInput(), Date: time.Unix(1e9, 0),
			Packages: []Locked{{Name: "systemd", Version: "252", SHA256: images.Digest{1}}},
			Tools:    []Locked{{Name: "mtools", Version: "4", SHA256: images.Digest{2}}}}
	}
	stageKey := func(r Recipe, l Lock) string {
		b := builder{Options: Options{Recipe: r, Lock: l}}
		return b.stageKey(b.imageStage())
	}
	key := func(r Recipe, e []Extra) string {
		t.Helper()
		k, err := Key(r, lock(r), e)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first, stage := key(r, extra), stageKey(r, lock(r))
	if key(r, extra) != first {
		t.Error("the same inputs give another key")
	}
	write("two")
	if key(r, extra) == first {
		t.Error("a new agent gives the old image")
	}
	write("one")
	if key(r, []Extra{{"/agent", agent, 0o700}}) == first {
		t.Error("a new mode gives the old image")
	}
	other := r
	other.Cmdline = "quiet"
	if key(other, extra) == first || stageKey(other, lock(other)) != stage {
		t.Error("the command line belongs to the disk, not to the packages")
	}
	other = r
	other.Packages = append([]string{"munge"}, r.Packages...)
	if _, err := Key(other, lock(r), extra); !errors.Is(err, ErrStale) {
		t.Errorf("a new package and the old lock: %v", err)
	}
	for what, change := range map[string]func(*Lock){
		"package":      func(l *Lock) { l.Packages[0].SHA256 = images.Digest{9} },
		"date":         func(l *Lock) { l.Date = l.Date.Add(time.Second) },
		"tool":         func(l *Lock) { l.Tools[0].SHA256 = images.Digest{9} },
		"compile tree": func(l *Lock) { l.Compile = l.Packages },
	} {
		l := lock(r)
		change(&l)
		k, err := Key(r, l, extra)
		if err != nil || k == first {
			t.Errorf("another %s gives the old image: %v", what, err)
		}
		if stageKey(r, l) == stage && (what == "package" || what == "date") || stageKey(r, l) != stage && what == "tool" {
			t.Errorf("another %s, and the tree of packages has the wrong key", what)
		}
	}
	// Where it came from makes no difference.
	near, err := r.Mirrored(map[string]string{"debian": "http://near/debian"})
	if err != nil || near.lockInput() != r.lockInput() {
		t.Errorf("a mirror changes the lock: %v", err)
	}
	if _, err := Key(r, lock(r), []Extra{{"/agent", agent + "x", 0o755}}); err == nil {
		t.Error("a missing file has a key")
	}
	if _, err := Key(r, lock(r), []Extra{{"../agent", agent, 0o755}}); err == nil {
		t.Error("a path outside the image has a key")
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"old", "half", "new", "newest"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "root"), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "half" { // a build that runs now
			continue
		}
		stamp := filepath.Join(dir, name, "complete")
		if err := os.WriteFile(stamp, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(i-9) * time.Hour)
		if err := os.Chtimes(stamp, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, 2); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 3 || exists(filepath.Join(dir, "old")) {
		t.Errorf("left: %q, %v", left, err)
	}
}

// What a killed build left goes, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"rootfs/key/root", "rootfs-123/root/etc", "tools-9/usr", "disk-1", "debs", "kernel-5"} {
		if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(dir); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 3 || !exists(filepath.Join(dir, "rootfs/key/root")) {
		t.Errorf("left: %q, %v", left, err)
	}
}

// root skips where the test's privileges are missing.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// The mistake this is made against: a hook that writes to the build host.
func TestSandbox(t *testing.T) {
	root(t)
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	in := func(script string) error {
		_, err := (command{name: "sh", args: []string{"-euc", script}, jail: dir}).run(t.Context())
		return err
	}
	for name, script := range map[string]string{
		"write to /etc":            "echo x >/etc/smelt-escape",
		"write to /usr":            "touch /usr/bin/smelt-escape",
		"write to /var":            "touch /var/lib/dpkg/smelt-escape",
		"append to a file":         "echo x >>" + outside,
		"remove a file":            "rm " + outside,
		"write to a device":        "mknod " + dir + "/sda b 8 0 && echo x >" + dir + "/sda",
		"see a disk":               "ls /dev/[svx]d[a-z] /dev/nvme* /dev/loop*",
		"install on the host":      "dpkg --force-all -i /nothing.deb; apt-get -y install hello",
		"fetch what is in no lock": fmt.Sprintf("bash -c '</dev/tcp/127.0.0.1/%d'", l.Addr().(*net.TCPAddr).Port),
		"find the host's /tmp":     "ls " + filepath.Dir(outside),
	} {
		if err := in(script); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(outside); len(b) != 0 {
		t.Error("a file outside was written")
	}
	if err := in("echo x >" + dir + "/made; echo y >/tmp/scratch; echo z >/dev/null; head -c 9 /dev/urandom >/dev/zero"); err != nil {
		t.Errorf("the build folder: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "made")); string(b) != "x\n" {
		t.Error("what was written in the build folder is not there")
	}
	if exists("/tmp/scratch") {
		t.Error("the sandbox's /tmp is the host's")
	}
	// Nothing a recipe started outlives it.
	if err := in("sleep 987654 & echo $! >/dev/null"); err != nil {
		t.Error(err)
	}
	if out, _ := exec.Command("sh", "-c", "grep -l 987654 /proc/[0-9]*/cmdline 2>/dev/null | grep -v self").Output(); strings.Contains(string(out), "proc") {
		for f := range strings.Lines(string(out)) {
			if b, _ := os.ReadFile(strings.TrimSpace(f)); string(b) == "sleep\x00987654\x00" {
				t.Errorf("%s is left", f)
			}
		}
	}
}

func TestCleanStaysInTheTree(t *testing.T) {
	host, root := t.TempDir(), t.TempDir()
	write := func(p string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"run/pid", "log/host.log", "id"} {
		write(filepath.Join(host, p))
	}
	for _, p := range []string{"etc/hosts", "opt/a/b", "opt/a/.c", "run/pid", "var/log/dir/x.log"} {
		write(filepath.Join(root, p))
	}
	for to, from := range map[string]string{"var/run": "run", "var/log/apt": "log", "etc/machine-id": "id"} {
		if err := os.Symlink(filepath.Join(host, from), filepath.Join(root, to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(root, "opt/link")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"vmlinuz.old", "opt/dangling"} {
		if err := os.Symlink("boot/vmlinuz-5", filepath.Join(root, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := clean(root, []string{"/var/run/*", "/opt/link/b", "/var/log/*/*.log", "/vmlinuz.old", "/opt/dang*", "/not/there"}); err != nil {
		t.Fatal(err)
	}
	if err := clean(root, []string{"/var/run/pid"}); err == nil {
		t.Error("a path through a link to the host is removed, and nobody hears of it")
	}
	for p, want := range map[string]bool{
		filepath.Join(host, "run/pid"): true, filepath.Join(host, "log/host.log"): true,
		filepath.Join(root, "etc/hosts"): true, filepath.Join(root, "opt/a/.c"): true,
		filepath.Join(root, "vmlinuz.old"): false, filepath.Join(root, "opt/dangling"): false,
		filepath.Join(root, "opt/a/b"): false, filepath.Join(root, "run/pid"): false, filepath.Join(root, "var/log/dir/x.log"): false,
	} {
		if exists(p) != want {
			t.Errorf("%s is there: %v, want %v", p, !want, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(host, "id")); err != nil || string(b) != "x" {
		t.Errorf("the host's file is %q, %v", b, err)
	}
	if i, err := os.Lstat(filepath.Join(root, "etc/machine-id")); err != nil || !i.Mode().IsRegular() || i.Size() != 0 {
		t.Errorf("machine-id: %v, %v", i, err)
	}
}
