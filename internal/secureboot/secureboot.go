// Package secureboot makes what UEFI Secure Boot asks for: signatures in EFI
// programs (Microsoft's Authenticode, as far as UEFI 2.10 section 32.5.1 wants
// it) and the key databases that firmware is enrolled with (section 32.4).
//
// It reads and writes only what it needs for that, with one algorithm: RSA with
// SHA-256, which all firmware knows.
package secureboot

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// Key signs what firmware starts.
type Key struct {
	private *rsa.PrivateKey
	cert    *x509.Certificate
}

// Bits is the size of a new key. Older firmware takes no other.
const Bits = 2048

// NewCertificate makes the certificate of a key that signs for a site. It is
// what firmware is enrolled with, so it is made once and kept.
func NewCertificate(private *rsa.PrivateKey, site string) ([]byte, error) {
	tmpl, err := template(&private.PublicKey, "Smelt Secure Boot "+site)
	if err != nil {
		return nil, err
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign
	tmpl.BasicConstraintsValid, tmpl.IsCA = true, true
	return x509.CreateCertificate(rand.Reader, tmpl, tmpl, &private.PublicKey, private)
}

// NewKey returns the key of a certificate.
func NewKey(private *rsa.PrivateKey, certificate []byte) (Key, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return Key{}, fmt.Errorf("secure boot certificate: %v", err)
	}
	if pub, ok := cert.PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(&private.PublicKey) {
		return Key{}, errors.New("the secure boot certificate is of another key")
	}
	return Key{private, cert}, nil
}

// Certificate is what firmware is enrolled with, in DER.
func (k Key) Certificate() []byte { return k.cert.Raw }

// Object identifiers of RFC 2315 and RFC 8017, and of Microsoft's paper
// "Windows Authenticode Portable Executable Signature Format".
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidIndirectData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImageData   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

var algSHA256 = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}

// The parts of PKCS #7 (RFC 2315 sections 7 and 9) that a signature has.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional"` // [0] EXPLICIT
	}
	signedData struct {
		Version          int
		DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
		Content          contentInfo
		Certificates     asn1.RawValue // [0] IMPLICIT
		Signers          []signer      `asn1:"set"`
	}
	signer struct {
		Version         int
		Issuer          issuer
		DigestAlgorithm pkix.AlgorithmIdentifier
		Attributes      asn1.RawValue `asn1:"optional"` // [0] IMPLICIT
		Algorithm       pkix.AlgorithmIdentifier
		Signature       []byte
	}
	issuer struct {
		Name   asn1.RawValue
		Serial *big.Int
	}
	attribute struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
)

func tagged(tag int, content []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: content}
}

// sign is a SignedData by k over content, which is not in it.
func (k Key) sign(content contentInfo, attributes asn1.RawValue, digest [sha256.Size]byte) ([]byte, error) {
	signature, err := rsa.SignPKCS1v15(rand.Reader, k.private, crypto.SHA256, digest[:])
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(signedData{
		Version:          1,
		DigestAlgorithms: []pkix.AlgorithmIdentifier{algSHA256},
		Content:          content,
		Certificates:     tagged(0, k.cert.Raw),
		Signers: []signer{{
			Version:         1,
			Issuer:          issuer{asn1.RawValue{FullBytes: k.cert.RawIssuer}, k.cert.SerialNumber},
			DigestAlgorithm: algSHA256,
			Attributes:      attributes,
			Algorithm:       pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue},
			Signature:       signature,
		}},
	})
}
