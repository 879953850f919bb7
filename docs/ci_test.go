package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestCIExamples: the examples are YAML, run targets that the Makefile has on
// recipes that are there, and keep what those targets write.
func TestCIExamples(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("ci/*.yml")
	if err != nil || len(files) < 2 {
		t.Fatalf("examples %v, %v", files, err)
	}
	targets := regexp.MustCompile(`(?m)^ *-? *(?:run:|-) make ([a-z-]+)`)
	recipes := regexp.MustCompile(`(?i)recipe: \[([^\]]*)\]`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := yaml.Unmarshal(b, &v); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		found := targets.FindAllSubmatch(b, -1)
		if len(found) == 0 {
			t.Errorf("%s runs no make target", file)
		}
		for _, m := range found {
			if !regexp.MustCompile(`(?m)^` + string(m[1]) + `:`).Match(makefile) {
				t.Errorf("%s runs make %s, which the Makefile does not have", file, m[1])
			}
		}
		for _, m := range recipes.FindAllSubmatch(b, -1) {
			for name := range strings.SplitSeq(string(m[1]), ",") {
				if _, err := os.Stat("../images/recipes/" + strings.TrimSpace(name) + ".yaml"); err != nil {
					t.Error(err)
				}
			}
		}
		if !strings.Contains(string(b), "image-ci/") || !strings.Contains(string(makefile), "image-ci/") {
			t.Errorf("%s does not keep image-ci/", file)
		}
	}
}
