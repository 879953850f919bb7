package disk

import (
	"os"
	"path/filepath"
	"testing"
)

func BenchmarkWrite(b *testing.B) {
	s := newSite(b, 40)
	path := filepath.Join(b.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(path, s.m.Size); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(s.m.Size)
	for b.Loop() {
		if _, err := Write(b.Context(), path, s.m, s.fetch, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
