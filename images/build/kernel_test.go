package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// endToEnd skips what takes minutes and Debian's mirror.
func endToEnd(t *testing.T) {
	t.Helper()
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("takes minutes and Debian's mirror: set SMELT_TEST_E2E=1")
	}
}

func TestKernel(t *testing.T) {
	endToEnd(t)
	cache := os.Getenv("SMELT_TEST_CACHE") // keep it between runs
	if cache == "" {
		cache = t.TempDir()
	}
	k, err := Kernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	alias, err := os.ReadFile(filepath.Join(k.Modules, "modules.alias"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{" igb\n", " ixgbe\n", " nvme\n", " ahci\n", " ipmi_si\n", " virtio_net\n"} {
		if !strings.Contains(string(alias), m) {
			t.Errorf("modules.alias of %s does not name%q", k.Release, m)
		}
	}
	again, err := Kernel(t.Context(), cache)
	if err != nil || again != k {
		t.Errorf("second call: %v, %v; want %v", again, err, k)
	}
}
