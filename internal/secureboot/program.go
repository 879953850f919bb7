package secureboot

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Sign returns an EFI program with k's signature added to those it has. The
// same program and key give the same bytes.
func (k Key) Sign(program []byte) ([]byte, error) {
	p, err := parse(program)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig, err := k.authenticode(p.digest())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	// WIN_CERTIFICATE (UEFI 2.10 section 32.2.4): length, revision 2.0, type
	// PKCS_SIGNED_DATA; each begins at a multiple of 8.
	out := append(slices.Clone(p.body), p.table...)
	out = binary.LittleEndian.AppendUint32(out, uint32(8+len(sig)))
	out = binary.LittleEndian.AppendUint16(out, 0x0200)
	out = binary.LittleEndian.AppendUint16(out, 0x0002)
	out = pad8(append(out, sig...))
	binary.LittleEndian.PutUint32(out[p.directory:], uint32(len(p.body)))
	binary.LittleEndian.PutUint32(out[p.directory+4:], uint32(len(out)-len(p.body)))
	return out, nil
}

func pad8(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }

// program is an EFI program (PE32+) as far as its signature goes.
type program struct {
	body      []byte // without the certificates, a multiple of 8 bytes
	table     []byte // of the certificates
	checksum  int    // offset of the field CheckSum
	directory int    // offset of the data directory's entry for the certificates
	headers   int    // SizeOfHeaders
	sections  []section
}

type section struct{ offset, size int }

func (s section) end() int { return s.offset + s.size }

// The PE headers ("PE Format" in Microsoft's documentation): offsets from the
// start of the part that their name begins with.
const (
	dosHeaderSize     = 64
	dosNewHeader      = 0x3c
	coffSize          = 24 // with the signature "PE\0\0"
	coffSections      = 6
	coffOptionalSize  = 20
	optionalHeaders   = 60 // SizeOfHeaders
	optionalChecksum  = 64
	optionalCount     = 108 // NumberOfRvaAndSizes
	optionalDirectory = 112 + 4*8
	optionalMin       = optionalDirectory + 8
	sectionSize       = 40
)

var errShort = errors.New("no whole EFI program: it ends within its headers")

func parse(b []byte) (*program, error) {
	le := binary.LittleEndian
	if len(b) < dosHeaderSize || b[0] != 'M' || b[1] != 'Z' {
		return nil, errors.New("no EFI program: it does not begin with MZ")
	}
	if int64(len(b)) > 1<<31-1 {
		return nil, errors.New("an EFI program of more than 2 GiB")
	}
	coff := int(le.Uint32(b[dosNewHeader:]))
	if coff < dosHeaderSize || coff > len(b)-coffSize {
		return nil, errShort
	}
	if string(b[coff:coff+4]) != "PE\x00\x00" {
		return nil, errors.New("no EFI program: no PE header")
	}
	opt := coff + coffSize
	optSize := int(le.Uint16(b[coff+coffOptionalSize:]))
	count := int(le.Uint16(b[coff+coffSections:]))
	table := opt + optSize
	if optSize < optionalMin || table+count*sectionSize > len(b) {
		return nil, errShort
	}
	if le.Uint16(b[opt:]) != 0x20b || le.Uint32(b[opt+optionalCount:]) < 5 {
		return nil, errors.New("no 64-bit EFI program (PE32+)")
	}
	p := &program{checksum: opt + optionalChecksum, directory: opt + optionalDirectory, headers: int(le.Uint32(b[opt+optionalHeaders:]))}
	if p.headers < table+count*sectionSize || p.headers > len(b) {
		return nil, errShort
	}
	for i := range count {
		h := b[table+i*sectionSize:]
		if s := (section{int(le.Uint32(h[20:])), int(le.Uint32(h[16:]))}); s.size > 0 {
			if s.offset > len(b) || s.size > len(b)-s.offset {
				return nil, errors.New("an EFI program that ends within a section")
			}
			p.sections = append(p.sections, s)
		}
	}
	slices.SortFunc(p.sections, func(a, b section) int { return cmp.Compare(a.offset, b.offset) })
	end, size := len(b), int(le.Uint32(b[p.directory+4:]))
	if size > 0 {
		start := int(le.Uint32(b[p.directory:]))
		// Anything behind the certificates would be outside every signature.
		if start%8 != 0 || start < p.headers || start+size != end {
			return nil, errors.New("an EFI program whose signatures are not at its end")
		}
		end = start
	}
	if p.hashed() > end || slices.ContainsFunc(p.sections, func(s section) bool { return s.end() > end }) {
		return nil, errors.New("an EFI program whose sections overlap each other or its signatures")
	}
	p.table = b[end:]
	p.body = pad8(slices.Clone(b[:end]))
	return p, nil
}

// hashed is what firmware calls SUM_OF_BYTES_HASHED.
func (p *program) hashed() int {
	n := p.headers
	for _, s := range p.sections {
		n += s.size
	}
	return n
}

// digest is what is signed: headers and sections without the fields that the
// signature itself changes, then what follows them.
func (p *program) digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write(p.body[:p.checksum])
	h.Write(p.body[p.checksum+4 : p.directory])
	h.Write(p.body[p.directory+8 : p.headers])
	for _, s := range p.sections {
		h.Write(p.body[s.offset:s.end()])
	}
	h.Write(p.body[p.hashed():])
	return [sha256.Size]byte(h.Sum(nil))
}

// What an Authenticode signature says of a program.
type (
	indirectData struct {
		Data   peImage
		Digest digestInfo
	}
	peImage struct {
		Type  asn1.ObjectIdentifier
		Value peImageData
	}
	peImageData struct {
		Flags asn1.BitString
		File  asn1.RawValue
	}
	digestInfo struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}
)

// authenticode is a ContentInfo with a SignedData over the digest of a program.
func (k Key) authenticode(digest [sha256.Size]byte) ([]byte, error) {
	// The file's name is never looked at. All signers write the same one.
	var name []byte
	for _, c := range "<<<Obsolete>>>" {
		name = append(name, 0, byte(c))
	}
	file, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: name})
	if err != nil {
		return nil, err
	}
	if file, err = asn1.Marshal(tagged(2, file)); err != nil {
		return nil, err
	}
	content, err := asn1.Marshal(indirectData{
		Data:   peImage{oidPEImageData, peImageData{asn1.BitString{}, tagged(0, file)}},
		Digest: digestInfo{algSHA256, digest[:]},
	})
	if err != nil {
		return nil, err
	}
	// RFC 2315 section 9.3: the digest of the content leaves out its tag and length.
	var inner asn1.RawValue
	if _, err := asn1.Unmarshal(content, &inner); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(inner.Bytes)
	attributes, err := attributes(sum)
	if err != nil {
		return nil, err
	}
	// What is signed is the set with its own tag, what is sent has another.
	set, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: attributes})
	if err != nil {
		return nil, err
	}
	signed, err := k.sign(contentInfo{oidIndirectData, tagged(0, content)}, tagged(0, attributes), sha256.Sum256(set))
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, tagged(0, signed)})
}

// attributes are the signed ones: type and digest of the content. There is no
// signing time, so that the same program has the same signature.
func attributes(digest [sha256.Size]byte) ([]byte, error) {
	var all [][]byte
	for _, a := range []struct {
		kind  asn1.ObjectIdentifier
		value any
	}{{oidContentType, oidIndirectData}, {oidMessageDigest, digest[:]}} {
		v, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		b, err := asn1.Marshal(attribute{a.kind, []asn1.RawValue{{FullBytes: v}}})
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	slices.SortFunc(all, bytes.Compare) // DER: a set has one order (X.690 section 11.6)
	return slices.Concat(all...), nil
}
