package pxe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestNext: the answers, byte by byte; internal/pid1 reads the same ones.
func TestNext(t *testing.T) {
	answers := map[MAC]Boot{
		known:   {Action: Kernel, Kernel: "not-there", Args: []string{"console=ttyS0", "", "smelt.server=https://10.77.0.1:8443", "smelt.nonce=ab12", "smelt.mode=inspect", "BOOTIF=01-52-54-00-00-00-01", "two words"}, Why: "node rig-01 is discovered: inspection", Screen: []string{"rig-01"}},
		unknown: {Action: Local, Why: "in service"},
		other:   {Action: Kernel, Args: []string{strings.Repeat("x", 3000)}, Why: "go"},
	}
	var asked []Machine
	s := testServer(t, booterFunc(func(_ context.Context, m Machine) (Boot, error) {
		asked = append(asked, m)
		if b, ok := answers[m.MAC]; ok {
			return b, nil
		}
		if m.MAC[5] == 0xee {
			return Boot{Action: Ignore, Why: "rejected\x1b[2J"}, nil
		}
		return Boot{}, errors.New("the store\nis away")
	}))
	for _, c := range []struct{ query, want string }{
		{"mac=52:54:00:00:00:01&arch=7&uuid=abc&serial=S%201&via=uki", `{"action":"kernel","args":["console=ttyS0","smelt.server=https://10.77.0.1:8443","smelt.nonce=ab12","smelt.mode=inspect","BOOTIF=01-52-54-00-00-00-01","two%20words"],"why":"node rig-01 is discovered: inspection","screen":["rig-01"]}`},
		{"mac=52:54:00:00:00:99", `{"action":"local","why":"in service"}`},
		{"mac=52:54:00:00:00:98", `{"action":"hold","why":"not decided: kernel arguments of 3001 bytes: a kernel takes 2047","retry":10}`},
		{"mac=52:54:00:00:00:ee", `{"action":"hold","why":"rejected?[2J","retry":10}`},
		{"mac=52:54:00:00:00:aa", `{"action":"hold","why":"not decided: the store is away","retry":10}`},
		{"mac=junk", `{"action":"hold","why":"not decided: MAC address \"junk\": want six hexadecimal bytes such as 52:54:00:12:34:56","retry":10}`},
	} {
		r := get(t, s, "GET", "/boot/next?"+c.query)
		text := body(t, r)
		if r.StatusCode != 200 || text != c.want || r.Header.Get("Content-Length") != fmt.Sprint(len(text)) || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v\n%s\nwant\n%s", c.query, r.StatusCode, r.Header, text, c.want)
		}
	}
	// Who asks got beyond its first loader.
	now := time.Now()
	s.trail.start(known, httpBoot, dhcpv4.TransactionID{1}, true, now)
	s.trail.sent(known, httpBoot, UKI)
	get(t, s, "GET", "/boot/next?mac=52:54:00:00:00:01&via=uki")
	if starts, worked := s.trail.of(known, httpBoot); starts != 0 || worked != UKI {
		t.Errorf("after its question: %d starts, %q worked", starts, worked)
	}
	before := len(asked)
	if r := get(t, s, "HEAD", "/boot/next?mac=52:54:00:00:00:01"); r.StatusCode != 200 || len(asked) != before {
		t.Errorf("HEAD: %d, and the Booter was asked %d times: a look must make no nonce", r.StatusCode, len(asked)-before)
	}
	if m := asked[0]; m.MAC != known || m.Serial != "S 1" || m.UUID != "abc" || m.Arch != UEFIx64 || m.IPXE || m.Stage != AskScript || m.Addr.String() != "10.77.0.11" {
		t.Errorf("the Booter was asked about %+v", m)
	}
	if e := s.Recent(known); len(e) != 2 || e[0].Kind != "orders" || e[0].Answer != "kernel" || e[0].Why != "node rig-01 is discovered: inspection (by uki)" {
		t.Errorf("Recent: %+v", e)
	}
}

// FuzzNextQuery: whatever asks, the answer is one of the three, and each
// argument one word.
func FuzzNextQuery(f *testing.F) {
	f.Add("mac=52:54:00:00:00:01&uuid=x&serial=y&arch=7&via=uki", "a=b c\nd")
	f.Add("mac=525400000001&via=%0a%0d", "\x00")
	f.Fuzz(func(t *testing.T, query, arg string) {
		s := testServer(t, tableBooter{"": {Action: Kernel, Args: []string{arg}, Why: arg, Screen: []string{arg}}})
		r := httptest.NewRequest("GET", "http://10.77.0.1/boot/next", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		var n next
		d := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&n); w.Code != 200 || err != nil || n.Action != "kernel" && n.Action != "hold" {
			t.Fatalf("%d %v %s", w.Code, err, w.Body)
		}
		for _, a := range n.Args {
			if len(strings.Fields(a)) != 1 {
				t.Fatalf("argument %q is not one word", a)
			}
		}
	})
}
