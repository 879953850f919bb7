package images

import (
	"os"
	"path/filepath"
	"strings"
)

// Titles returns the names in the store that a recipe's name may stand for: the
// name itself, and those that look like variants of it (Manifest.Title). Only
// their manifests tell whether they are.
func (s *Store) Titles(name string) ([]string, error) {
	if !nameForm.MatchString(name) {
		return nil, nil
	}
	files, err := os.ReadDir(filepath.Join(s.dir, "names"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		if f.Name() == name || strings.HasPrefix(f.Name(), name+".") {
			out = append(out, f.Name())
		}
	}
	return out, nil // in order, as ReadDir sorts
}
