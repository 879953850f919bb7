package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"smelt/images/build"
	"smelt/internal/api"
	"smelt/inventory"
)

const onceSite = `apiVersion: smelt/v1
site: e2e
lab: true
state: %s
listen: {boot: "10.78.0.1:80", agent: "10.78.0.1:8443", ui: "127.0.0.1:8480"}
networks:
  - {name: provisioning, interface: br0, address: 10.78.0.1/16, pool: 10.78.200.1-10.78.200.50}
rescue: {keys: [%q]}
classes:
  - {name: rig, image: none, target: lab, profile: lab}
nodes:
  - {name: rig-1, position: A1-S1, class: rig, macs: ["52:54:00:78:00:01"], serial: E2E-1}
`

// TestRescueAndMemtest: an operator logs in to a machine with ssh, as to any
// other, and cannot write its disk; then it tests its memory; and then it is
// the machine that it was.
func TestRescueAndMemtest(t *testing.T) {
	needs(t, "/usr/bin/ssh", "/usr/bin/ssh-keygen")
	h := newHall(t)
	if _, err := build.Programs(t.Context(), cache()); err != nil {
		t.Fatal(err)
	}
	h.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "anna", "-f", h.path("key"))
	key := strings.TrimSpace(string(h.read(h.path("key.pub"))))
	h.write(h.path("site.yaml"), fmt.Appendf(nil, onceSite, h.path("state"), key))
	h.up()
	disk, untouched := h.someDisk()
	m := h.bios(t, disk...)
	inspected := func(v api.NodeView) bool {
		return v.Node.State == inventory.Inspected || v.Node.State == inventory.NeedsWork
	}
	h.await(m, "rig-1", "inspected", inspected)

	// Its agent restarts it: nothing else can.
	h.smelt("node", "rescue", "rig-1", "--confirm", "rig-1", "--for", "1h", "--reason", "e2e")
	login := regexp.MustCompile(`ssh root@(\S+), host key (\S+), its disks are read-only`)
	v := h.await(m, "rig-1", "log in", func(v api.NodeView) bool { return v.Progress != nil && login.MatchString(v.Progress.Doing) })
	at := login.FindStringSubmatch(v.Progress.Doing)
	host := string(h.ssh("ssh-keyscan", "-t", "ed25519", at[1]))
	h.write(h.path("known"), []byte(host))
	if said := string(h.ssh("ssh-keygen", "-l", "-f", h.path("known"))); !strings.Contains(said, at[2]) {
		t.Errorf("the host key is %s, the node said %s", said, at[2])
	}
	shell := func(command string) string {
		return string(h.ssh("ssh", "-i", h.path("key"), "-o", "UserKnownHostsFile="+h.path("known"), "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30",
			"root@"+at[1], command))
	}
	if out := shell("hostname; id -u; ls /dev/vda; head -c 512 /dev/vda | wc -c"); !strings.Contains(out, "/dev/vda") || !strings.Contains(out, "512") {
		t.Errorf("the operator sees %q", out)
	}
	if out := shell("echo x | dd of=/dev/vda bs=1 count=1 conv=fsync 2>&1; echo ended $?"); strings.Contains(out, "ended 0") {
		t.Errorf("the operator wrote the disk: %q", out)
	}
	h.smelt("node", "rescue", "rig-1", "--confirm", "rig-1", "--end")
	h.await(m, "rig-1", "inspected again", func(v api.NodeView) bool {
		return v.Node.Once == nil && v.Node.Fence > 2 && v.Progress == nil
	})
	untouched()

	h.smelt("node", "memtest", "rig-1", "--confirm", "rig-1", "--for", "1h")
	m.wait(t, 20*time.Minute, "Memtest86+")
	if v := h.node("rig-1"); v.Node.Once == nil || v.Node.Once.Began.IsZero() {
		t.Errorf("the test runs, and the node says %+v", v.Node.Once)
	}
	m.off()
	untouched()

	// UEFI starts it as a program. Ended and asked for again, it is another boot.
	h.smelt("node", "memtest", "rig-1", "--confirm", "rig-1", "--end")
	h.smelt("node", "memtest", "rig-1", "--confirm", "rig-1", "--for", "1h")
	m = h.powerPXE(t, h.read("/usr/share/OVMF/OVMF_VARS_4M.fd"), "-smbios", "type=2,serial=E2E-B1")
	m.wait(t, 20*time.Minute, "memtest.efi... ok")
	m.wait(t, 5*time.Minute, "Memtest86+")
	m.off()
}

// ssh runs a program of OpenSSH in the hall's network.
func (h *hall) ssh(name string, args ...string) []byte {
	h.t.Helper()
	c := exec.Command("ip", append([]string{"netns", "exec", h.ns, name}, args...)...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		h.t.Fatalf("%s %q: %v: %s", filepath.Base(name), args, err, out)
	}
	return out
}
