package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
  - linux-image-amd64
`

func TestRecipeMistakes(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", small + "pakages: [a]\n", "r.yaml: line 6: field pakages is not known: want name"},
		{"unknown file key", small + "files:\n  - {path: /a, contents: x}\n", "line 7: field contents is not known: want path, mode or content"},
		{"wrong type", small + "freeMiB: lots\n", "line 6: cannot unmarshal"},
		{"duplicate key", small + "name: y\n", `line 6: mapping key "name" already defined`},
		{"no YAML", "name: [", "r.yaml: line 1"},
		{"bad package", small + "  - Foo Bar\n", `r.yaml:6: package "Foo Bar": not a Debian package name`},
		{"package option", small + "  - --allow-downgrades\n", "r.yaml:6"},
		{"package twice", small + "  - systemd\n", "r.yaml:6: package systemd is named in line 4 already"},
		{"relative file", small + "files:\n  - path: etc/x\n", "r.yaml:7: path \"etc/x\""},
		{"file outside", small + "files:\n  - path: /../x\n", "r.yaml:7"},
		{"setuid file", small + "files:\n  - {path: /x, mode: \"4755\"}\n", "r.yaml:7: mode"},
		{"remove outside", small + "remove: [/a/../../etc]\n", "want an absolute path"},
		{"two-line cmdline", small + "cmdline: \"a\\nb\"\n", "cmdline"},
		{"bad name", strings.Replace(small, "name: x", "name: ../x", 1), "name \"../x\""},
		{"other suite", strings.Replace(small, "bookworm", "trixie", 1), "no default sources"},
		{"no packages", "name: x\nsuite: bookworm\n", "none are named"},
		{"second document", small + "---\nname: y\n", "second document"},
		{"bad source", small + "sources: [rm -rf /]\n", "no apt source line"},
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
		for _, f := range r.Files {
			if !filepath.IsAbs(f.Path) || strings.Contains(f.Path, "/../") || f.Mode&^0o777 != 0 {
				t.Errorf("file %q %o", f.Path, f.Mode)
			}
		}
		for _, p := range r.Packages {
			if strings.HasPrefix(p, "-") || strings.ContainsAny(p, ", /") || r.lines[p] == 0 {
				t.Errorf("package %q", p)
			}
		}
	})
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
	key := func(r Recipe, e []Extra) string {
		t.Helper()
		k, err := Key(r, e)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first, stage := key(r, extra), r.packagesKey()
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
	if key(other, extra) == first || other.packagesKey() != stage {
		t.Error("the command line belongs to the disk, not to the packages")
	}
	other = r
	other.Packages = append([]string{"munge"}, r.Packages...)
	if other.packagesKey() == stage || key(other, extra) == first {
		t.Error("a new package gives the old tree")
	}
	if _, err := Key(r, []Extra{{"/agent", agent + "x", 0o755}}); err == nil {
		t.Error("a missing file has a key")
	}
	if _, err := Key(r, []Extra{{"../agent", agent, 0o755}}); err == nil {
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
	in := func(script string) error {
		_, err := (command{name: "sh", args: []string{"-euc", script}, jail: dir}).run(t.Context())
		return err
	}
	for name, script := range map[string]string{
		"write to /etc":        "echo x >/etc/smelt-escape",
		"write to /usr":        "touch /usr/bin/smelt-escape",
		"write to /var":        "touch /var/lib/dpkg/smelt-escape",
		"append to a file":     "echo x >>" + outside,
		"remove a file":        "rm " + outside,
		"write to a device":    "mknod " + dir + "/sda b 8 0 && echo x >" + dir + "/sda",
		"see a disk":           "ls /dev/[svx]d[a-z] /dev/nvme* /dev/loop*",
		"install on the host":  "dpkg --force-all -i /nothing.deb; apt-get -y install hello",
		"find the host's /tmp": "ls " + filepath.Dir(outside),
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
