package pid1

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What pxe answers byte by byte: its TestNext has the same texts.
const (
	goOn  = `{"action":"kernel","args":["console=ttyS0","smelt.server=https://10.77.0.1:8443","smelt.nonce=ab12","smelt.mode=convert","BOOTIF=01-52-54-00-00-00-01","two%20words"],"why":"node rig-01 is wiping: installer","screen":["rig-01"]}`
	local = `{"action":"local","why":"in service"}`
	hold  = `{"action":"hold","why":"not decided: the store is away","retry":10}`
)

type answers struct {
	texts []string // one for each question; the last stays
	asked []string
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked = append(a.asked, r.URL.String())
	text := a.texts[0]
	if len(a.texts) > 1 {
		a.texts = a.texts[1:]
	}
	switch text {
	case "":
		return nil, errors.New("no route to host")
	case "404", "500":
		return &http.Response{StatusCode: 404, Status: text, Body: io.NopCloser(strings.NewReader(goOn))}, nil
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(text))}, nil
}

func newAsker(t *testing.T, a *answers) (asker *Asker, shown *[]string) {
	t.Helper()
	static, err := ParseCmdLine("quiet smelt.boot=http://10.77.0.1:8080/ smelt.server=https://10.77.0.1:8443 smelt.via=uki")
	if err != nil {
		t.Fatal(err)
	}
	ids := t.TempDir()
	if err := os.WriteFile(filepath.Join(ids, "product_serial"), []byte("RIG 42/A&mac=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown = new([]string)
	mac, _ := net.ParseMAC("52:54:00:00:00:01")
	return &Asker{
		CmdLine: static, Card: func() net.HardwareAddr { return mac }, Other: func() bool { *shown = append(*shown, "other card"); return false },
		Keep: filepath.Join(t.TempDir(), "orders"), Show: func(_ string, l ...string) { *shown = append(*shown, l...) },
		Log: slog.New(slog.DiscardHandler), ids: ids, transport: a,
	}, shown
}

func TestAsk(t *testing.T) {
	for _, tc := range []struct {
		name  string
		texts []string
		err   error
		shown []string
		took  [2]time.Duration
	}{
		{"at once", []string{goOn}, nil, []string{"rig-01", "kernel: node rig-01 is wiping: installer"}, [2]time.Duration{0, 0}},
		{"its own disk", []string{local}, ErrLocal, []string{"local: in service"}, [2]time.Duration{0, 0}},
		{"held, said once", []string{hold, hold, hold, goOn}, nil, []string{"hold: not decided: the store is away", "rig-01", "kernel: node rig-01 is wiping: installer"}, [2]time.Duration{30 * time.Second, 38 * time.Second}},
		{"no server", []string{"", "", "404", "500", "", "", "", local}, ErrLocal, []string{"other card", "local: in service"}, [2]time.Duration{45 * time.Second, 95 * time.Second}},
		// What is not exactly an answer is none.
		{"junk", []string{"<html>", "null", `{"action":"Kernel"}`, goOn + "{}", `{"action":"kernel","args":["smelt.nonce=a b"],"why":""}`, `{"action":"kernel","secret":1}`,
			`{"action":"kernel","args":["smelt.server=https://x","smelt.mode=convert"],"why":"no nonce"}`, strings.Repeat(" ", maxOrders) + goOn, goOn},
			nil, []string{"other card", "other card", "rig-01", "kernel: node rig-01 is wiping: installer"}, [2]time.Duration{75 * time.Second, 155 * time.Second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &answers{texts: tc.texts}
				asker, shown := newAsker(t, a)
				start := time.Now()
				c, err := asker.Ask(t.Context())
				if took := time.Since(start); took < tc.took[0] || took > tc.took[1] {
					t.Errorf("took %s, want %s", took, tc.took)
				}
				if !errors.Is(err, tc.err) || !slices.Equal(*shown, tc.shown) {
					t.Fatalf("%v, shown %q", err, *shown)
				}
				want := "http://10.77.0.1:8080/boot/next?arch="
				if !strings.HasPrefix(a.asked[0], want) || !strings.HasSuffix(a.asked[0], "&mac=52%3A54%3A00%3A00%3A00%3A01&serial=RIG+42%2FA%26mac%3Dx&via=uki") {
					t.Errorf("asked %s", a.asked[0])
				}
				if tc.err != nil {
					return
				}
				if c.Nonce != "ab12" || c.Mode != Convert || c.Server != "https://10.77.0.1:8443" || c.BootIF.String() != "52:54:00:00:00:01" {
					t.Errorf("orders %+v", c)
				}
				// An agent that is started again does not ask again.
				a.texts = []string{local}
				if again, err := asker.Ask(t.Context()); err != nil || again.Nonce != c.Nonce || again.Mode != c.Mode {
					t.Errorf("asked again: %+v, %v", again, err)
				}
			})
		})
	}
}

// Nobody but the machine's own command line says which server it serves.
func TestAskServer(t *testing.T) {
	a := &answers{texts: []string{strings.Replace(goOn, "10.77.0.1:8443", "10.66.6.6", 1)}}
	asker, _ := newAsker(t, a)
	if c, err := asker.Ask(t.Context()); err != nil || c.Server != "https://10.77.0.1:8443" {
		t.Errorf("%+v, %v", c, err)
	}
}

// Without an answer nothing is done, for as long as it takes.
func TestAskForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		a := &answers{texts: []string{""}}
		asker, _ := newAsker(t, a)
		if c, err := asker.Ask(ctx); !errors.Is(err, context.DeadlineExceeded) || c.Nonce != "" {
			t.Errorf("%+v, %v", c, err)
		}
		if n := len(a.asked); n < 24*120 || n > 24*260 {
			t.Errorf("asked %d times in a day", n)
		}
	})
}

func FuzzOrders(f *testing.F) {
	for _, s := range []string{goOn, local, hold, goOn + "x", `{"action":"kernel","args":["a b"]}`} {
		f.Add([]byte(s))
	}
	a := &Asker{CmdLine: CmdLine{Server: "https://ours"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOrders(b)
		if err != nil {
			return
		}
		if strings.ContainsAny(o.Why+strings.Join(o.Screen, ""), "\x1b\n\x7f\u009b") {
			t.Errorf("control characters in %+v", o)
		}
		c, err := a.merge(o.Args)
		if err == nil && (c.Nonce == "" || c.Server != "https://ours") {
			t.Errorf("%+v", c)
		}
		if c.Mode == Convert && !slices.Contains(o.Args, "smelt.mode=convert") {
			t.Error("convert out of nothing")
		}
	})
}

func TestOther(t *testing.T) {
	n := NewNetwork(nil, slog.New(slog.DiscardHandler))
	if n.Other() {
		t.Error("there is one card: it is kept")
	}
	n.spares.Store(1)
	if n.Other() {
		t.Error("nobody listens at this moment")
	}
	gone := make(chan struct{})
	go func() {
		<-n.other
		close(gone)
	}()
	for !n.Other() {
		runtime.Gosched()
	}
	<-gone
}
