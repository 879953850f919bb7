package inventory

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// fill sets every exported field that it can reach to something that is not
// its zero value, so that a field forgotten on the wire shows.
func fill(v reflect.Value, depth int) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(at.Add(time.Duration(depth+1) * 1001 * time.Nanosecond)))
		return
	case State:
		v.Set(reflect.ValueOf(Imaging))
		return
	case MAC:
		v.Set(reflect.ValueOf(MAC{2, 0, 0, 0, 0, byte(depth + 1)}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1)
		fill(v.Index(1), depth+2)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value, depth+1)
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), value)
	case reflect.String:
		v.SetString("text <&> \u00e9")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(depth + 3))
	case reflect.Uint64:
		v.SetUint(uint64(depth + 3))
	case reflect.Uint8:
		v.SetUint(uint64(depth + 3))
	case reflect.Float64:
		v.SetFloat(1.5)
	default:
		panic("fill: " + v.Type().String())
	}
}

func TestNounsSurviveJSON(t *testing.T) {
	for _, noun := range []any{
		Spec{}, Node{}, Hold{}, Plan{}, Failure{}, Passed{}, PowerFact{}, Verdict{}, Reason{}, Task{}, Hardware{}, Board{}, Firmware{}, CPU{},
		Memory{}, DIMM{}, Disk{}, DiskID{}, Wiped{}, NIC{}, PCILink{}, PCI{}, Port{}, GPU{}, Salvage{}, Event{}, Circuit{}, Permit{}, SignedPermit{}, Identity{}, Fact{}, Shed{}, Load{},
	} {
		full := reflect.New(reflect.TypeOf(noun))
		fill(full.Elem(), 0)
		b, err := json.Marshal(full.Interface())
		if err != nil {
			t.Errorf("%T: %v", noun, err)
			continue
		}
		back := reflect.New(reflect.TypeOf(noun))
		if err := json.Unmarshal(b, back.Interface()); err != nil {
			t.Errorf("%T: %v", noun, err)
			continue
		}
		same(t, reflect.TypeOf(noun).Name(), back.Interface(), full.Interface())
	}
}

func TestParseNodeID(t *testing.T) {
	for _, s := range []string{"a", "rig-1", "a3.s2", "0", strings.Repeat("a", 63)} {
		if id, err := ParseNodeID(s); err != nil || string(id) != s {
			t.Errorf("%q: %q, %v", s, id, err)
		}
	}
	for _, s := range []string{"", "-a", "a-", ".a", "a.", "A", "a_b", "a b", "a/b", "a\x00", "ä", "a'b", strings.Repeat("a", 64)} {
		if _, err := ParseNodeID(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
	if _, err := ParseNodeID(string(UnknownID(MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}))); err != nil {
		t.Error(err)
	}
}

func TestParseMAC(t *testing.T) {
	want := MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for _, s := range []string{"52:54:00:12:34:56", "52-54-00-12-34-56", "5254.0012.3456", " 52:54:00:12:34:56\n"} {
		if m, err := ParseMAC(s); err != nil || m != want {
			t.Errorf("%q: %s, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "52:54:00:12:34", "52:54:00:12:34:56:78:9a", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "52:54:00:12:34:5g"} {
		if _, err := ParseMAC(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	f.Add("52:54:00:12:34:56")
	f.Add("5254.0012.3456")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMAC(s)
		if err != nil {
			if m != (MAC{}) {
				t.Errorf("%q: an error and %s", s, m)
			}
			return
		}
		if again, err := ParseMAC(m.String()); err != nil || again != m {
			t.Errorf("%q: %s does not parse back: %v", s, m, err)
		}
	})
}

func TestPermitOpen(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, foreignKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := Permit{ID: "p", Node: "rig-1", Agent: "f", Action: "wipe", Disks: []DiskID{{Serial: "S3X0NB0K812345", Size: 1}}, Plan: "d", Fence: 3, Issued: at, NotAfter: at.Add(MaxPermit)}
	sign := func(p Permit, k ed25519.PrivateKey) SignedPermit {
		s, err := p.Sign(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	signed := sign(p, key)
	got, err := signed.Open(pub, at)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "permit", got, p)

	long := p
	long.NotAfter = at.Add(MaxPermit + time.Second)
	backwards := p
	backwards.NotAfter = at.Add(-time.Second)
	bare := SignedPermit{Payload: signed.Payload, Signature: ed25519.Sign(key, signed.Payload)} // without the context
	for _, c := range []struct {
		what string
		s    SignedPermit
		key  ed25519.PublicKey
		now  time.Time
		want error
	}{
		{"at its end", signed, pub, p.NotAfter, ErrPermitExpired},
		{"after its end", signed, pub, p.NotAfter.Add(time.Hour), ErrPermitExpired},
		{"too long", sign(long, key), pub, at, ErrPermitExpired},
		{"over before it begins", sign(backwards, key), pub, at.Add(-time.Minute), ErrPermitExpired},
		{"on a machine whose clock stands", signed, pub, at.Add(-MaxPermit - time.Second), ErrPermitExpired},
		{"signed by another key", sign(p, foreignKey), pub, at, ErrPermitForged},
		{"opened with another key", signed, foreign, at, ErrPermitForged},
		{"opened with no key", signed, nil, at, ErrPermitForged},
		{"signed as something else", bare, pub, at, ErrPermitForged},
		{"empty", SignedPermit{}, pub, at, ErrPermitForged},
	} {
		got, err := c.s.Open(c.key, c.now)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		same(t, c.what, got, Permit{})
	}
	for i := range signed.Payload {
		bad := SignedPermit{Payload: append([]byte(nil), signed.Payload...), Signature: signed.Signature}
		bad.Payload[i] ^= 1
		if _, err := bad.Open(pub, at); !errors.Is(err, ErrPermitForged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
}

func TestPlanSeal(t *testing.T) {
	p := Plan{Run: "r"}.Seal()
	if p.Digest == "" || p.Seal().Digest != p.Digest {
		t.Error("sealing twice changes the seal")
	}
	q := p
	q.Run = "s"
	if q.Seal().Digest == p.Digest {
		t.Error("two plans with one seal")
	}
}
