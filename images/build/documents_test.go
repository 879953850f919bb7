package build

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"

	"smelt/images"
)

// documented makes an image of nothing with real documents.
func documented(t *testing.T, st *images.Store, name string, l Lock, files map[string]string) images.Digest {
	t.Helper()
	r, err := parseRecipe("r.yaml", []byte(strings.Replace(small, "name: x", "name: "+name, 1)))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for n, s := range files {
		p := filepath.Join(root, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(s, "-> "); ok {
			err = os.Symlink(to, p)
		} else {
			err = os.WriteFile(p, []byte(s), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	extra := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(extra, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := &builder{Options: Options{Recipe: r, Lock: l, Out: st, Extra: []Extra{{"/usr/lib/smelt/agent", extra, 0o755}}}}
	m := images.Manifest{Name: name, Arch: "amd64", Created: l.Date, Key: strings.Repeat("a", 64), Kernel: l.Packages[0].Version}
	var blob bytes.Buffer
	c, err := images.Compress(t.Context(), &blob, bytes.NewReader(make([]byte, 8<<20)), 8<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Size, m.Blob, m.BlobLen, m.Chunks = c.Size, c.Blob, c.BlobLen, c.Chunks
	if err := b.documents(&m, root, m.Key); err != nil {
		t.Fatal(err)
	}
	env, err := images.Sign(m, ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	d, err := st.Put(env, &blob)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Another's SPDX library reads the bill of materials, and finds it valid.
func TestSBOM(t *testing.T) {
	st, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := documented(t, st, "one", someLock(), map[string]string{"etc/a": "a", "b": "-> etc/a"})
	m, err := st.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	b, err := st.Document(m.SBOM)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	if doc.SPDXVersion != spdx.Version || doc.DataLicense != spdx.DataLicense || doc.CreationInfo.Created != someLock().Date.Format(time.RFC3339) {
		t.Errorf("%+v", doc.CreationInfo)
	}
	if len(doc.Packages) != 4 || len(doc.Files) != 2 || len(doc.Relationships) != 6 {
		t.Fatalf("%d packages, %d files, %d relationships", len(doc.Packages), len(doc.Files), len(doc.Relationships))
	}
	// As echo -n SHA1 SHA1 | sha1sum of the files' sorted sums has it.
	one, two := doc.Files[0].Checksums[0].Value, doc.Files[1].Checksums[0].Value
	if code := fmt.Sprintf("%x", sha1.Sum([]byte(min(one, two)+max(one, two)))); doc.Packages[0].PackageVerificationCode.Value != code || !doc.Packages[0].FilesAnalyzed {
		t.Errorf("verification code %+v, want %s", doc.Packages[0].PackageVerificationCode, code)
	}
	// The words of the JSON schema, where they are not those of the text.
	if doc.Packages[0].PrimaryPackagePurpose != "OPERATING_SYSTEM" {
		t.Errorf("purpose %s", doc.Packages[0].PrimaryPackagePurpose)
	}
	p := doc.Packages[2]
	if got := p.PackageExternalReferences[0].Locator; got != "pkg:deb/debian/libc6@1%3A2.36-9%2Bdeb12u14~x?arch=amd64&distro=bookworm&upstream=glibc" {
		t.Errorf("purl %s", got)
	}
	if p.PackageDownloadLocation != "http://deb.debian.org/debian-security/pool/g/libc6.deb" || p.PackageChecksums[0].Value != (images.Digest{2}).String() {
		t.Errorf("%+v", p)
	}
	if f := doc.Files[0]; f.FileName != "./b" || !strings.HasSuffix(f.FileComment, " to etc/a") {
		t.Errorf("%+v", f)
	}
}

func TestProvenance(t *testing.T) {
	st, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := someLock()
	d := documented(t, st, "one", l, nil)
	m, err := st.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	b, err := st.Document(m.Provenance)
	if err != nil {
		t.Fatal(err)
	}
	// What in-toto.io/Statement/v1 and slsa.dev/provenance/v1 demand.
	var s struct {
		Type          string `json:"_type"`
		PredicateType string
		Subject       []struct{ Digest map[string]string }
		Predicate     struct {
			BuildDefinition struct {
				BuildType            string
				ExternalParameters   map[string]any
				InternalParameters   map[string]any
				ResolvedDependencies []struct {
					URI    string
					Digest map[string]string
				}
			}
			RunDetails struct {
				Builder struct {
					ID                  string
					BuilderDependencies []struct{ Name string }
				}
			}
		}
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	def := s.Predicate.BuildDefinition
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" || def.BuildType == "" || s.Predicate.RunDetails.Builder.ID == "" {
		t.Errorf("%s", b)
	}
	if len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != m.Blob.String() {
		t.Errorf("subject %+v, want %s", s.Subject, m.Blob)
	}
	if len(def.ResolvedDependencies) != 3 || def.ResolvedDependencies[1].Digest["sha256"] != l.Packages[1].SHA256.String() || len(s.Predicate.RunDetails.Builder.BuilderDependencies) != 1 {
		t.Errorf("%+v", def.ResolvedDependencies)
	}
	if def.InternalParameters["lock"] != l.Digest().String() || def.InternalParameters["key"] != m.Key {
		t.Errorf("%v", def.InternalParameters)
	}
}

func TestCompare(t *testing.T) {
	st, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := someLock()
	a := documented(t, st, "one", l, map[string]string{"etc/a": "a", "etc/b": "b", "link": "-> etc/a"})
	l.Packages[0].Version = "4"
	l.Packages = append(l.Packages, Locked{Name: "zstd", Version: "1", Arch: "amd64", SHA256: images.Digest{5}, Size: 1, Source: "debian", Path: "z.deb"})
	b := documented(t, st, "one", l, map[string]string{"etc/a": "A", "link": "-> etc/c", "new": ""})
	d, err := Compare(st, a, b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range d.Packages {
		got = append(got, c.String())
	}
	if s := strings.Join(got, ", "); s != "~ adduser 3.134 -> 4, + zstd 1" {
		t.Errorf("packages: %s", s)
	}
	got = nil
	for _, c := range d.Files {
		got = append(got, c.String()[:2]+c.Name)
	}
	if s := strings.Join(got, ", "); s != "~ /etc/a, - /etc/b, ~ /link, + /new" {
		t.Errorf("files: %s", s)
	}
	if len(d.Facts) != 1 || d.Facts[0].String() != "~ kernel 3.134 -> 4" {
		t.Errorf("facts: %v", d.Facts)
	}
	same, err := Compare(st, a, a)
	if err != nil || !same.Same() {
		t.Errorf("%+v, %v", same, err)
	}
}
