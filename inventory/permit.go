package inventory

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A Permit allows one destructive step on named disks of one node, once, for a
// short time. The conductor signs it with the site's key; the agent verifies
// it with the public key that its RAM system was built with, compares every
// field with what it sees itself, and only then writes.
type Permit struct {
	ID       string    `json:"id"`
	Node     NodeID    `json:"node"`
	Agent    string    `json:"agent"`  // fingerprint of the agent's key
	Action   string    `json:"action"` // wipe or image
	Disks    []DiskID  `json:"disks"`
	Plan     string    `json:"plan"` // Plan.Digest
	Image    string    `json:"image,omitempty"`
	Fence    uint64    `json:"fence"`
	Issued   time.Time `json:"issued"`
	NotAfter time.Time `json:"notAfter"`
}

// SignedPermit is a permit as it travels.
type SignedPermit struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"`
}

// permitContext keeps a signature made for a permit from being used as any
// other signature of the same key.
const permitContext = "smelt permit v1\n"

// MaxPermit is the longest life of a permit.
const MaxPermit = 15 * time.Minute

// Sign makes the travelling form.
func (p Permit) Sign(key ed25519.PrivateKey) (SignedPermit, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return SignedPermit{}, err
	}
	return SignedPermit{Payload: b, Signature: ed25519.Sign(key, append([]byte(permitContext), b...))}, nil
}

// Errors of Open that a caller tells apart.
var (
	ErrPermitForged  = errors.New("permit signature does not verify")
	ErrPermitExpired = errors.New("permit is expired")
)

// Open verifies s and returns the permit. now is the agent's best time: a
// clock that lags may not stretch a permit to more than twice its life.
func (s SignedPermit) Open(key ed25519.PublicKey, now time.Time) (Permit, error) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(permitContext), s.Payload...), s.Signature) {
		return Permit{}, ErrPermitForged
	}
	var p Permit
	if err := json.Unmarshal(s.Payload, &p); err != nil {
		return Permit{}, fmt.Errorf("permit: %w", err)
	}
	life := p.NotAfter.Sub(p.Issued)
	if life <= 0 || life > MaxPermit || !now.Before(p.NotAfter) || now.Before(p.Issued.Add(-MaxPermit)) {
		return Permit{}, fmt.Errorf("%w: it is for %s to %s, it is %s here", ErrPermitExpired,
			p.Issued.Format(time.RFC3339), p.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return p, nil
}
