package agent

import (
	"fmt"
	"strings"
	"testing"

	"smelt/internal/api"
)

func TestBounded(t *testing.T) {
	for _, tc := range []struct{ entries, want int }{{0, 0}, {1, 1}, {32, 32}, {33, 32}, {1000, 32}} {
		r := api.Result{OK: true, Evidence: map[string]string{}}
		for i := range tc.entries {
			r.Evidence[fmt.Sprintf("%03d", i)+strings.Repeat("k", 2*maxKey)] = strings.Repeat("v", 2*maxText)
		}
		got := bounded(r)
		if len(got.Evidence) != tc.want {
			t.Errorf("%d entries become %d, want %d", tc.entries, len(got.Evidence), tc.want)
		}
		for k, v := range got.Evidence {
			if len(k) > maxKey || len(v) > maxText {
				t.Errorf("key of %d bytes, value of %d", len(k), len(v))
			}
		}
		if left := got.Evidence["left out"]; (tc.entries > 32) != (left != "") {
			t.Errorf("%d entries: left out %q", tc.entries, left)
		}
	}
	for in, want := range map[string]string{
		"":                           "",
		"short":                      "short",
		strings.Repeat("x", maxText): strings.Repeat("x", maxText),
		"bad \xff":                   "bad \ufffd",
	} {
		if got := cut(in, maxText); got != want {
			t.Errorf("cut(%.20q) = %.20q", in, got)
		}
	}
}
