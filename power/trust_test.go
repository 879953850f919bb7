package power_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/power"
)

func shows(key string) (tls.ConnectionState, string) {
	sum := sha256.Sum256([]byte(key))
	return tls.ConnectionState{PeerCertificates: []*x509.Certificate{{RawSubjectPublicKeyInfo: []byte(key)}}}, base64.StdEncoding.EncodeToString(sum[:])
}

func trust(t *testing.T, pin, dir string) *power.Trust {
	t.Helper()
	x, err := power.NewTrust(pin, dir, "10.0.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// The key that answers first is trusted from then on, by whoever comes later;
// another one is refused, and the error says what to do.
func TestTrust(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bmc")
	own, pin := shows("own")
	other, otherPin := shows("other")
	first, beside := trust(t, "", dir), trust(t, "", dir)
	if k := first.Key(); k != (power.Key{}) {
		t.Errorf("before the first connection: %+v", k)
	}
	if err := first.Verify(own); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]*power.Trust{"itself": first, "one that was there already": beside, "the next process": trust(t, "", dir)} {
		if k := x.Key(); k.Pin != pin || time.Since(k.Since).Abs() > time.Minute || k.Other != "" {
			t.Errorf("%s trusts %+v", name, k)
		}
		err := x.Verify(other)
		if err == nil || !strings.Contains(err.Error(), "pin: "+otherPin) || !strings.Contains(err.Error(), pin+" as since 20") || x.Key().Other != otherPin {
			t.Errorf("%s: another key: %v, %+v", name, err, x.Key())
		}
		if err := x.Verify(own); err != nil || x.Key().Other != "" {
			t.Errorf("%s: its own again: %v, %+v", name, err, x.Key())
		}
	}
	// What the site names wins over what was trusted first.
	if x := trust(t, otherPin, dir); x.Verify(other) != nil || x.Verify(own) == nil || !x.Key().Since.IsZero() {
		t.Errorf("a pin of the site: %+v", x.Key())
	}
	// A damaged file trusts nobody.
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for _, text := range []string{"", "\n", "abc\n", pin + pin} {
		if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := trust(t, "", dir).Verify(own); err == nil || !strings.Contains(err.Error(), files[0]) {
			t.Errorf("with %q: %v", text, err)
		}
	}
}

// Of two that connect first at the same time one is believed, by both.
func TestTrustOnce(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, key := range []string{"a", "b"} {
			x := trust(t, "", dir)
			state, _ := shows(key)
			wg.Go(func() { errs[i] = x.Verify(state) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("both or none: %v", errs)
		}
	}
}
