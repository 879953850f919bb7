package imagetest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smelt/images"
	"smelt/images/disk"
	"smelt/images/gpt"
)

// needE2E skips what takes minutes, unless it is asked for.
func needE2E(t *testing.T) {
	t.Helper()
	why := ""
	switch {
	case os.Getenv("SMELT_TEST_E2E") == "":
		why = "takes minutes: set SMELT_TEST_E2E=1"
	case os.Geteuid() != 0:
		why = "needs root for a network namespace"
	default:
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") != "" && os.Getenv("SMELT_TEST_E2E") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// smelt runs bin/smelt (made by make build) and returns its exit code and
// standard output.
func smelt(t *testing.T, top string, args ...string) (int, string) {
	t.Helper()
	c := exec.Command(filepath.Join(top, "bin", "smelt"), args...)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("smelt %v: %v (bin/ is made by: make build)", args, err)
	}
	t.Logf("smelt %s: exit code %d\n%s%s", strings.Join(args, " "), c.ProcessState.ExitCode(), out.String(), said.String())
	return c.ProcessState.ExitCode(), out.String()
}

// junit reads the result as a CI system does: the cases that did not pass and
// were not skipped, with what they say.
func junit(t *testing.T, path string) (passed []string, failed map[string]string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all junitSuites
	if err := xml.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	failed = map[string]string{}
	for _, s := range all.Suites {
		for _, c := range s.Cases {
			name := s.Name + "/" + c.Name
			switch {
			case c.Failure != nil:
				failed[name] = c.Failure.Message + "\n" + c.Failure.Text
			case c.Error != nil:
				failed[name] = "error: " + c.Error.Message + "\n" + c.Error.Text
			case c.Skipped == nil:
				passed = append(passed, name)
			}
		}
	}
	return passed, failed
}

// The base image by both kinds of firmware, and a damaged copy of it; then an
// image that comes up, but not whole.
func TestImages(t *testing.T) {
	needE2E(t)
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	state, cache := filepath.Join(dir, "state"), filepath.Join(top, ".cache")
	if rc, _ := smelt(t, top, "image", "build", filepath.Join(top, "images/recipes/debian-12-lab.yaml"), "--relock", "--state", state, "--cache", cache); rc != 0 {
		t.Fatal("the base image is not built")
	}
	try := func(t *testing.T, image string, args ...string) (int, []string, map[string]string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "junit.xml")
		rc, _ := smelt(t, top, append([]string{"image", "test", image, "--state", state, "--cache", cache, "--junit", file}, args...)...)
		passed, failed := junit(t, file)
		return rc, passed, failed
	}

	t.Run("base", func(t *testing.T) {
		rc, passed, failed := try(t, "debian-12-lab")
		want := []string{"image/signature and chunks"}
		for _, firmware := range []string{"bios", "uefi"} {
			for _, c := range []string{"install", "boot from disk", "kernel", "units", "root file system", "time to ready", "in service"} {
				want = append(want, firmware+"/"+c)
			}
		}
		want = append(want, "tamper/one flipped byte is refused", "tamper/nothing bootable is on the disk", "tamper/disk does not boot: bios", "tamper/disk does not boot: uefi")
		if rc != 0 || len(failed) > 0 || !slices.Equal(passed, want) {
			t.Errorf("exit code %d, passed %q, want %q; failed %v", rc, passed, want, failed)
		}
	})

	t.Run("broken", func(t *testing.T) {
		spoil(t, state, "debian-12-lab", "debian-12-broken")
		logs := filepath.Join(t.TempDir(), "logs")
		rc, passed, failed := try(t, "debian-12-broken", "--firmware", "bios", "--tamper=false", "--logs", logs)
		if rc != 3 {
			t.Errorf("exit code %d, want 3", rc)
		}
		for _, c := range []string{"bios/install", "bios/boot from disk", "bios/root file system"} {
			if !slices.Contains(passed, c) {
				t.Errorf("%s did not pass: %s", c, failed[c])
			}
		}
		if s := failed["bios/units"]; !strings.Contains(s, "> broken.service: the flux is missing") || !strings.Contains(s, "[FAILED] Failed to start broken.service") {
			t.Errorf("the failed unit's line is not in:\n%s", s)
		}
		if s := failed["bios/kernel"]; !strings.Contains(s, "is not the one of its image, 6.1.0-1-amd64") {
			t.Errorf("the kernel that is not the manifest's: %s", s)
		}
		if _, ok := failed["bios/in service"]; !ok {
			t.Error("a node with it came into service")
		}
		if b, err := os.ReadFile(filepath.Join(logs, "bios.serial.log")); err != nil || !bytes.Contains(b, []byte("GRUB loading")) {
			t.Errorf("the console is not kept: %v", err)
		}
	})
}

// spoil makes an image of another one: a unit in it fails, and its manifest
// names a kernel that is not in it.
func spoil(t *testing.T, state, name, as string) {
	t.Helper()
	store, err := images.OpenStore(filepath.Join(state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := store.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.Size); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(store.Handler())
	defer srv.Close()
	client := &http.Client{}
	if _, err := disk.Write(t.Context(), raw, m, disk.HTTP(client, srv.URL+"/blob/"+m.Blob.String()), disk.Options{}); err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	table, err := gpt.Read(f, m.Size)
	if err != nil {
		t.Fatal(err)
	}
	root := table.Parts[len(table.Parts)-1]
	unit := filepath.Join(dir, "unit")
	if err := os.WriteFile(unit, []byte("[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo the flux is missing >&2; exit 7'\n\n[Install]\nWantedBy=multi-user.target\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("debugfs", "-w", fmt.Sprintf("%s?offset=%d", raw, root.Offset()))
	c.Stdin = strings.NewReader("cd /etc/systemd/system\nwrite " + unit + " broken.service\ncd multi-user.target.wants\nsymlink broken.service ../broken.service\n")
	if out, err := c.CombinedOutput(); err != nil || bytes.Contains(out, []byte("not found")) {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	m.Name, m.Kernel = as, "6.1.0-1-amd64"
	if _, err := store.Add(t.Context(), m, f, m.Size, siteKey(t, state), nil); err != nil {
		t.Fatal(err)
	}
}

func siteKey(t *testing.T, state string) ed25519.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(state, "site.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k.(ed25519.PrivateKey)
}
