package disk

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Map says which chunks of an image are on the disk, verified.
type Map struct {
	n    int
	bits []byte
}

// NewMap returns a map of n chunks, none of them there.
func NewMap(n int) Map { return Map{n, make([]byte, (n+7)/8)} }

// Len is the number of chunks.
func (m Map) Len() int { return m.n }

// Has says whether chunk i is there.
func (m Map) Has(i int) bool { return i >= 0 && i < m.n && m.bits[i/8]&(1<<(i%8)) != 0 }

// Set marks chunk i.
func (m Map) Set(i int) { m.bits[i/8] |= 1 << (i % 8) }

// Count is the number of chunks there.
func (m Map) Count() int {
	n := 0
	for _, b := range m.bits {
		n += bits.OnesCount8(b)
	}
	return n
}

// Clone returns a copy.
func (m Map) Clone() Map { return Map{m.n, append([]byte(nil), m.bits...)} }

// mapVersion begins the stored form: version, number of chunks, bits.
const mapVersion = 1

// maxChunks bounds what UnmarshalBinary accepts: 64 TiB.
const maxChunks = 1 << 24

// MarshalBinary writes the stored form.
func (m Map) MarshalBinary() ([]byte, error) {
	b := append([]byte{mapVersion}, binary.BigEndian.AppendUint32(nil, uint32(m.n))...)
	return append(b, m.bits...), nil
}

// UnmarshalBinary reads the stored form.
func (m *Map) UnmarshalBinary(b []byte) error {
	if len(b) < 5 || b[0] != mapVersion {
		return errors.New("chunk map: unknown form")
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n > maxChunks || len(b)-5 != (int(n)+7)/8 {
		return errors.New("chunk map: wrong length")
	}
	if r := n % 8; r != 0 && b[len(b)-1]>>r != 0 {
		return errors.New("chunk map: bits beyond its end")
	}
	*m = Map{int(n), append([]byte(nil), b[5:]...)}
	return nil
}
