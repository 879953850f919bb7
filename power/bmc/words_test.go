package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"smelt/power"
)

// hostile is a Redfish service that answers some requests in its own way, and
// others with 404.
func hostile(t *testing.T, paths map[string]func(w http.ResponseWriter, r *http.Request)) *Controller {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch f := paths[r.Method+" "+r.URL.Path]; {
		case f != nil:
			f(w, r)
		case r.URL.Path == rootPath:
			fmt.Fprint(w, `{"RedfishVersion": "1.0.0", "Systems": {"@odata.id": "/redfish/v1/Systems"}, "AccountService": {"@odata.id": "/redfish/v1/AccountService"}}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return open(t, Config{Kind: "redfish", Address: s.URL})
}

func says(body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func refuses(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		b, _ := json.Marshal(map[string]any{"error": map[string]string{"code": "x", "message": text}})
		w.Write(b)
	}
}

// What a BMC says in an error is short and has no control characters, wherever
// it says it: errors become events, and lines on terminals.
func TestWordsOfErrors(t *testing.T) {
	const evil = "\x1b]52;c;x\a\u009b2J\r\n"
	many := `{"Members": [` + strings.Repeat(`{"@odata.id": "/redfish/v1/Systems/x"},`, 5000) + `{"@odata.id": "/redfish/v1/Systems/y"}]}`
	for name, c := range map[string]*Controller{
		"message":  hostile(t, map[string]func(http.ResponseWriter, *http.Request){"GET /redfish/v1/Systems": refuses(evil + strings.Repeat("x", 1000))}),
		"path":     hostile(t, map[string]func(http.ResponseWriter, *http.Request){"GET /redfish/v1/Systems": says(`{"Members": [{"@odata.id": "/redfish/v1/%1b]52;c;x%07"}]}`)}),
		"raw path": hostile(t, map[string]func(http.ResponseWriter, *http.Request){"GET /redfish/v1/Systems": says(`{"Members": [{"@odata.id": "/redfish/v1/x?\u009b2J"}]}`)}),
		"systems":  hostile(t, map[string]func(http.ResponseWriter, *http.Request){"GET /redfish/v1/Systems": says(many)}),
	} {
		_, err := c.State(t.Context())
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		if msg := err.Error(); len(msg) > 1500 || strings.ContainsFunc(msg, unicode.IsControl) {
			t.Errorf("%s: an error of %d bytes: %.300q", name, len(msg), msg)
		}
	}
	for _, text := range []string{"Product Manufacturer : " + evil + "\nFirmware Revision : 1" + evil} {
		for k, v := range fields(text) {
			if strings.ContainsFunc(k+v, unicode.IsControl) {
				t.Errorf("ipmitool's words: %q: %q", k, v)
			}
		}
	}
	log, err := parseSEL("1 | 11/22/26 | 19:03:29 UTC | OEM"+evil[:8]+" | \x1b[2J | "+evil[:8], nil)
	if err != nil || len(log) != 1 || strings.ContainsFunc(log[0].Sensor+log[0].Message, unicode.IsControl) {
		t.Errorf("event log: %+v, %v", log, err)
	}
	if s := clip("no " + evil + "session"); strings.ContainsFunc(s, unicode.IsControl) {
		t.Errorf("ipmitool's error: %q", s)
	}
}

// A BMC that repeats what it was sent shows no part of a password, wherever
// its message is cut.
func TestEchoes(t *testing.T) {
	const fresh = "fR3sh-and-l0ng-0ne"
	for cut := range 30 {
		pad := strings.Repeat(".", maxSaid-cut)
		for name, text := range map[string]string{"own": pad + secret, "new": pad + fresh, "JSON": pad + `{"Password": "` + secret + `"}`} {
			c := hostile(t, map[string]func(http.ResponseWriter, *http.Request){
				"GET /redfish/v1/AccountService":              says(`{"Accounts": {"@odata.id": "/redfish/v1/AccountService/Accounts"}}`),
				"GET /redfish/v1/AccountService/Accounts":     says(`{"Members": [{"@odata.id": "/redfish/v1/AccountService/Accounts/1"}]}`),
				"GET /redfish/v1/AccountService/Accounts/1":   says(`{"UserName": "admin", "Enabled": true}`),
				"PATCH /redfish/v1/AccountService/Accounts/1": refuses(text),
			})
			err := c.SetPassword(t.Context(), fresh)
			if err == nil || errors.Is(err, power.ErrUnsupported) {
				t.Fatal(err)
			}
			for _, s := range []string{secret, fresh} {
				if strings.Contains(err.Error(), s[:5]) {
					t.Fatalf("%s, cut at %d: %v", name, cut, err)
				}
			}
		}
	}
	// A password that JSON writes in another way.
	r, err := newRedfish(Config{Address: "10.0.0.1", User: "a", Password: func(context.Context) (string, error) { return "", nil }})
	if err != nil {
		t.Fatal(err)
	}
	s, end := r.open(`quo"ted\pass`)
	defer end()
	res := &http.Response{StatusCode: 500, Request: httptest.NewRequest("GET", "/redfish/v1", nil)}
	if err := s.refusal(res, []byte(`Password: "quo\"ted\\pass" is bad`)); strings.Contains(err.Error(), "quo") {
		t.Errorf("escaped: %v", err)
	}
}

// The settings of one system are part of it: a BMC that points elsewhere must
// not have the boot order of another machine changed.
func TestSettingsElsewhere(t *testing.T) {
	patched := ""
	note := func(w http.ResponseWriter, r *http.Request) {
		patched = r.URL.Path
		w.WriteHeader(http.StatusNoContent)
	}
	const order = `"Boot": {"BootOrder": ["d", "n"], "BootOptions": {"@odata.id": "/redfish/v1/Systems/1/BootOptions"}}`
	c := hostile(t, map[string]func(http.ResponseWriter, *http.Request){
		"GET /redfish/v1/Systems":                 says(`{"Members": [{"@odata.id": "/redfish/v1/Systems/1"}]}`),
		"GET /redfish/v1/Systems/1":               says(`{` + order + `, "@Redfish.Settings": {"SettingsObject": {"@odata.id": "/redfish/v1/Systems/10"}}}`),
		"GET /redfish/v1/Systems/10":              says(`{` + order + `}`),
		"GET /redfish/v1/Systems/1/BootOptions":   says(`{"Members": [{"@odata.id": "/redfish/v1/Systems/1/BootOptions/n"}]}`),
		"GET /redfish/v1/Systems/1/BootOptions/n": says(`{"BootOptionReference": "n", "Alias": "Pxe"}`),
		"PATCH /redfish/v1/Systems/1":             note,
		"PATCH /redfish/v1/Systems/10":            note,
	})
	if _, err := c.SetBootOrder(t.Context(), power.Network); err == nil || patched != "" || !strings.Contains(err.Error(), "not part of it") {
		t.Errorf("patched %q, error %v", patched, err)
	}
}
