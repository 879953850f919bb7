package initramfs

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// ko is a kernel module as far as we look into one: an ELF file with a
// .modinfo section.
func ko(info ...string) []byte {
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	le := binary.LittleEndian
	ident := [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}
	b.Write(ident[:])
	dataAt := uint64(64)
	namesAt := dataAt + uint64(len(modinfo))
	sectAt := (namesAt + uint64(len(names)) + 7) &^ 7
	for _, v := range []any{uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), sectAt, uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2)} {
		_ = binary.Write(&b, le, v)
	}
	b.Write(modinfo)
	b.Write(names)
	b.Write(make([]byte, int(sectAt)-b.Len()))
	section := func(name, kind uint32, at, size uint64) {
		for _, v := range []any{name, kind, uint64(0), uint64(0), at, size, uint32(0), uint32(0), uint64(1), uint64(0)} {
			_ = binary.Write(&b, le, v)
		}
	}
	section(0, 0, 0, 0)
	section(1, 1, dataAt, uint64(len(modinfo)))
	section(10, 3, namesAt, uint64(len(names)))
	return b.Bytes()
}

func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"kernel/drivers/net/virtio_net.ko":          ko("alias=virtio:d00000001v*", "depends=net_failover", "license=GPL"),
		"kernel/drivers/net/net_failover.ko":        ko("depends=failover"),
		"kernel/net/core/failover.ko":               ko("license=GPL"),
		"kernel/fs/ext4/ext4.ko":                    ko("alias=fs-ext4", "alias=fs-ext3", "softdep=pre: crc32c_generic post: x", "depends=jbd2,mbcache"),
		"kernel/fs/jbd2/jbd2.ko":                    ko("depends=mbcache"),
		"kernel/fs/mbcache.ko":                      ko(),
		"kernel/crypto/crc32c_generic.ko":           ko("alias=crypto-crc32c"),
		"kernel/drivers/usb/storage/usb-storage.ko": ko("alias=usb:v*", "depends=usbcore,scsi-mod"),
		"kernel/drivers/scsi/scsi_mod.ko":           ko(),
		"kernel/sound/unwanted.ko":                  ko("alias=pci:v*"),
		"modules.builtin":                           []byte("kernel/drivers/usb/core/usbcore.ko\n"),
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Debian's tree has such links when headers are installed.
	if err := os.Symlink("/usr/src", filepath.Join(dir, "build")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func trust() Trust {
	return Trust{SiteKey: make([]byte, ed25519.PublicKeySize), Pin: strings.Repeat("ab", 32)}
}

// unpack reads one part.
func unpack(t *testing.T, b []byte) map[string]cpio.Record {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(plain)))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]cpio.Record{}
	for _, r := range recs {
		out[r.Name] = r
	}
	return out
}

func text(t *testing.T, r cpio.Record) string {
	t.Helper()
	if r.ReaderAt == nil {
		t.Fatalf("%q is not there", r.Name)
	}
	b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBuild(t *testing.T) {
	dir := tree(t)
	agent := filepath.Join(t.TempDir(), "smelt-agent")
	if err := os.WriteFile(agent, []byte("\x7fELF agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Modules: dir, Release: "6.1.0-test", Agent: agent, Trust: trust()}
	var one, two bytes.Buffer
	if err := Build(&one, o); err != nil {
		t.Fatal(err)
	}
	if err := Build(&two, o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two builds differ")
	}
	// The kernel unpacks archives that follow each other; we do it here by hand.
	var base, overlay bytes.Buffer
	if err := Base(&base, o.Modules, o.Release); err != nil {
		t.Fatal(err)
	}
	if err := Overlay(&overlay, o.Agent, o.Trust); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), slices.Concat(base.Bytes(), overlay.Bytes())) {
		t.Error("the whole is not its parts")
	}
	got := unpack(t, base.Bytes())
	maps.Copy(got, unpack(t, overlay.Bytes()))
	mods := "lib/modules/6.1.0-test/"
	for _, name := range []string{"init", "dev/console", "proc", "sys", "etc/smelt/trust.json", mods + "kernel/net/core/failover.ko", mods + "kernel/drivers/scsi/scsi_mod.ko"} {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing; there is %v", name, slices.Sorted(maps.Keys(got)))
		}
	}
	if _, ok := got[mods+"kernel/sound/unwanted.ko"]; ok {
		t.Error("a module that nobody asked for is in")
	}
	if r := got["init"]; r.Mode != cpio.S_IFREG|0o755 || text(t, r) != "\x7fELF agent" {
		t.Errorf("init = %+v", r.Info)
	}
	if r := got["etc/smelt/trust.json"]; r.Mode != cpio.S_IFREG|0o600 {
		t.Errorf("trust.json = %o", r.Mode)
	}
	dep := text(t, got[mods+"modules.dep"])
	for _, line := range []string{
		"kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko\n",
		"kernel/fs/ext4/ext4.ko: kernel/crypto/crc32c_generic.ko kernel/fs/jbd2/jbd2.ko kernel/fs/mbcache.ko\n",
		"kernel/drivers/usb/storage/usb-storage.ko: kernel/drivers/scsi/scsi_mod.ko\n",
		"kernel/fs/mbcache.ko:\n",
	} {
		if !strings.Contains(dep, line) {
			t.Errorf("modules.dep lacks %q:\n%s", line, dep)
		}
	}
	if want := "alias crypto-crc32c crc32c_generic\nalias fs-ext3 ext4\nalias fs-ext4 ext4\nalias usb:v* usb_storage\nalias virtio:d00000001v* virtio_net\n"; text(t, got[mods+"modules.alias"]) != want {
		t.Errorf("modules.alias = %q", text(t, got[mods+"modules.alias"]))
	}
}

// A foreign program reads the base part.
func TestBaseReadsAsCPIO(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs busybox")
	}
	var b bytes.Buffer
	if err := Base(&b, tree(t), "6.1.0-test"); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	c := exec.Command(busybox, "cpio", "-t")
	c.Stdin = z
	out, err := c.Output()
	if err != nil || !strings.Contains(string(out), "lib/modules/6.1.0-test/kernel/fs/ext4/ext4.ko\n") {
		t.Errorf("cpio -t: %v\n%s", err, out)
	}
}

func TestErrors(t *testing.T) {
	dir := tree(t)
	if err := os.Remove(filepath.Join(dir, "kernel/fs/mbcache.ko")); err != nil {
		t.Fatal(err)
	}
	if err := Base(io.Discard, dir, "r"); err == nil || !strings.Contains(err.Error(), "mbcache") {
		t.Errorf("a dependency is missing: %v", err)
	}
	if err := Base(io.Discard, t.TempDir(), "r"); err == nil {
		t.Error("an empty tree made an initramfs")
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel/fs/mbcache.ko.xz"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Base(io.Discard, dir, "r"); err == nil || !strings.Contains(err.Error(), "compressed") {
		t.Errorf("compressed modules: %v", err)
	}
	agent := filepath.Join(dir, "agent")
	if err := os.WriteFile(agent, []byte("#!/bin/sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Overlay(io.Discard, agent, trust()); err == nil {
		t.Error("a script became /init")
	}
	for _, bad := range []Trust{{}, {SiteKey: make([]byte, 32), Pin: "ab"}, {SiteKey: make([]byte, 31), Pin: strings.Repeat("ab", 32)}, {SiteKey: make([]byte, 32), Pin: strings.Repeat("ab", 32), ImageKeys: [][]byte{{1}}}, {SiteKey: make([]byte, 32), Pin: strings.Repeat("ab", 32), ImageThreshold: 1}} {
		if err := Overlay(io.Discard, agent, bad); err == nil {
			t.Errorf("trust %+v was taken", bad)
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(ko("alias=pci:v*", "depends=a,b-c", "softdep=pre: x y post: z"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "m.ko")
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		m := &Module{Name: "m", File: p}
		if m.read() == nil && slices.Contains(m.Depends, "") {
			t.Error("an empty dependency")
		}
	})
}
