package agent

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"encoding/json"

	"smelt/internal/api"
	"smelt/internal/inspect"
)

// found is an agent with a screen and a disk that are files, and a server that
// notes what it says.
type found struct {
	*Agent
	mu     sync.Mutex
	screen []string
	said   []api.Located
}

func newFound(t *testing.T) *found {
	t.Helper()
	f := &found{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var l api.Located
		if r.URL.Path == api.PathLocated && json.NewDecoder(r.Body).Decode(&l) == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.said = append(f.said, l)
		}
	}))
	t.Cleanup(srv.Close)
	root := t.TempDir()
	disk := filepath.Join(root, "sys/block/vda")
	for name, text := range map[string]string{disk + "/size": "2048\n", filepath.Join(root, "dev/vda"): strings.Repeat("x", 1<<20)} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	f.Agent = &Agent{c: Config{System: inspect.System{Root: root}}, log: slog.New(slog.DiscardHandler),
		client: &client{base: srv.URL, http: srv.Client(), session: func() string { return "s" }}}
	f.testOnlyShow = func(lines ...string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.screen = append(f.screen, strings.Join(lines, "\n"))
	}
	return f
}

func (f *found) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		f.mu.Lock()
		now := ok()
		f.mu.Unlock()
		if now {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

func TestBeacon(t *testing.T) {
	f := newFound(t)
	f.beacon.take(t.Context(), f.Agent, api.LocateOrder{ID: "a", For: 700 * time.Millisecond, Lines: []string{"node rig-01", "evil\x1b[2J"}}, false)
	f.wait(t, "it says what it does", func() bool { return len(f.said) == 1 })
	f.mu.Lock()
	if w := f.said[0].Ways; f.said[0].ID != "a" || w[0].Look != "the drive light of PLACE blinks: 1 s on, 1 s off (vda)" || w[0].Error != "" || w[1].Way != wayScreen {
		t.Errorf("said %+v", f.said)
	}
	if s := f.screen[0]; !strings.Contains(s, letters[0]) || !strings.Contains(s, "node rig-01") || !strings.Contains(s, "\a") || strings.Contains(s, "\x1b") {
		t.Errorf("screen %q", s)
	}
	f.mu.Unlock()
	// It ends by this machine's clock: the server said nothing more.
	f.wait(t, "it ends", func() bool { return strings.Contains(f.screen[len(f.screen)-1], "no longer looked for") })
	f.beacon.stop()
	if f.beacon.taken != "a" {
		t.Error("it would begin again")
	}
}

func TestBeaconLeavesWorkAlone(t *testing.T) {
	for _, c := range []struct {
		order api.LocateOrder
		works bool
	}{{api.LocateOrder{ID: "a", For: time.Minute, Quiet: true}, false}, {api.LocateOrder{ID: "a", For: time.Minute}, true}} {
		f := newFound(t)
		f.beacon.take(t.Context(), f.Agent, c.order, c.works)
		f.wait(t, "it answers", func() bool { return len(f.said) == 1 })
		if f.said[0].Ways[0].Error == "" || f.beacon.dark != nil {
			t.Errorf("%+v while it works %v: %+v", c.order, c.works, f.said[0])
		}
		f.beacon.hush() // there is nothing to put out, which is fine
		f.beacon.take(t.Context(), f.Agent, api.LocateOrder{ID: "a.stop"}, false)
		f.wait(t, "it stops", func() bool { return strings.Contains(f.screen[len(f.screen)-1], "no longer looked for") })
	}
	for kind, want := range map[string]bool{api.OrderWipe: true, api.OrderImage: true, api.OrderBurnin: true, api.OrderRAM: true, api.OrderWait: false, api.OrderInspect: false} {
		if feels(api.Order{Kind: kind}) != want {
			t.Errorf("%s: want %v", kind, want)
		}
	}
}

// TestBlink: the disk is read for a second, and left alone for a second.
func TestBlink(t *testing.T) {
	f := newFound(t)
	disks := f.blinking()
	if len(disks) != 1 {
		t.Fatalf("disks %+v", disks)
	}
	var mu sync.Mutex
	var at []time.Time
	disks[0].testOnlyRead = func() {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*blink+blink/2)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); disks[0].blink(ctx) }()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(2 * blink):
		t.Fatal("it blinks on")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(at) < 20 {
		t.Fatalf("read %d times", len(at))
	}
	for _, x := range at {
		// A read that begins at the end of a second ends in the next one.
		if off := x.UnixNano() % int64(2*blink); off > int64(blink+blink/10) {
			t.Fatalf("read %v into a rhythm of 2 s", time.Duration(off))
		}
	}
}
