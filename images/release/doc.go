// Package release decides which images a site may write, far from the site:
// keys that are kept offline name the images that exist and the image that a
// channel stands for, and nobody who only holds the server, the mirror or the
// network can change it, bring back an old answer, or hold a new one back
// unnoticed. It is The Update Framework (TUF 1.0.31, theupdateframework.github.io/specification)
// by go-tuf, which does all verifying; docs/decisions/0013-release-trust.md
// says why.
//
//	TUF role         here       says                                          keys
//	root             root       whose keys count for what                     offline
//	targets          release    which images exist; whose keys the channels   offline, sign manifests too
//	canary, stable   the same   which image a title stands for in a channel   whoever promotes
//	snapshot, timestamp  online which versions of all this are the newest     where it is published
//
// Targets are manifests/DIGEST, whose SHA-256 is the digest of the image, and
// CHANNEL/TITLE with the same. Nodes know nothing of TUF: they take a manifest
// that enough release keys signed (images.Signers) and the digest that their
// permit names.
package release

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"smelt/images"
)

// A Role is who may say something about images.
type Role string

// The roles. Online is TUF's snapshot and timestamp, which one key holds.
const (
	Root    Role = "root"
	Release Role = "release"
	Canary  Role = "canary"
	Stable  Role = "stable"
	Online  Role = "online"
)

// Roles are all roles, who trusts whom first.
var Roles = []Role{Root, Release, Canary, Stable, Online}

// Channels are the roles that name images.
var Channels = []Role{Canary, Stable}

// ParseRole reads the name of a role.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles, r) {
		return r, nil
	}
	return "", fmt.Errorf("there is no role %q: want one of %s", s, words(Roles))
}

// ParseChannel reads the name of a channel.
func ParseChannel(s string) (Role, error) {
	if r := Role(s); slices.Contains(Channels, r) {
		return r, nil
	}
	return "", fmt.Errorf("there is no channel %q: want one of %s", s, words(Channels))
}

func words(roles []Role) string {
	var w []string
	for _, r := range roles {
		w = append(w, string(r))
	}
	return strings.Join(w, ", ")
}

// tuf is the role's name in the metadata.
func (r Role) tuf() string {
	if r == Release {
		return metadata.TARGETS
	}
	return string(r)
}

// lifetime is how long what a role says holds: a site believes nothing older.
// What is signed offline is signed seldom; what the publisher's key renews by
// itself shows within two weeks that somebody holds it back.
func (r Role) lifetime() time.Duration {
	switch r {
	case Online:
		return 14 * 24 * time.Hour
	case Canary, Stable:
		return 180 * 24 * time.Hour
	case Root, Release:
	}
	return 365 * 24 * time.Hour
}

// Errors that callers tell apart. Each is wrapped with what was refused, and
// what to do.
var (
	ErrUntrusted = errors.New("refused: not signed by enough of the keys of its role")
	ErrExpired   = errors.New("refused: out of date")
	ErrRollback  = errors.New("refused: older than what was seen before")
	ErrDamaged   = errors.New("refused: damaged or cut off")
	ErrConflict  = errors.New("somebody else published in between")
	ErrRole      = errors.New("the key has not that role")
)

// manifestPath is the target that makes an image exist.
func manifestPath(d images.Digest) string { return "manifests/" + d.String() }

// channelPath is the target that a channel names.
func channelPath(channel Role, title string) string { return string(channel) + "/" + title }

// Keys are the keys of a role, and how many of them must sign.
type Keys struct {
	Public    []ed25519.PublicKey
	Threshold int
}

// signers returns the keys of a role of root.
func signers(root *metadata.Metadata[metadata.RootType], role Role) (images.Signers, error) {
	r := root.Signed.Roles[role.tuf()]
	if r == nil {
		return images.Signers{}, fmt.Errorf("root names no keys for %s", role)
	}
	s := images.Signers{Threshold: r.Threshold}
	for _, id := range r.KeyIDs {
		k, err := publicKey(root.Signed.Keys[id])
		if err != nil {
			return images.Signers{}, fmt.Errorf("key %.16s of %s: %w", id, role, err)
		}
		s.Keys = append(s.Keys, k)
	}
	return s, s.Check()
}

// publicKey takes a key out of metadata. Nodes verify ed25519 only.
func publicKey(k *metadata.Key) (ed25519.PublicKey, error) {
	if k == nil {
		return nil, errors.New("it is not there")
	}
	if k.Type != metadata.KeyTypeEd25519 {
		return nil, fmt.Errorf("want ed25519, found %.20q", k.Type)
	}
	p, err := k.ToPublicKey()
	if err != nil {
		return nil, err
	}
	e, ok := p.(ed25519.PublicKey)
	if !ok || len(e) != ed25519.PublicKeySize {
		return nil, errors.New("it is no ed25519 key")
	}
	return e, nil
}
