package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"smelt/images"
)

// The scripts go the way of an image with the real command: keys, signatures,
// channels, a remote, a site. Only the image's contents are made up.
func TestReleaseScripts(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("opens keys with passphrases for half a minute: set SMELT_TEST_E2E=1")
	}
	example, err := os.ReadFile("../../site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/release",
		Setup: func(e *testscript.Env) error {
			return os.WriteFile(filepath.Join(e.WorkDir, "example.yaml"), example, 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// built STATE NAME VARIANT SEED puts an image into a store, as a build does.
			"built": func(ts *testscript.TestScript, _ bool, args []string) {
				st, err := images.OpenStore(filepath.Join(ts.MkAbs(args[0]), "images"))
				ts.Check(err)
				key, err := siteKey(ts.MkAbs(args[0]))
				ts.Check(err)
				seed, err := strconv.Atoi(args[3])
				ts.Check(err)
				raw := make([]byte, 1<<20)
				_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(raw)
				m := images.Manifest{Name: args[1], Variant: strings.Trim(args[2], "-"), Arch: "amd64", Created: time.Unix(int64(seed), 0).UTC()}
				d, err := st.Add(t.Context(), m, bytes.NewReader(raw), int64(len(raw)), key, nil)
				ts.Check(err)
				ts.Setenv("IMAGE", d.String())
			},
			// flip FILE changes one byte in its middle.
			"flip": func(ts *testscript.TestScript, _ bool, args []string) {
				files, err := filepath.Glob(ts.MkAbs(args[0]))
				ts.Check(err)
				for _, f := range files {
					b, err := os.ReadFile(f)
					ts.Check(err)
					b[len(b)/2] ^= 1
					ts.Check(os.WriteFile(f, b, 0o644))
				}
			},
			// site FILE STATE REMOTE ROOT makes the example site follow a release.
			"site": func(ts *testscript.TestScript, _ bool, args []string) {
				b := strings.Replace(string(example), "state: /var/lib/smelt", "state: "+ts.MkAbs(args[1])+"\nimages: {remote: "+args[2]+", root: "+ts.MkAbs(args[3])+"}", 1)
				b = regexp.MustCompile(`(?m)^( +image: )\S+`).ReplaceAllString(b, "${1}ai-node")
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b), 0o644))
			},
			"exits": exits,
		},
	})
}

// exits CODE COMMAND...: the code is the contract.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if neg || strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}
