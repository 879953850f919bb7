package pxe

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"smelt/internal/secureboot"
)

// bootCA is an authority for HTTPS boot, and a certificate of the lab's server
// with its key as PEM.
func bootCA(t testing.TB) (ca, server []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = secureboot.NewCA(key, "test"); err != nil {
		t.Fatal(err)
	}
	cert, err := secureboot.ServerCertificate(key, ca, netip.MustParseAddr("10.77.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	server = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	return ca, append(server, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
}

// TestFirmwareTLS: a client that offers what EDK2 offers gets a connection, and
// the certificate is good for the address, by the authority alone.
func TestFirmwareTLS(t *testing.T) {
	ca, server := bootCA(t)
	cert, err := tls.X509KeyPair(server, server)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(ca)
	if err != nil {
		t.Fatal(err)
	}
	trusting := x509.NewCertPool()
	trusting.AddCert(parsed)
	for _, c := range []struct {
		name   string
		config *tls.Config
		fails  string
	}{
		{"EDK2", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, RootCAs: trusting, ServerName: "10.77.0.1"}, ""},
		{"an older EDK2", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_256_CBC_SHA}, RootCAs: trusting, ServerName: "10.77.0.1"}, ""},
		{"curl", &tls.Config{RootCAs: trusting, ServerName: "10.77.0.1"}, ""},
		{"no authority", &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "10.77.0.1"}, "unknown authority"},
		{"another server", &tls.Config{RootCAs: trusting, ServerName: "10.77.0.2"}, "10.77.0.2"},
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, RootCAs: trusting, ServerName: "10.77.0.1"}, "protocol version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go func() {
				s := tls.Server(far, FirmwareTLS(cert))
				_ = s.Handshake()
				far.Close()
			}()
			err := tls.Client(near, c.config).Handshake()
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%v, want %q", err, c.fails)
			}
		})
	}
}

// TestHTTPSNetwork: UEFI HTTP clients of a network with HTTPS are sent there,
// others as ever; iPXE takes no authority.
func TestHTTPSNetwork(t *testing.T) {
	c := testConfig(t, tableBooter{"": {Action: Kernel, Why: "x"}})
	c.Networks[0].HTTPS = netip.MustParseAddrPort("10.77.0.1:443")
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		options map[uint8][]byte
		file    string
	}{
		{httpUEFI, "https://10.77.0.1/boot/file/snponly.efi"},
		{pxeUEFI, "snponly.efi"},
		{ipxeROM, "http://10.77.0.1/boot/script?"},
	} {
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: row.options}.tell(t, s, epoch)
		if a == nil {
			t.Fatal(e.Why)
		}
		if got := string(a.msg.Options.Get(dhcpv4.OptionBootfileName)); !strings.HasPrefix(got, row.file) {
			t.Errorf("%q, want %q", got, row.file)
		}
	}
	c.Networks[0].HTTPS = netip.MustParseAddrPort("0.0.0.0:443")
	if _, err := New(c); err == nil {
		t.Error("an address that no machine can be told was taken")
	}
}
