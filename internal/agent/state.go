package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

// state is what must outlive the process, though not the boot (RAM system) or
// the disk (installed system): a nonce is good only once, a fence may never
// fall, a permit is used once, a result is sent until it is acknowledged.
type state struct {
	mu   sync.Mutex
	path string
	v    stateFile
}

type stateFile struct {
	Key     []byte           `json:"key"` // ed25519 seed, made at this boot
	Node    inventory.NodeID `json:"node,omitempty"`
	Session string           `json:"session,omitempty"`
	Expires time.Time        `json:"expires,omitzero"`
	Handoff string           `json:"handoff,omitempty"` // digest of the handoff that Session began with
	Fence   uint64           `json:"fence"`
	Used    []string         `json:"used,omitempty"` // permits
	Last    *api.Result      `json:"last,omitempty"`
	Acked   bool             `json:"acked,omitempty"`
	Cap     float64          `json:"cap,omitempty"` // the share that the cards were limited to, noted before they are
}

// openState reads the file, or begins a new one with a fresh key.
func openState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &state{path: filepath.Join(dir, "state.json")}
	b, err := os.ReadFile(s.path)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &s.v); err != nil || len(s.v.Key) != ed25519.SeedSize {
			return nil, fmt.Errorf("%s is damaged: remove it and enrol again", s.path)
		}
		return s, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	s.v.Key = make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(s.v.Key); err != nil {
		return nil, err
	}
	return s, s.save()
}

// save is called with mu held, or before s is shared.
func (s *state) save() error {
	b, err := json.Marshal(s.v)
	if err != nil {
		return err
	}
	return writeFile(s.path, b, 0o600)
}

// writeFile replaces a file so that after a power cut there is the old one or
// the new one.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
	return nil
}

func (s *state) get() stateFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v
}

func (s *state) public() ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(s.get().Key).Public().(ed25519.PublicKey)
}

func (s *state) update(f func(*stateFile)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.v)
	return s.save()
}

// raise notes a fence and tells whether it is as high as any seen before.
func (s *state) raise(fence uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fence < s.v.Fence {
		return false, nil
	}
	if fence == s.v.Fence {
		return true, nil
	}
	s.v.Fence = fence
	return true, s.save()
}

// used tells whether a permit was used on this machine.
func (s *state) used(permit string) bool { return slices.Contains(s.get().Used, permit) }

// use notes that a permit is used. It is on disk before the disk is touched.
func (s *state) use(permit string) error {
	return s.update(func(v *stateFile) { v.Used = append(slices.Clone(v.Used), permit) })
}
