package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"smelt/images/gpt"
)

// A Signature is something that was found on a disk, named as blkid(8) does.
type Signature struct {
	Kind      string // gpt, ext4, zfs_member, LVM2_member, ...
	Partition int    // 0: on the whole disk
}

func (s Signature) String() string {
	if s.Partition == 0 {
		return s.Kind
	}
	return fmt.Sprintf("%s (partition %d)", s.Kind, s.Partition)
}

// Foreign says whether s belongs to storage that spans machines or disks, or
// is locked: data that somebody may still need, and that a plan must name
// before it is wiped.
func (s Signature) Foreign() bool {
	switch s.Kind {
	case "zfs_member", "LVM2_member", "linux_raid_member", "isw_raid_member", "ddf_raid_member", "ceph_bluestore",
		"BitLocker", "crypto_LUKS", "bcache", "VMFS_volume_member":
		return true
	}
	return false
}

// A magic is at a fixed place; a negative one counts from the end.
type magic struct {
	kind string
	at   int64
	text string
}

// Offsets are libblkid's (util-linux 2.38, libblkid/src/superblocks).
var magics = []magic{
	{"xfs", 0, "XFSB"},
	{"btrfs", 65536 + 64, "_BHRfS_M"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"vfat", 54, "FAT12   "},
	{"vfat", 54, "FAT16   "},
	{"vfat", 82, "FAT32   "},
	{"BitLocker", 3, "-FVE-FS-"},
	// BitLocker To Go keeps a FAT boot sector and this identifier.
	{"BitLocker", 424, "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"},
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"crypto_LUKS", 0x4000, "SKUL\xba\xbe"}, // the second header of LUKS2
	{"ceph_bluestore", 0, "bluestore block device"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"swap", 4096 - 10, "SWAP-SPACE"},
	{"linux_raid_member", 0, "\xfc\x4e\x2b\xa9"},    // 1.1
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9"}, // 1.2
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"VMFS_volume_member", 1 << 20, "\x0d\xd0\x01\xc0"},
	{"iso9660", 32769, "CD001"},
	{"isw_raid_member", -1024, "Intel Raid ISM Cfg Sig. "},
	{"ddf_raid_member", -512, "\xde\x11\xde\x11"},
	{"ddf_raid_member", -512, "\x11\xde\x11\xde"},
}

// Signatures looks for what a disk of size bytes held, on the disk and inside
// its partitions. It fails when the disk cannot be read: "nothing found" must
// not mean "could not look".
func Signatures(r io.ReaderAt, size int64) ([]Signature, error) {
	found, err := signaturesIn(r, size, 0)
	if err != nil {
		return nil, err
	}
	parts, err := Partitions(r, size)
	switch {
	case err == nil && len(parts) > 0 && parts[0].GPT:
		found = append([]Signature{{Kind: "gpt"}}, found...)
	case err == nil && len(parts) > 0:
		found = append([]Signature{{Kind: "dos"}}, found...)
	case err != nil && !errors.Is(err, errDamaged):
		return nil, err
	}
	// An empty or damaged table is still a table.
	if len(parts) == 0 {
		for _, at := range []int64{512, 4096, size - 512, size - 4096} {
			if ok, err := has(r, size, at, "EFI PART"); err != nil {
				return nil, err
			} else if ok {
				found = append([]Signature{{Kind: "gpt"}}, found...)
				break
			}
		}
	}
	for _, p := range parts {
		in, err := signaturesIn(io.NewSectionReader(r, p.Offset, p.Size), p.Size, p.Number)
		if err != nil {
			return nil, err
		}
		found = append(found, in...)
	}
	return found, nil
}

// signaturesIn looks at one disk or partition.
func signaturesIn(r io.ReaderAt, size int64, number int) ([]Signature, error) {
	var found []Signature
	add := func(kind string) {
		s := Signature{kind, number}
		if !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	for _, m := range magics {
		at := m.at
		if at < 0 {
			at += size
		}
		ok, err := has(r, size, at, m.text)
		if err != nil {
			return nil, err
		}
		if ok {
			add(m.kind)
		}
	}
	for _, probe := range []func(io.ReaderAt, int64) (string, error){probeExt, probeLVM, probeRAID, probeZFS} {
		kind, err := probe(r, size)
		if err != nil {
			return nil, err
		}
		if kind != "" {
			add(kind)
		}
	}
	return found, nil
}

// has says whether text is at a place. A place outside the disk holds nothing.
func has(r io.ReaderAt, size, at int64, text string) (bool, error) {
	b, err := read(r, size, at, len(text))
	return b != nil && string(b) == text, err
}

// read returns n bytes, or nil where the disk has none.
func read(r io.ReaderAt, size, at int64, n int) ([]byte, error) {
	if at < 0 || at > size-int64(n) {
		return nil, nil
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("look for signatures: read at %d: %w", at, err)
	}
	return b, nil
}

// probeExt tells ext2, ext3 and ext4 apart as mkfs made them.
func probeExt(r io.ReaderAt, size int64) (string, error) {
	b, err := read(r, size, 1024, 256)
	if b == nil || binary.LittleEndian.Uint16(b[56:]) != 0xef53 {
		return "", err
	}
	const (
		hasJournal = 0x4                          // s_feature_compat
		ext4Only   = 0x40 | 0x80 | 0x200 | 0x8000 // s_feature_incompat: extents, 64bit, flex_bg, inline_data
		journalDev = 0x8
	)
	compat, incompat := binary.LittleEndian.Uint32(b[92:]), binary.LittleEndian.Uint32(b[96:])
	switch {
	case incompat&journalDev != 0:
		return "jbd", nil
	case incompat&ext4Only != 0:
		return "ext4", nil
	case compat&hasJournal != 0:
		return "ext3", nil
	}
	return "ext2", nil
}

// probeLVM: the label is in one of the first four sectors.
func probeLVM(r io.ReaderAt, size int64) (string, error) {
	b, err := read(r, size, 0, 2048)
	if b == nil {
		return "", err
	}
	for i := 0; i < 2048; i += 512 {
		if string(b[i:i+8]) == "LABELONE" && string(b[i+24:i+32]) == "LVM2 001" {
			return "LVM2_member", nil
		}
	}
	return "", nil
}

// probeRAID: versions 1.0 and 0.90 are at the end. Version 0.90 is in the byte
// order of the machine that made it.
func probeRAID(r io.ReaderAt, size int64) (string, error) {
	v10 := (size&^511 - 8192) &^ 4095
	v090 := size&^65535 - 65536
	for _, m := range []magic{{"", v10, "\xfc\x4e\x2b\xa9"}, {"", v090, "\xfc\x4e\x2b\xa9"}, {"", v090, "\xa9\x2b\x4e\xfc"}} {
		if ok, err := has(r, size, m.at, m.text); ok || err != nil {
			return "linux_raid_member", err
		}
	}
	return "", nil
}

// probeZFS looks for an uberblock in any of the four labels, two at each end.
// A pool's disk keeps them when the partition table is gone.
func probeZFS(r io.ReaderAt, size int64) (string, error) {
	const label = 256 << 10
	end := size &^ (label - 1)
	little := []byte{0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0}
	big := []byte{0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c}
	for _, l := range []int64{0, label, end - 2*label, end - label} {
		b, err := read(r, size, l+label/2, label/2)
		if err != nil {
			return "", err
		}
		for i := 0; i+8 <= len(b); i += 1024 {
			if bytes.Equal(b[i:i+8], little) || bytes.Equal(b[i:i+8], big) {
				return "zfs_member", nil
			}
		}
	}
	return "", nil
}

// Partition is an entry of a partition table of either kind.
type Partition struct {
	Number int
	Offset int64
	Size   int64
	GPT    bool
	Type   string // GUID, or two hexadecimal digits of an MBR
	Name   string
}

var errDamaged = errors.New("partition table is damaged")

// maxPartitions bounds a chain of logical partitions that has no end.
const maxPartitions = 128

// Partitions returns the partition table of a disk, or nil when it has none.
func Partitions(r io.ReaderAt, size int64) ([]Partition, error) {
	t, err := gpt.Read(r, size)
	if err == nil {
		var ps []Partition
		for _, p := range t.Parts {
			ps = append(ps, Partition{p.Number, p.Offset(), p.Size(), true, p.Type.String(), p.Name})
		}
		return ps, nil
	}
	mbr, merr := read(r, size, 0, 512)
	if merr != nil {
		return nil, merr
	}
	if mbr == nil || mbr[510] != 0x55 || mbr[511] != 0xaa {
		if errors.Is(err, gpt.ErrNone) {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: %v", errDamaged, err)
	}
	return mbrPartitions(r, size, mbr)
}

// mbrPartitions reads a DOS table and its chain of logical partitions.
func mbrPartitions(r io.ReaderAt, size int64, mbr []byte) ([]Partition, error) {
	entry := func(b []byte, i int) (status, kind byte, first, n int64) {
		e := b[446+16*i:]
		return e[0], e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
	}
	extended := func(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }
	var ps []Partition
	add := func(number int, kind byte, first, n int64) {
		off, length := first*512, n*512
		if off <= 0 || off >= size || length <= 0 {
			return
		}
		ps = append(ps, Partition{Number: number, Offset: off, Size: min(length, size-off), Type: fmt.Sprintf("%02x", kind)})
	}
	for i := range 4 {
		status, kind, first, n := entry(mbr, i)
		if status&0x7f != 0 {
			return nil, nil // a boot sector of a filesystem, not a table
		}
		if kind == 0 || kind == 0xee {
			continue
		}
		if !extended(kind) {
			add(i+1, kind, first, n)
			continue
		}
		number := 5
		for base, at := first, first; number < maxPartitions; number++ {
			b, err := read(r, size, at*512, 512)
			if err != nil {
				return nil, err
			}
			if b == nil || b[510] != 0x55 || b[511] != 0xaa {
				break
			}
			_, k, f, n := entry(b, 0)
			if k != 0 {
				add(number, k, at+f, n)
			}
			_, k, next, _ := entry(b, 1)
			// The chain goes forward, or it is a trap.
			if !extended(k) || base+next <= at {
				break
			}
			at = base + next
		}
	}
	return ps, nil
}
