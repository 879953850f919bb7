package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/internal/agent"
	"smelt/internal/api"
	"smelt/internal/inspect"
	"smelt/internal/join"
	"smelt/inventory"
)

// lockedBuffer is a log that a test reads while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startInstalled runs an agent as the service of an installed system.
func startInstalled(t *testing.T, f *fakeServer, m *machine, state, helper string) *lockedBuffer {
	t.Helper()
	log := &lockedBuffer{}
	h := &api.Handoff{Node: f.node, Session: "s3ss10n", Expires: time.Now().Add(time.Hour), Image: strings.Repeat("ab", 32), Fence: f.fence}
	a, err := agent.New(agent.Config{
		Version: "test", Mode: agent.Installed, Server: f.srv.URL, Pin: f.pin(), SiteKey: f.key.Public().(ed25519.PublicKey), Handoff: h,
		StateDir: state, System: inspect.System{Root: m.root}, GPUHelper: helper, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	f.until("inventory", 10*time.Second, func() bool { return len(f.invs) > 0 })
	return log
}

func TestInstalledReportsItsImage(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", "GOOD-1", "x")
	f := newFakeServer(t, nil)
	startInstalled(t, f, m, t.TempDir(), "")
	if i := f.invs[0]; i.Image != strings.Repeat("ab", 32) || i.Addr != "127.0.0.1" || len(f.enrols) != 0 {
		t.Errorf("inventory = %+v, %d enrolments", i, len(f.enrols))
	}
	// Not even with a permit that is right in everything.
	o, p := api.Order{ID: "w", Kind: api.OrderWipe, Fence: f.fence}, inventory.Permit{ID: "p", Node: f.node, Action: "wipe", Plan: "x", Fence: f.fence, Issued: time.Now(), NotAfter: time.Now().Add(time.Minute)}
	o.Wipe = &api.WipeOrder{Level: "metadata", Disks: []inventory.DiskID{{Serial: "GOOD-1", Size: diskSize}}}
	p.Disks = o.Wipe.Disks
	if r := f.result(f.sign(o, p, f.key)); r.OK || r.Cause != "permit" {
		t.Errorf("wipe of the installed system = %+v", r)
	}
}

// A handoff is adopted once; afterwards the renewed session counts, also when
// it ends before the handoff would have.
func TestHandoffIsAdoptedOnce(t *testing.T) {
	m := newMachine(t)
	f := newFakeServer(t, nil)
	state := t.TempDir()
	t.Run("first life", func(t *testing.T) { f.t = t; startInstalled(t, f, m, state, "") })
	file := filepath.Join(state, "state.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	v["session"], v["expires"] = "renewed", time.Now().Add(time.Minute)
	if b, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = agent.New(agent.Config{Mode: agent.Installed, Server: f.srv.URL, Pin: f.pin(), SiteKey: f.key.Public().(ed25519.PublicKey), StateDir: state,
		Handoff: &api.Handoff{Node: f.node, Session: "s3ss10n", Expires: time.Now().Add(time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(file); err != nil || !strings.Contains(string(b), `"renewed"`) {
		t.Errorf("state = %s, %v", b, err)
	}
	if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("state.json: %v, %v", i.Mode(), err)
	}
}

func script(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBurnin(t *testing.T) {
	check := func(id string, d time.Duration) burnin.Spec {
		return burnin.Spec{ID: id, Required: true, Duration: d, Deadline: 20 * time.Second}
	}
	hang := check("gpu-vram", 0)
	hang.Deadline = 300 * time.Millisecond
	profile := burnin.Profile{Name: "t", Version: 1, Limit: time.Minute, Checks: []burnin.Spec{
		check("cpu", 0), check("nosuch", 0), check("gpu-presence", 0), hang, check("gpu-compute", 0),
	}}
	helper := script(t, "smelt-gpu", `in=$(cat)
case "$in" in
*'"id":"gpu-presence"'*)
	echo '{"sample":{"series":"GPU temperature","unit":"C","value":55}}'
	echo 'noise of a driver'
	echo '{"progress":{"done":0.5,"doing":"half"}}'
	echo '{"result":{"id":"gpu-presence","status":"pass","reason":"1 card","work":1,"started":"2026-01-01T00:00:00Z","took":"1s"}}';;
*'"id":"gpu-vram"'*) exec sleep 60;;
*) echo 'symbol lookup error' >&2; exit 127;;
esac`)
	for _, tc := range []struct {
		name, helper string
		want         []burnin.Status
	}{
		{"helper", helper, []burnin.Status{burnin.Pass, burnin.Error, burnin.Pass, burnin.Error, burnin.Error}},
		{"no helper", "/nowhere/smelt-gpu", []burnin.Status{burnin.Pass, burnin.Error, burnin.Error, burnin.Error, burnin.Error}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			f := newFakeServer(t, nil)
			startInstalled(t, f, m, t.TempDir(), tc.helper)
			r := f.result(api.Order{ID: "burnin-1", Kind: api.OrderBurnin, Fence: f.fence, Burnin: &api.BurninOrder{
				Report: "rep-1", Profile: profile, Subject: burnin.Subject{Node: f.node, Server: f.srv.URL}, Lab: true,
			}})
			if !r.OK || r.Report == nil || len(r.Report.Results) != len(profile.Checks) {
				t.Fatalf("result = %+v", r)
			}
			for i, res := range r.Report.Results {
				if res.ID != profile.Checks[i].ID || res.Status != tc.want[i] || res.Reason == "" {
					t.Errorf("%s: %v (%s), want %v", res.ID, res.Status, res.Reason, tc.want[i])
				}
			}
			if rep := r.Report; rep.ID != "rep-1" || rep.Node != f.node || rep.Image == "" || rep.Hardware.Digest() != rep.HWDigest || rep.Finished.Before(rep.Started) {
				t.Errorf("report = %+v", rep)
			}
			if tc.helper == helper && (len(r.Report.Series) == 0 || !strings.Contains(strings.Join(r.Report.Results[4].Log, " "), "symbol lookup error")) {
				t.Errorf("series = %+v, log = %q", r.Report.Series, r.Report.Results[4].Log)
			}
		})
	}
}

func TestJoin(t *testing.T) {
	const secret = "c4n4ry-munge-key"
	m := newMachine(t)
	f := newFakeServer(t, nil)
	calls := filepath.Join(t.TempDir(), "calls")
	t.Setenv("PATH", filepath.Dir(script(t, "systemctl", `echo "$@" >> `+calls+`
case "$*" in *broken*) echo "it did not start" >&2; exit 1;; esac`))+":"+os.Getenv("PATH"))
	log := startInstalled(t, f, m, t.TempDir(), "")
	grant := &join.Grant{Kind: "slurm", Units: []string{"munge.service", "slurmd.service"}, Files: []join.File{
		{Path: "/etc/munge/munge.key", Mode: 0o400, Data: []byte(secret), Secret: true},
		{Path: "/etc/default/slurmd", Mode: 0o644, Data: []byte("X=1\n")},
	}}
	r := f.result(api.Order{ID: "join-1", Kind: api.OrderJoin, Fence: f.fence, Join: grant})
	if !r.OK {
		t.Fatalf("result = %+v", r)
	}
	b, err := os.ReadFile(filepath.Join(m.root, "etc/munge/munge.key"))
	if err != nil || string(b) != secret {
		t.Errorf("key = %q, %v", b, err)
	}
	if i, err := os.Stat(filepath.Join(m.root, "etc/munge/munge.key")); err != nil || i.Mode().Perm() != 0o400 {
		t.Errorf("key: %v, %v", i, err)
	}
	want := "daemon-reload\nenable munge.service\nrestart munge.service\nis-active --quiet munge.service\nis-active --quiet munge.service\n" +
		"enable slurmd.service\nrestart slurmd.service\nis-active --quiet slurmd.service\nis-active --quiet slurmd.service\n"
	if b, err := os.ReadFile(calls); err != nil || string(b) != want {
		t.Errorf("systemctl was called with\n%s%v, want\n%s", b, err, want)
	}

	for _, bad := range []join.Grant{
		{Units: []string{"broken.service"}},
		{Units: []string{"--no-reload"}},
		{Files: []join.File{{Path: "etc/relative", Mode: 0o600, Data: []byte(secret)}}},
		{Files: []join.File{{Path: "/etc/../etc/x", Mode: 0o600, Data: []byte(secret)}}},
		{Files: []join.File{{Path: "/etc/x", Mode: 0o4755, Data: []byte(secret)}}},
		{Files: []join.File{{Path: "/etc/x", Mode: 0o600, Owner: "no-such-user", Data: []byte(secret)}}},
	} {
		id := "join-bad-" + string(rune('a'+len(f.results)))
		if r := f.result(api.Order{ID: id, Kind: api.OrderJoin, Fence: f.fence, Join: &bad}); r.OK || r.Error == "" {
			t.Errorf("%+v: %+v", bad.Units, r)
		}
	}
	all, err := json.Marshal(f.results)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String()+string(all), secret) {
		t.Error("a secret is in a log or a result")
	}
	if _, err := os.Stat(filepath.Join(m.root, "etc/x")); err == nil {
		t.Error("a file that was refused was written")
	}
}
