package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/power"
)

// Who looks at a BMC sees which key it is held to and since when, and that
// another one answers.
func TestKeys(t *testing.T) {
	x, b := consoled(t)
	const pin, other = "mSKtOEn5MfNGp2RBiCDs0a1AFkJT7BGgNB9EMSjtTEs=", "oIPRQZxkVtOL0jHlvL2eTkhTSY5XRHXHmKGqUuHdsCo="
	list := func() api.BMC {
		t.Helper()
		var l api.BMCList
		if _, body := x.ask(t, "GET", x.ui.URL+api.PathBMCs, x.tokens[Viewer], ""); json.Unmarshal([]byte(body), &l) != nil || len(l.Items) != 1 {
			t.Fatal(body)
		}
		return l.Items[0]
	}
	page := func() string {
		_, body := x.ask(t, "GET", x.ui.URL+"/nodes/rig-01", x.tokens[Viewer], "")
		return body
	}
	if v := list(); len(v.Keys) != 0 || strings.Contains(page(), "Key of its controller") {
		t.Errorf("a controller without TLS: %+v", v.Keys)
	}
	since := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	b.keys = []power.Key{{Via: "redfish 10.0.0.1", Pin: pin, Since: since}}
	if v := list(); len(v.Keys) != 1 || v.Keys[0].Pin != pin || !v.Keys[0].Since.Equal(since) || len(v.Findings) != 0 {
		t.Errorf("%+v", v)
	}
	if p := page(); !strings.Contains(p, "<code>"+pin+"</code>, first seen 2026-11-20") || strings.Contains(p, "Another key") {
		t.Error("the page does not show the key")
	}
	b.keys[0].Other = other
	if v := list(); len(v.Findings) != 1 || v.Findings[0].Code != "key-changed" || !strings.Contains(v.Findings[0].Fix, "pin: "+other) {
		t.Errorf("another key: %+v", v)
	}
	if p := page(); !strings.Contains(p, "Another key answers now and is refused:</b> <code>"+other) {
		t.Error("the page does not say that another key answers")
	}
}
