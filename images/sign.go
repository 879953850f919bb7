package images

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxEnvelope is the longest signed manifest that is read: an image of about
// 400 GB.
const MaxEnvelope = 32 << 20

// payloadType keeps a signature made for a manifest from being used as any
// other signature of the same key.
const payloadType = "application/vnd.smelt.image-manifest.v1+json"

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

// Open verifies that one of keys signed the manifest, and only then looks into
// it. The digest names the image: compare it with the one that was asked for.
func Open(b []byte, keys ...ed25519.PublicKey) (Manifest, Digest, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return Manifest{}, Digest{}, err
	}
	signed := preAuth(e.Payload)
	for _, s := range e.Signatures {
		for _, k := range keys {
			// The key id is a hint of the sender's: every key is tried.
			if len(k) == ed25519.PublicKeySize && ed25519.Verify(k, signed, s.Sig) {
				return decodeManifest(e.Payload)
			}
		}
	}
	return Manifest{}, Digest{}, ErrUnsigned
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
	if len(e.Signatures) > 16 {
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
