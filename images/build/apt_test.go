package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A password for a mirror is refused in a recipe, because the host's apt has a
// place for it: our apt must look there.
func TestAptKnowsTheHostsPasswords(t *testing.T) {
	a, err := openApt(t.Context(), t.TempDir(), []Source{{Name: "debian", URL: "http://mirror.example/debian", Suites: []string{"bookworm"}, Components: []string{"main"}, Key: debianKeys}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.command("apt-config", "shell", "FILE", "Dir::Etc::netrc/f", "PARTS", "Dir::Etc::netrcparts/f").run(t.Context())
	if err != nil || !strings.Contains(out, "'/etc/apt/auth.conf'") || !strings.Contains(out, "'/etc/apt/auth.conf.d'") {
		t.Errorf("passwords are looked for in %s, %v", out, err)
	}
	// The host's proxy may be named with a password.
	if i, err := os.Stat(filepath.Join(a.dir, "apt.conf")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("apt.conf: %v, %v", i, err)
	}
}
