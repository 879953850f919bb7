package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
)

// TestPermitAnswer: only a refusal makes an agent fail the step. A trouble of
// ours, which may pass, does not.
func TestPermitAnswer(t *testing.T) {
	x := newSite(t)
	if err := x.Store.PutAgent(t.Context(), store.Agent{Session: hash("tok"), Node: "rig-01", Mode: "convert", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 200},
		{fmt.Errorf("permit: %w: held", convert.ErrRefused), 409},
		{fmt.Errorf("permit: %w", store.ErrUsed), 409},
		{fmt.Errorf("%w: another leads", store.ErrFenced), 503},
		{fmt.Errorf("node: %w", store.ErrConflict), 503},
		{errors.New("disk full"), 503},
	} {
		x.fake.useErr = tt.err
		if resp, body := x.ask(t, "POST", x.agent.URL+api.PathPermit, "tok", `{"id":"p1"}`); resp.StatusCode != tt.want || strings.Contains(body, "disk full") {
			t.Errorf("%v: %d %s, want %d", tt.err, resp.StatusCode, body, tt.want)
		}
	}
}

// TestSessionOver: a machine that locked itself out is told to people, and
// learns as little as one that guesses.
func TestSessionOver(t *testing.T) {
	x := newSite(t)
	var log bytes.Buffer
	x.Log = slog.New(slog.NewTextHandler(&log, nil))
	if err := x.Store.PutAgent(t.Context(), store.Agent{Session: hash("tok"), Node: "rig-01", Mode: "installed", Expires: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"guess": false, "tok": true} {
		log.Reset()
		if resp, body := x.ask(t, "GET", x.agent.URL+api.PathOrder, token, ""); resp.StatusCode != 401 || body != "" {
			t.Errorf("%s: %d %q", token, resp.StatusCode, body)
		}
		if got := strings.Contains(log.String(), "node=rig-01"); got != want {
			t.Errorf("%s is logged as %q", token, log.String())
		}
		if strings.Contains(log.String(), token+" ") {
			t.Errorf("the log has the token: %s", log.String())
		}
	}
}
