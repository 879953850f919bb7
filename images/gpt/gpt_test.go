package gpt

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const size = 8 << 20

// memory is a disk.
type memory []byte

func (m memory) ReadAt(b []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(b, off) }

func (m memory) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > int64(len(m)) {
		return 0, errors.New("beyond the end")
	}
	return copy(m[off:], b), nil
}

func table() Table {
	return Table{Disk: MustGUID("00112233-4455-6677-8899-aabbccddeeff"), Parts: []Part{
		{Number: 1, Type: BIOSBoot, ID: GUID{1}, First: 2048, Last: 4095, Name: "BIOS boot"},
		{Number: 3, Type: Linux, ID: GUID{3}, First: 8192, Last: LastUsable(size), Name: "wurzel ü"},
	}}
}

func written(t testing.TB) memory {
	t.Helper()
	d := memory(make([]byte, size))
	copy(d, "boot code")
	if err := table().Write(d, size); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoundTrip(t *testing.T) {
	d := written(t)
	for name, damage := range map[string]func(memory){
		"whole":           func(memory) {},
		"primary cleared": func(d memory) { clear(d[:34*512]) },
		"header flipped":  func(d memory) { d[512+60] ^= 1 },
		"entries flipped": func(d memory) { d[1024+33] ^= 1 },
		"backup cleared":  func(d memory) { clear(d[size-33*512:]) },
	} {
		c := slices.Clone(d)
		damage(c)
		got, err := Read(c, size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Disk != table().Disk || !slices.Equal(got.Parts, table().Parts) {
			t.Errorf("%s: read %+v", name, got)
		}
	}
	if !bytes.HasPrefix(d, []byte("boot code")) {
		t.Error("boot code is gone")
	}
	clear(d[:34*512])
	clear(d[size-33*512:])
	if _, err := Read(d, size); !errors.Is(err, ErrNone) {
		t.Errorf("no table: %v", err)
	}
}

func TestForeignToolAgrees(t *testing.T) {
	sgdisk, err := exec.LookPath("/usr/sbin/sgdisk")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, written(t), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(sgdisk, "--verify", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err = exec.Command(sgdisk, "--print", "--info=3", path).CombinedOutput()
	for _, want := range []string{"00112233-4455-6677-8899-AABBCCDDEEFF", "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "wurzel ü", "BIOS boot"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("print lacks %s: %v\n%s", want, err, out)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, change := range map[string]func(*Table){
		"over the table":   func(t *Table) { t.Parts[0].First = 10 },
		"over the backup":  func(t *Table) { t.Parts[1].Last = LastUsable(size) + 1 },
		"overlap":          func(t *Table) { t.Parts[1].First = 4095 },
		"backwards":        func(t *Table) { t.Parts[0].Last = 2047 },
		"number twice":     func(t *Table) { t.Parts[1].Number = 1 },
		"number 0":         func(t *Table) { t.Parts[0].Number = 0 },
		"number 129":       func(t *Table) { t.Parts[0].Number = 129 },
		"endless name":     func(t *Table) { t.Parts[0].Name = strings.Repeat("x", 37) },
		"no type":          func(t *Table) { t.Parts[0].Type = GUID{} },
		"beyond all disks": func(t *Table) { t.Parts[1].Last = 1<<63 - 1 },
	} {
		p := table()
		change(&p)
		d := memory(make([]byte, size))
		if err := p.Write(d, size); err == nil {
			t.Errorf("%s: was written", name)
		}
		if bytes.Contains(d, []byte("EFI PART")) {
			t.Errorf("%s: half was written", name)
		}
	}
}

func TestGUID(t *testing.T) {
	const s = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	if ESP.String() != s || ESP[0] != 0x28 {
		t.Errorf("%s, %x", ESP, ESP[:])
	}
	for _, bad := range []string{"", s[1:], s + "0", strings.Replace(s, "c1", "xx", 1), strings.ReplaceAll(s, "-", "")} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q is a GUID", bad)
		}
	}
}

func FuzzRead(f *testing.F) {
	d := written(f)
	f.Add([]byte(d[512:1024]), []byte(d[1024:1024+512]))
	f.Fuzz(func(t *testing.T, header, table []byte) {
		d := make(memory, 1<<20)
		copy(d[512:1024], header)
		copy(d[1024:34*512], table)
		got, err := Read(d, int64(len(d)))
		if err != nil {
			if got.Parts != nil {
				t.Fatal("an error came with a table")
			}
			return
		}
		for _, p := range got.Parts {
			if p.First < 1 || p.Last < p.First || p.Last >= int64(len(d))/Sector {
				t.Fatalf("partition %+v", p)
			}
		}
		// The disk is small: what overlaps cannot be written, the rest must survive.
		c := make(memory, len(d))
		if got.Write(c, int64(len(c))) != nil {
			return
		}
		again, err := Read(c, int64(len(c)))
		if err != nil || !slices.Equal(again.Parts, got.Parts) {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}
