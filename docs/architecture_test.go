// Package docs holds the code to what the documents say.
package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "smelt"

// imports returns, for each package folder below the top, what its files that
// are not tests import (ours without the module's name; "C" for cgo).
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", p), nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := path.Dir(p)
		if out[dir] == nil {
			out[dir] = []string{}
		}
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if ours, ok := strings.CutPrefix(name, module+"/"); ok {
				name = ours
			} else if name != "C" {
				continue
			}
			if !slices.Contains(out[dir], name) {
				out[dir] = append(out[dir], name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("only %d packages found: the walk is broken", len(out))
	}
	return out
}

// table reads the import table of ARCHITECTURE.md.
func table(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "\n## Imports\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section Imports")
	}
	out := map[string][]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 4 || strings.Contains(line, "---") || strings.Contains(line, "may import") {
			continue
		}
		allowed := split(cells[2])
		for _, p := range split(cells[1]) {
			out[p] = allowed
		}
	}
	if len(out) < 20 {
		t.Fatalf("only %d rows found in the table", len(out))
	}
	return out
}

func split(cell string) []string {
	out := []string{}
	for w := range strings.SplitSeq(cell, ",") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

func TestImportsFollowTheTable(t *testing.T) {
	tab := table(t)
	for pkg, imps := range imports(t) {
		if pkg == "docs" {
			continue
		}
		allowed, ok := tab[pkg]
		if !ok {
			// A tool below a package (internal/store/storebench) may import what
			// its parent may, and the parent.
			parent := path.Dir(pkg)
			up, known := tab[parent]
			if !known {
				t.Errorf("package %s has no row in the import table of docs/ARCHITECTURE.md", pkg)
				continue
			}
			allowed = append(slices.Clone(up), parent)
		}
		for _, i := range imps {
			if i == "C" {
				if pkg != "burnin/gpu" {
					t.Errorf("package %s uses cgo: only burnin/gpu may", pkg)
				}
				continue
			}
			if len(allowed) > 0 && strings.HasPrefix(allowed[0], "everything but") {
				if slices.Contains(allowed, i) || strings.HasSuffix(allowed[0], " "+i) {
					t.Errorf("package %s imports %s, which the table forbids", pkg, i)
				}
				continue
			}
			if !slices.Contains(allowed, i) {
				t.Errorf("package %s imports %s, which the table does not allow", pkg, i)
			}
		}
	}
}

// TestAgentClosure: what runs on a machine must not be able to decide about
// machines, and must be one static file.
func TestAgentClosure(t *testing.T) {
	all := imports(t)
	for _, p := range []string{"internal/store", "pxe", "power", "internal/convert", "burnin/gpu"} {
		if _, ok := all[p]; !ok {
			t.Fatalf("the package %s that the agent must not hold does not exist: this test checks nothing", p)
		}
	}
	seen := map[string]bool{}
	var visit func(p, via string)
	visit = func(p, via string) {
		if seen[p] {
			return
		}
		seen[p] = true
		for _, bad := range []string{"internal/store", "pxe", "power", "internal/convert", "burnin/gpu", "C"} {
			if p == bad {
				t.Errorf("the agent's closure holds %s (through %s)", p, via)
			}
		}
		for _, i := range all[p] {
			visit(i, p)
		}
	}
	if _, ok := all["cmd/smelt-agent"]; !ok {
		t.Fatal("cmd/smelt-agent does not exist")
	}
	visit("cmd/smelt-agent", "itself")
}

// TestOnePackageComment: each package says once what it is for.
func TestOnePackageComment(t *testing.T) {
	for pkg := range imports(t) {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				n++
			}
		}
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, n)
		}
	}
}
