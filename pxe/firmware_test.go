package pxe

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"smelt/images/build"
)

// signedLoaders serves Debian's shim, GRUB and iPXE of Debian 13.
func signedLoaders(t *testing.T) build.LoaderFiles {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	f, err := build.Loaders(t.Context(), filepath.Join(dir, "smelt", "test-loaders"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// secure are the flags of a machine with OVMF and Secure Boot on, with the keys
// that vendors ship.
func secure(l *lab) []string {
	return ovmf(l, "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
		"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on")
}

// onlyHTTP makes OVMF go by HTTP at once: it would try PXE for a minute.
func onlyHTTP(flags []string) []string {
	return append(flags, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
}

func onlyPXE(flags []string) []string {
	return append(flags, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
}

// flipped is a copy of a file with one bit turned over.
func (l *lab) flipped(path string, at int64) string {
	l.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	b[at] ^= 1
	out := filepath.Join(l.dir, filepath.Base(path)+".flipped")
	if err := os.WriteFile(out, b, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return out
}

// TestFirmware boots every kind of firmware that QEMU has to our userland, or
// to the words with which it refuses what somebody changed on the way.
func TestFirmware(t *testing.T) {
	e2e(t)
	loaders := signedLoaders(t)
	vendorKeys := func(l *lab) {
		l.spec.Files[LoaderShim], l.spec.Files[LoaderGRUB] = loaders.Shim, loaders.GRUB
		delete(l.spec.Files, LoaderUEFI)
	}
	for _, row := range []struct {
		name  string
		setup func(*lab)
		flags func(*lab) []string
		mark  string
		check func(t *testing.T, l *lab, serial string)
	}{
		{"secureboot-pxe-shim-grub", vendorKeys, func(l *lab) []string { return onlyPXE(secure(l)) }, "BOOT-OK", nil},
		{"secureboot-http-shim-grub", vendorKeys, func(l *lab) []string { return onlyHTTP(secure(l)) }, "BOOT-OK", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newBootLab(t)
			row.setup(l)
			l.start()
			serial, took := l.boot(120*time.Second, row.mark, row.flags(l)...)
			if row.check != nil {
				row.check(t, l, serial)
			}
			t.Logf("boot time: %s %.1f", row.name, took.Seconds())
		})
	}
}
