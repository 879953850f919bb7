package convert_test

import (
	"slices"
	"strings"
	"testing"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/pxe"
)

// Whoever stands before a machine learns from its screen which node it is, and
// how to come to its page.
func TestScreen(t *testing.T) {
	for public, want := range map[string]string{
		"":                           "",
		"https://smelt.hall.example": "HTTPS://SMELT.HALL.EXAMPLE/N/",
		"https://h.example/smelt":    "https://h.example/smelt/n/", // a path may tell upper from lower case
	} {
		h := newHallWith(t, layout{Nodes: 2, Dead: true}, func(c *convert.Conductor, _ *store.Store) { c.Site.Public = public })
		var codes []string
		for i := range 2 {
			b := h.script(i)
			if len(b.Code) < 4 || !strings.HasPrefix(b.Page, want) || public != "" && b.Page != want+b.Code || public == "" && b.Page != "" {
				t.Errorf("code %q, page %q, want %s and the code", b.Code, b.Page, want)
			}
			if s := strings.Join(b.Screen, ";"); !strings.Contains(s, "node "+string(nodeID(i))+" at A") || !strings.Contains(s, "state ") {
				t.Errorf("screen %q", s)
			}
			if !slices.Contains(b.Args, "smelt.code="+b.Code) || slices.Contains(b.Args, "smelt.page="+b.Page) != (public != "") {
				t.Errorf("the RAM system is not told: %q", b.Args)
			}
			codes = append(codes, b.Code)
		}
		if codes[0] == codes[1] || h.script(0).Code != codes[0] {
			t.Errorf("codes %q", codes)
		}
		// A machine that nobody expected has one too.
		b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC{0x52, 0x54, 0, 9, 9, 9}, Stage: pxe.AskScript})
		if err != nil || len(b.Code) < 4 || slices.Contains(codes, b.Code) {
			t.Errorf("unknown machine: code %q, %v", b.Code, err)
		}
	}
}

// A machine of a kind that this release cannot convert waits; that is no loop.
func TestARMWaits(t *testing.T) {
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
	for range 12 {
		b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskScript, Arch: pxe.ARM64})
		if err != nil || b.Action != pxe.Hold || !strings.Contains(b.Why, "64-bit ARM") {
			t.Fatalf("%+v, %v", b, err)
		}
		w.pass(60e9)
	}
	if n := h.loopAlarms(nodeID(0)); n != 0 {
		t.Errorf("%d alarms", n)
	}
}
