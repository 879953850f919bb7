package release

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// maxKeyFile is the longest key file that is read.
const maxKeyFile = 64 << 10

// workFactor of scrypt: about a second a try (age's own choice).
var workFactor = 18

// NewKey makes a signing key in file, which must not exist, and its public half
// in file.pub. A passphrase encrypts it (age, scrypt); without one the file
// itself must be kept where nobody reads it.
func NewKey(file, passphrase string) (ed25519.PublicKey, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if passphrase != "" {
		if text, err = encrypt(text, passphrase); err != nil {
			return nil, err
		}
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	if err := create(file, text, 0o600); err != nil {
		return nil, err
	}
	return pub, create(file+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o644)
}

// ReadKey reads what NewKey made. The passphrase is asked for only when there is one.
func ReadKey(file string, passphrase func() (string, error)) (ed25519.PrivateKey, error) {
	b, err := readKeyFile(file)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(b, []byte(armor.Header)) {
		pass, err := passphrase()
		if err != nil {
			return nil, fmt.Errorf("%s is encrypted: %w", file, err)
		}
		if b, err = decrypt(b, pass); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key: make one with: smelt image trust key FILE", file)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an ed25519 key, found %T", file, k)
	}
	return key, nil
}

// ReadPublicKey reads the .pub file of a key.
func ReadPublicKey(file string) (ed25519.PublicKey, error) {
	b, err := readKeyFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no public key: want the file that ends in .pub", file)
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an ed25519 key, found %T", file, k)
	}
	return key, nil
}

func readKeyFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

func encrypt(text []byte, passphrase string) ([]byte, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	r.SetWorkFactor(workFactor)
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, r)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}

func decrypt(b []byte, passphrase string) ([]byte, error) {
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(b)), id)
	if err != nil {
		return nil, errors.New("the passphrase does not open it")
	}
	return io.ReadAll(io.LimitReader(r, maxKeyFile))
}

// create writes a new file, whole or not at all; one that is there stays.
func create(file string, b []byte, mode fs.FileMode) error {
	return place(file, b, mode, os.Link)
}

// replace writes a file in one step.
func replace(file string, b []byte) error { return place(file, b, 0o644, os.Rename) }

func place(file string, b []byte, mode fs.FileMode, how func(from, to string) error) error {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync()); err != nil {
		return err
	}
	if err := how(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
