package bmc

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/internal/vbmc"
)

// TestSessionsChild is the process that TestKilled kills: it reads the state
// of a BMC for ever.
func TestSessionsChild(t *testing.T) {
	at := os.Getenv("SMELT_TEST_BMC")
	if at == "" {
		return
	}
	c := open(t, Config{Kind: "redfish", Address: at, Sessions: os.Getenv("SMELT_TEST_SESSIONS")})
	fmt.Println("ready")
	for {
		if _, err := c.State(t.Context()); err != nil {
			fmt.Println("state:", err)
		}
	}
}

// child starts such a process and returns how to kill it.
func child(t *testing.T, r *vbmc.Redfish, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSessionsChild$", "-test.v=false")
	cmd.Env = append(os.Environ(), "SMELT_TEST_BMC="+r.Addr().String(), "SMELT_TEST_SESSIONS="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill() // SIGKILL; an error means that it has ended
			_ = cmd.Wait()
		})
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the child said %q, error %v", line, err)
	}
	return kill
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// A process is killed ten times wherever it is, and no session is left once
// the next one has begun.
func TestKilled(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	r.SetFaults(vbmc.RedfishFaults{Slow: 3 * time.Millisecond})
	dir := t.TempDir()
	left := 0
	for range 10 {
		kill := child(t, r, dir)
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		kill()
		time.Sleep(10 * time.Millisecond) // for what the BMC still does
		left += r.Stats().OpenSessions
	}
	t.Logf("after 10 kills %d sessions were seen open", left)
	if err := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir}).Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	s := r.Stats()
	if s.OpenSessions != 0 || s.FailedLogins != 0 {
		t.Errorf("%d sessions are left, %d logins failed", s.OpenSessions, s.FailedLogins)
	}
	if left == 0 {
		t.Error("no kill left a session: this test looks at nothing")
	}
	if b, _ := os.ReadFile(journalFile(t, dir)); strings.Contains(string(b), secret) {
		t.Errorf("the password is in the journal: %s", b)
	}
}

func journalFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.sessions"))
	if err != nil || len(files) != 1 {
		t.Fatalf("journals %q, error %v", files, err)
	}
	return files[0]
}

// The worst moment: the BMC has made the session and nobody has its name. It
// is found among sessions that are not ours.
func TestKilledBetweenLoginAndAnswer(t *testing.T) {
	for _, skew := range []time.Duration{0, -20 * 365 * 24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			var m vbmc.Switch
			r := startRedfishWith(t, vbmc.RedfishConfig{Clock: skew}, &m)
			others := []string{
				r.AddSession("admin", "10.9.9.9", time.Now()),
				r.AddSession("operator", "127.0.0.1", time.Now()),
				r.AddSession("admin", "127.0.0.1", time.Now().Add(-time.Hour)),
			}
			r.SetFaults(vbmc.RedfishFaults{LoginLost: true})
			dir := t.TempDir()
			kill := child(t, r, dir)
			until(t, "a session of the child", func() bool { return r.Stats().OpenSessions == len(others)+1 })
			kill()
			r.SetFaults(vbmc.RedfishFaults{})
			c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir})
			if _, err := c.State(t.Context()); err != nil { // any call does it
				t.Fatal(err)
			}
			left := r.SessionIDs()
			slices.Sort(left)
			if !slices.Equal(left, others) {
				t.Errorf("sessions %q are left, want those of others %q", left, others)
			}
			if b, _ := os.ReadFile(journalFile(t, dir)); len(b) != 0 {
				t.Errorf("the journal is not empty: %s", b)
			}
			before := r.Stats().Requests
			if err := c.Sweep(t.Context()); err != nil || r.Stats().Requests != before {
				t.Errorf("a sweep of nothing: error %v, %d requests", err, r.Stats().Requests-before)
			}
		})
	}
}

// A BMC that tells of its sessions neither when nor from where: nothing is
// known, and nobody else's is deleted.
func TestSweepUnknown(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	other := r.AddSession("admin", "10.9.9.9", time.Now())
	r.SetFaults(vbmc.RedfishFaults{LoginLost: true})
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: t.TempDir()})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.State(ctx); err == nil {
		t.Fatal("no answer was taken for one")
	}
	r.SetFaults(vbmc.RedfishFaults{Bare: true})
	err := c.Sweep(t.Context())
	if s := r.Stats(); s.OpenSessions != 2 || err == nil {
		t.Errorf("%d sessions are left, error %v; want both, and to hear of it", s.OpenSessions, err)
	}
	r.SetFaults(vbmc.RedfishFaults{})
	if err := c.Sweep(t.Context()); err != nil || !slices.Equal(r.SessionIDs(), []string{other}) {
		t.Errorf("sessions %q are left, error %v; want %q", r.SessionIDs(), err, other)
	}
}

// What cannot be deleted now is deleted by a later call; a BMC that is full of
// our own sessions is emptied.
func TestSweepLater(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	dir := t.TempDir()
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir})
	r.SetFaults(vbmc.RedfishFaults{LogoutFails: true})
	for range 3 {
		if _, err := c.State(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.Stats().OpenSessions; n != 3 {
		t.Fatalf("%d sessions", n)
	}
	if err := c.Sweep(t.Context()); err == nil {
		t.Error("a sweep that deleted nothing said that all is well")
	}
	n := r.Stats().OpenSessions
	r.SetFaults(vbmc.RedfishFaults{Sessions: n})
	if _, err := c.State(t.Context()); err != nil {
		t.Errorf("a BMC full of our sessions: %v", err)
	}
	if s := r.Stats(); s.OpenSessions != 0 || s.FailedLogins != 0 {
		t.Errorf("%d sessions are left, %d logins failed", s.OpenSessions, s.FailedLogins)
	}
}

// An id that the BMC gave to somebody else meanwhile is not ours any more.
func TestSweepSpares(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	dir := t.TempDir()
	id := r.AddSession("operator", "127.0.0.1", time.Now())
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir})
	j := c.driver.(*redfish).journal
	l, err := j.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rec, err := l.begin("admin")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.granted(rec, sessionsPath+"/"+id); err != nil {
		t.Fatal(err)
	}
	l.unlock()
	if err := c.Sweep(t.Context()); err != nil || r.Stats().OpenSessions != 1 {
		t.Errorf("error %v, %d sessions; want the one of the operator", err, r.Stats().OpenSessions)
	}
}

// Calls to one BMC wait for each other, across controllers.
func TestOneCallABMC(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	r.SetFaults(vbmc.RedfishFaults{Sessions: 1})
	dir := t.TempDir()
	var wait sync.WaitGroup
	for range 4 {
		c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir})
		wait.Go(func() {
			for range 3 {
				if _, err := c.State(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	// Who waits gives up with its context.
	l, err := newJournal(dir, r.Addr().String()).lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = open(t, Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir}).State(ctx)
	if err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("error %v", err)
	}
}

// Wherever the file ends, the login is open exactly from the end of its first
// line to that of its last.
func TestJournalCut(t *testing.T) {
	now := time.Now()
	var text []byte
	var ends []int
	for _, r := range []record{
		{Login: "A", At: now, User: "admin"}, {Login: "A", Session: sessionsPath + "/1"}, {Login: "A", Ended: true},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, b...), '\n')
		ends = append(ends, len(text))
	}
	for n := range len(text) + 1 {
		got := unended(text[:n], now)
		open := n >= ends[0] && n < ends[2]
		if open != (len(got) == 1) || open && (got[0].Session != "") != (n >= ends[1]) {
			t.Errorf("cut at %d of %v: %+v", n, ends, got)
		}
	}
	if got := unended(text[:ends[0]], now.Add(2*sessionLife)); len(got) != 0 {
		t.Errorf("a session of long ago: %+v", got)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte("{\"login\":\"A\",\"at\":\"2026-11-22T19:00:00Z\",\"user\":\"admin\"}\n{\"login\":\"A\",\"session\":\"/redfish/v1/x\"}\n"))
	f.Add([]byte("{\"login\":\"A\",\"ended\":true}\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range unended(b, time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)) {
			if r.Login == "" || r.At.IsZero() || r.Session != "" && !strings.HasPrefix(r.Session, "/redfish/") {
				t.Errorf("%+v", r)
			}
		}
	})
}

// A journal that grows because nothing can be deleted keeps its newest.
func TestJournalGrows(t *testing.T) {
	j := newJournal(t.TempDir(), "bmc:443")
	for range 2 {
		l, err := j.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 900 {
			if _, err := l.begin("admin"); err != nil {
				t.Fatal(err)
			}
		}
		last := l.open[len(l.open)-1].Login
		l.unlock()
		l, err = j.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(l.open); n != keptRecord || l.open[n-1].Login != last {
			t.Errorf("%d records", n)
		}
		l.unlock()
	}
}

// The key that was trusted first is trusted by the next process too, and only
// that.
func TestPinKept(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	dir := t.TempDir()
	c := Config{Kind: "redfish", Address: r.Addr().String(), Sessions: dir}
	if _, err := open(t, c).State(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := open(t, c)
	if pin(next) != r.Pin() {
		t.Errorf("the next process trusts %q", pin(next))
	}
	r.SetFaults(vbmc.RedfishFaults{NewKey: true})
	_, _ = next.State(t.Context()) // the connection that the old key still answers
	before := r.Stats()
	if _, err := open(t, c).State(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else answers") {
		t.Errorf("another key: error %v", err)
	}
	if s := r.Stats(); s.Requests != before.Requests {
		t.Errorf("%d requests went to another key", s.Requests-before.Requests)
	}
	c.Pin = strings.Repeat("A", 43) + "=" // the pin of the site wins
	if got := pin(open(t, c)); got != c.Pin {
		t.Errorf("the pin of the site is not used: %q", got)
	}
}
