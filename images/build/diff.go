package build

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"smelt/images"
)

// Diff is what is different between two images.
type Diff struct {
	Packages []Change `json:"packages"`
	Files    []Change `json:"files"` // by path; Before and After are digest, mode, owner and target
	Facts    []Change `json:"facts"` // kernel, driver, sizes
}

// Same says whether there is no difference.
func (d Diff) Same() bool { return len(d.Packages)+len(d.Files)+len(d.Facts) == 0 }

// Compare returns what is different between two images of a store, as their
// bills of materials have it.
func Compare(st *images.Store, before, after images.Digest) (Diff, error) {
	a, err := openContents(st, before)
	if err != nil {
		return Diff{}, err
	}
	b, err := openContents(st, after)
	if err != nil {
		return Diff{}, err
	}
	d := Diff{Packages: changes(a.packages, b.packages), Files: changes(a.files, b.files)}
	for _, f := range []struct{ name, before, after string }{
		{"name", a.manifest.Title(), b.manifest.Title()},
		{"arch", a.manifest.Arch, b.manifest.Arch},
		{"kernel", a.manifest.Kernel, b.manifest.Kernel},
		{"driver", driverWords(a.manifest.Driver), driverWords(b.manifest.Driver)},
		{"disk MiB", mebibytes(a.manifest.Size), mebibytes(b.manifest.Size)},
		{"data MiB", mebibytes(a.manifest.Data()), mebibytes(b.manifest.Data())},
		{"compressed MiB", mebibytes(a.manifest.BlobLen), mebibytes(b.manifest.BlobLen)},
		{"content key", short(a.manifest.Key), short(b.manifest.Key)},
	} {
		if f.before != f.after {
			d.Facts = append(d.Facts, Change{f.name, f.before, f.after})
		}
	}
	return d, nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/mib) }

func short(key string) string { return key[:min(12, len(key))] }

func driverWords(d *images.Driver) string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s modules, CUDA %s)", d.Version, d.Modules, d.CUDA)
}

// contents are what an image's bill of materials lists.
type contents struct {
	manifest        images.Manifest
	packages, files map[string]string
}

func openContents(st *images.Store, d images.Digest) (contents, error) {
	c := contents{packages: map[string]string{}, files: map[string]string{}}
	var err error
	if c.manifest, err = st.Manifest(d); err != nil {
		return c, err
	}
	if c.manifest.SBOM.IsZero() {
		return c, fmt.Errorf("image %s has no bill of materials: build it again", d.Short())
	}
	b, err := st.Document(c.manifest.SBOM)
	if err != nil {
		return c, fmt.Errorf("bill of materials of image %s: %w", d.Short(), err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(b, &doc); err != nil {
		return c, fmt.Errorf("bill of materials of image %s: %w", d.Short(), err)
	}
	for _, p := range doc.Packages {
		switch {
		case p.ID == "SPDXRef-image":
		case p.Version != "":
			c.packages[p.Name] = p.Version
		case len(p.Checksums) > 0:
			c.packages[p.Name] = short(p.Checksums[0].Value)
		}
	}
	for _, f := range doc.Files {
		sum := ""
		for _, s := range f.Checksums {
			if s.Algorithm == "SHA256" {
				sum = short(s.Value)
			}
		}
		c.files[path.Clean(strings.TrimPrefix(f.Name, "."))] = sum + " " + f.Comment
	}
	return c, nil
}

// changes lists what is different between two sets of names.
func changes(before, after map[string]string) []Change {
	var all []Change
	for n, v := range before {
		if after[n] != v {
			all = append(all, Change{n, v, after[n]})
		}
	}
	for n, v := range after {
		if _, ok := before[n]; !ok {
			all = append(all, Change{n, "", v})
		}
	}
	slices.SortFunc(all, func(a, b Change) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
