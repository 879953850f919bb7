package build

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// loadersCache is kept between runs, like that of the kernel.
func loadersCache(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "smelt", "test-loaders")
}

func noMirror(t *testing.T) {
	old := loaderSources
	t.Cleanup(func() { loaderSources = old })
	loaderSources = defaultSources("trixie")
	for i := range loaderSources {
		loaderSources[i].URL = "http://127.0.0.1:9/debian"
	}
}

func TestLoaders(t *testing.T) {
	endToEnd(t)
	cache := loadersCache(t)
	l, err := Loaders(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct{ path, holds string }{
		{l.Shim, "Microsoft Corporation UEFI CA"},
		{l.GRUB, "Debian Secure Boot"},
		{l.GRUB, "http_"}, // the module; 2.06 has none
		{l.ARM64, "iPXE"},
	} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:2]) != "MZ" {
			t.Errorf("%s is no EFI program", f.path)
		}
		if f.path == l.ARM64 {
			continue // compressed
		}
		if !bytes.Contains(b, []byte(f.holds)) {
			t.Errorf("%s holds no %q", f.path, f.holds)
		}
	}
	// Filled, the cache is all it takes.
	noMirror(t)
	start := time.Now()
	if again, err := Loaders(t.Context(), cache); err != nil || again != l || time.Since(start) > time.Second {
		t.Errorf("again: %+v, %v in %s", again, err, time.Since(start))
	}
}

// TestLoadersUnreachable: a site without a way to Debian's mirrors is told what
// failed, and soon.
func TestLoadersUnreachable(t *testing.T) {
	endToEnd(t) // apt tries four times
	noMirror(t)
	cache := t.TempDir()
	_, err := Loaders(t.Context(), cache)
	if err == nil || !strings.Contains(err.Error(), "fetch loaders") || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "loaders*")); len(left) != 1 { // the lock
		t.Errorf("left behind: %v", left)
	}
}
