package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smelt/images/gpt"
)

// tool skips where a foreign tool is missing.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, d := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if p := filepath.Join(d, name); exists(p) {
			return p
		}
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

func kinds(t testing.TB, r io.ReaderAt, size int64) []string {
	t.Helper()
	found, err := Signatures(r, size)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range found {
		names = append(names, s.String())
	}
	return names
}

// What mkfs makes, and blkid finds, we find.
func TestSignaturesOfRealTools(t *testing.T) {
	blkid := tool(t, "blkid")
	const size = 64 * mib
	for _, tt := range []struct {
		kind string
		argv []string
	}{
		{"ext4", []string{"mke2fs", "-q", "-F", "-t", "ext4"}},
		{"ext3", []string{"mke2fs", "-q", "-F", "-t", "ext3"}},
		{"ext2", []string{"mke2fs", "-q", "-F", "-t", "ext2"}},
		{"vfat", []string{"mkfs.fat", "-F", "32"}},
		{"vfat", []string{"mkfs.fat", "-F", "16"}},
		{"swap", []string{"mkswap", "-q"}},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tool(t, tt.argv[0]), append(tt.argv[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tt.argv, err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := kinds(t, f, size); !slices.Equal(got, []string{tt.kind}) {
			t.Errorf("%s: found %q", tt.argv, got)
		}
		out, err := exec.Command(blkid, "-p", "-o", "value", "-s", "TYPE", path).Output()
		if err != nil || strings.TrimSpace(string(out)) != tt.kind {
			t.Errorf("blkid finds %s, %v", out, err)
		}
	}
}

func TestSignaturesOfMagic(t *testing.T) {
	const size = 8 * mib
	at := func(off int64, text string) []byte {
		b := make([]byte, size)
		if off < 0 {
			off += size
		}
		copy(b[off:], text)
		return b
	}
	for _, tt := range []struct {
		kind string
		b    []byte
	}{
		{"xfs", at(0, "XFSB")},
		{"btrfs", at(0x10040, "_BHRfS_M")},
		{"ntfs", at(3, "NTFS    ")},
		{"BitLocker", at(3, "-FVE-FS-")},
		{"crypto_LUKS", at(0, "LUKS\xba\xbe")},
		{"ceph_bluestore", at(0, "bluestore block device\n")},
		{"linux_raid_member", at(0, "\xfc\x4e\x2b\xa9")},
		{"linux_raid_member", at(4096, "\xfc\x4e\x2b\xa9")},
		{"linux_raid_member", at(size-8192, "\xfc\x4e\x2b\xa9")},
		{"linux_raid_member", at(size-65536, "\xa9\x2b\x4e\xfc")},
		{"LVM2_member", at(512, "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00aaaabbbbLVM2 001")},
		{"zfs_member", at(128<<10+3*1024, "\x0c\xb1\xba\x00\x00\x00\x00\x00")},
		{"zfs_member", at(size-128<<10, "\x00\x00\x00\x00\x00\xba\xb1\x0c")},
		{"bcache", at(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")},
		{"isw_raid_member", at(-1024, "Intel Raid ISM Cfg Sig. 1.3")},
		{"VMFS_volume_member", at(1<<20, "\x0d\xd0\x01\xc0")},
		{"gpt", at(512, "EFI PART")},
		{"gpt", at(-512, "EFI PART")},
		{"gpt", at(4096, "EFI PART")},
	} {
		if got := kinds(t, bytes.NewReader(tt.b), size); !slices.Equal(got, []string{tt.kind}) {
			t.Errorf("%s: found %q", tt.kind, got)
		}
	}
	if got := kinds(t, bytes.NewReader(make([]byte, size)), size); got != nil {
		t.Errorf("an empty disk holds %q", got)
	}
	for _, k := range []string{"zfs_member", "LVM2_member", "ceph_bluestore", "linux_raid_member", "BitLocker", "crypto_LUKS"} {
		if !(Signature{Kind: k}).Foreign() {
			t.Errorf("%s is nobody's", k)
		}
	}
	if (Signature{Kind: "ext4"}).Foreign() {
		t.Error("ext4 is foreign")
	}
}

func TestSignaturesInPartitions(t *testing.T) {
	const size = 64 * mib
	d := memory(make([]byte, size))
	table := gpt.Table{Disk: gpt.GUID{1}, Parts: []gpt.Part{
		{Number: 1, Type: gpt.ESP, ID: gpt.GUID{2}, First: 2048, Last: 4095, Name: "EFI"},
		{Number: 9, Type: gpt.Linux, ID: gpt.GUID{3}, First: 8192, Last: 65535},
	}}
	if err := table.Write(d, size); err != nil {
		t.Fatal(err)
	}
	copy(d[8192*512+128<<10:], "\x0c\xb1\xba\x00\x00\x00\x00\x00")
	if got, want := kinds(t, d, size), []string{"gpt", "zfs_member (partition 9)"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}

	// The same in a logical partition of a DOS table.
	d = memory(make([]byte, size))
	mbr := func(at int64, i int, kind byte, first, n uint32) {
		e := d[at+446+int64(16*i):]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], first)
		binary.LittleEndian.PutUint32(e[12:], n)
		d[at+510], d[at+511] = 0x55, 0xaa
	}
	mbr(0, 0, 0x83, 2048, 2048)
	mbr(0, 1, 0x0f, 8192, 65536)
	mbr(8192*512, 0, 0x83, 2048, 2048)
	mbr(8192*512, 1, 0x05, 8192, 8192)
	mbr(16384*512, 0, 0xfd, 2048, 4096)
	copy(d[(16384+2048)*512+4096:], "\xfc\x4e\x2b\xa9")
	if got, want := kinds(t, d, size), []string{"dos", "linux_raid_member (partition 6)"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	// A chain that bites its tail ends.
	mbr(16384*512, 1, 0x05, 0, 1)
	if ps, err := Partitions(d, size); err != nil || len(ps) != 3 {
		t.Errorf("%d partitions, %v", len(ps), err)
	}
}

// A disk that cannot be read is not an empty disk.
func TestSignaturesReadError(t *testing.T) {
	if _, err := Signatures(broken{}, 64*mib); err == nil {
		t.Error("a broken disk holds nothing")
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("medium error") }

// memory is a disk.
type memory []byte

func (m memory) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(b, off)
}

func (m memory) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > int64(len(m)) {
		return 0, errors.New("beyond the end")
	}
	return copy(m[off:], b), nil
}

// sparse is a disk of a few pages, so that the fuzzer reaches far offsets.
type sparse struct {
	size int64
	head []byte
	tail []byte
}

func (s sparse) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < 0 || off+int64(len(b)) > s.size {
		return 0, io.EOF
	}
	if off < int64(len(s.head)) {
		copy(b, s.head[off:])
	}
	if from := s.size - int64(len(s.tail)); off+int64(len(b)) > from {
		if off >= from {
			copy(b, s.tail[off-from:])
		} else {
			copy(b[from-off:], s.tail)
		}
	}
	return len(b), nil
}

func FuzzSignatures(f *testing.F) {
	d := memory(make([]byte, 4*mib))
	table := gpt.Table{Parts: []gpt.Part{{Number: 1, Type: gpt.Linux, First: 2048, Last: 4095}}}
	if err := table.Write(d, int64(len(d))); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(d[:34*512]), []byte(d[len(d)-33*512:]), int64(len(d)))
	mbr := make([]byte, 1024)
	mbr[450], mbr[454], mbr[458], mbr[510], mbr[511] = 5, 1, 9, 0x55, 0xaa
	f.Add(mbr, []byte{}, int64(1<<40))
	f.Fuzz(func(t *testing.T, head, tail []byte, size int64) {
		if size < 0 || size > 1<<50 {
			return
		}
		r := sparse{size, head, tail}
		if _, err := Signatures(r, size); err != nil && !strings.Contains(err.Error(), "damaged") {
			if errors.Is(err, io.EOF) {
				t.Fatalf("read beyond the end: %v", err)
			}
		}
		ps, _ := Partitions(r, size)
		if len(ps) > 1024 {
			t.Fatalf("%d partitions", len(ps))
		}
		for _, p := range ps {
			if p.Offset <= 0 || p.Size <= 0 || p.Offset+p.Size > size+511 {
				t.Fatalf("partition %+v of a disk of %d", p, size)
			}
		}
	})
}
