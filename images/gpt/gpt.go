// Package gpt reads and writes GUID partition tables (UEFI 2.10, section 5.3)
// of disks with 512-byte sectors.
package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

// Sector is the only sector size images are made for.
const Sector = 512

const (
	signature  = "EFI PART"
	headerLen  = 92
	entryLen   = 128
	entries    = 128
	tableLen   = entryLen * entries
	tableSects = tableLen / Sector
)

// First is the first sector a partition may begin at.
const First = 2 + tableSects

// GUID is in disk order: the first three fields are little-endian.
type GUID [16]byte

// Partition types.
var (
	ESP      = MustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	BIOSBoot = MustGUID("21686148-6449-6e6f-744e-656564454649")
	Linux    = MustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
)

// ParseGUID reads the usual form.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 || len(s) != 36 {
		return g, fmt.Errorf("GUID %q is malformed", s)
	}
	for i, j := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		g[i] = b[j]
	}
	return g, nil
}

// MustGUID is for constants.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic("gpt: " + err.Error())
	}
	return g
}

func (g GUID) String() string {
	var b [16]byte
	for i, j := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		b[j] = g[i]
	}
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Table is a partition table.
type Table struct {
	Disk  GUID
	Parts []Part
}

// Part is one partition. First and Last are sectors, Last included.
type Part struct {
	Number int // 1 is the first entry
	Type   GUID
	ID     GUID
	First  int64
	Last   int64
	Attrs  uint64
	Name   string
}

// Offset and Size are in bytes.
func (p Part) Offset() int64 { return p.First * Sector }

// Size is the length in bytes.
func (p Part) Size() int64 { return (p.Last - p.First + 1) * Sector }

// ErrNone says that there is no table: neither copy has its signature.
var ErrNone = errors.New("no GUID partition table")

// Read returns the table of a disk of size bytes: the primary, or the backup
// in its last sector when the primary is damaged.
func Read(r io.ReaderAt, size int64) (Table, error) {
	t, err := readAt(r, size, 1)
	if err == nil {
		return t, nil
	}
	if b, err2 := readAt(r, size, size/Sector-1); err2 == nil {
		return b, nil
	}
	return Table{}, err
}

func readAt(r io.ReaderAt, size, lba int64) (Table, error) {
	sectors := size / Sector
	if sectors < 2*First {
		return Table{}, ErrNone
	}
	h := make([]byte, Sector)
	if _, err := r.ReadAt(h, lba*Sector); err != nil {
		return Table{}, fmt.Errorf("partition table: %w", err)
	}
	if string(h[:8]) != signature {
		return Table{}, ErrNone
	}
	le := binary.LittleEndian
	bad := func(what string) (Table, error) {
		return Table{}, fmt.Errorf("partition table at sector %d: %s", lba, what)
	}
	n := le.Uint32(h[12:])
	if n < headerLen || n > Sector {
		return bad(fmt.Sprintf("header of %d bytes", n))
	}
	sum := le.Uint32(h[16:])
	c := bytes.Clone(h[:n])
	clear(c[16:20])
	if crc32.ChecksumIEEE(c) != sum {
		return bad("header checksum is wrong")
	}
	if int64(le.Uint64(h[24:])) != lba {
		return bad("header is for another sector")
	}
	at, count, each := int64(le.Uint64(h[72:])), le.Uint32(h[80:]), le.Uint32(h[84:])
	// 128 entries of 128 bytes is what everybody writes; more is allowed, a
	// hostile disk's four thousand million is not.
	if count == 0 || count > 1024 || each < entryLen || each > 4096 || each%entryLen != 0 {
		return bad(fmt.Sprintf("%d entries of %d bytes", count, each))
	}
	b := make([]byte, int(count)*int(each))
	if at < 2 || at > sectors || int64(len(b)) > size-at*Sector {
		return bad("entries lie outside the disk")
	}
	if _, err := r.ReadAt(b, at*Sector); err != nil {
		return Table{}, fmt.Errorf("partition table: %w", err)
	}
	if crc32.ChecksumIEEE(b) != le.Uint32(h[88:]) {
		return bad("checksum of the entries is wrong")
	}
	t := Table{Disk: GUID(h[56:72])}
	for i := range int(count) {
		e := b[i*int(each):]
		p := Part{
			Number: i + 1, Type: GUID(e[:16]), ID: GUID(e[16:32]),
			First: int64(le.Uint64(e[32:])), Last: int64(le.Uint64(e[40:])), Attrs: le.Uint64(e[48:]),
			Name: decodeName(e[56:128]),
		}
		if p.Type == (GUID{}) {
			continue
		}
		if p.First < 1 || p.Last < p.First || p.Last >= sectors {
			return bad(fmt.Sprintf("partition %d is sectors %d to %d of %d", p.Number, p.First, p.Last, sectors))
		}
		t.Parts = append(t.Parts, p)
	}
	return t, nil
}

// check refuses a table that Write cannot express.
func (t Table) check(size int64) error {
	last := size/Sector - 1 - 1 - tableSects
	seen := map[int]bool{}
	for i, p := range t.Parts {
		if p.Number < 1 || p.Number > entries || seen[p.Number] {
			return fmt.Errorf("partition number %d", p.Number)
		}
		seen[p.Number] = true
		if p.First < First || p.Last < p.First || p.Last > last {
			return fmt.Errorf("partition %d: sectors %d to %d do not fit in %d to %d", p.Number, p.First, p.Last, First, last)
		}
		for _, q := range t.Parts[:i] {
			if p.First <= q.Last && q.First <= p.Last {
				return fmt.Errorf("partitions %d and %d overlap", q.Number, p.Number)
			}
		}
		if p.Type == (GUID{}) || len(utf16.Encode([]rune(p.Name))) > 36 {
			return fmt.Errorf("partition %d: type or name %q", p.Number, p.Name)
		}
	}
	return nil
}

// LastUsable returns the last sector a partition may end at.
func LastUsable(size int64) int64 { return size/Sector - 1 - 1 - tableSects }

// Write writes both copies and the protective MBR, whose boot code stays. The
// backup is first: a power cut in between leaves one good copy.
func (t Table) Write(d interface {
	io.ReaderAt
	io.WriterAt
}, size int64) error {
	if err := t.check(size); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	sectors := size / Sector
	le := binary.LittleEndian
	table := make([]byte, tableLen)
	for _, p := range t.Parts {
		e := table[(p.Number-1)*entryLen:]
		copy(e, p.Type[:])
		copy(e[16:], p.ID[:])
		le.PutUint64(e[32:], uint64(p.First))
		le.PutUint64(e[40:], uint64(p.Last))
		le.PutUint64(e[48:], p.Attrs)
		for i, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*i:], u)
		}
	}
	header := func(self, other, at int64) []byte {
		h := make([]byte, Sector)
		copy(h, signature)
		le.PutUint32(h[8:], 0x00010000)
		le.PutUint32(h[12:], headerLen)
		le.PutUint64(h[24:], uint64(self))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[40:], First)
		le.PutUint64(h[48:], uint64(LastUsable(size)))
		copy(h[56:], t.Disk[:])
		le.PutUint64(h[72:], uint64(at))
		le.PutUint32(h[80:], entries)
		le.PutUint32(h[84:], entryLen)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerLen]))
		return h
	}
	mbr := make([]byte, Sector)
	if _, err := d.ReadAt(mbr, 0); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	protect(mbr, sectors)
	// Whole aligned pieces: the device may be open for direct I/O.
	back := append(bytes.Clone(table), header(sectors-1, 1, sectors-1-tableSects)...)
	front := append(append(mbr, header(1, sectors-1, 2)...), table...)
	for _, w := range []struct {
		b  []byte
		at int64
	}{{back, sectors - 1 - tableSects}, {front, 0}} {
		if _, err := d.WriteAt(w.b, w.at*Sector); err != nil {
			return fmt.Errorf("write partition table: %w", err)
		}
	}
	return nil
}

// protect fills in the one MBR entry of UEFI 2.10 table 5.4. The active flag
// stays off as the specification wants; SeaBIOS boots without it.
func protect(mbr []byte, sectors int64) {
	clear(mbr[440:])
	e := mbr[446:]
	e[2] = 0x02 // CHS 0/0/2
	e[4] = 0xee
	e[5], e[6], e[7] = 0xff, 0xff, 0xff
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa
}

func decodeName(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		v := binary.LittleEndian.Uint16(b[i:])
		if v == 0 {
			break
		}
		u = append(u, v)
	}
	return string(utf16.Decode(u))
}
