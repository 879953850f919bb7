package certificate

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"smelt/inventory"
)

func sample() Certificate {
	return Certificate{
		ID: "r1-20261122T140000Z", Site: "hall-7", Node: "rig-01", Position: "A2-S3", Run: "r1", Plan: "d1ge57", Permit: "p1", Policy: "secure", Approved: "operator:anna",
		Board: inventory.Board{Vendor: "MSI", Product: "Z270-A PRO", Serial: "B1"},
		Began: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC), Ended: time.Date(2026, 11, 22, 14, 2, 0, 0, time.UTC),
		Disks: []inventory.Wiped{
			{Disk: inventory.DiskID{Serial: "S3YJNX0K412", WWN: "eui.1", Path: "pci-0000:00:05.0-nvme-1", Size: 256e9}, Model: "Samsung SSD 970", Level: "purge", NIST: "purge",
				Method: "NVMe Sanitize, block erase", Notes: []string{"a drive that <lied>"}, Bytes: 256e9, Proofs: 80, Zeros: true, Took: 4200 * time.Millisecond},
			{Disk: inventory.DiskID{Serial: "WD-1", Size: 4e12}, Level: "secure", NIST: "clear", Method: "ATA SECURITY ERASE", Took: time.Hour},
		},
		Spared: []Disk{{inventory.DiskID{Serial: "STICK", Size: 16e9}, "USB stick"}},
		Was: LeftoversOf(&inventory.Salvage{MinerOS: "HiveOS", WorkerName: "hall7-a10", RigID: "700110", Pools: []string{"eu1.pool.example:3333"},
			Files: map[string]string{"/hive-config/wallet.conf": "TREX_TEMPLATE=\"REDACTED\"\nTREX_PASS=\"REDACTED\"\n", "/hive-config/rig.conf": "WORKER_NAME=\"hall7-a10\"\nRIG_PASSWD=\"REDACTED\"\n"}}),
	}
}

func TestSignAndOpen(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	c := sample()
	b, err := Sign(c, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(b, other, pub)
	if err != nil || !cmp.Equal(got, c.Sealed()) {
		t.Errorf("%v\n%s", err, cmp.Diff(got, c.Sealed()))
	}
	if _, err := Open(b, other); !errors.Is(err, ErrForged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Open(b); !errors.Is(err, ErrForged) {
		t.Errorf("no key: %v", err)
	}
	// Not one byte may be changed.
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	for i := range e.Payload {
		changed := e
		changed.Payload = bytes.Clone(e.Payload)
		changed.Payload[i] ^= 1
		x, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(x, pub); !errors.Is(err, ErrForged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	// A signature of the same key over something else is none of a certificate.
	e.PayloadType = "application/vnd.smelt.image-manifest.v2+json"
	x, _ := json.Marshal(e)
	if _, err := Open(x, pub); !errors.Is(err, ErrFormat) {
		t.Errorf("another payload type: %v", err)
	}
	for _, s := range []string{"", "{}", "[]", string(b) + "{}", `{"payloadType":1}`} {
		if _, err := Open([]byte(s), pub); !errors.Is(err, ErrFormat) {
			t.Errorf("%.40q: %v", s, err)
		}
	}
}

// What is not true is not signed, by whomever it is asked.
func TestCheck(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(nil)
	for name, change := range map[string]func(*Certificate){
		"weaker than the policy": func(c *Certificate) { c.Disks[1].Level = "overwrite" },
		"not wiped":              func(c *Certificate) { c.Disks[0].Level = "none" },
		"a level of its own":     func(c *Certificate) { c.Disks[0].Level = "Purge" },
		"no policy":              func(c *Certificate) { c.Policy = "" },
		"no disk":                func(c *Certificate) { c.Disks = nil },
		"no permit":              func(c *Certificate) { c.Permit = "" },
		"no node":                func(c *Certificate) { c.Node = "" },
	} {
		c := sample()
		change(&c)
		if b, err := Sign(c, key); err == nil {
			t.Errorf("%s: signed %s", name, b)
		}
	}
}

func TestPrint(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(nil)
	c := sample()
	c.Simulated = true
	b, err := Sign(c, key)
	if err != nil {
		t.Fatal(err)
	}
	var html, text bytes.Buffer
	if err := WriteHTML(&html, c.Sealed(), b, "k3y1d"); err != nil {
		t.Fatal(err)
	}
	if err := WriteText(&text, c.Sealed()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"S3YJNX0K412", "NVMe Sanitize, block erase", "eui.1", "80 places", "WD-1", "ATA SECURITY ERASE", "nothing but what the drive reports", "SIMULATED",
		"STICK", "HiveOS", "hall7-a10", "700110", "eu1.pool.example:3333", "wallet.conf", "operator:anna", "SP 800-88r1", "256.0 GB"} {
		if !strings.Contains(html.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q", want)
		}
	}
	for _, not := range []string{"<lied>", "<script", "http://", "https://", "REDACTED"} {
		if strings.Contains(html.String(), not) {
			t.Errorf("the page holds %q", not)
		}
	}
	if !strings.Contains(html.String(), "k3y1d") {
		t.Error("the page does not name the key")
	}
	if n := len(c.Was.Files); n != 2 || c.Was.Files[0].Redacted != 1 || c.Was.Files[1].Redacted != 2 {
		t.Errorf("files %+v", c.Was.Files)
	}
}

func FuzzOpen(f *testing.F) {
	pub, key, _ := ed25519.GenerateKey(bytes.NewReader(make([]byte, 64)))
	b, err := Sign(sample(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payloadType":"application/vnd.smelt.wipe-certificate.v1+json","payload":"e30=","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Nobody but the holder of the key makes one, and what opens is whole.
		if c, err := Open(b, pub); err == nil && c.Check() != nil {
			t.Errorf("%+v", c)
		}
	})
}
