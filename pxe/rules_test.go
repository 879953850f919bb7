package pxe

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	mac := MAC{0xb4, 0x2e, 0x99, 1, 2, 3}
	const vendor = "PXEClient:Arch:00007:UNDI:003000"
	byMAC, byOUI, byVendor := Match{MAC: mac, Name: "class rig"}, Match{OUI: OUI{0xb4, 0x2e, 0x99}}, Match{Vendor: "PXEClient*"}
	other := Match{MAC: MAC{2, 0, 0, 0, 0, 1}}
	for _, c := range []struct {
		name string
		r    Rules
		want string // the beginning
	}{
		{"none", Rules{}, ""},
		{"allowed by MAC", Rules{Allow: []Match{other, byMAC}}, ""},
		{"allowed by OUI", Rules{Allow: []Match{byOUI}}, ""},
		{"allowed by vendor", Rules{Allow: []Match{byVendor}}, ""},
		{"not allowed", Rules{Allow: []Match{other}}, "not allowed"},
		{"nobody is allowed", Rules{Allow: []Match{}}, "not allowed"},
		{"denied by MAC", Rules{Deny: []Match{byMAC}}, "denied: MAC b4:2e:99:01:02:03 of class rig"},
		{"denied by OUI", Rules{Deny: []Match{byOUI}}, "denied: OUI b4:2e:99"},
		{"denied by vendor", Rules{Deny: []Match{byVendor}}, `denied: vendor class "PXEClient*"`},
		{"deny wins", Rules{Allow: []Match{byMAC}, Deny: []Match{byOUI}}, "denied"},
		{"others are denied", Rules{Deny: []Match{other}}, ""},
	} {
		r, err := newRules(c.r)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.refuses(mac, vendor); got != c.want && (c.want == "" || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	for _, bad := range []Match{{}, {Name: "x"}, {MAC: mac, Vendor: "x"}} {
		if _, err := newRules(Rules{Deny: []Match{bad}}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestRulesOfScripts: who is denied gets no script either, and waits.
func TestRulesOfScripts(t *testing.T) {
	for _, c := range []struct {
		r    Rules
		want string
	}{
		{Rules{Deny: []Match{{MAC: known}}}, "denied: MAC"},
		{Rules{Allow: []Match{{MAC: other}}}, "not allowed"},
		{Rules{Allow: []Match{{MAC: other}, {Vendor: "PXEClient*"}}}, ""}, // it may be one: it does not say here
		{Rules{Deny: []Match{{Vendor: "PXEClient*"}}}, ""},
	} {
		s := testServer(t, tableBooter{"": {Action: Local, Why: "asked"}}, func(conf *Config) { conf.Networks[0].Rules = c.r })
		m := Machine{MAC: known, Stage: AskScript, Addr: netip.MustParseAddr("10.77.0.11")}
		b, err := s.ask(t.Context(), m, askScriptTime)
		if err != nil || c.want == "" && b.Action != Local || c.want != "" && (b.Action != Ignore || !strings.HasPrefix(b.Why, c.want)) {
			t.Errorf("%+v: %v %q, %v", c.r, b.Action, b.Why, err)
		}
	}
}

func TestWildcard(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true}, {"*b", "ab", true}, {"*a", "ab", false}, {"a*c", "abc", true},
		{"a*a", "a", false}, {"*a*a*", "xaya", true}, {"a*b*c", "acb", false}, {"*", "", true}, {"", "", true}, {"", "a", false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("wildcard(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}
