package power

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Refused remembers which versions of which credentials a device has refused.
// It outlives the process where it has a file: a server that is restarted in a
// loop by its init system would lock its own account at every BMC else.
//
// A process that is killed between the refusal and the note of it may try once
// more.
type Refused struct {
	path string

	mu   sync.Mutex
	list []refusal
}

// A refusal is one line of the file. It has no secret: the version is a number
// or a digest of what the secret is encrypted to.
type refusal struct {
	Device  string    `json:"device"`
	User    string    `json:"user,omitempty"`
	Version string    `json:"version,omitempty"`
	At      time.Time `json:"at"`
	Said    string    `json:"said"`
}

// maxRefused bounds the file of one site: several for each of some thousand
// devices. The oldest go first.
const maxRefused = 20000

// OpenRefused reads the file at path, which need not exist. An empty path keeps
// everything in memory.
func OpenRefused(path string) (*Refused, error) {
	r := &Refused{path: path}
	if path == "" {
		return r, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("refused credentials: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r.list); err != nil {
		return nil, fmt.Errorf("refused credentials: %s: %w; remove it and each credential is tried once more", path, err)
	}
	return r, nil
}

func (r *Refused) check(device, user, version string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.list {
		if e.Device == device && e.User == user && e.Version == version {
			return fmt.Errorf("%w (at %s: %s): not tried again, so that the device does not lock the user out; store the right secret (smelt secret set), or the same one again when it was the device that was wrong",
				ErrAuth, e.At.Format(time.DateTime), e.Said)
		}
	}
	return nil
}

func (r *Refused) add(device, user, version string, said error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, refusal{Device: device, User: user, Version: version, At: time.Now().UTC().Truncate(time.Second), Said: said.Error()})
	if n := len(r.list) - maxRefused; n > 0 {
		r.list = slices.Delete(r.list, 0, n)
	}
	return r.write()
}

// forget drops what is known about a login.
func (r *Refused) forget(device, user string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.list)
	r.list = slices.DeleteFunc(r.list, func(e refusal) bool { return e.Device == device && e.User == user })
	if len(r.list) == n {
		return nil
	}
	return r.write()
}

// write replaces the file. r.mu is held.
func (r *Refused) write() error {
	if r.path == "" {
		return nil
	}
	b, err := json.MarshalIndent(r.list, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(r.path), ".refused-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), r.path)
}
