// Package uki makes a unified kernel image: kernel, initrd and kernel arguments
// as one EFI program, which firmware starts, and verifies, as a whole.
//
// The program is systemd's stub with one more PE section for each part
// (uapi-group.org/specifications/specs/unified_kernel_image). It is not signed
// yet.
package uki

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Stub is where Debian's package systemd-boot-efi has the stub for x86-64.
const Stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// Parts are what goes in.
type Parts struct {
	Stub      []byte // a PE program with room for more section headers
	OSRelease string // for people and boot menus, in the form of os-release(5)
	CmdLine   string
	Release   string // uname -r of the kernel
	Initrd    []byte
	Kernel    []byte
}

// The PE headers ("PE Format" in Microsoft's documentation): offsets from the
// start of the part that their name begins with.
const (
	dosNewHeader        = 0x3c
	coffSize            = 24 // with the signature "PE\0\0"
	coffSections        = 6
	coffSymbols         = 12 // PointerToSymbolTable
	coffSymbolCount     = 16
	coffOptionalSize    = 20
	optionalInitialized = 8  // SizeOfInitializedData
	optionalSectAlign   = 32 // SectionAlignment
	optionalFileAlign   = 36 // FileAlignment
	optionalImage       = 56 // SizeOfImage
	optionalHeaders     = 60 // SizeOfHeaders
	optionalMin         = 112
	sectionSize         = 40

	sectionFlags = 0x40000040 // initialized data, readable
	page         = 4096
)

// Build assembles the program.
func Build(p Parts) ([]byte, error) {
	le := binary.LittleEndian
	out := slices.Clone(p.Stub)
	if len(out) < 64 || out[0] != 'M' || out[1] != 'Z' {
		return nil, errors.New("the EFI stub is no EFI program")
	}
	coff := int(le.Uint32(out[dosNewHeader:]))
	if coff > len(out)-coffSize-optionalMin || string(out[coff:coff+4]) != "PE\x00\x00" {
		return nil, errors.New("the EFI stub has no PE header")
	}
	opt := coff + coffSize
	count := int(le.Uint16(out[coff+coffSections:]))
	table := opt + int(le.Uint16(out[coff+coffOptionalSize:]))
	headers := int(le.Uint32(out[opt+optionalHeaders:]))
	align := int(le.Uint32(out[opt+optionalFileAlign:]))
	sectAlign := int(le.Uint32(out[opt+optionalSectAlign:]))
	if headers > len(out) || table+count*sectionSize > headers || align < 1 || align > 1<<16 || sectAlign < 1 || sectAlign > 1<<16 {
		return nil, errors.New("the EFI stub has headers that contradict each other")
	}

	end, file := 0, headers // of the sections in memory, and in the file
	for i := range count {
		h := out[table+i*sectionSize:]
		end = max(end, int(le.Uint32(h[12:]))+int(le.Uint32(h[8:])))
		if size := int(le.Uint32(h[16:])); size > 0 {
			file = max(file, int(le.Uint32(h[20:]))+size)
		}
	}
	if file > len(out) || int64(end) > 1<<31-1 {
		return nil, errors.New("the EFI stub ends within a section")
	}
	// Symbols follow the sections. A signature counts bytes, and does not know
	// where they are: nothing may lie between two sections.
	out = pad(out[:file], align)
	le.PutUint32(out[coff+coffSymbols:], 0)
	le.PutUint32(out[coff+coffSymbolCount:], 0)
	initialized := int(le.Uint32(out[opt+optionalInitialized:]))
	for _, s := range []struct {
		name string
		data []byte
	}{
		{".osrel", []byte(p.OSRelease)},
		{".cmdline", []byte(p.CmdLine)},
		{".uname", []byte(p.Release)},
		{".initrd", p.Initrd},
		{".linux", p.Kernel}, // last: a kernel may use memory behind its own
	} {
		if len(s.data) == 0 {
			return nil, fmt.Errorf("unified kernel image: %s is empty", s.name)
		}
		h := table + count*sectionSize
		if h+sectionSize > headers {
			return nil, fmt.Errorf("the EFI stub has no room for the header of section %s", s.name)
		}
		for _, b := range out[h : h+sectionSize] {
			if b != 0 {
				return nil, fmt.Errorf("the EFI stub has something where the header of section %s would stand", s.name)
			}
		}
		at := len(out)
		out = pad(append(out, s.data...), align)
		end = up(end, page)
		copy(out[h:h+8], s.name)
		le.PutUint32(out[h+8:], uint32(len(s.data)))
		le.PutUint32(out[h+12:], uint32(end))
		le.PutUint32(out[h+16:], uint32(len(out)-at))
		le.PutUint32(out[h+20:], uint32(at))
		le.PutUint32(out[h+36:], sectionFlags)
		end += len(s.data)
		initialized += len(out) - at
		count++
	}
	if end > 1<<31-1 {
		return nil, fmt.Errorf("unified kernel image: %d bytes are more than an EFI program holds", end)
	}
	le.PutUint16(out[coff+coffSections:], uint16(count))
	le.PutUint32(out[opt+optionalInitialized:], uint32(initialized))
	le.PutUint32(out[opt+optionalImage:], uint32(up(end, sectAlign)))
	return out, nil
}

func up(n, align int) int { return (n + align - 1) / align * align }

func pad(b []byte, align int) []byte { return append(b, make([]byte, up(len(b), align)-len(b))...) }
