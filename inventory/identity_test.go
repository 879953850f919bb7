package inventory

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// capture is one published machine: its board, and every free text that its
// firmware gave where a serial could stand.
type capture struct {
	name  string
	board Board
	texts []string
}

func captures(t *testing.T) []capture {
	t.Helper()
	f, err := os.Open("testdata/dmi-identities.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []capture
	var c *capture
	section := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if name, ok := strings.CutPrefix(line, "== "); ok {
			out = append(out, capture{name: name})
			c = &out[len(out)-1]
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "\t"), ":")
		if !strings.HasPrefix(line, "\t") || !ok {
			section = line
			continue
		}
		value = strings.TrimSpace(value)
		switch section + "/" + key {
		case "System Information/Manufacturer":
			c.board.SystemVendor = value
		case "System Information/Product Name":
			c.board.SystemProduct = value
		case "System Information/Serial Number":
			c.board.SystemSerial = value
		case "System Information/UUID":
			c.board.SystemUUID = value
		case "Base Board Information/Manufacturer":
			c.board.Vendor = value
		case "Base Board Information/Product Name":
			c.board.Product = value
		case "Base Board Information/Serial Number":
			c.board.Serial = value
		case "Chassis Information/Serial Number":
			c.board.ChassisSerial = value
		}
		if key != "Manufacturer" && key != "Product Name" {
			c.texts = append(c.texts, value)
		}
	}
	if len(out) != 52 {
		t.Fatalf("%d captures, want 52", len(out))
	}
	return out
}

// No two of 52 real machines may be taken for one another, whatever their
// firmware put where a serial belongs.
func TestJunkConfirmsNoTwoMachines(t *testing.T) {
	all := captures(t)
	check := func(how string, a, b capture) {
		if i := Identify(Spec{Serial: a.board.Serial}, &Hardware{Board: a.board}, Hardware{Board: b.board}); len(i.Agree) > 0 {
			t.Errorf("%s: %s and %s agree in %v", how, a.name, b.name, i.Agree)
		}
	}
	for i, a := range all {
		for j, b := range all {
			if i == j {
				continue
			}
			check("as captured", a, b)
			// The publisher removed the serials. Put back the worst that these
			// boards are known to say: each text that both machines share.
			for _, text := range a.texts {
				if !slices.Contains(b.texts, text) || a.board.Vendor == b.board.Vendor {
					continue
				}
				x, y := a, b
				x.board.Serial, x.board.ChassisSerial, x.board.SystemSerial = text, text, text
				y.board.Serial, y.board.ChassisSerial, y.board.SystemSerial = text, text, text
				check(fmt.Sprintf("serial %q", text), x, y)
			}
		}
	}
}

func TestJunk(t *testing.T) {
	for _, s := range []string{
		"", " ", "--", "None", "N/A", "To Be Filled By O.E.M.", "To be filled by O.E.M.", "Default string", "System Serial Number",
		"Base Board Serial Number", "Chassis Serial Number", "0123456789", "123456789", "01234567890123456789AB", "1234567890",
		"00000000", "0000000000000000", "FFFFFFFF", "0x00000000", "xxxxxxxxxx", "............", "Not Specified", "Not Applicable", "empty", "MB-1234567890",
		"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "03000200-0400-0500-0006-000700080009", "A1", "1.0", "Server", "QM00001", "To Be Filled By O.E.M. (SN)",
	} {
		if !Junk(s) {
			t.Errorf("Junk(%q) = false", s)
		}
	}
	for _, s := range []string{
		"M80-6A012345678", "ZM16AS012345", "5XKQ7D2", "S3X0NB0K812345", "170832145600001", "BSS-0123456789X", "C7480KG44A30001",
		"0x5000c500a1b2c3d4", "eui.0025385b71b00001", "E80-1234567X",
	} {
		if Junk(s) {
			t.Errorf("Junk(%q) = true", s)
		}
	}
}

func TestIdentify(t *testing.T) {
	mac := func(b byte) MAC { return MAC{0x52, 0x54, 0, 0, 0, b} }
	nics := func(bs ...byte) (out []NIC) {
		for _, b := range bs {
			out = append(out, NIC{MAC: mac(b)})
		}
		return out
	}
	disks := func(serials ...string) (out []Disk) {
		for _, s := range serials {
			out = append(out, Disk{DiskID: DiskID{Serial: s, Size: 1}})
		}
		return out
	}
	bmc, otherBMC := mac(0xb0), mac(0xb1)
	junk := Board{Serial: "To be filled by O.E.M.", ChassisSerial: "Default string", SystemSerial: "None", Vendor: "ASRock", Product: "H110 Pro BTC+"}
	server := Board{Serial: "ZM16AS012345", ChassisSerial: "C7480KG44A30001", SystemSerial: "ZM16AS012345"}
	for _, c := range []struct {
		name  string
		spec  Spec
		known *Hardware
		seen  Hardware
		want  Match
		agree string
	}{
		{"never seen, nothing expected", Spec{}, nil, Hardware{Board: server, NICs: nics(1)}, Weak, "none"},
		{"first boot of an expected server", Spec{Serial: "zm16as012345", MACs: []MAC{mac(1)}}, nil,
			Hardware{Board: server, NICs: nics(1, 2)}, Confirmed, "board-serial, nic-macs"},
		{"first boot, only its MAC expected", Spec{MACs: []MAC{mac(1)}}, nil, Hardware{Board: junk, NICs: nics(1)}, Weak, "nic-macs"},
		{"rig of junk serials, as inspected", Spec{MACs: []MAC{mac(1)}}, &Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K812345")},
			Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K812345")}, Confirmed, "nic-macs, disks"},
		{"rig of junk serials without disks", Spec{}, &Hardware{Board: junk, NICs: nics(1)}, Hardware{Board: junk, NICs: nics(1)}, Weak, "nic-macs"},
		{"same MAC, other disks", Spec{}, &Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K812345")},
			Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K899999")}, Contradicted, "nic-macs"},
		{"one disk of two replaced", Spec{}, &Hardware{Board: junk, NICs: nics(1), Disks: disks("DISK-A1", "DISK-B2")},
			Hardware{Board: junk, NICs: nics(1), Disks: disks("DISK-A1", "DISK-C3")}, Weak, "nic-macs"},
		{"its disks moved into another rig", Spec{MACs: []MAC{mac(1)}}, &Hardware{NICs: nics(1), Disks: disks("S3X0NB0K812345")},
			Hardware{NICs: nics(2), Disks: disks("S3X0NB0K812345")}, Contradicted, "disks"},
		{"board swapped for another model", Spec{}, &Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K812345")},
			Hardware{Board: Board{Vendor: "ASRock", Product: "H81 Pro BTC"}, NICs: nics(1), Disks: disks("S3X0NB0K812345")}, Contradicted, "nic-macs, disks"},
		{"one serial in two fields is one fact", Spec{Serial: "ZM16AS012345"}, &Hardware{Board: Board{Serial: "ZM16AS012345", SystemSerial: "ZM16AS012345"}},
			Hardware{Board: Board{Serial: "ZM16AS012345", SystemSerial: "ZM16AS012345"}}, Weak, "board-serial"},
		{"two serials", Spec{}, &Hardware{Board: server}, Hardware{Board: server}, Confirmed, "board-serial, chassis-serial"},
		{"site.yaml names another serial", Spec{Serial: "OTHER-77881"}, nil, Hardware{Board: server, NICs: nics(1)}, Contradicted, "none"},
		{"site.yaml has the sticker's serial, firmware only the board's", Spec{Serial: "C7480KG44A30001", MACs: []MAC{mac(1)}}, nil,
			Hardware{Board: Board{Serial: "ZM16AS012345"}, NICs: nics(1)}, Weak, "nic-macs"},
		{"BMC and NICs of site.yaml", Spec{BMCMAC: &bmc, MACs: []MAC{mac(1)}}, nil, Hardware{Board: junk, NICs: nics(1), BMCMAC: &bmc}, Confirmed, "bmc-mac, nic-macs"},
		{"other BMC", Spec{BMCMAC: &bmc}, &Hardware{Board: server}, Hardware{Board: server, BMCMAC: &otherBMC}, Contradicted, "board-serial, chassis-serial"},
		{"site.yaml and inspection disagree about NICs", Spec{MACs: []MAC{mac(9)}}, &Hardware{Board: server, NICs: nics(1)},
			Hardware{Board: server, NICs: nics(1)}, Contradicted, "board-serial, chassis-serial"},
		{"only the UUID agrees", Spec{}, &Hardware{Board: Board{SystemUUID: "4c4c4544-0058-4b10-8051-b5c04f374432"}},
			Hardware{Board: Board{SystemUUID: "4c4c4544-0058-4b10-8051-b5c04f374432"}}, Weak, "none"},
		{"a stick was plugged in", Spec{}, &Hardware{Board: junk, NICs: nics(1), Disks: disks("S3X0NB0K812345")},
			Hardware{Board: junk, NICs: nics(1), Disks: append(disks("S3X0NB0K812345"), Disk{DiskID: DiskID{Serial: "USB-STICK-1"}, Removable: true})}, Confirmed, "nic-macs, disks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := Identify(c.spec, c.known, c.seen)
			if i.Match != c.want || names(i.Agree) != c.agree {
				t.Errorf("%s with %s, want %s with %s\ncontradict: %v", i.Match, names(i.Agree), c.want, c.agree, i.Contradict)
			}
			if (i.Err() == nil) != (c.want == Confirmed) {
				t.Errorf("Err() = %v", i.Err())
			}
		})
	}
}

func TestProofAtTheRack(t *testing.T) {
	mac := MAC{0x52, 0x54, 0, 0, 0, 1}
	weak := Identify(Spec{MACs: []MAC{mac}}, nil, Hardware{NICs: []NIC{{MAC: mac}}})
	if got := weak.WithProof("lamp of A3-S2 seen by bo"); got.Match != Confirmed {
		t.Errorf("MAC and walk: %s", got.Match)
	}
	if len(weak.Agree) != 1 {
		t.Error("WithProof changed its receiver")
	}
	other := Identify(Spec{MACs: []MAC{mac}}, nil, Hardware{NICs: []NIC{{MAC: MAC{2, 2, 2, 2, 2, 2}}}})
	if got := other.WithProof("a").WithProof("b"); got.Match != Contradicted {
		t.Errorf("a proof outweighed a contradiction: %s", got.Match)
	}
}

func TestDiskSame(t *testing.T) {
	full := DiskID{Serial: "S3X0NB0K812345", WWN: "0x5000c500a1b2c3d4", Path: "pci-0000:00:05.0", Size: 1000}
	with := func(f func(*DiskID)) DiskID { d := full; f(&d); return d }
	for _, c := range []struct {
		name         string
		named, found DiskID
		want         bool
	}{
		{"itself", full, full, true},
		{"other size", full, with(func(d *DiskID) { d.Size++ }), false},
		{"unknown size", DiskID{Serial: "S3X0NB0K812345"}, DiskID{Serial: "S3X0NB0K812345"}, false},
		{"negative size", with(func(d *DiskID) { d.Size = -1 }), with(func(d *DiskID) { d.Size = -1 }), false},
		{"other serial", full, with(func(d *DiskID) { d.Serial = "S3X0NB0K899999" }), false},
		{"serial no longer read", full, with(func(d *DiskID) { d.Serial = "" }), false},
		{"other WWN", full, with(func(d *DiskID) { d.WWN = "0x5000c500a1b2c3d5" }), false},
		{"moved to another slot", full, with(func(d *DiskID) { d.Path = "pci-0000:00:06.0" }), false},
		{"named by serial, found with more", DiskID{Serial: full.Serial, Size: 1000}, full, true},
		{"named by path only", DiskID{Path: full.Path, Size: 1000}, full, true},
		{"named by nothing", DiskID{Size: 1000}, full, false},
		{"named by a junk serial", DiskID{Serial: "0123456789", Size: 1000}, DiskID{Serial: "0123456789", Size: 1000}, false},
		{"junk serial and path", DiskID{Serial: "0123456789", Path: "p", Size: 1000}, DiskID{Serial: "0123456789", Path: "p", Size: 1000}, false},
		{"junk serial and WWN", with(func(d *DiskID) { d.Serial = "00000000" }), with(func(d *DiskID) { d.Serial = "00000000" }), true},
		{"junk serial, which changed", with(func(d *DiskID) { d.Serial = "00000000" }), full, false},
	} {
		if got := c.named.Same(c.found); got != c.want {
			t.Errorf("%s: Same = %t, want %t", c.name, got, c.want)
		}
	}
}
