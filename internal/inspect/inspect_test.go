package inspect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"smelt/inventory"
)

var update = flag.Bool("update", false, "write the golden files anew")

// tree makes a root folder out of lines "path = content" and "path -> target".
func tree(t *testing.T, text string) string {
	t.Helper()
	root := t.TempDir()
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, target, isLink := strings.Cut(line, " -> ")
		content := ""
		if !isLink {
			name, content, _ = strings.Cut(line, " = ")
		}
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if isLink {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(content)+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// rig is a mining board as sysfs shows it: a card on an x1 riser in an x16
// slot, one in an x1 slot, the screen adapter of the processor, a SATA disk, a
// USB stick that it runs from, an NVMe disk, and one network card.
const rig = `
proc/meminfo = MemTotal:        8033384 kB\nMemFree: 1 kB
proc/cpuinfo = processor\t: 0\nmodel name\t: Intel(R) Celeron(R)  G3930 CPU\nphysical id\t: 0\ncore id\t: 0\nflags\t\t: fpu aes\n\nprocessor\t: 1\nmodel name\t: x\nphysical id\t: 0\ncore id\t: 1\nflags\t\t: fpu aes\n
proc/self/mountinfo = 22 1 8:17 / / rw,relatime - ext4 /dev/sdb1 rw
proc/swaps = Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
sys/firmware/efi/fw_platform_size = 64

sys/devices/pci0000:00/0000:00:01.0/class = 0x060400
sys/devices/pci0000:00/0000:00:01.0/vendor = 0x8086
sys/devices/pci0000:00/0000:00:01.0/device = 0x1901
sys/devices/pci0000:00/0000:00:01.0/max_link_width = 16
sys/devices/pci0000:00/0000:00:01.0/current_link_width = 1
sys/devices/pci0000:00/0000:00:01.0/max_link_speed = 8.0 GT/s PCIe
sys/devices/pci0000:00/0000:00:01.0/current_link_speed = 2.5 GT/s PCIe
sys/bus/pci/devices/0000:00:01.0 -> ../../../devices/pci0000:00/0000:00:01.0
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class = 0x030000
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/vendor = 0x10de
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/device = 0x2206
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/subsystem_vendor = 0x1043
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/subsystem_device = 0x87b5
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/max_link_width = 16
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/current_link_width = 1
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/max_link_speed = 16 GT/s
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/current_link_speed = Unknown
sys/bus/pci/devices/0000:01:00.0 -> ../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.1/class = 0x040300
sys/bus/pci/devices/0000:01:00.1 -> ../../../devices/pci0000:00/0000:00:01.0/0000:01:00.1
sys/bus/pci/slots/1/address = 0000:01:00

sys/devices/pci0000:00/0000:00:1c.4/class = 0x060400
sys/devices/pci0000:00/0000:00:1c.4/vendor = 0x8086
sys/devices/pci0000:00/0000:00:1c.4/device = 0xa294
sys/devices/pci0000:00/0000:00:1c.4/max_link_width = 1
sys/bus/pci/devices/0000:00:1c.4 -> ../../../devices/pci0000:00/0000:00:1c.4
sys/devices/pci0000:00/0000:00:1c.4/0000:02:00.0/class = 0x030200
sys/devices/pci0000:00/0000:00:1c.4/0000:02:00.0/vendor = 0x10de
sys/devices/pci0000:00/0000:00:1c.4/0000:02:00.0/device = 0x1b07
sys/devices/pci0000:00/0000:00:1c.4/0000:02:00.0/max_link_width = 255
sys/bus/pci/devices/0000:02:00.0 -> ../../../devices/pci0000:00/0000:00:1c.4/0000:02:00.0

sys/devices/pci0000:00/0000:00:02.0/class = 0x030000
sys/devices/pci0000:00/0000:00:02.0/vendor = 0x8086
sys/devices/pci0000:00/0000:00:02.0/device = 0x5902
sys/bus/pci/devices/0000:00:02.0 -> ../../../devices/pci0000:00/0000:00:02.0
sys/devices/pci0000:00/0000:00:05.0/class = 0x030000
sys/devices/pci0000:00/0000:00:05.0/vendor = 0x1a03
sys/devices/pci0000:00/0000:00:05.0/device = 0x2000
sys/bus/pci/devices/0000:00:05.0 -> ../../../devices/pci0000:00/0000:00:05.0

sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/size = 234441648
sys/devices/pci0000:00/0000:00:17.0/ata3/ata_port/ata3/port_no = 3
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/queue/rotational = 0
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/removable = 0
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/dev = 8:0
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/model = KINGSTON SA400S3
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/wwid = naa.50026b7782f1c8aa
sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/device -> ../../../2:0:0:0
sys/block/sda -> ../devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda
sys/class/block/sda -> ../../devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda
dev/sda = raid

sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/serial = 4C530001
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/idVendor = 0781
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/size = 31266816
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/removable = 1
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/dev = 8:16
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/sdb1/partition = 1
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/sdb1/dev = 8:17
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/model = Cruzer Fit
sys/devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/device -> ../../../4:0:0:0
sys/block/sdb -> ../devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb
sys/class/block/sdb -> ../../devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb
sys/class/block/sdb1 -> ../../devices/pci0000:00/0000:00:14.0/usb1/1-8/1-8:1.0/host4/target4:0:0/4:0:0:0/block/sdb/sdb1
dev/sdb = stick

sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1/size = 976773168
sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1/wwid = eui.0025385b71b0a1c2
sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/model = Samsung SSD 970 EVO 500GB               
sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/serial = S466NX0K   
sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1/device -> ../../nvme0
sys/block/nvme0n1 -> ../devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1
sys/class/block/nvme0n1 -> ../../devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1
sys/block/loop0/size = 100
sys/block/sr0/size = 0

sys/devices/pci0000:00/0000:00:1f.6/net/eth0/type = 1
sys/devices/pci0000:00/0000:00:1f.6/net/eth0/address = 70:85:c2:00:00:01
sys/devices/pci0000:00/0000:00:1f.6/net/eth0/carrier = 1
sys/devices/pci0000:00/0000:00:1f.6/net/eth0/speed = 1000
sys/devices/pci0000:00/0000:00:1f.6/net/eth0/device -> ../../../0000:00:1f.6
sys/bus/pci/drivers/e1000e/x = x
sys/devices/pci0000:00/0000:00:1f.6/driver -> ../../../bus/pci/drivers/e1000e
sys/class/net/eth0 -> ../../devices/pci0000:00/0000:00:1f.6/net/eth0
sys/class/net/lo/type = 772
sys/class/net/br0/type = 1
sys/class/net/br0/address = 70:85:c2:00:00:99
`

func TestHardware(t *testing.T) {
	root := tree(t, rig)
	write := func(name string, b []byte) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sys/devices/pci0000:00/0000:00:1c.4/config", portConfig(12))
	write("sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/vpd_pg80", append([]byte{0, 0x80, 0, 20}, "    50026B7782F1C8AA"...))
	write("sys/firmware/dmi/tables/DMI", smbiosTableOf(
		st(0, []byte{1, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "American Megatrends Inc.", "P1.20", "01/01/2018"),
		st(2, []byte{1, 2, 0, 3}, "ASRock", "H110 Pro BTC+", "M80-A1"),
		st(2, []byte{1, 2, 0, 3}, "second", "board", "of a chassis"),
	))
	write("sys/firmware/dmi/tables/smbios_entry_point", append([]byte("_SM3_"), 0, 24, 3, 0, 0))
	sigs := func(r io.ReaderAt, size int64) ([]string, error) {
		b := make([]byte, 4)
		if _, err := r.ReadAt(b, 0); err != nil {
			return nil, err
		}
		if string(b) == "raid" {
			return []string{"gpt", "linux_raid_member"}, nil
		}
		return nil, errors.New("bad sector")
	}
	h := System{Root: root, Signatures: sigs}.Hardware()
	h.Firmware.Arch = "amd64"
	got, err := json.MarshalIndent(h, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/rig.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("hardware (-want +got):\n%s", diff)
	}
}

// portConfig is the configuration space of a port with a physical slot number.
func portConfig(slot uint32) []byte {
	b := make([]byte, 256)
	b[0x06], b[0x34] = 0x10, 0x40
	b[0x40], b[0x41] = 0x05, 0x80 // MSI, then
	b[0x80] = 0x10
	binary.LittleEndian.PutUint16(b[0x82:], 1<<8|4<<4|2)
	binary.LittleEndian.PutUint32(b[0x94:], slot<<19|0x60)
	return b
}

func TestPCISlot(t *testing.T) {
	if n, ok := pciSlot(portConfig(12)); !ok || n != 12 {
		t.Errorf("slot = %d, %t", n, ok)
	}
	loop := portConfig(1)
	loop[0x80], loop[0x81] = 0x01, 0x40
	if _, ok := pciSlot(loop); ok {
		t.Error("a list that loops has a slot")
	}
}

func FuzzPCISlot(f *testing.F) {
	f.Add(portConfig(7))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := pciSlot(b); ok && (n < 1 || n > 8191) {
			t.Errorf("slot %d", n)
		}
	})
}

// A machine that shows nothing has nothing, and says so.
func TestNothingThere(t *testing.T) {
	h := System{Root: t.TempDir()}.Hardware()
	if len(h.Missing) < 4 || h.HasBMC || len(h.Disks) != 0 || h.Memory.Total != 0 {
		t.Errorf("hardware = %+v", h)
	}
}

type structure struct {
	kind      byte
	formatted []byte
	strings   []string
}

func st(kind byte, formatted []byte, strings ...string) structure {
	return structure{kind, formatted, strings}
}

// smbiosTableOf encodes structures as DSP0134 6.1 says.
func smbiosTableOf(ss ...structure) []byte {
	var b bytes.Buffer
	for i, s := range append(ss, st(127, nil)) {
		b.Write([]byte{s.kind, byte(4 + len(s.formatted)), byte(i), 0})
		b.Write(s.formatted)
		for _, v := range s.strings {
			b.WriteString(v + "\x00")
		}
		if len(s.strings) == 0 {
			b.WriteByte(0)
		}
		b.WriteByte(0)
	}
	return b.Bytes()
}

// TestRealBoards encodes what dmidecode printed on real boards and reads it
// back: placeholders, odd strings, empty sockets.
func TestRealBoards(t *testing.T) {
	files, err := filepath.Glob("testdata/dmidecode/*.txt")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		table, want := fromText(string(text))
		got, err := parseSMBIOS(table, nil)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if got.board.Product != want.product || got.board.Vendor != want.vendor || got.bmc != want.bmc || len(got.dimms) != len(want.sizes) {
			t.Errorf("%s: %+v, want %+v", file, got, want)
		}
		for i, d := range got.dimms {
			if d.Size != want.sizes[i] {
				t.Errorf("%s: module %s has %d bytes, want %d", file, d.Locator, d.Size, want.sizes[i])
			}
		}
	}
}

type printed struct {
	vendor, product string
	bmc             bool
	sizes           []int64
}

func fromText(text string) ([]byte, printed) {
	var ss []structure
	var want printed
	for _, block := range strings.Split(text, "\n\n") {
		f := map[string]string{}
		for l := range strings.Lines(block) {
			if k, v, ok := strings.Cut(strings.TrimSpace(l), ": "); ok && f[k] == "" {
				f[k] = strings.TrimSpace(v)
			}
		}
		switch {
		case strings.Contains(block, "DMI type 2,"):
			ss = append(ss, st(2, []byte{1, 2, 0, 0}, f["Manufacturer"], f["Product Name"]))
			if want.product == "" {
				want.vendor, want.product = f["Manufacturer"], f["Product Name"]
			}
		case strings.Contains(block, "DMI type 38,"):
			ss = append(ss, st(38, make([]byte, 12)))
			want.bmc = true
		case strings.Contains(block, "DMI type 17,"):
			var n int64
			var unit string
			b := make([]byte, 0x24)
			b[0x10-4] = 1
			if _, err := fmt.Sscanf(f["Size"], "%d %s", &n, &unit); err == nil {
				mb := n
				if unit == "GB" {
					mb = n << 10
				}
				if mb >= 32<<10-1 {
					binary.LittleEndian.PutUint16(b[0x0c-4:], 0x7fff)
					binary.LittleEndian.PutUint32(b[0x1c-4:], uint32(mb))
				} else {
					binary.LittleEndian.PutUint16(b[0x0c-4:], uint16(mb))
				}
				want.sizes = append(want.sizes, mb<<20)
			}
			ss = append(ss, st(17, b, f["Locator"]))
		}
	}
	return smbiosTableOf(ss...), want
}

func FuzzSMBIOS(f *testing.F) {
	f.Add(smbiosTableOf(st(0, []byte{1, 2, 0, 0, 3}, "a", "b"), st(17, make([]byte, 0x24), "DIMM0")), []byte("_SM3_\x00\x18\x03\x00\x00"))
	f.Add([]byte{17, 4, 0, 0}, []byte("_SM_"))
	f.Add([]byte{3, 0x20, 0, 0, 0xff}, []byte{})
	f.Fuzz(func(t *testing.T, dmi, ep []byte) {
		got, err := parseSMBIOS(dmi, ep)
		if err != nil {
			return
		}
		for _, d := range got.dimms {
			if d.Size <= 0 {
				t.Errorf("module of %d bytes", d.Size)
			}
		}
		if strings.ContainsAny(got.board.Serial, "\x00\n") {
			t.Errorf("serial %q", got.board.Serial)
		}
	})
}

// The name of where a disk is plugged in does not depend on how the kernel
// counts.
func TestBusPathIsStable(t *testing.T) {
	a := System{Root: tree(t, rig)}.Disks()
	b := System{Root: tree(t, strings.NewReplacer(
		"ata3", "ata9", "host2", "host8", "target2:", "target8:", "2:0:0:0", "8:0:0:0", "sda", "sdx", "nvme0", "nvme3", "/usb1/1-8/1-8:", "/usb3/3-8/3-8:", "/usb1/1-8/", "/usb3/3-8/",
	).Replace(rig))}.Disks()
	paths := func(ds []inventory.Disk) (out []string) {
		for _, d := range ds {
			out = append(out, d.Path)
		}
		return out
	}
	if want := []string{"pci-0000:00:14.0-usb-8", "pci-0000:00:17.0-ata-3", "pci-0000:03:00.0-nvme-1"}; !slices.Equal(paths(a), want) || !slices.Equal(paths(b), want) {
		t.Errorf("paths = %v and %v, want %v", paths(a), paths(b), want)
	}
}
