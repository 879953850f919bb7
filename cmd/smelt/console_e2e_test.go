package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/console"
	"smelt/internal/server"
	"smelt/internal/store"
	"smelt/internal/vbmc"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/bmc"
)

// TestConsoleOfAMachine: what the firmware of a QEMU machine behind ipmi_sim
// says is in smelt node console --log, over a power cycle and over a server that
// is started again, and what is typed reaches it.
func TestConsoleOfAMachine(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("QEMU and a BMC: set SMELT_TEST_E2E=1")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir, err := os.MkdirTemp("", "con") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, vbmc.EchoDisk(), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &vbmc.Machine{Name: "t", Dir: filepath.Join(dir, "m"), Memory: 64, Disks: []vbmc.Disk{{Path: disk, Serial: "D1"}}}
	t.Cleanup(func() { m.Close() })
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := vbmc.StartIPMI(ctx, vbmc.IPMIConfig{Dir: filepath.Join(dir, "b"), Conn: conn, Password: "s3cret"}, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	c, err := bmc.New(bmc.Config{Kind: "ipmi", Address: b.Addr().String(), User: "admin", CipherSuite: 3,
		Password: func(context.Context) (string, error) { return "s3cret", nil }})
	if err != nil {
		t.Fatal(err)
	}
	v := power.Verify(c, power.Limits{Dwell: time.Second, Poll: 200 * time.Millisecond})

	st, err := store.Open(ctx, "sqlite:"+filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := fillStore(ctx, st); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(dir, "operator.token")
	if _, err := server.FirstToken(ctx, st, token); err != nil {
		t.Fatal(err)
	}
	// serve is a server with its recorder.
	serve := func() (url string, stop func()) {
		rec, err := console.New(console.Config{Dir: filepath.Join(dir, "console"), Ports: map[inventory.NodeID]console.Port{"srv-01": v}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- rec.Run(ctx) }()
		s, err := server.New(server.Config{Conductor: &conductor{}, Store: st, Log: slog.New(slog.DiscardHandler), Version: "test", Site: "hall-a", Console: rec,
			Power: map[inventory.NodeID]*power.Verified{"srv-01": v}})
		if err != nil {
			t.Fatal(err)
		}
		ui := httptest.NewServer(s.UI())
		return ui.URL, func() { s.Close(); ui.Close(); cancel(); <-ended }
	}
	smelt := func(url string, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append(args, "--server", url, "--token-file", token))
		if err := root.ExecuteContext(ctx); err != nil {
			t.Fatalf("smelt %v: %v", args, err)
		}
		return out.String()
	}
	within := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(500 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within three minutes: %s", what)
			}
		}
	}
	url, stop := serve()
	log := func() string { return smelt(url, "node", "console", "srv-01", "--log") }
	within("the console is open", func() bool { return strings.Contains(log(), "-- smelt: connected --") })
	if _, err := v.On(ctx); err != nil {
		t.Fatal(err)
	}
	within("the firmware's words", func() bool { return strings.Contains(log(), "Booting from Hard Disk") })
	if _, err := v.Cycle(ctx, 0); err != nil {
		t.Fatal(err)
	}
	within("the firmware's words after a cycle", func() bool { return strings.Count(log(), "Booting from Hard Disk") == 2 })
	if got := log(); strings.ContainsRune(got, '\x1b') {
		t.Errorf("the firmware's escapes are left: %q", got)
	}
	cl, err := api.NewClient(url, strings.TrimSpace(string(must(os.ReadFile(token)))), nil)
	if err != nil {
		t.Fatal(err)
	}
	within("what was typed comes back", func() bool { // firmware swallows what comes too early
		if err := cl.TypeConsole(ctx, "srv-01", api.ConsoleInput{Session: "s", Data: []byte("hello, machine\r\n")}); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(log(), "hello, machine\n")
	})

	// A server that is started again has it all, and goes on.
	stop()
	url, stop = serve()
	defer stop()
	within("the next server's session", func() bool { return strings.Count(log(), "-- smelt: connected --") == 2 })
	if got := log(); strings.Count(got, "Booting from Hard Disk") != 2 || !strings.Contains(got, "hello, machine") {
		t.Errorf("the recording is not whole: %s", got)
	}
	if ev, err := v.Off(ctx); err != nil {
		t.Errorf("%v %+v", err, ev)
	}
	if v.TakesTurns() {
		t.Error("a BMC that has room for verbs beside a console is said to have none")
	}
	t.Log(log())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
