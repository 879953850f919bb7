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

// testCache is what slow tests share, so that packages are fetched once.
func testCache(t *testing.T) string {
	t.Helper()
	if cache := os.Getenv("SMELT_TEST_CACHE"); cache != "" { // keep it between runs
		return cache
	}
	return sharedCache
}

var sharedCache string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if sharedCache, err = os.MkdirTemp("", "smelt-build-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(sharedCache)
	return m.Run()
}

func TestKernel(t *testing.T) {
	endToEnd(t)
	cache := testCache(t)
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
