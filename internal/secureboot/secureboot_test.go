package secureboot

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var testKey = sync.OnceValue(func() Key {
	private, err := rsa.GenerateKey(rand.Reader, Bits)
	if err != nil {
		panic(err)
	}
	cert, err := NewCertificate(private, "test")
	if err != nil {
		panic(err)
	}
	k, err := NewKey(private, cert)
	if err != nil {
		panic(err)
	}
	return k
})

// tool finds a foreign program or file of Debian.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if strings.HasPrefix(name, "/") {
		p = name
		_, err = os.Stat(name)
	}
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("needs %s", name)
	}
	return p
}

func read(t *testing.T, p string) []byte {
	t.Helper()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSign: sbverify takes our signature on programs of Debian, with and
// without one of another signer, and no longer when any one bit differs that
// firmware looks at.
func TestSign(t *testing.T) {
	sbverify := tool(t, "sbverify")
	k := testKey()
	cert := put(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate()}))
	verify := func(b []byte) (string, error) {
		out, err := exec.Command(sbverify, "--cert", cert, put(t, "program.efi", b)).CombinedOutput()
		return string(out), err
	}
	for _, p := range []string{"/usr/lib/ipxe/snponly.efi", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"} {
		plain := read(t, tool(t, p))
		if out, err := verify(plain); err == nil {
			t.Errorf("%s: verifies unsigned: %s", p, out)
		}
		one, err := k.Sign(plain)
		if err != nil {
			t.Fatal(err)
		}
		two, err := k.Sign(plain)
		if err != nil || !bytes.Equal(one, two) {
			t.Errorf("%s: signed twice, two results (%v)", p, err)
		}
		if out, err := verify(one); err != nil {
			t.Errorf("%s: %v: %s", p, err, out)
		}
		if again, err := k.Sign(one); err != nil || len(again)%8 != 0 {
			t.Errorf("%s: a second signature: %v", p, err)
		} else if out, err := verify(again); err != nil {
			t.Errorf("%s with two signatures: %v: %s", p, err, out)
		}
		for _, at := range []int{0x50, 0x400, len(plain) / 2, len(plain) - 1} {
			bad := slices.Clone(one)
			bad[at] ^= 1
			if out, err := verify(bad); err == nil {
				t.Errorf("%s: verifies with a bit flipped at %#x: %s", p, at, out)
			}
		}
	}
}

func TestSignRefuses(t *testing.T) {
	k := testKey()
	good := read(t, tool(t, "/usr/lib/ipxe/snponly.efi"))
	coff := int(binary.LittleEndian.Uint32(good[0x3c:]))
	for name, change := range map[string]func(b []byte) []byte{
		"does not begin with MZ": func(b []byte) []byte { return b[1:] },
		"within its headers":     func(b []byte) []byte { return b[:200] },
		"no PE header":           func(b []byte) []byte { b[coff] = 'X'; return b },
		"PE32+":                  func(b []byte) []byte { b[coff+24] = 0x0b; b[coff+25] = 1; return b },
		"within a section":       func(b []byte) []byte { return b[:len(b)-4096] },
		"not at its end": func(b []byte) []byte {
			s, err := k.Sign(b)
			if err != nil {
				t.Fatal(err)
			}
			return append(s, "more program"...)
		},
	} {
		if _, err := k.Sign(change(slices.Clone(good))); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewKey(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, Bits)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewKey(other, testKey().Certificate()); err == nil {
		t.Error("a certificate of another key was taken")
	}
	if _, err := NewKey(other, []byte("junk")); err == nil {
		t.Error("junk was taken")
	}
}

// TestList: Debian's efitools find our certificate in the list.
func TestList(t *testing.T) {
	cmd := exec.Command(tool(t, "sig-list-to-certs"), put(t, "db.esl", testKey().List()), "out")
	cmd.Dir = t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := read(t, filepath.Join(cmd.Dir, "out-0.der")); !bytes.Equal(got, testKey().Certificate()) {
		t.Error("another certificate came out")
	}
}

// TestVariable takes a .auth apart as firmware does and lets OpenSSL verify it.
func TestVariable(t *testing.T) {
	k := testKey()
	at := time.Date(2026, 11, 22, 10, 11, 12, 13, time.FixedZone("", 3600))
	b, err := k.Variable(KEK, at)
	if err != nil {
		t.Fatal(err)
	}
	stamp := []byte{0xea, 0x07, 11, 22, 9, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if !bytes.Equal(b[:16], stamp) {
		t.Errorf("time %x, want %x", b[:16], stamp)
	}
	size := int(binary.LittleEndian.Uint32(b[16:]))
	if !bytes.Equal(b[16+size:], k.List()) {
		t.Error("what is behind the signature is not the list")
	}
	if want := []byte{0, 2, 0xf1, 0x0e, 0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7}; !bytes.Equal(b[20:40], want) {
		t.Errorf("header %x, want %x", b[20:40], want)
	}
	wrapped, err := asn1.Marshal(contentInfo{oidSignedData, tagged(0, b[40:16+size])})
	if err != nil {
		t.Fatal(err)
	}
	signed := []byte("K\x00E\x00K\x00")
	signed = append(signed, 0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c)
	signed = append(signed, 0x27, 0, 0, 0)
	signed = append(append(signed, stamp...), k.List()...)
	openssl := func(content []byte) error {
		cert := put(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate()}))
		out, err := exec.Command(tool(t, "openssl"), "smime", "-verify", "-binary", "-purpose", "any", "-inform", "DER", "-in", put(t, "sig", wrapped), "-content", put(t, "content", content), "-CAfile", cert, "-out", os.DevNull).CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	if err := openssl(signed); err != nil {
		t.Error(err)
	}
	if openssl(append(signed, 0)) == nil {
		t.Error("verifies another content")
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range []string{"/usr/lib/ipxe/snponly.efi", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"} {
		if b, err := os.ReadFile(p); err == nil {
			f.Add(b[:1024])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			return
		}
		p.digest()
		s, err := testKey().Sign(b)
		if err != nil {
			t.Fatalf("parsed, and not signed: %v", err)
		}
		q, err := parse(s)
		if err != nil {
			t.Fatalf("what was signed does not parse: %v", err)
		}
		if q.digest() != p.digest() {
			t.Fatal("the signature changed what it signs")
		}
	})
}

func TestCertificate(t *testing.T) {
	c, err := x509.ParseCertificate(testKey().Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSignatureFrom(c); err != nil || c.Subject.CommonName != "Smelt Secure Boot test" || c.SerialNumber.Sign() <= 0 {
		t.Errorf("%v: %+v", err, c)
	}
}
