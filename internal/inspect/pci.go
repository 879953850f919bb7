package inspect

import (
	"encoding/binary"
	"path/filepath"
	"strconv"
	"strings"

	"smelt/inventory"
)

// pci lists the functions that triage or burn-in cares for: storage (01),
// network (02), display (03), accelerators (12) and the bridges (0604) whose
// links tell what a slot can do.
func (s System) pci() []inventory.PCI {
	slots := s.slots()
	var out []inventory.PCI
	for _, addr := range s.names("sys/bus/pci/devices") {
		if !pciAddress.MatchString(addr) {
			continue
		}
		dir := filepath.Join("sys/bus/pci/devices", addr)
		class := hex(s.line(dir, "class"), 6)
		if len(class) != 6 {
			continue
		}
		if !strings.Contains("01 02 03 12", class[:2]) && class[:4] != "0604" {
			continue
		}
		p := inventory.PCI{
			Address: addr,
			Class:   class,
			Vendor:  hex(s.line(dir, "vendor"), 4),
			Device:  hex(s.line(dir, "device"), 4),
			SubVen:  hex(s.line(dir, "subsystem_vendor"), 4),
			SubDev:  hex(s.line(dir, "subsystem_device"), 4),
			Driver:  s.base(dir, "driver"),
			Link:    s.pciLink(dir),
		}
		if real, err := s.link(dir); err == nil {
			if up := filepath.Base(filepath.Dir(real)); pciAddress.MatchString(up) {
				pdir := filepath.Join("sys/bus/pci/devices", up)
				// The number in the port itself is the one printed on boards;
				// the kernel's slot names are ACPI's guess where both exist.
				port := &inventory.Port{Address: up, Link: s.pciLink(pdir), Slot: s.slotOf(pdir)}
				if cut := strings.LastIndexByte(addr, '.'); cut > 0 && port.Slot == "" {
					port.Slot = slots[addr[:cut]]
				}
				p.Port = port
			}
		}
		out = append(out, p)
	}
	return out
}

// slots maps domain:bus:device to the name the slot driver gave it.
func (s System) slots() map[string]string {
	out := map[string]string{}
	for _, n := range s.names("sys/bus/pci/slots") {
		if a := s.line("sys/bus/pci/slots", n, "address"); a != "" {
			out[a] = n
		}
	}
	return out
}

func (s System) pciLink(dir string) inventory.PCILink {
	width := func(f string) int {
		// 255 and 0 are what a function without a link says.
		if n, ok := s.number(dir, f); ok && n > 0 && n <= 32 {
			return int(n)
		}
		return 0
	}
	speed := func(f string) float64 {
		// "8.0 GT/s PCIe", older kernels "8 GT/s", or "Unknown".
		v, _, _ := strings.Cut(s.line(dir, f), " ")
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || !(n > 0 && n < 1000) {
			return 0
		}
		return n
	}
	return inventory.PCILink{
		MaxWidth: width("max_link_width"), MaxSpeed: speed("max_link_speed"),
		CurrentWidth: width("current_link_width"), CurrentSpeed: speed("current_link_speed"),
	}
}

// slotOf reads the physical slot number of a port from its PCI Express
// capability (PCI Express Base Specification 7.5.3: id 0x10; slot implemented
// is bit 8 of the capabilities register, the number is bits 31:19 of the slot
// capabilities at offset 0x14). Boards that never loaded a hot-plug driver have
// it too.
func (s System) slotOf(dir string) string {
	b, err := s.read(dir, "config")
	if err != nil {
		return ""
	}
	n, ok := pciSlot(b)
	if !ok {
		return ""
	}
	return strconv.Itoa(n)
}

func pciSlot(cfg []byte) (int, bool) {
	if len(cfg) < 0x40 || cfg[0x06]&0x10 == 0 { // status: has a capability list
		return 0, false
	}
	at := int(cfg[0x34] &^ 3)
	for range 48 { // a list cannot have more in 256 bytes; it may loop
		if at < 0x40 || at+0x18 > min(len(cfg), 256) {
			return 0, false
		}
		if cfg[at] == 0x10 {
			if binary.LittleEndian.Uint16(cfg[at+2:])&(1<<8) == 0 {
				return 0, false
			}
			n := int(binary.LittleEndian.Uint32(cfg[at+0x14:]) >> 19)
			return n, n != 0
		}
		at = int(cfg[at+1] &^ 3)
	}
	return 0, false
}

// hex is "0x10de" as "10de", "" when it has not n digits.
func hex(v string, n int) string {
	v = strings.TrimPrefix(strings.ToLower(v), "0x")
	if len(v) != n || strings.Trim(v, "0123456789abcdef") != "" {
		return ""
	}
	return v
}

// isGPU tells a graphics card from the screen adapter of a BMC and from the
// graphics inside an Intel processor, which is always 00:02.0.
func isGPU(p inventory.PCI) bool {
	switch p.Vendor {
	case "1a03", "102b": // ASPEED, Matrox G200: BMCs
		return false
	case "8086":
		if p.Address == "0000:00:02.0" {
			return false
		}
	}
	switch p.Class[:4] {
	case "0300", "0302", "0380":
		return true
	case "1200": // some data-center cards say processing accelerator
		return p.Vendor == "10de" || p.Vendor == "1002"
	}
	return false
}
