package lab

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/inventory"
)

// needE2E skips what takes a minute or more, unless it is asked for.
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

// labForTest builds what the lab needs with the commands people use. bin/ must
// hold current binaries (make build).
func labForTest(t *testing.T) Options {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	o := Options{Dir: t.TempDir(), Bin: filepath.Join(top, "bin"), Cache: filepath.Join(top, ".cache"), Image: "debian-12-lab", UI: addr, Out: io.Discard}
	for _, args := range [][]string{
		{"image", "build", filepath.Join(top, "images/recipes/debian-12-lab.yaml"), "--relock", "--state", o.State(), "--cache", o.Cache, "--bin", o.Bin, "--sim"},
		{"image", "kernel", "--cache", o.Cache},
	} {
		if out, err := exec.Command(filepath.Join(o.Bin, "smelt"), args...).CombinedOutput(); err != nil {
			t.Fatalf("smelt %v: %v\n%s(bin/ is made by: make build)", args, err, out)
		}
	}
	return o
}

// TestFaults: an image with one flipped byte is never booted, and a BMC that
// refuses the password is asked once. Both machines end in needs-work with a
// task, and the disk of the one whose power could not be switched is untouched.
func TestFaults(t *testing.T) {
	needE2E(t)
	o := labForTest(t)
	spoil(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	l, err := Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	secrets, err := config.OpenSecrets(o.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := secrets.Set("bmc-srv-a", config.NewSecret([]byte("wrong-password"))); err != nil {
		t.Fatal(err)
	}
	before := disk(t, o, "srv-a")
	if err := l.PlugIn(ctx); err != nil {
		t.Fatal(err)
	}
	for _, id := range []inventory.NodeID{"srv-a", "srv-b"} {
		l.await(t, ctx, id, inventory.Inspected)
		if _, err := l.client.Do(ctx, id, "approve", map[string]string{"confirm": string(id)}); err != nil {
			t.Fatal(err)
		}
	}

	a := l.await(t, ctx, "srv-a", inventory.NeedsWork)
	if got := l.ipmi.Stats(); got.Attempts-got.Logins != 1 {
		t.Errorf("the BMC of srv-a saw %d logins and granted %d, want one refused: more lock it out", got.Attempts, got.Logins)
	}
	if a.Node.Failure == nil || a.Node.Failure.Step != inventory.Approved || !openTask(a) {
		t.Errorf("srv-a: failure %+v, tasks %v: want a task about its BMC", a.Node.Failure, a.Tasks)
	}
	if !bytes.Equal(before, disk(t, o, "srv-a")) {
		t.Error("the disk of srv-a changed although it was never switched")
	}

	b := l.await(t, ctx, "srv-b", inventory.NeedsWork)
	if b.Node.Failure == nil || b.Node.Failure.Step != inventory.Imaging || !openTask(b) {
		t.Errorf("srv-b: failure %+v, tasks %v: want a task about its image", b.Node.Failure, b.Tasks)
	}
	if mib := disk(t, o, "srv-b"); !bytes.Equal(mib, make([]byte, len(mib))) {
		t.Error("the first MiB of srv-b is not zero: a half-written disk could boot")
	}
	for _, e := range b.Events {
		if e.To == inventory.Starting {
			t.Error("srv-b was started from a disk that failed verification")
		}
	}
	l.Close()
	for _, m := range l.machines {
		if m.hw.Running() {
			t.Errorf("%s still runs after Close", m.name)
		}
	}
}

// spoil flips one byte in the middle of the image's blob.
func spoil(t *testing.T, o Options) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(o.State(), "images", "blobs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	// Its bill of materials and the like lie there too, and are smaller.
	name, size := "", int64(0)
	for _, p := range blobs {
		if fi, err := os.Stat(p); err == nil && fi.Size() > size {
			name, size = p, fi.Size()
		}
	}
	if size < 64<<20 {
		t.Fatalf("no image among %v", blobs)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, size/2); err != nil {
		t.Fatal(err)
	}
}

// disk is the first MiB of a machine's disk.
func disk(t *testing.T, o Options, name string) []byte {
	t.Helper()
	f, err := os.Open(o.path("disks", name+".raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func openTask(v api.NodeView) bool {
	for _, task := range v.Tasks {
		if task.Open() {
			return true
		}
	}
	return false
}

func (l *Lab) await(t *testing.T, ctx context.Context, id inventory.NodeID, s inventory.State) api.NodeView {
	t.Helper()
	last := ""
	for {
		v, err := l.client.Node(ctx, id)
		if err == nil && v.Node.State == s {
			return v
		}
		if err == nil {
			last = v.Node.State.String() + ": " + v.WaitsFor
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not become %s in time; it is %s (%v)", id, s, last, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// TestOwner: only a process that is a lab counts as its owner.
func TestOwner(t *testing.T) {
	dir := t.TempDir()
	if pid, err := Owner(dir); err == nil {
		t.Errorf("an empty folder is owned by %d", pid)
	}
	for _, text := range []string{"", "x\n", "-4\n", "1\n", "999999999\n"} {
		if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if pid, err := Owner(dir); err == nil {
			t.Errorf("pid file %q: owned by %d", text, pid)
		}
	}
}

// TestSite: the lab's own site file must parse with the parser that serve uses.
func TestSite(t *testing.T) {
	site, err := config.Parse("lab", []byte(siteYAML(Options{Dir: "/lab", Image: "x"})), config.Known{})
	if err != nil {
		t.Fatal(err)
	}
	if !site.Lab || len(site.Nodes) != len(want) || len(site.StandsFor) != len(want) {
		t.Errorf("lab %v, %d nodes, %d with stand-ins: want the demo's %d", site.Lab, len(site.Nodes), len(site.StandsFor), len(want))
	}
	for _, n := range site.Nodes {
		if _, ok := want[n.Name]; !ok {
			t.Errorf("the demo does not know node %s", n.Name)
		}
	}
}
