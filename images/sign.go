package images

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// MaxEnvelope is the longest signed manifest that is read: an image of about
// 400 GB.
const MaxEnvelope = 32 << 20

// maxSignatures bounds the work of verifying an envelope.
const maxSignatures = 16

// payloadType keeps a signature made for a manifest from being used as any
// other signature of the same key. v1 had chunks with SHA-256.
const payloadType = "application/vnd.smelt.image-manifest.v2+json"

// envelope is DSSE v1.0 (github.com/secure-systems-lab/dsse, envelope.md): the
// payload is signed as the bytes it is, so nothing needs a canonical form.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// Errors of Open that a caller tells apart.
var (
	ErrUnsigned = errors.New("manifest is not signed by a trusted key")
	ErrEnvelope = errors.New("not a signed manifest")
)

// preAuth is DSSE's PAE: what is signed.
func preAuth(payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// KeyID names a public key for people and logs.
func KeyID(key ed25519.PublicKey) string {
	d := sha256.Sum256(key)
	return hex.EncodeToString(d[:8])
}

// Sign validates m and returns its signed form.
func Sign(m Manifest, key ed25519.PrivateKey) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return seal(payload, key)
}

func seal(payload []byte, key ed25519.PrivateKey) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("sign manifest: no private key")
	}
	return json.Marshal(envelope{
		PayloadType: payloadType,
		Payload:     payload,
		Signatures: []signature{{
			KeyID: KeyID(key.Public().(ed25519.PublicKey)),
			Sig:   ed25519.Sign(key, preAuth(payload)),
		}},
	})
}

// Signers says whose signatures make a manifest good: those of at least
// Threshold different Keys. A Threshold of 0 stands for 1, no keys for nobody.
type Signers struct {
	Keys      []ed25519.PublicKey `json:"keys"`
	Threshold int                 `json:"threshold,omitempty"`
}

// Check tells what is wrong with s: one that nobody can satisfy is a mistake.
func (s Signers) Check() error {
	for i, k := range s.Keys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("image key %d has %d bytes, want %d", i+1, len(k), ed25519.PublicKeySize)
		}
	}
	if s.Threshold < 0 || s.Threshold > len(s.Keys) {
		return fmt.Errorf("%d of %d image keys must sign", s.Threshold, len(s.Keys))
	}
	return nil
}

// Open verifies that enough of s signed the manifest, and only then looks into
// it. The digest names the image: compare it with the one that was asked for.
func (s Signers) Open(b []byte) (Manifest, Digest, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return Manifest{}, Digest{}, err
	}
	need := max(s.Threshold, 1)
	if good := s.count(e); good < need {
		return Manifest{}, Digest{}, fmt.Errorf("%w: %d of the %d signatures needed are good (trusted: %s; signed by: %s)",
			ErrUnsigned, good, need, keyIDs(s.Keys), e.signers())
	}
	return decodeManifest(e.Payload)
}

// count returns how many different keys of s signed e.
func (s Signers) count(e envelope) int {
	signed := preAuth(e.Payload)
	good := map[string]bool{}
	for _, sig := range e.Signatures {
		for _, k := range s.Keys {
			// The key id is a hint of the sender's: every key is tried.
			if len(k) == ed25519.PublicKeySize && !good[string(k)] && ed25519.Verify(k, signed, sig.Sig) {
				good[string(k)] = true
			}
		}
	}
	return len(good)
}

// Open is Signers.Open where the signature of any of keys is enough.
func Open(b []byte, keys ...ed25519.PublicKey) (Manifest, Digest, error) {
	return Signers{Keys: keys}.Open(b)
}

// cosign adds the signature of key to an envelope that others may have signed.
func cosign(b []byte, key ed25519.PrivateKey) ([]byte, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return nil, err
	}
	fresh, err := seal(e.Payload, key)
	if err != nil {
		return nil, err
	}
	return merge(fresh, b)
}

// merge gives an envelope the signatures that another one of the same payload
// has beside its own, up to maxSignatures.
func merge(b, other []byte) ([]byte, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return nil, err
	}
	o, err := decodeEnvelope(other)
	if err != nil || !bytes.Equal(e.Payload, o.Payload) {
		return b, nil // nothing of the other is worth keeping
	}
	for _, s := range o.Signatures {
		has := slices.ContainsFunc(e.Signatures, func(h signature) bool { return bytes.Equal(h.Sig, s.Sig) })
		if !has && len(e.Signatures) < maxSignatures {
			e.Signatures = append(e.Signatures, s)
		}
	}
	return json.Marshal(e)
}

func keyIDs(keys []ed25519.PublicKey) string {
	var ids []string
	for _, k := range keys {
		ids = append(ids, KeyID(k))
	}
	return cmp.Or(strings.Join(ids, " "), "nobody")
}

// signers names whom an envelope says it was signed by, unverified.
func (e envelope) signers() string {
	var ids []string
	for _, s := range e.Signatures {
		ids = append(ids, fmt.Sprintf("%.16q", s.KeyID))
	}
	return cmp.Or(strings.Join(ids, " "), "nobody")
}

func decodeEnvelope(b []byte) (envelope, error) {
	var e envelope
	if len(b) > MaxEnvelope {
		return e, fmt.Errorf("%w: %d bytes, more than %d", ErrEnvelope, len(b), MaxEnvelope)
	}
	if err := strictJSON(b, &e); err != nil {
		return e, fmt.Errorf("%w: %v", ErrEnvelope, err)
	}
	if e.PayloadType != payloadType {
		return e, fmt.Errorf("%w: payload type %.80q", ErrEnvelope, e.PayloadType)
	}
	if len(e.Signatures) > maxSignatures {
		return e, fmt.Errorf("%w: %d signatures", ErrEnvelope, len(e.Signatures))
	}
	return e, nil
}

func decodeManifest(payload []byte) (Manifest, Digest, error) {
	var m Manifest
	if err := strictJSON(payload, &m); err != nil {
		return Manifest{}, Digest{}, fmt.Errorf("%w: %v", ErrManifest, err)
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, Digest{}, err
	}
	return m, sha256.Sum256(payload), nil
}

// Payload returns the manifest inside an envelope as it was signed, unverified.
// Its SHA-256 is the digest of the image.
func Payload(b []byte) ([]byte, error) {
	e, err := decodeEnvelope(b)
	return e.Payload, err
}

// strictJSON decodes exactly one value with no field that v does not know.
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
