package secureboot

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
	"unicode/utf16"
)

// guid is in the mixed byte order of UEFI: three little-endian numbers, then bytes.
type guid [16]byte

func newGUID(a uint32, b, c uint16, d [8]byte) (g guid) {
	binary.LittleEndian.PutUint32(g[:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	copy(g[8:], d[:])
	return g
}

// GUIDs of UEFI 2.10: EFI_GLOBAL_VARIABLE, EFI_IMAGE_SECURITY_DATABASE_GUID,
// EFI_CERT_X509_GUID, EFI_CERT_TYPE_PKCS7_GUID. The owner of our entries is ours.
var (
	guidGlobal   = newGUID(0x8be4df61, 0x93ca, 0x11d2, [8]byte{0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c})
	guidDatabase = newGUID(0xd719b2cb, 0x3d3a, 0x4596, [8]byte{0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f})
	guidX509     = newGUID(0xa5c059a1, 0x94e4, 0x4aa7, [8]byte{0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72})
	guidPKCS7    = newGUID(0x4aafd29d, 0x68df, 0x49ee, [8]byte{0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7})
	guidOwner    = newGUID(0x5a3e17d0, 0x1f6b, 0x4c7e, [8]byte{0x9b, 0x42, 's', 'm', 'e', 'l', 't', 1})
)

// Database is a variable that firmware keeps keys in.
type Database string

// The databases, from the one that decides least.
const (
	DB  Database = "db"  // may start programs
	KEK Database = "KEK" // may change db
	PK  Database = "PK"  // owns the machine: may change KEK
)

func (d Database) vendor() guid {
	if d == DB {
		return guidDatabase
	}
	return guidGlobal
}

// List is k's certificate as firmware's menus and Redfish take it as .esl.
func (k Key) List() []byte { return List(k.cert.Raw) }

// List is a certificate as an EFI_SIGNATURE_LIST (section 32.4.1).
func List(certificate []byte) []byte {
	size := 16 + len(certificate) // owner and certificate
	b := slices.Clone(guidX509[:])
	b = binary.LittleEndian.AppendUint32(b, uint32(28+size))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, guidOwner[:]...)
	return append(b, certificate...)
}

// The attributes of these variables (section 8.2.1): kept, seen by firmware and
// by the system, and changed only by who signs a later time.
const (
	nonVolatile        = 0x01
	bootServiceAccess  = 0x02
	runtimeAccess      = 0x04
	timeAuthenticated  = 0x20
	databaseAttributes = nonVolatile | bootServiceAccess | runtimeAccess | timeAuthenticated
)

// Variable is the content of a .auth file: k's certificate for the database d,
// signed by k (EFI_VARIABLE_AUTHENTICATION_2, section 8.2.2). A machine in
// setup mode takes it without a question, one that has k's certificate a level
// higher does too.
func (k Key) Variable(d Database, at time.Time) ([]byte, error) {
	at = at.UTC()
	// EFI_TIME; everything below the second must be zero.
	stamp := binary.LittleEndian.AppendUint16(nil, uint16(at.Year()))
	stamp = append(stamp, byte(at.Month()), byte(at.Day()), byte(at.Hour()), byte(at.Minute()), byte(at.Second()))
	stamp = append(stamp, make([]byte, 16-len(stamp))...)
	list := k.List()
	vendor := d.vendor()

	h := sha256.New()
	for _, c := range utf16.Encode([]rune(string(d))) {
		h.Write(binary.LittleEndian.AppendUint16(nil, c)) // without the zero at the end
	}
	h.Write(vendor[:])
	h.Write(binary.LittleEndian.AppendUint32(nil, databaseAttributes))
	h.Write(stamp)
	h.Write(list)
	// A bare SignedData with no signed attributes: the specification wants it so.
	signed, err := k.sign(contentInfo{Type: oidData}, asn1.RawValue{}, [sha256.Size]byte(h.Sum(nil)))
	if err != nil {
		return nil, fmt.Errorf("sign the variable %s: %w", d, err)
	}
	// WIN_CERTIFICATE_UEFI_GUID: length, revision 2.0, type EFI_GUID.
	b := binary.LittleEndian.AppendUint32(stamp, uint32(24+len(signed)))
	b = binary.LittleEndian.AppendUint16(b, 0x0200)
	b = binary.LittleEndian.AppendUint16(b, 0x0ef1)
	b = append(b, guidPKCS7[:]...)
	b = append(b, signed...)
	return append(b, list...), nil
}
