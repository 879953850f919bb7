package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"smelt/internal/api"
)

// A machine that was taken over, or its BMC, chooses words that end up on the
// terminal of an operator. They are shown there, and do nothing.
func TestTerminal(t *testing.T) {
	const evil = `\u001b]52;c;cm0gLXJmIC8K\u0007\u009b2J\u001b[1A\r` // fills the clipboard, clears the screen, hides a line
	answers := map[string]string{
		api.PathBMCs:                              `{"items": [{"node": "n1", "findings": [{"code": "x", "what": "account ` + evil + `", "fix": "` + evil + `"}]}]}`,
		api.PathTasks:                             `{"items": [{"id": "t1", "verb": "` + evil + `", "why": "` + evil + `"}]}`,
		api.PathNodes + "/n1" + api.SubSensors:    `{"items": [{"name": "` + evil + `", "value": 1, "unit": "rpm"}]}`,
		api.PathReports + "/n1":                   `{"items": [{"id": "r1"}]}`,
		api.PathReports + "/n1/r1.json":           `{"apiVersion": "smelt/v1", "kind": "BurninReport", "id": "r1", "node": "n1", "verdict": {"answer": "REPAIR", "reasons": ["` + evil + `"], "repairs": [{"what": "` + evil + `"}]}}`,
		api.PathNodes + "/n1" + api.SubEventLog:   "",
		"POST " + api.PathNodes + "/n1/bmc-audit": "",
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if doc := answers[r.URL.Path]; doc != "" && r.Method == http.MethodGet {
			fmt.Fprint(w, doc)
			return
		}
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprint(w, `{"title": "Bad Gateway", "status": 502, "detail": "GET /redfish/v1/`+evil+`", "next": "`+evil+`"}`)
	}))
	defer s.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"bmc list", "bmc audit n1", "task show t1", "node sensors n1", "node sensors n1 -o name", "node sensors n1 -o csv", "node sensors n1 -o json", "node sensors n1 -o yaml",
		"node eventlog n1", "burnin report n1",
	} {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append(strings.Fields(line), "--server", s.URL, "--token-file", token))
		if err := root.ExecuteContext(t.Context()); err != nil {
			complain(&out, err)
		}
		if !strings.Contains(out.String(), "52;c;") {
			t.Errorf("%s does not show what it was sent: %q", line, out.String())
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("%s acts on a terminal: %q", line, out.String()[i:])
		}
	}
}

func TestKeysShown(t *testing.T) {
	const key = `{"via": "redfish 10.0.0.1", "pin": "abc=", "since": "2026-11-20T09:00:00Z", "other": "def="}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.PathBMCs {
			fmt.Fprint(w, `{"items": [{"node": "n1", "keys": [`+key+`]}]}`)
			return
		}
		fmt.Fprint(w, `{"node": {"id": "n1"}, "keys": [`+key+`]}`)
	}))
	defer s.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{"bmc list -o wide": "abc=", "node show n1": "abc= first seen 2026-11-20 (redfish 10.0.0.1)"} {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetArgs(append(strings.Fields(line), "--server", s.URL, "--token-file", token))
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "first seen 2026-11-20") {
			t.Errorf("%s: %v\n%s", line, err, out.String())
		}
	}
}
