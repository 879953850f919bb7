package build

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"smelt/images"
)

// documents stores what goes with an image, and names it in the manifest: a
// bill of materials and the provenance. They follow from the key alone, as the
// manifest must.
func (b *builder) documents(m *images.Manifest, root, key string) error {
	b.tell("documents", 0, "listing packages and files")
	files, err := listFiles(root)
	if err != nil {
		return err
	}
	sbom, err := b.sbom(*m, files)
	if err != nil {
		return err
	}
	provenance, err := b.provenance(*m)
	if err != nil {
		return err
	}
	if m.SBOM, err = b.Out.PutDocument(sbom); err != nil {
		return err
	}
	m.Provenance, err = b.Out.PutDocument(provenance)
	return err
}

func (b *builder) sortedExtra() []Extra {
	return slices.SortedFunc(slices.Values(b.Extra), func(a, b Extra) int { return strings.Compare(a.Dest, b.Dest) })
}

// purl names a package for those who look for its vulnerabilities
// (github.com/package-url/purl-spec, types/deb).
func (b *builder) purl(p Locked) string {
	vendor := "debian"
	if u := b.source(p); strings.HasPrefix(u.Name, "ubuntu") || strings.HasPrefix(u.Name, "nvidia") {
		vendor, _, _ = strings.Cut(u.Name, "-")
	}
	s := fmt.Sprintf("pkg:deb/%s/%s@%s?arch=%s&distro=%s", vendor, strings.ReplaceAll(p.Name, "+", "%2B"),
		strings.NewReplacer("+", "%2B", ":", "%3A", "~", "~").Replace(p.Version), p.Arch, b.Recipe.Suite)
	if p.Origin != "" {
		s += "&upstream=" + url.QueryEscape(p.Origin)
	}
	return s
}

// origin is where a package is found, whatever mirror it came by.
func (b *builder) origin(p Locked) string {
	for _, all := range [][]Source{b.Recipe.Sources, toolSources} {
		for _, s := range all {
			if s.Name == p.Source && s.URL != "" {
				return s.URL + "/" + p.Path
			}
		}
	}
	return "NOASSERTION" // a folder of the build host
}

// The bill of materials is an SPDX 2.3 document
// (spdx.github.io/spdx-spec/v2.3, in JSON).
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Files         []spdxFile         `json:"files"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID         string         `json:"SPDXID"`
	Name       string         `json:"name"`
	Version    string         `json:"versionInfo,omitempty"`
	FileName   string         `json:"packageFileName,omitempty"`
	Location   string         `json:"downloadLocation"`
	Analyzed   bool           `json:"filesAnalyzed"`
	Purpose    string         `json:"primaryPackagePurpose,omitempty"`
	SourceInfo string         `json:"sourceInfo,omitempty"`
	Checksums  []spdxChecksum `json:"checksums,omitempty"`
	Refs       []spdxRef      `json:"externalRefs,omitempty"`

	Verification *spdxVerification `json:"packageVerificationCode,omitempty"`
}

type spdxVerification struct {
	Value string `json:"packageVerificationCodeValue"`
}

// verificationCode names all files of a package (7.9.4).
func verificationCode(files []fileEntry) *spdxVerification {
	var sums []string
	for _, f := range files {
		sums = append(sums, fmt.Sprintf("%x", f.sha1))
	}
	slices.Sort(sums)
	return &spdxVerification{fmt.Sprintf("%x", sha1.Sum([]byte(strings.Join(sums, ""))))}
}

type spdxFile struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"fileName"`
	Checksums []spdxChecksum `json:"checksums"`
	Comment   string         `json:"comment"` // mode and owner, and where a link leads
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

func sha256Sum(d images.Digest) []spdxChecksum {
	return []spdxChecksum{{"SHA256", d.String()}}
}

func (b *builder) sbom(m images.Manifest, files []fileEntry) ([]byte, error) {
	const image = "SPDXRef-image"
	d := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: m.Title(),
		// Nothing answers there: it only has to be unique (6.5.1).
		Namespace: "https://spdx.org/spdxdocs/" + m.Title() + "-" + m.Key,
		Creation:  spdxCreation{b.Lock.Date.Format(time.RFC3339), []string{fmt.Sprintf("Tool: smelt-image-build-%d", builderVersion)}},
		Packages: []spdxPackage{{
			ID: image, Name: m.Title(), Version: m.Key, Location: "NOASSERTION", Purpose: "OPERATING_SYSTEM", Checksums: sha256Sum(m.Blob),
			Analyzed: true, Verification: verificationCode(files),
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", image}},
	}
	add := func(p spdxPackage) {
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, spdxRelationship{image, "CONTAINS", p.ID})
	}
	for i, p := range b.Lock.Packages {
		from := p.Origin
		if from == "" {
			from = p.Name
		}
		add(spdxPackage{
			ID: fmt.Sprintf("SPDXRef-deb-%d", i+1), Name: p.Name, Version: p.Version, FileName: path.Base(p.Path),
			Location: b.origin(p), Purpose: "APPLICATION", SourceInfo: "built from source package " + from,
			Checksums: sha256Sum(p.SHA256), Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", b.purl(p)}},
		})
	}
	for i, e := range b.sortedExtra() {
		sum, err := fileDigest(e.Host)
		if err != nil {
			return nil, err
		}
		add(spdxPackage{
			ID: fmt.Sprintf("SPDXRef-extra-%d", i+1), Name: path.Base(e.Dest), FileName: e.Dest, Location: "NOASSERTION",
			Purpose: "APPLICATION", Checksums: sha256Sum(sum),
		})
	}
	for i, f := range files {
		id := fmt.Sprintf("SPDXRef-file-%d", i+1)
		d.Files = append(d.Files, spdxFile{
			// SHA-1 is what SPDX 2.3 demands of every file (8.4.1); SHA-256 is what counts.
			ID: id, Name: "." + f.path, Comment: f.meta,
			Checksums: []spdxChecksum{{"SHA1", fmt.Sprintf("%x", f.sha1)}, {"SHA256", f.sha256.String()}},
		})
		d.Relationships = append(d.Relationships, spdxRelationship{image, "CONTAINS", id})
	}
	return json.Marshal(d)
}

// The provenance is an in-toto statement with a SLSA predicate
// (in-toto.io/Statement/v1, slsa.dev/spec/v1.0/provenance).
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     predicate  `json:"predicate"`
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type predicate struct {
	Definition struct {
		Type         string         `json:"buildType"`
		External     map[string]any `json:"externalParameters"`
		Internal     map[string]any `json:"internalParameters"`
		Dependencies []resource     `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	Run struct {
		Builder struct {
			ID           string            `json:"id"`
			Dependencies []resource        `json:"builderDependencies"`
			Version      map[string]string `json:"version"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// BuildType says what the parameters of a provenance mean.
const BuildType = "urn:smelt:image-build:v1"

func (b *builder) provenance(m images.Manifest) ([]byte, error) {
	sum := func(d images.Digest) map[string]string { return map[string]string{"sha256": d.String()} }
	debs := func(pkgs []Locked) []resource {
		var all []resource
		for _, p := range pkgs {
			all = append(all, resource{p.Name, b.purl(p), sum(p.SHA256)})
		}
		return all
	}
	s := statement{
		Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1",
		Subject: []resource{{Name: m.Title() + ".zst", Digest: sum(m.Blob)}},
	}
	d := &s.Predicate.Definition
	d.Type = BuildType
	d.External = map[string]any{
		"name": m.Name, "variant": m.Variant, "suite": b.Recipe.Suite, "kernel": b.Recipe.Kernel, "gpu": b.Recipe.GPU,
		"packages": asked(b.Lock.Packages), "cmdline": b.Recipe.Cmdline, "sources": b.imageStage().sources,
	}
	d.Internal = map[string]any{"key": m.Key, "lock": b.Lock.Digest(), "date": b.Lock.Date.Format(time.RFC3339), "release": m.Kernel}
	d.Dependencies = append(debs(b.Lock.Packages), debs(b.Lock.Compile)...)
	for _, e := range b.sortedExtra() {
		x, err := fileDigest(e.Host)
		if err != nil {
			return nil, err
		}
		d.Dependencies = append(d.Dependencies, resource{Name: e.Dest, Digest: sum(x)})
	}
	r := &s.Predicate.Run.Builder
	r.ID = "urn:smelt:builder"
	r.Version = map[string]string{"smelt/images/build": fmt.Sprint(builderVersion)}
	r.Dependencies = debs(b.Lock.Tools)
	return json.Marshal(s)
}
