package build

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"strings"
)

// A kernelModule is what a module says of itself in its section .modinfo
// (include/linux/module.h).
type kernelModule struct {
	Name     string // as the kernel knows it: nvidia_uvm
	Version  string // of the driver: 535.309.01
	Vermagic string // of the kernel it was made for: 6.1.0-56-amd64 SMP preempt mod_unload modversions
	Signed   bool   // a signature is appended to it
}

// Release is the kernel that the module was made for.
func (m kernelModule) Release() string {
	r, _, _ := strings.Cut(m.Vermagic, " ")
	return r
}

// signatureMark ends a signed module (kernel/module_signature.c).
const signatureMark = "~Module signature appended~\n"

// readModule reads a module's file, which is not compressed.
func readModule(path string) (kernelModule, error) {
	f, err := os.Open(path)
	if err != nil {
		return kernelModule{}, err
	}
	defer f.Close()
	m, err := parseModule(f)
	if err != nil {
		return kernelModule{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// maxModinfo is far more than any module says of itself.
const maxModinfo = 1 << 20

func parseModule(r io.ReaderAt) (kernelModule, error) {
	e, err := elf.NewFile(r)
	if err != nil {
		return kernelModule{}, fmt.Errorf("not a kernel module: %w", err)
	}
	s := e.Section(".modinfo")
	if e.Type != elf.ET_REL || s == nil || s.Type != elf.SHT_PROGBITS || s.Size > maxModinfo {
		return kernelModule{}, fmt.Errorf("not a kernel module: no .modinfo")
	}
	b, err := s.Data()
	if err != nil {
		return kernelModule{}, fmt.Errorf("not a kernel module: %w", err)
	}
	var m kernelModule
	for line := range bytes.SplitSeq(b, []byte{0}) {
		key, value, _ := strings.Cut(string(line), "=")
		switch key {
		case "name":
			m.Name = value
		case "version":
			m.Version = value
		case "vermagic":
			m.Vermagic = value
		}
	}
	if m.Name == "" || m.Vermagic == "" {
		return kernelModule{}, fmt.Errorf("not a kernel module: it names neither itself nor its kernel")
	}
	m.Signed = signed(r)
	return m, nil
}

// signed looks for the mark behind everything else of the file.
func signed(r io.ReaderAt) bool {
	size := int64(0)
	switch f := r.(type) {
	case interface{ Stat() (os.FileInfo, error) }:
		if i, err := f.Stat(); err == nil {
			size = i.Size()
		}
	case interface{ Size() int64 }:
		size = f.Size()
	}
	b := make([]byte, len(signatureMark))
	if size < int64(len(b)) {
		return false
	}
	_, err := r.ReadAt(b, size-int64(len(b)))
	return err == nil && string(b) == signatureMark
}
