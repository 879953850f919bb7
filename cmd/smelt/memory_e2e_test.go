package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

const memorySite = `apiVersion: smelt/v1
site: e2e
lab: true
state: %s
listen: {boot: "10.78.0.1:80", agent: "10.78.0.1:8443", ui: "127.0.0.1:8480"}
networks:
  - {name: provisioning, interface: br0, address: 10.78.0.1/16, pool: 10.78.200.1-10.78.200.50}
classes:
  - {name: diskless, image: debian-12-lab, target: lab, profile: lab, root: ram, approve: rule, gpus: {count: 1, model: "RTX 3090"}}
nodes:
  - {name: rig-1, position: A1-S1, class: diskless, macs: ["52:54:00:78:00:01"], serial: E2E-1}
standsFor:
  - {node: rig-1, pci: "0000:01:00.0", model: "RTX 3090", vram: 24GiB}
`

// bios is a machine that boots by the iPXE in its card's ROM, as rigs do.
func (h *hall) bios(t *testing.T, more ...string) machine {
	t.Helper()
	args := []string{
		"-accel", "tcg", "-machine", "q35", "-m", "1536", "-smp", "2", "-nographic", "-nodefaults", "-serial", "stdio", "-vga", "none",
		"-smbios", "type=1,serial=E2E-1", "-smbios", "type=2,serial=E2E-B1",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,bootindex=1,mac=52:54:00:78:00:01",
		"-device", "pcie-root-port,id=port0,bus=pcie.0,addr=10.0,chassis=1,slot=1", "-device", "secondary-vga,id=gpu0,bus=port0",
	}
	m := machine{watch: newWatch()}
	m.cmd = h.start(m.watch, "qemu-system-x86_64", append(args, more...)...)
	t.Cleanup(m.off)
	return m
}

// node is what the server knows of a node.
func (h *hall) node(id string) api.NodeView {
	h.t.Helper()
	var v api.NodeView
	if err := json.Unmarshal([]byte(h.smelt("node", "show", id, "-o", "json")), &v); err != nil {
		h.t.Fatal(err)
	}
	return v
}

// reach waits until a node is as ok wants it.
func (h *hall) reach(m machine, id, what string, limit time.Duration, ok func(api.NodeView) bool) api.NodeView {
	h.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Millisecond) {
		v := h.node(id)
		if ok(v) {
			return v
		}
		if v.Node.State == inventory.NeedsWork || time.Now().After(end) {
			h.t.Fatalf("%s: not within %s; it is %s (%s)\n%s\n%s", what, limit, v.Node.State, v.Node.Note, h.smelt("node", "show", id), m.text())
		}
	}
}

// await is reach for what a machine comes to by itself, on however slow a computer.
func (h *hall) await(m machine, id, what string, ok func(api.NodeView) bool) api.NodeView {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Minute); ; time.Sleep(time.Second) {
		v := h.node(id)
		if ok(v) {
			return v
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s: never; it is %s (%s)\n%s\n%s", what, v.Node.State, v.Node.Note, h.smelt("node", "show", id), m.text())
		}
	}
}

// image puts the lab's image into the state folder; its root file system is
// built once for every test of this tree.
func (h *hall) image() {
	h.t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		h.t.Fatal(err)
	}
	store := filepath.Join(top, ".cache")
	if c := os.Getenv("SMELT_TEST_IMAGES"); c != "" {
		store = c
	}
	h.run(h.path("smelt"), "image", "build", filepath.Join(top, "images/recipes/debian-12-lab.yaml"), "--relock",
		"--state", h.path("state"), "--cache", store, "--bin", filepath.Join(top, "bin"), "--sim")
}

// someDisk is a disk that belongs to somebody: nothing may be written to it.
func (h *hall) someDisk() (flags []string, untouched func()) {
	h.t.Helper()
	path := h.path("theirs.img")
	b := make([]byte, 8<<20)
	_, _ = rand.Read(b) // never fails
	copy(b[510:], "\x55\xaa")
	h.write(path, b)
	was := sha256.Sum256(b)
	return []string{"-drive", "format=raw,if=none,id=theirs,file=" + path, "-device", "virtio-blk-pci,drive=theirs,serial=THEIRS-0001"}, func() {
		h.t.Helper()
		if sha256.Sum256(h.read(path)) != was {
			h.t.Error("the disk in the machine was written")
		}
	}
}

// TestRunsFromMemory: a rig runs its image without writing a disk, from its
// first boot to service, and comes up the same way after a power cut with
// nobody approving it again, on the image's kernel whatever the server's is.
func TestRunsFromMemory(t *testing.T) {
	h := newHall(t)
	h.write(h.path("site.yaml"), fmt.Appendf(nil, memorySite, h.path("state")))
	h.image()
	h.up()
	disk, untouched := h.someDisk()
	m := h.bios(t, disk...)
	inService := func(v api.NodeView) bool { return v.Node.State == inventory.InService }
	v := h.reach(m, "rig-1", "in service", 15*time.Minute, inService)
	if v.Node.Root != inventory.RootRAM || v.Node.Passed == nil || len(v.Node.Hardware.Disks) == 0 {
		t.Errorf("in service as %+v", v.Node)
	}
	for _, e := range v.Events {
		t.Logf("%5.1f s %s", e.At.Sub(v.Events[0].At).Seconds(), eventLine(e))
		if strings.Contains(e.Reason, "permit") {
			t.Errorf("a permit: %s", e.Reason)
		}
	}
	m.off()
	untouched()

	// After a power cut, when the RAM system has come to be another kernel than
	// the image's. It burns in again to show that what runs is whole.
	h.down()
	h.otherKernel()
	h.up()
	fence := v.Node.Fence
	m = h.bios(t, disk...)
	h.reach(m, "rig-1", "loaded again", 10*time.Minute, func(v api.NodeView) bool { return v.Node.Fence > fence })
	h.smelt("burnin", "run", "rig-1")
	h.reach(m, "rig-1", "verified again", 5*time.Minute, func(v api.NodeView) bool { return v.Node.State == inventory.ReVerifying })
	v = h.reach(m, "rig-1", "in service again", 15*time.Minute, inService)
	if n := v.Node; n.Fence != fence+1 || n.Passed == nil || n.Plan != nil {
		t.Errorf("after the power cut it is %+v", n)
	}
	m.wait(t, time.Second, "next=kexec")
	m.off()
	untouched()
}

// otherKernel makes a RAM system of another kernel than the image has: Debian's
// for clouds, which has what an emulated machine needs.
func (h *hall) otherKernel() {
	h.t.Helper()
	pkg := ""
	for line := range strings.Lines(h.run("apt-cache", "depends", "linux-image-cloud-amd64")) {
		if _, name, ok := strings.Cut(line, "Depends: linux-image-"); ok {
			pkg = strings.TrimSpace(name)
		}
	}
	h.cache = h.path("cache")
	root := filepath.Join(h.cache, "kernel")
	h.run("mkdir", "-p", root)
	h.run("sh", "-c", "cd "+h.dir+" && apt-get -q download linux-image-"+pkg+" && dpkg-deb -x linux-image-"+pkg+"_*.deb "+root)
	h.write(filepath.Join(root, "release"), []byte(pkg+"\n"))
	h.write(filepath.Join(root, "lib/modules", pkg, "modules.dep"), nil)
}
