package images

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk makes an image of n chunks and a bit, every third of them zero.
func disk(n int) []byte {
	b := make([]byte, n*ChunkSize+512)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := 0; i < len(b); i += 4096 {
		if i/ChunkSize%3 != 1 {
			b[i] = byte(r.Uint32()) | 1
			b[i+100] = byte(r.Uint32())
		}
	}
	return b
}

func key(seed byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return k.Public().(ed25519.PublicKey), k
}

func described() Manifest {
	return Manifest{
		Name: "ai-node", Arch: "amd64", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Key: "0badcafe",
		Root: "0f0e0d0c-0b0a-0908-0706-050403020100", Kernel: "6.1.0-56-amd64",
	}
}

func valid(t testing.TB, n int) (Manifest, []byte) {
	t.Helper()
	raw := disk(n)
	var blob bytes.Buffer
	c, err := Compress(t.Context(), &blob, bytes.NewReader(raw), int64(len(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := described()
	m.Size, m.Blob, m.BlobLen, m.Chunks = c.Size, c.Blob, c.BlobLen, c.Chunks
	return m, blob.Bytes()
}

// The blob must stay readable without us.
func TestCompressIsPlainZstd(t *testing.T) {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("zstd is not installed")
		}
		t.Skip("zstd is not installed")
	}
	raw := disk(7)
	m, blob := valid(t, 7)
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := m.Data(); got >= m.Size || got == 0 {
		t.Errorf("%d of %d bytes are data: zero chunks were not seen", got, m.Size)
	}
	cmd := exec.Command(zstd, "-dc")
	cmd.Stdin = bytes.NewReader(blob)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(out) != sha256.Sum256(raw) {
		t.Error("zstd -d does not give the disk image back")
	}
}

func TestOpen(t *testing.T) {
	pub, priv := key(1)
	other, _ := key(2)
	m, _ := valid(t, 2)
	b, err := Sign(m, priv)
	if err != nil {
		t.Fatal(err)
	}
	got, d, err := Open(b, other, pub)
	if err != nil {
		t.Fatal(err)
	}
	if got.Blob != m.Blob || !slices.Equal(got.Chunks, m.Chunks) || d.IsZero() {
		t.Errorf("opened %+v", got)
	}

	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	repack := func(change func(*envelope)) []byte {
		c := e
		c.Payload, c.Signatures = slices.Clone(e.Payload), slices.Clone(e.Signatures)
		change(&c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		keys []ed25519.PublicKey
		want error
	}{
		{"no key", b, nil, ErrUnsigned},
		{"another's key", b, []ed25519.PublicKey{other}, ErrUnsigned},
		{"empty key", b, []ed25519.PublicKey{{}}, ErrUnsigned},
		{"changed payload", repack(func(e *envelope) { e.Payload[9] ^= 1 }), []ed25519.PublicKey{pub}, ErrUnsigned},
		{"no signature", repack(func(e *envelope) { e.Signatures = nil }), []ed25519.PublicKey{pub}, ErrUnsigned},
		{"another type", repack(func(e *envelope) { e.PayloadType = "x" }), []ed25519.PublicKey{pub}, ErrEnvelope},
		{"bare signature", repack(func(e *envelope) { e.Signatures[0].Sig = ed25519.Sign(priv, e.Payload) }), []ed25519.PublicKey{pub}, ErrUnsigned},
		{"trailing bytes", append(slices.Clone(b), '1'), []ed25519.PublicKey{pub}, ErrEnvelope},
		{"signed nonsense", must(seal([]byte(`{"name":"x"}`), priv)), []ed25519.PublicKey{pub}, ErrManifest},
		{"signed unknown field", must(seal([]byte(`{"namee":"x"}`), priv)), []ed25519.PublicKey{pub}, ErrManifest},
	} {
		if m, d, err := Open(tt.b, tt.keys...); !errors.Is(err, tt.want) || !d.IsZero() || m.Chunks != nil {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestSigners(t *testing.T) {
	m, _ := valid(t, 1)
	pub1, priv1 := key(1)
	pub2, priv2 := key(2)
	pub3, priv3 := key(3)
	two := Signers{Keys: []ed25519.PublicKey{pub1, pub2, pub2}, Threshold: 2}
	one := must(Sign(m, priv1))
	for name, tt := range map[string]struct {
		b    []byte
		good bool
	}{
		"one of two":             {one, false},
		"the same key twice":     {must(merge(one, must(json.Marshal(func() (e envelope) { e, _ = decodeEnvelope(one); e.Signatures[0].KeyID = "x"; return }())))), false},
		"a stranger as second":   {must(cosign(one, priv3)), false},
		"both":                   {must(cosign(one, priv2)), true},
		"both, and a stranger":   {must(cosign(must(cosign(one, priv3)), priv2)), true},
		"a key that stands once": {must(cosign(must(Sign(m, priv2)), priv2)), false},
	} {
		if _, d, err := two.Open(tt.b); (err == nil) != tt.good || err != nil && (!errors.Is(err, ErrUnsigned) || !d.IsZero()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One signer's bytes listed twice are still one signer.
	e, err := decodeEnvelope(one)
	if err != nil {
		t.Fatal(err)
	}
	e.Signatures = append(e.Signatures, e.Signatures[0])
	if _, _, err := two.Open(must(json.Marshal(e))); !errors.Is(err, ErrUnsigned) {
		t.Errorf("one signature twice: %v", err)
	}
	for _, s := range []Signers{{Threshold: 1}, {Keys: []ed25519.PublicKey{pub3}, Threshold: 2}, {Keys: []ed25519.PublicKey{pub3[:31]}}} {
		if s.Check() == nil {
			t.Errorf("%+v passes", s)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestValidateRefuses(t *testing.T) {
	good, _ := valid(t, 4)
	for name, change := range map[string]func(*Manifest){
		"path as name":         func(m *Manifest) { m.Name = "../x" },
		"no name":              func(m *Manifest) { m.Name = "" },
		"root that injects":    func(m *Manifest) { m.Root = "x init=/bin/sh" },
		"no architecture":      func(m *Manifest) { m.Arch = "" },
		"path as variant":      func(m *Manifest) { m.Variant = "../r535" },
		"driver's version":     func(m *Manifest) { m.Driver = &Driver{Version: "535; rm", Modules: "open", CUDA: "12.2"} },
		"driver's modules":     func(m *Manifest) { m.Driver = &Driver{Version: "535.309.01", Modules: "any", CUDA: "12.2"} },
		"kernel that injects":  func(m *Manifest) { m.Kernel = "a b" },
		"negative size":        func(m *Manifest) { m.Size = -m.Size },
		"huge size":            func(m *Manifest) { m.Size = 1 << 60 },
		"half a sector":        func(m *Manifest) { m.Size--; m.Chunks[4].Length-- },
		"missing chunk":        func(m *Manifest) { m.Chunks = m.Chunks[:4] },
		"extra chunk":          func(m *Manifest) { m.Chunks = append(m.Chunks, m.Chunks[4]) },
		"gap":                  func(m *Manifest) { m.Chunks[2].Offset += 512 },
		"overlap":              func(m *Manifest) { m.Chunks[2].Offset = m.Chunks[0].Offset },
		"short chunk":          func(m *Manifest) { m.Chunks[2].Length -= 512 },
		"zero with digest":     func(m *Manifest) { m.Chunks[1].Digest[0] = 1 },
		"data without digest":  func(m *Manifest) { m.Chunks[2].Digest = Digest{} },
		"frame outside":        func(m *Manifest) { m.Chunks[3].BlobOff = m.BlobLen },
		"frame overflows":      func(m *Manifest) { m.Chunks[3].BlobOff = 1<<63 - 1 },
		"frame before another": func(m *Manifest) { m.Chunks[3].BlobOff = 0 },
		"negative frame":       func(m *Manifest) { m.Chunks[0].BlobOff = -1 },
		"endless frame":        func(m *Manifest) { m.Chunks[3].BlobLen, m.BlobLen = 1<<40, 1<<41 },
		"no frame":             func(m *Manifest) { m.Chunks[0].BlobLen = 0 },
		"no blob":              func(m *Manifest) { m.Blob = Digest{} },
	} {
		m := good
		m.Chunks = slices.Clone(good.Chunks)
		change(&m)
		if err := m.Validate(); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
		if _, priv := key(1); true {
			if _, err := Sign(m, priv); err == nil {
				t.Errorf("%s: was signed", name)
			}
		}
	}
}

func TestCompressStops(t *testing.T) {
	raw := disk(5)
	if _, err := Compress(t.Context(), badWriter{}, bytes.NewReader(raw), int64(len(raw)), nil); err == nil {
		t.Error("a full disk went unnoticed")
	}
}

type badWriter struct{}

func (badWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }

func FuzzOpen(f *testing.F) {
	pub, priv := key(1)
	m, _ := valid(f, 2)
	f.Add(must(Sign(m, priv)), true)
	f.Add([]byte(`{"name":"x","size":1048576,"chunks":[]}`), false)
	f.Add(must(json.Marshal(m)), false)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole {
			b = must(seal(b, priv)) // get past the signature, to the parser
		}
		m, d, err := Open(b, pub)
		if err != nil {
			if m.Chunks != nil || !d.IsZero() {
				t.Fatal("an error came with a manifest")
			}
			return
		}
		var end int64
		for _, c := range m.Chunks {
			if c.Offset != end || c.Length <= 0 || c.BlobOff < 0 || c.BlobOff+c.BlobLen > m.BlobLen {
				t.Fatalf("chunk %+v was accepted", c)
			}
			end += c.Length
		}
		if end != m.Size {
			t.Fatalf("chunks end at %d of %d", end, m.Size)
		}
		again, _, err := Open(must(Sign(m, priv)), pub)
		if err != nil || !slices.Equal(again.Chunks, m.Chunks) {
			t.Fatalf("does not survive a second signing: %v", err)
		}
	})
}

func tempStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}
