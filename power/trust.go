package power

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A Key is what tells a device from an impostor: the SHA-256 of its public key,
// base64 (RFC 7469, section 2.4). Certificates of BMCs are self-signed, dated
// 1970 and named for nobody; only their key says something.
type Key struct {
	Via   string    // the controller
	Pin   string    // "" before the first connection
	Since time.Time // trusted then, on first use; zero: the site names it
	Other string    // the key that answers now, and is refused; "" for none
}

// A Keyed is a controller whose devices have keys.
type Keyed interface{ Keys() []Key }

// Keys are those of the devices behind v, none where nothing speaks TLS.
func (v *Verified) Keys() []Key { return keys(v.c) }

func keys(c Controller) []Key {
	if chain, ok := c.(*Chain); ok {
		var all []Key
		for _, l := range chain.links {
			all = append(all, keys(l.c)...)
		}
		return all
	}
	if k, ok := c.(Keyed); ok {
		return k.Keys()
	}
	return nil
}

// A Trust holds a device to its key: the one that the site names, else the one
// of the first connection.
type Trust struct {
	file string // with the key of the first connection; "" keeps it in memory

	mu  sync.Mutex
	key Key
}

// NewTrust makes the trust in the device at address, HOST:PORT. Where the site
// names no pin, the first one is kept in dir, or in memory without dir.
func NewTrust(pin, dir, address string) (*Trust, error) {
	if err := checkPin(pin); err != nil {
		return nil, err
	}
	t := &Trust{key: Key{Pin: pin}}
	if dir != "" && pin == "" {
		t.file = filepath.Join(dir, DeviceFile(address)+".pin")
	}
	return t, nil // what the file says is asked for later: one damaged file must not stop a hall
}

func checkPin(pin string) error {
	if sum, err := base64.StdEncoding.DecodeString(pin); err != nil || pin != "" && len(sum) != sha256.Size {
		return fmt.Errorf("pin %q: want the base64 of 32 bytes", pin)
	}
	return nil
}

// DeviceFile is an address as the name of a file, readable and unique.
func DeviceFile(address string) string {
	address = strings.ToLower(address)
	sum := sha256.Sum256([]byte(address))
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, address) + "-" + hex.EncodeToString(sum[:4])
}

// load reads the key that was trusted first, by this process or another.
func (t *Trust) load() error {
	if t.file == "" || t.key.Pin != "" {
		return nil
	}
	b, err := os.ReadFile(t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the key trusted first: %w", err)
	}
	pin := strings.TrimSpace(string(b))
	if err := checkPin(pin); err != nil || pin == "" {
		return fmt.Errorf("the key trusted first, in %s: %w", t.file, errors.Join(err, errors.New("remove the file, and the key that answers next is trusted")))
	}
	fi, err := os.Stat(t.file)
	if err != nil {
		return fmt.Errorf("the key trusted first: %w", err)
	}
	t.key.Pin, t.key.Since = pin, fi.ModTime()
	return nil
}

// Key is what is trusted now.
func (t *Trust) Key() Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.load() // Verify tells
	return t.key
}

// Verify is for tls.Config.VerifyConnection: it comes before any password.
func (t *Trust) Verify(s tls.ConnectionState) error {
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	got := base64.StdEncoding.EncodeToString(sum[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return err
	}
	if t.key.Pin == "" {
		if err := t.keep(got); err != nil {
			return fmt.Errorf("keep the key of the device: %w", err)
		}
	}
	if t.key.Other = ""; t.key.Pin != got {
		t.key.Other = got
		known := "as site.yaml says"
		if !t.key.Since.IsZero() {
			known = "as since " + t.key.Since.UTC().Format(time.DateOnly)
		}
		return fmt.Errorf("its key is %s, not %s %s: somebody else answers, or its certificate was replaced; nothing was sent to it (if it was replaced, write pin: %s in site.yaml)",
			got, t.key.Pin, known, got)
	}
	return nil
}

// keep writes the first pin down, whole or not at all. Another controller of
// the same device may have been first.
func (t *Trust) keep(pin string) error {
	if t.file == "" {
		t.key.Pin, t.key.Since = pin, time.Now()
		return nil
	}
	dir := filepath.Dir(t.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "pin")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(pin + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), t.file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return t.load()
}
