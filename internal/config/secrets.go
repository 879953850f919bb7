package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"filippo.io/age"
)

// secretName is what a secret may be called: it is also a file name.
var secretName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,79}$`)

// MaxSecret is the longest value; a munge key has 1 KiB.
const MaxSecret = 64 << 10

// ErrNoSecret: nothing is stored under the name.
var ErrNoSecret = errors.New("no such secret")

// A Secret is a value that prints as [secret] in every form. Reveal gives the
// bytes to the one who needs them.
type Secret struct{ b []byte }

// NewSecret wraps a value.
func NewSecret(b []byte) Secret { return Secret{bytes.Clone(b)} }

// Reveal returns the bytes.
func (s Secret) Reveal() []byte { return bytes.Clone(s.b) }

const redacted = "[secret]"

func (s Secret) String() string { return redacted }

// Format covers every verb of fmt, %#v too.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText covers JSON, YAML and map keys.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue covers slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Secrets is the folder STATE/secrets: one age file a secret, and the identity
// that opens them. Who can read the folder can read the secrets: encryption at
// rest keeps them out of backups and support bundles, which leave the identity
// out.
type Secrets struct {
	dir      string
	identity *age.X25519Identity
}

const identityFile = "identity"

// OpenSecrets opens the secrets of a state folder; the identity is made on
// first use.
func OpenSecrets(stateDir string) (*Secrets, error) {
	s := &Secrets{dir: filepath.Join(stateDir, "secrets")}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the secrets: %w", err)
	}
	path := filepath.Join(s.dir, identityFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, fmt.Errorf("make the identity of the secrets: %w", err)
		}
		// Two processes may do this at once: link refuses the second, which
		// then reads what the first one made.
		if err := writeFile(path, []byte(id.String()+"\n"), os.Link); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the identity of the secrets: %w", err)
		}
		data, err = os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("open the secrets: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("open the secrets: %w", err)
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the identity of the secrets can be read by others (mode %04o): chmod 600 %s, and change every secret if somebody else could log in here", fi.Mode().Perm(), path)
	}
	if s.identity, err = age.ParseX25519Identity(strings.TrimSpace(string(data))); err != nil {
		return nil, fmt.Errorf("%s is no age identity: restore it from a backup, or remove it and set every secret again", path)
	}
	return s, nil
}

// Get returns a secret; ErrNoSecret if there is none.
func (s *Secrets) Get(name string) (Secret, error) {
	path, err := s.path(name)
	if err != nil {
		return Secret{}, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Secret{}, fmt.Errorf("secret %s: %w: store it with: smelt secret set %s", name, ErrNoSecret, name)
	}
	if err != nil {
		return Secret{}, fmt.Errorf("secret %s: %w", name, err)
	}
	defer f.Close()
	r, err := age.Decrypt(f, s.identity)
	if err != nil {
		return Secret{}, fmt.Errorf("secret %s does not open with this identity: set it again", name)
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxSecret+1))
	if err != nil || len(b) > MaxSecret {
		return Secret{}, fmt.Errorf("secret %s is damaged: set it again", name)
	}
	return Secret{b}, nil
}

// Set stores or replaces a secret. The old value stays until the new one is
// on disk.
func (s *Secrets) Set(name string, v Secret) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if len(v.b) == 0 || len(v.b) > MaxSecret {
		return fmt.Errorf("secret %s: want 1 to %d bytes, got %d", name, MaxSecret, len(v.b))
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, s.identity.Recipient())
	if err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	if _, err := w.Write(v.b); err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	if err := writeFile(path, buf.Bytes(), os.Rename); err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	return nil
}

// Version tells one value of secrets from the next: it changes whenever one of
// them is stored, also with the same value. It is a digest of what lies
// encrypted and says nothing about it. A name that is empty or not stored counts
// as such.
func (s *Secrets) Version(names ...string) (string, error) {
	sum := sha256.New()
	for _, name := range names {
		var b []byte
		if name != "" {
			path, err := s.path(name)
			if err != nil {
				return "", err
			}
			if b, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("secret %s: %w", name, err)
			}
		}
		part := sha256.Sum256(b)
		sum.Write(part[:])
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// Delete removes a secret; that there is none is no error.
func (s *Secrets) Delete(name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	return nil
}

// Names lists what is stored.
func (s *Secrets) Names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list the secrets: %w", err)
	}
	var out []string
	for _, e := range entries {
		if n, ok := strings.CutSuffix(e.Name(), ".age"); ok && secretName.MatchString(n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (s *Secrets) path(name string) (string, error) {
	if !secretName.MatchString(name) {
		return "", errors.New("the name of a secret has a-z, 0-9, '-', '_' and '.', at most 80")
	}
	return filepath.Join(s.dir, name+".age"), nil
}

// writeFile writes a private file beside path, flushes it, and puts it in
// place with how (rename replaces, link refuses to).
func writeFile(path string, data []byte, how func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := how(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
