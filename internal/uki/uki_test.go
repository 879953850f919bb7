package uki

import (
	"bytes"
	"debug/pe"
	"os"
	"slices"
	"strings"
	"testing"
)

func stub(tb testing.TB) []byte {
	tb.Helper()
	b, err := os.ReadFile(Stub)
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			tb.Fatal(err)
		}
		tb.Skipf("needs Debian's package systemd-boot-efi: %v", err)
	}
	return b
}

func TestBuild(t *testing.T) {
	p := Parts{
		Stub: stub(t), OSRelease: "ID=smelt\n", CmdLine: "console=ttyS0 smelt.boot=http://10.77.0.1", Release: "6.1.0-56-amd64",
		Initrd: bytes.Repeat([]byte("initrd "), 1000), Kernel: bytes.Repeat([]byte("kernel "), 2000),
	}
	b, err := Build(p)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Build(p); err != nil || !bytes.Equal(b, again) {
		t.Errorf("two builds differ: %v", err)
	}
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	opt := f.OptionalHeader.(*pe.OptionalHeader64)
	before, err := pe.NewFile(bytes.NewReader(p.Stub))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{".osrel": p.OSRelease, ".cmdline": p.CmdLine, ".uname": p.Release, ".initrd": string(p.Initrd), ".linux": string(p.Kernel)}
	for _, s := range before.Sections {
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		want[s.Name] = string(data)
	}
	mem, file := uint32(0), opt.SizeOfHeaders
	for _, s := range f.Sections {
		data, err := s.Data()
		if err != nil || string(data[:min(len(data), len(want[s.Name]))]) != want[s.Name] || len(want[s.Name]) == 0 {
			t.Errorf("section %s: %d bytes, %v", s.Name, len(data), err)
		}
		delete(want, s.Name)
		if s.Size > 0 && s.Offset != file {
			t.Errorf("section %s is at %#x of the file, the one before ends at %#x", s.Name, s.Offset, file)
		}
		if s.VirtualAddress < mem {
			t.Errorf("section %s is at %#x in memory, the one before ends at %#x", s.Name, s.VirtualAddress, mem)
		}
		mem, file = s.VirtualAddress+s.VirtualSize, s.Offset+s.Size
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	if int(file) != len(b) || opt.SizeOfImage < mem || f.NumberOfSymbols != 0 {
		t.Errorf("%d bytes of %d, image of %#x of %#x, %d symbols", file, len(b), mem, opt.SizeOfImage, f.NumberOfSymbols)
	}

	for name, change := range map[string]func(*Parts){
		"is no EFI program":              func(p *Parts) { p.Stub = []byte("ELF") },
		"has no PE header":               func(p *Parts) { p.Stub = slices.Clone(p.Stub[:400]); copy(p.Stub[128:], "none") },
		".initrd is empty":               func(p *Parts) { p.Initrd = nil },
		"ends within a section":          func(p *Parts) { p.Stub = p.Stub[:5000] },
		"has something where the header": func(p *Parts) { p.Stub = b }, // its own output, whose room is used up
	} {
		q := p
		change(&q)
		if _, err := Build(q); err == nil || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "has no room") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzBuild(f *testing.F) {
	s := stub(f)
	f.Add(s[:1024])
	f.Add(s)
	f.Fuzz(func(t *testing.T, stub []byte) {
		b, err := Build(Parts{Stub: stub, OSRelease: "a", CmdLine: "b", Release: "c", Initrd: []byte("d"), Kernel: []byte("e")})
		if err == nil && len(b) > len(stub)+6<<16 {
			t.Errorf("%d bytes out of %d", len(b), len(stub))
		}
	})
}
