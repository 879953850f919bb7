package pid1

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseCmdLine(t *testing.T) {
	for _, tc := range []struct{ line, server, nonce, mode, mac string }{
		{"console=ttyS0 smelt.server=https://10.77.0.1:8443 smelt.nonce=ab12 smelt.mode=convert BOOTIF=01-52-54-00-00-00-01", "https://10.77.0.1:8443", "ab12", Convert, "52:54:00:00:00:01"},
		{"smelt.server=https://[fd00::1]:8443/ smelt.nonce=n BOOTIF=52:54:00:00:00:02", "https://[fd00::1]:8443", "n", Inspect, "52:54:00:00:00:02"},
		{"smelt.server=https://s smelt.nonce=n smelt.mode=Convert", "https://s", "n", Inspect, ""},
		// The last word counts, and what is not exactly convert is inspect.
		{"smelt.server=https://s smelt.nonce=n smelt.mode=convert smelt.mode=x", "https://s", "n", Inspect, ""},
		{"smelt.server=https://s smelt.nonce=n BOOTIF=nonsense", "https://s", "n", Inspect, ""},
		// Without a nonce it has to ask, and is harmless until then.
		{"smelt.server=https://s smelt.boot=http://10.77.0.1:8080 smelt.mode=convert", "https://s", "", Inspect, ""},
	} {
		c, err := ParseCmdLine(tc.line)
		if err != nil || c.Server != tc.server || c.Nonce != tc.nonce || c.Mode != tc.mode || c.BootIF.String() != tc.mac {
			t.Errorf("%q = %+v, %v", tc.line, c, err)
		}
	}
	for _, bad := range []string{"", "smelt.nonce=n", "smelt.server=http://s smelt.nonce=n", "smelt.server=https://s", "smelt.server=https:// smelt.nonce=n", "smelt.server=%zz smelt.nonce=n",
		"smelt.boot=http://b", "smelt.server=https://s smelt.boot=b", "smelt.server=https://s smelt.boot=ftp://b", "smelt.server=https://s smelt.boot=http://"} {
		if c, err := ParseCmdLine(bad); err == nil {
			t.Errorf("%q = %+v, want an error", bad, c)
		}
	}
}

func FuzzParseCmdLine(f *testing.F) {
	f.Add("smelt.server=https://10.77.0.1:8443 smelt.nonce=ab smelt.mode=convert BOOTIF=01-52-54-00-00-00-01")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCmdLine(s)
		if c.Mode != Inspect && c.Mode != Convert {
			t.Errorf("mode %q", c.Mode)
		}
		if c.Mode == Convert && !slices.Contains(strings.Fields(s), "smelt.mode=convert") {
			t.Error("convert out of nothing")
		}
		if err == nil && !strings.HasPrefix(c.Server, "https://") {
			t.Errorf("server %q", c.Server)
		}
	})
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00", true},
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D4sv00001AF4sd00001100bc02sc00i00", false},
		{"pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", true},
		{"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00", true},
		{"usb:v0BDAp8152d*dc*dsc*dp*ic0[2-9A-F]isc*", "usb:v0BDAp8152d2000dc00dsc00dp00icFFisc", false},
		{"usb:x[!a]y", "usb:x!y", true}, // modprobe knows no negation either
		{"x[0-9]?z", "x7yz", true},
		{"x[0-9]?z", "xayz", false},
		{"*", "", true},
		{"a*", "", false},
		{"a[", "a[", false},
		{"fs-ext4", "fs-ext4", true},
	} {
		if got := match(tc.pattern, tc.s); got != tc.want {
			t.Errorf("match(%q, %q) = %t", tc.pattern, tc.s, got)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02")
	f.Add("a[b-", "ab")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 64 || len(s) > 64 || strings.Count(pattern, "*") > 6 {
			t.Skip()
		}
		match(pattern, s)
		if !strings.ContainsAny(s, "*?[") && !match(s, s) {
			t.Errorf("%q does not match itself", s)
		}
	})
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\nkernel/fs/mbcache.ko:\nkernel/drivers/net/virtio-net.ko: kernel/net/failover.ko\n",
		"modules.alias":   "alias fs-ext4 ext4\nalias virtio:d00000001v* virtio_net\nalias broken\nalias virtio:d0000000[12]v* both\n",
		"modules.builtin": "kernel/drivers/tty/serial/8250/8250.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Resolve("virtio:d00000001v00001AF4"); !slices.Equal(got, []string{"virtio_net", "both"}) {
		t.Errorf("resolve = %v", got)
	}
	// Dependencies are loaded from the end of the line.
	want := []string{"kernel/lib/crc16.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/mbcache.ko", "kernel/fs/ext4/ext4.ko"}
	if got := m.deps["ext4"]; !slices.Equal(got, want) {
		t.Errorf("order = %v", got)
	}
	if err := m.Load("8250"); err != nil {
		t.Errorf("built in: %v", err)
	}
	if err := m.Load("nosuch"); err == nil {
		t.Error("a module that is not there was loaded")
	}
	if _, err := openModules(t.TempDir()); err == nil {
		t.Error("no index, no error")
	}
}

func TestParseUevent(t *testing.T) {
	got := parseUevent([]byte("add@/devices/pci0/block/sda/sda1\x00ACTION=add\x00DEVPATH=/devices/pci0/block/sda/sda1\x00SUBSYSTEM=block\x00DEVTYPE=partition\x00X=a=b\x00"))
	want := map[string]string{"ACTION": "add", "DEVPATH": "/devices/pci0/block/sda/sda1", "SUBSYSTEM": "block", "DEVTYPE": "partition", "X": "a=b"}
	if !maps.Equal(got, want) {
		t.Errorf("uevent = %v", got)
	}
}

// A disk that takes the name of the one being written is read-only, whether its
// announcement came or was lost, and no two disks are writable at once.
func TestSeals(t *testing.T) {
	for _, tc := range []struct {
		name string
		swap func(d *Devices, become func(seq string))
		want bool // sda and its partition are read-only at the end
	}{
		{"nothing happens", func(d *Devices, _ func(string)) { _ = d.SealAll() }, false},
		{"its partitions appear", func(d *Devices, _ func(string)) {
			for _, action := range []string{"remove", "add"} {
				d.handle(map[string]string{"ACTION": action, "SUBSYSTEM": "block", "DEVTYPE": "partition", "DEVPATH": "/devices/x/block/sda/sda1", "DISKSEQ": "7"})
			}
		}, false},
		{"another is removed", func(d *Devices, _ func(string)) {
			d.handle(map[string]string{"ACTION": "remove", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVPATH": "/devices/x/block/sdb", "DISKSEQ": "8"})
			_ = d.SealAll()
		}, false},
		{"removed, and another takes the name", func(d *Devices, become func(string)) {
			d.handle(map[string]string{"ACTION": "remove", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVPATH": "/devices/x/block/sda", "DISKSEQ": "7"})
			become("9")
			d.handle(map[string]string{"ACTION": "add", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVPATH": "/devices/x/block/sda", "DISKSEQ": "9"})
			d.handle(map[string]string{"ACTION": "add", "SUBSYSTEM": "block", "DEVTYPE": "partition", "DEVPATH": "/devices/x/block/sda/sda1", "DISKSEQ": "9"})
		}, true},
		{"the same on a kernel without sequence numbers", func(d *Devices, become func(string)) {
			become("")
			d.open = disk{"sda", ""}
			d.handle(map[string]string{"ACTION": "remove", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVPATH": "/devices/x/block/sda"})
			d.handle(map[string]string{"ACTION": "add", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVPATH": "/devices/x/block/sda"})
			d.handle(map[string]string{"ACTION": "add", "SUBSYSTEM": "block", "DEVTYPE": "partition", "DEVPATH": "/devices/x/block/sda/sda1"})
		}, true},
		{"announcements were lost", func(d *Devices, become func(string)) {
			become("9")
			_ = d.SealAll()
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sys := t.TempDir()
			put := func(name, text string) {
				t.Helper()
				p := filepath.Join(sys, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			put("block/sda/diskseq", "7\n")
			put("block/sda/sda1/partition", "1\n")
			put("block/sdb/diskseq", "8\n")
			if err := os.MkdirAll(filepath.Join(sys, "class/block"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, to := range map[string]string{"sda": "sda", "sda1": "sda/sda1", "sdb": "sdb"} {
				if err := os.Symlink("../../block/"+to, filepath.Join(sys, "class/block", name)); err != nil {
					t.Fatal(err)
				}
			}
			sealed := map[string]bool{}
			d := &Devices{sys: sys, Log: slog.New(slog.DiscardHandler), ro: func(name string, ro int) error {
				sealed[name] = ro == 1
				return nil
			}}
			if err := d.SealAll(); err != nil || !sealed["sda"] || !sealed["sda1"] || !sealed["sdb"] {
				t.Fatalf("sealed %v, %v", sealed, err)
			}
			if err := d.Unseal("sda"); err != nil || sealed["sda"] || sealed["sda1"] {
				t.Fatalf("unsealed: %v, %v", sealed, err)
			}
			if err := d.Unseal("sdb"); err == nil || !sealed["sdb"] {
				t.Fatalf("two at once: %v, %v", sealed, err)
			}
			tc.swap(d, func(seq string) {
				// The kernel makes a new disk writable.
				sealed["sda"], sealed["sda1"] = false, false
				put("block/sda/diskseq", seq+"\n")
			})
			if sealed["sda"] != tc.want || sealed["sda1"] != tc.want || !sealed["sdb"] {
				t.Errorf("sealed %v, want sda %t", sealed, tc.want)
			}
			if err := d.Seal("sda"); err != nil || !sealed["sda"] || !sealed["sda1"] {
				t.Errorf("sealed again: %v, %v", sealed, err)
			}
			if err := d.Unseal("sdb"); err != nil || sealed["sdb"] {
				t.Errorf("the next one: %v, %v", sealed, err)
			}
		})
	}
}
