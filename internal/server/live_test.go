package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
)

// A real browser, under the real policy, opens the stream of events and draws
// the page anew when something happened.
func TestLivePage(t *testing.T) {
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("needs chromium")
	}
	x := newSite(t)
	cookie := &http.Cookie{Name: cookieName, Value: x.sessions.open(hash(x.tokens[Technician]), time.Now())}
	drawn := make(chan struct{}, 10)
	ui := x.UI()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.AddCookie(cookie) // what a login would have left in the browser
		ui.ServeHTTP(w, r)
		if r.URL.Path == "/" {
			drawn <- struct{}{}
		}
	}))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	profile, err := os.MkdirTemp("", "smelt-live-") // Chromium's children may outlive it a moment: not t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(profile)
	cmd := exec.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+profile,
		"--remote-debugging-port=0", srv.URL+"/")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was ended by us
		x.Close()
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case <-ctx.Done():
				t.Fatalf("the browser never %s", what)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	wait("drew the page", func() bool { return len(drawn) == 1 })
	wait("opened the stream", func() bool { return len(x.streams) == 1 })
	n, err := x.Store.Node(ctx, "rig-01")
	if err != nil {
		t.Fatal(err)
	}
	e := inventory.Event{Node: n.ID, Version: n.Version + 1, At: time.Now(), Actor: "system", Kind: inventory.KindNote, Reason: "news"}
	if n, err = n.Apply(e); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Store.Commit(ctx, store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	wait("drew the page again", func() bool { return len(drawn) == 2 })
}
