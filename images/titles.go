package images

import (
	"maps"
	"slices"
	"strings"
)

// Titles returns the names that a recipe's name may stand for, in order: the
// name itself, and those that look like variants of it (Manifest.Title). Only
// their manifests tell whether they are. CHANNEL/NAME has those of the channel.
func (s *Store) Titles(name string) ([]string, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if n == name || strings.HasPrefix(n, name+".") {
			out = append(out, n)
		}
	}
	return out, nil
}
