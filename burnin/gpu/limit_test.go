package gpu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// limitIn runs Limit in a process of its own, as smelt-gpu does.
func limitIn(t *testing.T, request string) (string, error) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), envRole+"=limit")
	c.Stdin = strings.NewReader(request)
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestLimit sets, reads back and lifts the limit of simulated cards, and does
// not believe a card that takes a limit and keeps another.
func TestLimit(t *testing.T) {
	useSim(t)
	cards := filepath.Join(t.TempDir(), "cards")
	write := func(lines string) {
		t.Helper()
		if err := os.WriteFile(cards, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(envCards, cards)
	write("0000:01:00.0|RTX 3090|GPU-0|25769803776|\n")
	for _, tc := range []struct{ request, want string }{
		{`{"share":0.6}`, "GPU 0000:01:00.0: 210 W (simulated)"},
		{`{"share":0.1}`, "GPU 0000:01:00.0: 100 W (simulated)"}, // the least that the card allows
		{`{"share":0}`, "GPU 0000:01:00.0: 350 W (simulated)"},
	} {
		if out, err := limitIn(t, tc.request); err != nil || out != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.request, out, err, tc.want)
		}
	}
	for request, want := range map[string]string{
		`{"share":1}`: "want 0 for the default", `{"share":-0.5}`: "want 0 for the default", `nonsense`: "request:",
	} {
		if out, err := limitIn(t, request); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v", request, out, err)
		}
	}
	write("0000:01:00.0|RTX 3090|GPU-0|25769803776|limit\n")
	if out, err := limitIn(t, `{"share":0.6}`); err == nil || !strings.Contains(out, "reads 350000 mW") {
		t.Errorf("a card that said ok and did not: %q, %v", out, err)
	}
	write("")
	if out, err := limitIn(t, `{"share":0.6}`); err == nil || !strings.Contains(out, "no card") {
		t.Errorf("no card: %q, %v", out, err)
	}
}
