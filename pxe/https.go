package pxe

import "crypto/tls"

// FirmwareTLS is a TLS configuration that UEFI firmware can speak, for a server
// of boot files and nothing else. EDK2 offers only suites with a key exchange
// by RSA or DHE, up to TLS 1.2 (OVMF 2022.11 and 2025.02; tianocore/edk2#9850),
// and of those Go has the first: without forward secrecy, so what goes here
// must be no secret. It proves to firmware whose files these are.
func FirmwareTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, // for whatever firmware learns them
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA, // EDK2 before 2019
		},
		NextProtos: []string{"http/1.1"},
	}
}
