package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"smelt/internal/secureboot"
	"smelt/pxe"
)

// siteKey is the key that signs permits and, unless the site signs offline,
// images. It is made on first use in STATE/site.key (0600).
func siteKey(state string) (ed25519.PrivateKey, error) {
	k, err := keyFile(siteKeyPath(state), func() (crypto.PrivateKey, error) {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	})
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an ed25519 key, found %T", siteKeyPath(state), k)
	}
	return key, nil
}

func siteKeyPath(state string) string { return filepath.Join(state, "site.key") }

// agentCertificate is what agents pin: the SHA-256 of its public key is built
// into the RAM system. Names and dates are of no weight to them, because the
// clock of a rig is often dead.
func agentCertificate(state string) (cert tls.Certificate, pin string, err error) {
	k, err := keyFile(filepath.Join(state, "agent-tls.key"), func() (crypto.PrivateKey, error) {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	})
	if err != nil {
		return cert, "", err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return cert, "", fmt.Errorf("%s: want an ECDSA key, found %T", filepath.Join(state, "agent-tls.key"), k)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return cert, "", err
	}
	sum := sha256.Sum256(spki)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "smelt"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 4.1.2.5: no well-defined end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return cert, "", err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:]), nil
}

// secureBootKey signs what firmware starts. Its certificate, made on first use
// too, is what the machines of the site are enrolled with: smelt secureboot
// export. It is kept because machines know these very bytes.
func secureBootKey(state, site string) (key secureboot.Key, err error) {
	path := filepath.Join(state, "secureboot.key")
	k, err := keyFile(path, func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, secureboot.Bits) })
	if err != nil {
		return key, err
	}
	private, ok := k.(*rsa.PrivateKey)
	if !ok {
		return key, fmt.Errorf("%s: want an RSA key, found %T", path, k)
	}
	path = filepath.Join(state, "secureboot.cer")
	cert, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if cert, err = secureboot.NewCertificate(private, site); err == nil {
			err = writeNew(path, cert)
		}
	}
	if err != nil {
		return key, fmt.Errorf("secure boot certificate: %w", err)
	}
	if key, err = secureboot.NewKey(private, cert); err != nil {
		return key, fmt.Errorf("%s: %w; restore both files from a backup, or move both away to make new ones (machines that know the old certificate start nothing of ours then)", path, err)
	}
	return key, nil
}

// bootCA signs the certificate of HTTPS boot. Firmware is told to trust it:
// smelt secureboot export.
func bootCA(state, site string) (key *rsa.PrivateKey, cert []byte, err error) {
	path := filepath.Join(state, "boot-ca.key")
	k, err := keyFile(path, func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, secureboot.Bits) })
	if err != nil {
		return nil, nil, err
	}
	key, ok := k.(*rsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s: want an RSA key, found %T", path, k)
	}
	path = filepath.Join(state, "boot-ca.cer")
	cert, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if cert, err = secureboot.NewCA(key, site); err == nil {
			err = writeNew(path, cert)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("boot CA: %w", err)
	}
	return key, cert, nil
}

// bootTLS is the configuration of the listener for HTTPS boot.
func bootTLS(state, site, addr string) (*tls.Config, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	key, ca, err := bootCA(state, site)
	if err != nil {
		return nil, err
	}
	cert, err := secureboot.ServerCertificate(key, ca, a.Addr())
	if err != nil {
		return nil, fmt.Errorf("certificate of HTTPS boot: %w; restore boot-ca.key and boot-ca.cer in %s from a backup, or move both away to make new ones (firmware that knows the old CA fetches nothing then)", err, state)
	}
	return pxe.FirmwareTLS(cert), nil
}

// keyFile reads a PKCS #8 key, or makes it when there is none. A file that is
// there and cannot be read is never replaced.
func keyFile(path string, make func() (crypto.PrivateKey, error)) (crypto.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err := make()
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			return nil, fmt.Errorf("keep a new key: %w", err)
		}
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM key in it; restore it from a backup, or move it away to make a new one (agents and images of the old key are refused then)", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// writeNew makes a 0600 file that is whole or not there.
func writeNew(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Link(f.Name(), path) // fails when another process made it first
}
