package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/inventory"
)

// A burn-in that is held goes on where it was: what passed is not done again,
// the check that was cut short is, also when the machine went down meanwhile.
func TestBurninIsHeld(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	began := func(word string) int {
		b, _ := os.ReadFile(calls)
		return strings.Count(string(b), word)
	}
	helper := script(t, "smelt-gpu", `in=$(cat)
case "$1:$in" in
limit:*) echo "limit $in" >> `+calls+`;;
*'"id":"gpu-presence"'*)
	echo presence >> `+calls+`
	echo '{"result":{"id":"gpu-presence","status":"pass","reason":"1 card","work":1,"started":"2026-01-01T00:00:00Z","took":"1s"}}';;
*'"id":"gpu-compute"'*)
	echo compute >> `+calls+`
	echo '{"sample":{"series":"power","unit":"W","value":300}}'
	if [ -e `+calls+`.go ]; then
		echo '{"result":{"id":"gpu-compute","status":"pass","reason":"fast","work":1,"started":"2026-01-01T00:00:00Z","took":"1s"}}'
	else exec sleep 60; fi;;
esac`)
	check := func(id string) burnin.Spec {
		return burnin.Spec{ID: id, Required: true, Deadline: 30 * time.Second}
	}
	m := newMachine(t)
	f := newFakeServer(t, nil)
	o := api.Order{ID: "b1", Kind: api.OrderBurnin, Fence: f.fence, Burnin: &api.BurninOrder{Report: "rep-1", Lab: true,
		Profile: burnin.Profile{Name: "t", Version: 1, Limit: time.Minute, Checks: []burnin.Spec{check("gpu-presence"), check("gpu-compute")}},
		Subject: burnin.Subject{Node: f.node, Server: f.srv.URL}}}
	state := t.TempDir()
	held := filepath.Join(state, "burnin-held.json")
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: never; calls %d presence, %d compute", what, began("presence"), began("compute"))
			}
		}
	}
	t.Run("paused and switched off", func(t *testing.T) {
		f.t = t
		startInstalled(t, f, m, state, helper)
		f.give(o)
		wait("compute runs", func() bool { return began("compute") == 1 })
		o.Load = inventory.Load{Pause: inventory.PauseNow}
		f.give(o)
		wait("it is held", func() bool { _, err := os.Stat(held); return err == nil })
	})
	t.Run("back, capped, and let go", func(t *testing.T) {
		f.t = t
		o.Load = inventory.Load{Cap: 0.6}
		f.give(o)
		startInstalled(t, f, m, state, helper)
		wait("its cards are limited", func() bool { return began(`limit {"share":0.6}`) == 1 })
		time.Sleep(50 * time.Millisecond)
		if n := began("compute"); n != 1 {
			t.Errorf("a check of the cards ran %d times under a cap", n)
		}
		if err := os.WriteFile(calls+".go", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		o.Load = inventory.Load{}
		r := f.result(o)
		if !r.OK || r.Report == nil || len(r.Report.Results) != 2 {
			t.Fatalf("result = %+v", r)
		}
		for _, res := range r.Report.Results {
			if res.Status != burnin.Pass {
				t.Errorf("%s: %s (%s)", res.ID, res.Status, res.Reason)
			}
		}
		if began("presence") != 1 || began("compute") != 2 {
			t.Errorf("presence ran %d times, compute %d", began("presence"), began("compute"))
		}
		if n := len(r.Report.Series); n != 1 || len(r.Report.Series[0].V) != 1 {
			t.Errorf("samples of what was cut short are in the report: %+v", r.Report.Series)
		}
		wait("the limit is lifted", func() bool { return began(`limit {"share":0}`) == 1 })
		if _, err := os.Stat(held); err == nil {
			t.Error("what was held is still there")
		}
	})
}

// A run that nobody held begins anew after a restart: a machine that goes down
// by itself must do all of it.
func TestBurninStartsAnew(t *testing.T) {
	m := newMachine(t)
	f := newFakeServer(t, nil)
	state := t.TempDir()
	calls := filepath.Join(t.TempDir(), "calls")
	helper := script(t, "smelt-gpu", `in=$(cat)
echo x >> `+calls+`
case "$in" in
*'"id":"gpu-presence"'*) echo '{"result":{"id":"gpu-presence","status":"pass","reason":"1 card","work":1,"started":"2026-01-01T00:00:00Z","took":"1s"}}';;
*) exec sleep 60;;
esac`)
	o := api.Order{ID: "b1", Kind: api.OrderBurnin, Fence: f.fence, Burnin: &api.BurninOrder{Report: "rep-1", Lab: true,
		Profile: burnin.Profile{Name: "t", Version: 1, Checks: []burnin.Spec{{ID: "gpu-presence", Deadline: time.Minute}, {ID: "gpu-vram", Deadline: time.Minute}}},
		Subject: burnin.Subject{Node: f.node, Server: f.srv.URL}}}
	count := func() int {
		b, _ := os.ReadFile(calls)
		return len(b) / 2
	}
	for life, want := range []int{2, 4} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		t.Run("life", func(t *testing.T) {
			f.t = t
			f.give(o)
			startInstalled(t, f, m, state, helper)
			for count() < want && ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			if n := count(); n != want {
				t.Errorf("life %d: %d checks were begun, want %d", life, n, want)
			}
		})
		cancel()
	}
}
