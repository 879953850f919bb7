// Package inspect finds out what a machine is, and saves what ran on it, by
// reading: /sys, /proc and, for signatures and salvage, the disks. It writes
// nothing and runs no program.
//
// Every read starts at System.Root, so that a captured tree stands for a
// machine in tests.
package inspect

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"smelt/inventory"
)

// System is the machine to look at.
type System struct {
	Root string // "" or "/" is this machine
	// Signatures names what is on a disk and its partitions; nil finds nothing.
	Signatures func(r io.ReaderAt, size int64) ([]string, error)
	// Erase asks a drive for the best level of wipe that it offers itself, ""
	// if that cannot be known; nil asks none.
	Erase func(dev *os.File) string
	// PermanentMAC asks the driver of a card for its burnt-in address; nil
	// takes the current one.
	PermanentMAC func(card string) (inventory.MAC, error)
}

// maxFile bounds what is read of one file of /sys or /proc: firmware and
// devices decide what stands there.
const maxFile = 1 << 20

func (s System) path(elem ...string) string {
	return filepath.Join(append([]string{"/", s.Root}, elem...)...)
}

func (s System) read(elem ...string) ([]byte, error) {
	f, err := os.Open(s.path(elem...))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// line is the first line of a small file, "" when it cannot be read.
func (s System) line(elem ...string) string {
	b, err := s.read(elem...)
	if err != nil {
		return ""
	}
	l, _, _ := strings.Cut(string(b), "\n")
	return clean(l)
}

func (s System) number(elem ...string) (int64, bool) {
	n, err := strconv.ParseInt(s.line(elem...), 0, 64)
	return n, err == nil
}

func (s System) exists(elem ...string) bool {
	_, err := os.Stat(s.path(elem...))
	return err == nil
}

// names lists a folder, sorted; nil when there is none.
func (s System) names(elem ...string) []string {
	es, err := os.ReadDir(s.path(elem...))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return out
}

// link is where a symbolic link ends, below Root and without Root.
func (s System) link(elem ...string) (string, error) {
	p, err := filepath.EvalSymlinks(s.path(elem...))
	if err != nil {
		return "", err
	}
	root, err := filepath.EvalSymlinks(s.path())
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", errors.New("link leads out of the root")
	}
	return "/" + rel, nil
}

// base is the last element of where a link ends, "" when there is no link.
func (s System) base(elem ...string) string {
	p, err := s.link(elem...)
	if err != nil {
		return ""
	}
	return filepath.Base(p)
}

// clean makes a string that firmware wrote fit for people and JSON.
func clean(v string) string {
	v = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(v, " "))
	v = strings.TrimSpace(v)
	if len(v) > 256 {
		v = v[:256]
	}
	return strings.ToValidUTF8(v, "")
}

// Hardware looks at everything. It does not fail: what could not be read is
// named in Missing.
func (s System) Hardware() inventory.Hardware {
	var h inventory.Hardware
	miss := func(what string) { h.Missing = append(h.Missing, what) }

	h.Firmware = inventory.Firmware{UEFI: s.exists("sys/firmware/efi"), Arch: runtime.GOARCH}
	if t, err := s.smbios(); err != nil {
		miss("smbios: " + err.Error())
	} else {
		h.Board, h.Memory.DIMMs, h.HasBMC = t.board, t.dimms, t.bmc
	}
	h.HasBMC = h.HasBMC || s.exists("dev/ipmi0")

	h.CPU = s.cpu()
	if h.CPU.Threads == 0 {
		miss("cpu")
	}
	if h.CPU.Model == "" {
		miss("cpu model")
	}
	if h.Memory.Total = s.memTotal(); h.Memory.Total == 0 {
		miss("memory")
	}
	h.PCI = s.pci()
	if len(h.PCI) == 0 {
		miss("pci")
	}
	for _, p := range h.PCI {
		if !isGPU(p) {
			continue
		}
		g := inventory.GPU{PCI: p}
		if p.Port != nil {
			g.Slot = p.Port.Slot
		}
		if g.LinkWidth() == 0 {
			miss("link of gpu " + p.Address)
		}
		h.GPUs = append(h.GPUs, g)
	}
	h.Disks = s.Disks()
	for _, d := range h.Disks {
		if slices.Contains(d.Signatures, Unreadable) {
			miss("contents of disk " + d.Name)
		}
		if d.Serial == "" && d.WWN == "" {
			miss("serial of disk " + d.Name)
		}
	}
	h.NICs = s.nics()
	return h
}

var cpuFlags = []string{"avx", "avx2", "avx512f", "aes"}

// cpu reads /proc/cpuinfo.
func (s System) cpu() inventory.CPU {
	b, err := s.read("proc/cpuinfo")
	if err != nil {
		return inventory.CPU{}
	}
	return parseCPU(string(b))
}

func parseCPU(text string) inventory.CPU {
	var c inventory.CPU
	cores := map[string]bool{}
	var socket, core string
	end := func() {
		if core != "" {
			cores[socket+"/"+core] = true
		}
		socket, core = "", ""
	}
	for l := range strings.Lines(text) {
		k, v, ok := strings.Cut(l, ":")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if !ok {
			if strings.TrimSpace(l) == "" {
				end()
			}
			continue
		}
		switch k {
		case "processor":
			c.Threads++
		case "model name":
			if c.Model == "" {
				c.Model = clean(strings.Join(strings.Fields(v), " "))
			}
		case "physical id":
			socket = v
		case "core id":
			core = v
		case "flags", "Features":
			if c.Flags == nil {
				have := strings.Fields(v)
				for _, f := range cpuFlags {
					if slices.Contains(have, f) {
						c.Flags = append(c.Flags, f)
					}
				}
			}
		}
	}
	end()
	c.Cores = len(cores)
	if c.Cores == 0 {
		c.Cores = c.Threads
	}
	return c
}

func (s System) memTotal() int64 {
	b, err := s.read("proc/meminfo")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil && n > 0 && n < 1<<50 {
				return n << 10
			}
		}
	}
	return 0
}

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// nics lists the cards that are hardware: those with a device behind them.
func (s System) nics() []inventory.NIC {
	var out []inventory.NIC
	for _, name := range s.names("sys/class/net") {
		dev, err := s.link("sys/class/net", name, "device")
		if err != nil || s.line("sys/class/net", name, "type") != "1" {
			continue
		}
		n := inventory.NIC{Name: name, Driver: s.base("sys/class/net", name, "device/driver"), PCI: lastPCI(dev)}
		if strings.HasPrefix(n.Driver, "virtio") && n.PCI != "" {
			n.Driver = "virtio_net"
		}
		mac, err := inventory.ParseMAC(s.line("sys/class/net", name, "address"))
		if s.PermanentMAC != nil {
			if p, e := s.PermanentMAC(name); e == nil {
				mac, err = p, nil
			}
		}
		if err != nil {
			continue
		}
		n.MAC = mac
		n.Link = s.line("sys/class/net", name, "carrier") == "1"
		if v, ok := s.number("sys/class/net", name, "speed"); ok && v > 0 && v < 10_000_000 {
			n.Speed = int(v)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b inventory.NIC) int { return strings.Compare(a.MAC.String(), b.MAC.String()) })
	return out
}

// lastPCI is the PCI function nearest to a device, "" when there is none.
func lastPCI(devpath string) string {
	found := ""
	for e := range strings.SplitSeq(devpath, "/") {
		if pciAddress.MatchString(e) {
			found = e
		}
	}
	return found
}
