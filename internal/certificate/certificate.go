// Package certificate makes and verifies wipe certificates: what was on a
// machine's disks, how each was wiped, and how that is known, signed with the
// site's key. A certificate says what drives reported and what was read back;
// it is no look into their cells.
package certificate

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"smelt/inventory"
)

// Kind is the kind of the document, beside its apiVersion.
const (
	APIVersion = "smelt/v1"
	Kind       = "WipeCertificate"
)

// Standard is what the words clear and purge are taken from.
const Standard = "NIST SP 800-88r1, appendix A (withdrawn in September 2025; its successor leaves the methods to IEEE 2883)"

// A Certificate is about one wipe of one machine.
type Certificate struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	ID         string            `json:"id"`
	Site       string            `json:"site"`
	Simulated  bool              `json:"simulated,omitempty"` // a lab's: it proves nothing
	Node       inventory.NodeID  `json:"node"`
	Position   string            `json:"position,omitempty"`
	Board      inventory.Board   `json:"board"`
	Run        string            `json:"run"`
	Plan       string            `json:"plan"` // digest of the approved plan
	Approved   string            `json:"approvedBy,omitempty"`
	Permit     string            `json:"permit"` // the single-use permit of the wipe
	Policy     string            `json:"policy"` // level that was asked for; every disk below reached it
	Standard   string            `json:"standard"`
	Began      time.Time         `json:"began"`
	Ended      time.Time         `json:"ended"`
	Disks      []inventory.Wiped `json:"disks"`
	Spared     []Disk            `json:"spared,omitempty"` // disks of the machine that were not wiped
	Was        *Leftovers        `json:"was,omitempty"`
}

// Disk is a disk that the certificate is not about.
type Disk struct {
	inventory.DiskID
	Model string `json:"model,omitempty"`
}

// Leftovers is what ran on the machine before, without its secrets.
type Leftovers struct {
	MinerOS string   `json:"minerOS,omitempty"`
	Worker  string   `json:"worker,omitempty"`
	Rig     string   `json:"rig,omitempty"`
	Pools   []string `json:"pools,omitempty"` // hosts; wallets and passwords were never kept
	Files   []File   `json:"files,omitempty"`
}

// File is a configuration file that was found.
type File struct {
	Path     string `json:"path"`
	Redacted int    `json:"redacted"` // values in it that were not kept: wallets, passwords, addresses
}

// LeftoversOf tells of a salvage without its text. Nil stays nil.
func LeftoversOf(s *inventory.Salvage) *Leftovers {
	if s == nil {
		return nil
	}
	l := &Leftovers{MinerOS: s.MinerOS, Worker: s.WorkerName, Rig: s.RigID, Pools: s.Pools}
	for _, path := range slices.Sorted(maps.Keys(s.Files)) {
		l.Files = append(l.Files, File{path, strings.Count(s.Files[path], inventory.Redacted)})
	}
	return l
}

// Errors of Open that a caller tells apart.
var (
	ErrForged = errors.New("the certificate is not signed by a trusted key, or was changed since")
	ErrFormat = errors.New("not a wipe certificate")
)

// payloadType keeps a signature made for a certificate from being used as any
// other signature of the same key.
const payloadType = "application/vnd.smelt.wipe-certificate.v1+json"

// maxSigned is the longest certificate that is read.
const maxSigned = 4 << 20

// envelope is DSSE v1.0, as manifests of images have it.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// preAuth is DSSE's PAE: what is signed.
func preAuth(payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// KeyID names a public key for people.
func KeyID(key ed25519.PublicKey) string {
	d := sha256.Sum256(key)
	return hex.EncodeToString(d[:8])
}

// Check says why c must not be signed, or nil: a certificate never says less
// than the policy, and never nothing.
func (c Certificate) Check() error {
	switch {
	case c.APIVersion != APIVersion || c.Kind != Kind:
		return fmt.Errorf("%w: it is a %s of %s", ErrFormat, c.Kind, c.APIVersion)
	case c.ID == "" || c.Node == "" || c.Run == "" || c.Permit == "":
		return fmt.Errorf("%w: it names no node, run or permit", ErrFormat)
	case len(c.Disks) == 0:
		return fmt.Errorf("%w: it names no disk", ErrFormat)
	}
	for _, d := range c.Disks {
		if !d.Reaches(c.Policy) {
			return fmt.Errorf("%s was wiped to %s, and the policy is %s", d.Disk, d.Level, c.Policy)
		}
	}
	return nil
}

// Sealed is c as it is signed.
func (c Certificate) Sealed() Certificate {
	c.APIVersion, c.Kind, c.Standard = APIVersion, Kind, Standard
	return c
}

// Sign checks c and returns its signed form, a DSSE envelope.
func Sign(c Certificate, key ed25519.PrivateKey) ([]byte, error) {
	c = c.Sealed()
	if err := c.Check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{{
		KeyID: KeyID(key.Public().(ed25519.PublicKey)), Sig: ed25519.Sign(key, preAuth(payload)),
	}}})
}

// Open verifies that one of keys signed the certificate, and only then looks
// into it.
func Open(b []byte, keys ...ed25519.PublicKey) (Certificate, error) {
	var e envelope
	if len(b) > maxSigned {
		return Certificate{}, fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	if err := strictJSON(b, &e); err != nil {
		return Certificate{}, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	if e.PayloadType != payloadType {
		return Certificate{}, fmt.Errorf("%w: payload type %.80q", ErrFormat, e.PayloadType)
	}
	signed := preAuth(e.Payload)
	for _, s := range e.Signatures[:min(len(e.Signatures), 16)] {
		for _, k := range keys {
			// The key id is a hint of the sender's: every key is tried.
			if len(k) == ed25519.PublicKeySize && ed25519.Verify(k, signed, s.Sig) {
				var c Certificate
				if err := strictJSON(e.Payload, &c); err != nil {
					return Certificate{}, fmt.Errorf("%w: %v", ErrFormat, err)
				}
				return c, c.Check()
			}
		}
	}
	return Certificate{}, ErrForged
}

// strictJSON decodes exactly one value with no field that v does not know: a
// word that is not shown must not be signed for.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the value")
	}
	return nil
}
