package secureboot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// NewCA makes the certificate of the authority for HTTPS boot, which firmware
// keeps apart from its Secure Boot keys (EFI variable TlsCaCertificate). It is
// a key of its own: who can enrol one need not trust the other.
func NewCA(private *rsa.PrivateKey, site string) ([]byte, error) {
	tmpl, err := template(&private.PublicKey, "Smelt HTTPS boot "+site)
	if err != nil {
		return nil, err
	}
	tmpl.KeyUsage = x509.KeyUsageCertSign
	tmpl.BasicConstraintsValid, tmpl.IsCA, tmpl.MaxPathLenZero = true, true, true
	return x509.CreateCertificate(rand.Reader, tmpl, tmpl, &private.PublicKey, private)
}

// ServerCertificate makes a certificate, with a new key, for a server at some
// addresses. It is RSA because EDK2 offers no suite with ECDSA, or ECDHE at
// all (tianocore/edk2#9850).
func ServerCertificate(private *rsa.PrivateKey, ca []byte, addrs ...netip.Addr) (tls.Certificate, error) {
	parent, err := x509.ParseCertificate(ca)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of HTTPS boot: %v", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, Bits)
	if err != nil {
		return tls.Certificate{}, err
	}
	name := "smelt"
	if len(addrs) > 0 {
		name = addrs[0].String() // EDK2 compares this too
	}
	tmpl, err := template(&key.PublicKey, name)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, a := range addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(a.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, private)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// template is a certificate of a key, whose number is made of it.
func template(public *rsa.PublicKey, name string) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki)
	sum[0] &= 0x7f // a positive number
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]),
		Subject:      pkix.Name{CommonName: name},
		// Firmware's clock is often dead. Some cannot read the form that dates
		// from 2050 on have (RFC 5280 section 4.1.2.5).
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:  time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC),
	}, nil
}
