package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Wanted names the modules a rig or server needs to be found, inspected and
// imaged. A name that the kernel has neither as module nor built in is left
// out: kernels differ. Never use Debian's cloud kernel: it has no server NICs,
// no AHCI and no IPMI at all.
func Wanted() []string {
	return []string{
		// networks: emulated, boards, servers, USB sticks of last resort
		"virtio_net", "e1000", "vmxnet3", "ena", "8139cp", "8139too",
		"e1000e", "igb", "igc", "r8169", "realtek", "alx", "atl1c", "atl1e", "sky2", "forcedeth", "jme", "tg3", "broadcom",
		"ixgbe", "ixgbevf", "i40e", "iavf", "ice", "bnx2x", "bnxt_en", "mlx4_en", "mlx5_core", "be2net", "qede", "cxgb4", "atlantic",
		"r8152", "ax88179_178a", "asix", "cdc_ether", "cdc_ncm",
		// disks
		"virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "ata_generic", "sd_mod",
		"megaraid_sas", "mpt3sas", "mptsas", "mptspi", "hpsa", "smartpqi", "aacraid", "mvsas", "isci", "vmw_pvscsi",
		"xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci", "usb_storage", "uas",
		"virtio_pci", "vmd", "virtio_rng",
		// file systems, with what they load by name at mount time
		"loop", "overlay", // an image in memory
		"ext4", "crc32c_generic", "crc32c_intel", "vfat", "nls_cp437", "nls_ascii", "nls_utf8",
		// board management, sensors
		"ipmi_si", "ipmi_devintf", "ipmi_ssif", "coretemp", "k10temp", "drivetemp",
	}
}

// Module is one kernel module file.
type Module struct {
	Name    string   // with underscores, as the kernel says it
	Path    string   // below the tree: kernel/drivers/...
	File    string   // on this machine
	Aliases []string // device patterns
	Depends []string // names it needs first
	Soft    []string // names it wants first (softdep pre)
}

// Tree is all modules of one kernel.
type Tree struct {
	byName  map[string]*Module
	builtin map[string]string // name -> path
}

// Scan reads a module tree as it is in Debian's package, where nobody has run
// depmod yet: dependencies and aliases come from the modules themselves
// (.modinfo, see kernel/module/Kconfig and scripts/mod/modpost.c).
func Scan(root string) (*Tree, error) {
	t := &Tree{byName: map[string]*Module{}, builtin: map[string]string{}}
	b, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" {
			t.builtin[nameOf(line)] = line
		}
	}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		// Links such as build and source lead out of the tree.
		if !d.Type().IsRegular() || !strings.Contains(d.Name(), ".ko") {
			return nil
		}
		if !strings.HasSuffix(d.Name(), ".ko") {
			return fmt.Errorf("%s: compressed modules are not read; use a kernel package with plain .ko files", file)
		}
		t.byName[nameOf(rel)] = &Module{Name: nameOf(rel), Path: rel, File: file}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("module tree: %w", err)
	}
	if len(t.byName) == 0 {
		return nil, fmt.Errorf("module tree %s has no modules", root)
	}
	return t, nil
}

func nameOf(p string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(p), ".ko"), "-", "_")
}

// read fills what only the file itself tells. Reading is put off until a
// module is chosen: a kernel has 4,000 and we take 150.
func (m *Module) read() error {
	if m.Aliases != nil {
		return nil
	}
	m.Aliases = []string{}
	f, err := elf.Open(m.File)
	if err != nil {
		return fmt.Errorf("%s: %v", m.File, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return fmt.Errorf("%s: no .modinfo section", m.File)
	}
	b, err := s.Data()
	if err != nil {
		return fmt.Errorf("%s: %v", m.File, err)
	}
	for field := range bytes.SplitSeq(b, []byte{0}) {
		k, v, _ := strings.Cut(string(field), "=")
		switch k {
		case "alias":
			m.Aliases = append(m.Aliases, v)
		case "depends":
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					m.Depends = append(m.Depends, strings.ReplaceAll(d, "-", "_"))
				}
			}
		case "softdep":
			// "pre: a b post: c"
			pre := false
			for w := range strings.FieldsSeq(v) {
				switch {
				case strings.HasSuffix(w, ":"):
					pre = w == "pre:"
				case pre:
					m.Soft = append(m.Soft, strings.ReplaceAll(w, "-", "_"))
				}
			}
		}
	}
	return nil
}

// Closure returns the named modules and all they need, by path.
func (t *Tree) Closure(names []string) ([]*Module, error) {
	in := map[string]*Module{}
	var add func(name string, hard bool) error
	add = func(name string, hard bool) error {
		m := t.byName[name]
		if m == nil {
			if _, ok := t.builtin[name]; ok || !hard {
				return nil
			}
			return fmt.Errorf("module %s is needed and not in the tree", name)
		}
		if in[name] != nil {
			return nil
		}
		in[name] = m
		if err := m.read(); err != nil {
			return err
		}
		for _, d := range m.Depends {
			if err := add(d, true); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		for _, d := range m.Soft {
			// A soft dependency may be an alias such as "crc32c": those that
			// matter are in Wanted by their own name.
			if err := add(d, false); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range names {
		if err := add(n, false); err != nil {
			return nil, err
		}
	}
	out := make([]*Module, 0, len(in))
	for _, m := range in {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Order returns what must be loaded before m, nearest first, as modules.dep
// has it: the loader goes through it from the end.
func (t *Tree) Order(m *Module) []*Module {
	var post []*Module
	seen := map[*Module]bool{m: true}
	var walk func(m *Module)
	walk = func(m *Module) {
		for _, n := range slices.Concat(m.Depends, m.Soft) {
			if d := t.byName[n]; d != nil && !seen[d] {
				seen[d] = true
				walk(d)
				post = append(post, d)
			}
		}
	}
	walk(m)
	slices.Reverse(post)
	return post
}

func (t *Tree) builtinFile() []byte {
	lines := make([]string, 0, len(t.builtin))
	for _, p := range t.builtin {
		lines = append(lines, p+"\n")
	}
	slices.Sort(lines)
	return []byte(joinLines(lines))
}
