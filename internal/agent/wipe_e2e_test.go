package agent_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/initramfs"
	"smelt/inventory"
)

// The real RAM system wipes drives of every kind that QEMU has: NVMe, alone
// and with a second namespace, SATA behind AHCI, SCSI, and virtio. QEMU's NVMe drive
// has Format and no Sanitize, its SATA drive neither SANITIZE nor a password:
// what they do have is done to their last byte, and what they have not is
// refused with not one byte changed. Drives that have more are in the tests of
// images/disk.
func TestRAMSystemWipes(t *testing.T) {
	need(t, os.Getenv("SMELT_TEST_E2E") == "1", "SMELT_TEST_E2E=1 (boots a machine)")
	need(t, os.Getuid() == 0, "root")
	k := kernel(t)
	w := newWire(t)
	f := newFakeServer(t, w.l)
	ram := buildRAM(t, k, initramfs.Trust{SiteKey: f.key.Public().(ed25519.PublicKey), Pin: f.pin()})

	const size = 96 << 20
	old := []byte("the old tenant's data; ")
	dir, files := t.TempDir(), map[string]string{}
	drive := func(serial, options string) []string {
		path := filepath.Join(dir, serial)
		b := bytes.Repeat(old, size/len(old)+1)[:size]
		clear(b[:8192]) // no signature by chance
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		files[serial] = path
		return []string{"-drive", "if=none,format=raw,cache=writeback," + options + ",id=" + serial + ",file=" + path}
	}
	holds := func(serial string) bool {
		b, err := os.ReadFile(files[serial])
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(b, old)
	}
	args := []string{"-device", "e1000e,netdev=n0,mac=52:54:00:77:00:03", "-device", "virtio-scsi-pci,id=scsi", "-device", "nvme,id=two,serial=TWO"}
	for _, d := range []struct{ serial, options, device string }{
		{"NVME-1", "discard=unmap", "nvme,drive=NVME-1,serial=NVME-1"},
		{"TWO-1", "discard=unmap", "nvme-ns,bus=two,drive=TWO-1,nsid=1"},
		{"TWO-2", "discard=unmap", "nvme-ns,bus=two,drive=TWO-2,nsid=2"},
		{"SATA-1", "discard=unmap", "ide-hd,drive=SATA-1,serial=SATA-1,bus=ide.0"},
		{"SATA-LIAR", "discard=ignore", "ide-hd,drive=SATA-LIAR,serial=SATA-LIAR,bus=ide.1"},
		{"SCSI-1", "discard=unmap", "scsi-hd,drive=SCSI-1,serial=SCSI-1,bus=scsi.0"},
		{"VIRTIO-1", "discard=unmap", "virtio-blk-pci,drive=VIRTIO-1,serial=VIRTIO-1"},
	} {
		args = append(append(args, drive(d.serial, d.options)...), "-device", d.device)
	}
	_, con := boot(t, ram, "smelt.server="+f.srv.URL+" smelt.nonce=c0ffee smelt.mode=convert BOOTIF=01-52-54-00-77-00-03", args...)
	f.until("inventory", 3*time.Minute, func() bool { return len(f.invs) > 0 })
	disk := func(serial, name string) inventory.DiskID {
		t.Helper()
		for _, d := range f.invs[0].Hardware.Disks {
			if d.Serial == serial && (name == "" || strings.HasSuffix(d.Name, name)) {
				return d.DiskID
			}
		}
		t.Fatalf("no disk %s %s in %+v\n%s", serial, name, f.invs[0].Hardware.Disks, con)
		return inventory.DiskID{}
	}
	// What each can erase by itself is known before anything is approved.
	for _, d := range f.invs[0].Hardware.Disks {
		want := "none"
		if d.Bus == "nvme" {
			want = "purge"
		}
		if d.Erase != want {
			t.Errorf("%s (%s) offers %q, want %q", d.Name, d.DiskID, d.Erase, want)
		}
	}
	n := 0
	wipe := func(id inventory.DiskID, level string) api.Result {
		t.Helper()
		n++
		o, p := f.wipeOrder(fmt.Sprintf("wipe-%d", n), id)
		o.Wipe.Level = level
		r := f.resultIn(f.sign(o, p, f.key), 3*time.Minute)
		t.Logf("%s %s: ok %t, %s, %+v", id, level, r.OK, r.Error, r.Wiped)
		return r
	}
	good := func(serial string, r api.Result, level, method string) {
		t.Helper()
		if !r.OK || len(r.Wiped) != 1 || r.Wiped[0].Level != level || r.Wiped[0].Method != method || r.Wiped[0].Disk.Size != size {
			t.Errorf("%s: %+v", serial, r)
		}
		if holds(serial) {
			t.Errorf("%s still holds the old tenant's data", serial)
		}
	}
	refused := func(serial string, r api.Result, words string) {
		t.Helper()
		if r.OK || r.Cause != "level" || !strings.Contains(r.Error, words) || len(r.Wiped) != 1 || r.Wiped[0].Level != "none" {
			t.Errorf("%s: %+v", serial, r)
		}
		b, err := os.ReadFile(files[serial])
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat(old, size/len(old)+1)[:size]
		if clear(want[:8192]); !bytes.Equal(b, want) {
			t.Errorf("%s: a refused wipe changed it", serial)
		}
	}
	good("NVME-1", wipe(disk("NVME-1", ""), "purge"), "purge", "NVMe Format, user data erase")
	good("TWO-1", wipe(disk("TWO", "n1"), "secure"), "purge", "NVMe Format, user data erase")
	if !holds("TWO-2") {
		t.Error("the erase of one namespace took the other along")
	}
	refused("SATA-1", wipe(disk("SATA-1", ""), "secure"), "the drive has no SANITIZE DEVICE; the drive has no SECURITY ERASE")
	good("SATA-1", wipe(disk("SATA-1", ""), "discard"), "discard", "discard")
	refused("SCSI-1", wipe(disk("SCSI-1", ""), "secure"), "set the controller to HBA")
	good("SCSI-1", wipe(disk("SCSI-1", ""), "overwrite"), "overwrite", "overwritten with zeros")
	refused("VIRTIO-1", wipe(disk("VIRTIO-1", ""), "purge"), "no NVMe, SATA or SAS drive")
	good("VIRTIO-1", wipe(disk("VIRTIO-1", ""), "discard"), "discard", "discard")
	// It takes TRIM with success, and does nothing.
	r := wipe(disk("SATA-LIAR", ""), "discard")
	if r.OK || r.Cause != "level" || !strings.Contains(r.Error, "still hold what they held") || len(r.Wiped) != 1 || r.Wiped[0].Level != "metadata" || !holds("SATA-LIAR") {
		t.Errorf("a drive that discards nothing: %+v", r)
	}
}
