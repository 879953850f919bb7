package pxe

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// captured is the first DISCOVER of a firmware, as it was on the wire: the
// files testdata/discover/*.hex are of QEMU's machines with Debian's SeaBIOS,
// iPXE, OVMF and AAVMF.
func captured(t testing.TB, name string) *request {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "discover", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRequest(data)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

// TestChoices holds the choice of a first loader against a table that people
// read, testdata/choices.golden: what firmware asked, what the site serves,
// what the Booter wants, which start it is, what worked before.
func TestChoices(t *testing.T) {
	all := []string{LoaderBIOS, LoaderUEFI, LoaderARM64, LoaderUKI, LoaderUKIARM64, LoaderShim, LoaderGRUB, LoaderLocal}
	served := []struct {
		name  string
		files []string
	}{
		{"everything", all},
		{"no UKI", []string{LoaderBIOS, LoaderUEFI, LoaderARM64, LoaderShim, LoaderGRUB, LoaderLocal}},
		{"iPXE only", []string{LoaderBIOS, LoaderUEFI, LoaderARM64}},
		{"shim without GRUB", []string{LoaderBIOS, LoaderShim}},
	}
	type row struct {
		action Action
		path   Path
		starts int
		worked Path
	}
	rows := []row{
		{Kernel, "", 1, ""}, {Kernel, "", 2, ""}, {Kernel, "", 3, ""}, {Kernel, "", 4, ""},
		{Kernel, "", 1, Shim}, {Kernel, "", 2, Shim},
		{Kernel, UKI, 1, ""}, {Kernel, Shim, 2, ""}, {Kernel, IPXE, 1, Shim},
		{Local, "", 1, ""}, {Local, "", 2, ""}, {Local, Shim, 1, ""}, {0, "", 1, ""},
	}
	captures, err := filepath.Glob("testdata/discover/*.hex")
	if err != nil || len(captures) < 5 {
		t.Fatalf("%d captures: %v", len(captures), err)
	}
	var b strings.Builder
	for _, c := range captures {
		name := strings.TrimSuffix(filepath.Base(c), ".hex")
		r := captured(t, name)
		fmt.Fprintf(&b, "%s: client %d, arch %d, vendor %q\n", name, r.client, r.machine.Arch, r.machine.Vendor)
		if r.client == ipxe {
			continue // it is given the script, never a loader
		}
		for _, s := range served {
			fmt.Fprintf(&b, "\t%s served\n", s.name)
			for _, row := range rows {
				if row.starts > 1 && s.name != "everything" {
					continue // the climb is the same
				}
				q := question{client: r.client, arch: r.machine.Arch, vendor: r.machine.Vendor, action: row.action, path: row.path, starts: row.starts, worked: row.worked,
					has: func(f string) bool { return slices.Contains(s.files, f) }}
				got := choose(q)
				q.tls = true
				if by := choose(q); by.via != got.via && (got.via != byHTTP || by.via != byHTTPS || by.file != got.file) {
					t.Errorf("%+v: %+v, with TLS %+v", row, got, by)
				}
				q.tls = false
				if again := choose(q); again != got {
					t.Errorf("%+v: %+v, then %+v", row, got, again)
				}
				action := "undecided"
				if row.action != 0 {
					action = row.action.String()
				}
				fmt.Fprintf(&b, "\t\t%s, pin %q, start %d, worked %q: [%s] %s\n", action, row.path, row.starts, row.worked, got.path, got.why)
			}
		}
	}
	golden := filepath.Join("testdata", "choices.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("choices differ from %s (look, then run with -update):\n%s", golden, diff)
	}
}

// TestChoicesRefused: what firmware cannot load is never offered to it.
func TestChoicesRefused(t *testing.T) {
	has := func(string) bool { return true }
	for _, q := range []question{
		{client: httpBoot, arch: UEFIx64, vendor: "HTTPClient:Arch:00007", has: has},
		{client: firmware, arch: HTTPx64, vendor: "PXEClient:Arch:00016", has: has},
		{client: firmware, arch: 6, has: has},
	} {
		if c := choose(q); c.via != byNothing || c.why == "" {
			t.Errorf("%+v: %+v", q, c)
		}
	}
}
