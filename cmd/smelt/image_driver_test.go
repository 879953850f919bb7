package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"smelt/images/build"
)

const cardsRecipe = `name: ai
suite: bookworm
packages: [systemd, libcuda1]
variants:
  - {name: r535, gpu: {branch: "535", compile: [linux-headers-amd64, nvidia-kernel-dkms]}}
  - {name: r580-open, gpu: {branch: "580", compile: [linux-headers-amd64, nvidia-kernel-open-dkms]}}
`

// A lock is refused when a class of the site has cards that no image of the
// recipe runs; classes with other images have no say.
func TestCheckCards(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ai.yaml")
	if err := os.WriteFile(file, []byte(cardsRecipe), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := build.ParseRecipe(file)
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		image, model, want string
	}{
		{"ai", "RTX 3080", ""},
		{"ai", "GTX 1080 Ti", ""},
		{"ai", "RTX 5090", ""},
		{"ai.r535", "RTX 5090", "class rig-6x3080: image ai does not run its cards: ai.r535"},
		{"ai.r580-open", "GTX 1080 Ti", "proprietary kernel modules only"},
		{"other", "RTX 5090", ""},
		{"ai", "RTX 9999", "does not know the card RTX 9999"},
	} {
		s := strings.Replace(string(example), `count: 6, model: "RTX 3080"`, `count: 6, model: "`+c.model+`"`, 1)
		i := strings.Index(s, "name: rig-6x3080")
		s = s[:i] + strings.Replace(s[i:], "image: debian-12-cuda", "image: "+c.image, 1)
		site := filepath.Join(dir, "site.yaml")
		if err := os.WriteFile(site, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := &cobra.Command{}
		cmd.Flags().String("site", site, "")
		got, err := checkCards(cmd, r)
		if got != site || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s: %v, want %q", c.image, c.model, err, c.want)
		}
	}
	cmd := &cobra.Command{}
	cmd.Flags().String("site", filepath.Join(dir, "none.yaml"), "")
	if got, err := checkCards(cmd, r); got != "" || err != nil {
		t.Errorf("no site file: %q, %v", got, err)
	}
	if err := cmd.Flags().Set("site", filepath.Join(dir, "none.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := checkCards(cmd, r); err == nil {
		t.Error("a site file that was asked for is not there, and nobody says so")
	}
}

// Our own recipe runs the cards of our own example.
func TestExampleCards(t *testing.T) {
	r, err := build.ParseRecipe("../../images/recipes/debian-12-cuda.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{}
	cmd.Flags().String("site", "../../site.yaml", "")
	if _, err := checkCards(cmd, r); err != nil {
		t.Error(err)
	}
	example, err := os.ReadFile("../../site.yaml")
	if err != nil || strings.Count(string(example), "image: debian-12-cuda") != 2 {
		t.Error("site.yaml's classes have another image than the recipe")
	}
}
