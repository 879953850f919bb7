package convert_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

// watch is a clock that a test moves on.
type watch struct{ ahead atomic.Int64 }

func (w *watch) now() time.Time                           { return time.Now().Add(time.Duration(w.ahead.Load())) }
func (w *watch) pass(d time.Duration)                     { w.ahead.Add(int64(d)) }
func (w *watch) set(c *convert.Conductor, _ *store.Store) { c.Now = w.now }

// script asks for the boot script of machine i.
func (h *hall) script(i int) pxe.Boot {
	h.t.Helper()
	b, err := h.c.Boot(h.t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(i)), Stage: pxe.AskScript, IPXE: true, Leased: true})
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// loops boots machine i until it is served something else, n times at most.
func (h *hall) loops(w *watch, i, n int) (served int, last pxe.Boot) {
	h.t.Helper()
	first := h.script(i).Action
	for served = 1; served < n; served++ {
		w.pass(time.Minute)
		if last = h.script(i); last.Action != first {
			return served, last
		}
	}
	return served, last
}

func (h *hall) loopAlarms(id inventory.NodeID) (n int) {
	for _, a := range h.alarms(id) {
		if strings.HasPrefix(a, "boot loop") {
			n++
		}
	}
	return n
}

// A machine that boots again and again and comes to nothing waits for a
// technician with its history, and the task's end is the quarantine's.
func TestBootLoop(t *testing.T) {
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
	id := nodeID(0)
	h.script(0)
	h.reach(id, inventory.Discovered)
	w.pass(time.Minute)
	served, b := h.loops(&w, 0, 20)
	if served != 5 || b.Action != pxe.Hold || b.Wait < time.Minute || !strings.Contains(b.Why, "waits for a technician") {
		t.Fatalf("after %d boots: %+v", served, b)
	}
	n := h.reach(id, inventory.NeedsWork)
	if n.Failure.Cause != "boot-loop" || n.Failure.Step != inventory.Discovered || len(n.Failure.Tasks) != 1 {
		t.Errorf("failure %+v", n.Failure)
	}
	events, err := h.s.NodeEvents(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var history map[string]string
	for _, e := range events {
		if e.Kind == inventory.KindAlarm {
			history = e.Evidence
		}
	}
	if len(history) != 5 || !strings.Contains(history["boot 5"], "the RAM system to inspect") {
		t.Errorf("history %v", history)
	}
	tasks, err := h.s.Tasks(t.Context(), id)
	if err != nil || len(tasks) != 1 || tasks[0].Verb != "check" || !strings.Contains(tasks[0].What, "the screen of rig-00") || tasks[0].Where != "A0" {
		t.Fatalf("tasks %+v, %v", tasks, err)
	}
	for range 5 { // it is not looped any more, and says so once
		w.pass(time.Minute)
		if b := h.script(0); b.Action != pxe.Hold {
			t.Fatalf("in quarantine it was served %v", b.Action)
		}
	}
	if k := h.loopAlarms(id); k != 1 {
		t.Errorf("%d alarms", k)
	}
	h.must(id, "task-done", map[string]string{"task": tasks[0].ID})
	h.reach(id, inventory.Discovered)
	if b := h.script(0); b.Action != pxe.Kernel {
		t.Errorf("after the task it is served %v: %s", b.Action, b.Why)
	}
	// Another inspection ends it as well. This time GRUB asks each time, and the
	// kernel that it starts comes to nothing.
	for range 5 {
		w.pass(time.Minute)
		if _, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskMenu, Arch: pxe.UEFIx64, Leased: true}); err != nil {
			t.Fatal(err)
		}
	}
	h.reach(id, inventory.NeedsWork)
	h.must(id, "reinspect", nil)
	h.reach(id, inventory.Discovered)
	if b := h.script(0); b.Action != pxe.Kernel {
		t.Errorf("after reinspect it is served %v: %s", b.Action, b.Why)
	}
}

// What gets somewhere, retries at once, or takes its time is no loop.
func TestNoBootLoop(t *testing.T) {
	t.Run("an agent enrols each time", func(t *testing.T) {
		var w watch
		h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
		for range 12 {
			a := h.boots(0)
			if a.mode != "inspect" {
				t.Fatalf("mode %q", a.mode)
			}
			a.ok(a.enrol())
			w.pass(time.Minute)
		}
	})
	for name, pause := range map[string]time.Duration{"retries": time.Second, "seldom": 8 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			var w watch
			h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
			h.script(0)
			h.reach(nodeID(0), inventory.Discovered)
			w.pass(time.Hour)
			for i := range 25 {
				if b := h.script(0); b.Action != pxe.Kernel {
					t.Fatalf("boot %d: %v, %s", i, b.Action, b.Why)
				}
				w.pass(pause)
			}
		})
	}
	t.Run("GRUB and a kernel that takes a minute to load", func(t *testing.T) {
		var w watch
		h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
		h.script(0)
		h.reach(nodeID(0), inventory.Discovered)
		w.pass(time.Hour)
		for i := range 10 {
			stage := []pxe.Stage{pxe.AskMenu, pxe.AskScript}[i%2]
			b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: stage, Arch: pxe.UEFIx64, Leased: true})
			if err != nil || b.Action != pxe.Kernel {
				t.Fatalf("question %d: %v, %s, %v", i, b.Action, b.Why, err)
			}
			w.pass(time.Minute)
		}
	})
	t.Run("its agent works", func(t *testing.T) { // and somebody else asks in its name
		var w watch
		h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
		a := h.wiping(0)
		o := a.ordered("wipe")
		for range 12 {
			if b := h.script(0); b.Action != pxe.Kernel {
				t.Fatalf("%v: %s", b.Action, b.Why)
			}
			h.c.Progress(a.agent, o.ID, 0.1, "wiping", 0)
			w.pass(time.Minute)
		}
		if n := h.node(a.id); n.State != inventory.Wiping || h.loopAlarms(a.id) != 0 {
			t.Errorf("it is %s with %d alarms", n.State, h.loopAlarms(a.id))
		}
	})
}

// A node in service boots its own disk whatever anybody asks in its name: there
// it is an alarm, and that only while its agent is silent.
func TestBootLoopInService(t *testing.T) {
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20}, w.set)
	id := nodeID(0)
	h.on(id)
	h.reach(id, inventory.Inspected)
	h.must(id, "approve", nil)
	n := h.reach(id, inventory.InService)
	local := func(what string, starts int) {
		t.Helper()
		for i := range 25 {
			stage := pxe.AskScript
			if starts > 0 {
				stage = pxe.AskAddress
			}
			b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: stage, Starts: starts + i, Leased: true})
			if err != nil || b.Action != pxe.Local {
				t.Fatalf("%s, boot %d: %v, %s, %v", what, i, b.Action, b.Why, err)
			}
			w.pass(45 * time.Second)
			if what == "healthy" {
				h.c.Progress(store.Agent{Node: id, Mode: "installed"}, "", 0, "", 0) // as every word of an agent
			}
		}
	}
	local("healthy", 0)
	if k := h.loopAlarms(id); k != 0 {
		t.Errorf("%d alarms although its agent speaks", k)
	}
	_ = h.machines[id].PowerOff(t.Context())
	w.pass(time.Hour)
	local("silent", 0)
	if k := h.loopAlarms(id); k != 1 {
		t.Errorf("%d alarms for one loop of 19 minutes", k)
	}
	w.pass(time.Hour)
	local("never beyond its loader", 8)
	if k := h.loopAlarms(id); k != 2 {
		t.Errorf("%d alarms after its firmware looped too", k)
	}
	tasks, err := h.s.Tasks(t.Context(), id)
	if after := h.node(id); err != nil || after.State != inventory.InService || !after.Since.Equal(n.Since) || len(tasks) != 0 {
		t.Errorf("it is %s since %s, tasks %v, %v", after.State, after.Since, tasks, err)
	}
}

// Whoever says the MAC of a machine, from an address that is not the machine's,
// takes it nowhere.
func TestBootLoopMadeUp(t *testing.T) {
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
	id := nodeID(0)
	h.script(0)
	h.reach(id, inventory.Discovered)
	for i := range 20 {
		w.pass(time.Minute)
		b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskScript, IPXE: true})
		if err != nil || b.Action != pxe.Kernel {
			t.Fatalf("question %d: %v, %s, %v", i, b.Action, b.Why, err)
		}
	}
	if n := h.node(id); n.State != inventory.Discovered || h.loopAlarms(id) != 0 {
		t.Errorf("it is %s, %d alarms", n.State, h.loopAlarms(id))
	}
}

// A machine that never asks for a script changes no state, because anybody can
// make its starts up; people are told.
func TestFirmwareLoop(t *testing.T) {
	var w watch
	h := newHallWith(t, layout{Nodes: 1, Dead: true}, w.set)
	id := nodeID(0)
	for i := range 30 {
		b, err := h.c.Boot(t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskAddress, Starts: i, Vendor: "PXEClient:Arch:00007"})
		if err != nil || b.Action != pxe.Kernel {
			t.Fatalf("start %d: %v, %v", i, b.Action, err)
		}
		h.reach(id, inventory.Discovered)
		w.pass(45 * time.Second)
	}
	tasks, err := h.s.Tasks(t.Context(), id)
	if err != nil || len(tasks) != 1 || !tasks[0].Open() || h.loopAlarms(id) != 1 {
		t.Fatalf("%d alarms, tasks %+v, %v", h.loopAlarms(id), tasks, err)
	}
	a := h.boots(0) // now it comes through
	a.ok(a.enrol())
	if tasks, err = h.s.Tasks(t.Context(), id); err != nil || tasks[0].Open() {
		t.Errorf("the task is still open after its agent started: %+v, %v", tasks, err)
	}
}

// A server that is started anew counts on.
func TestBootLoopSurvives(t *testing.T) {
	var w watch
	l := layout{Dir: t.TempDir(), Nodes: 1, Dead: true}
	var err error
	if l.Listen, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	wd, err := newWorld(&l, 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer wd.close()
	during := func(f func(h *hall)) {
		t.Helper()
		h := &hall{world: wd, t: t, l: l}
		ctx, cancel := context.WithCancel(t.Context())
		ended, up := make(chan error, 1), make(chan struct{})
		go func() {
			ended <- serve(ctx, l, testLog(), w.set, func(c *convert.Conductor, s *store.Store) { h.c, h.s = c, s; close(up) })
		}()
		select {
		case <-up:
			<-h.c.Ready()
			f(h)
		case err := <-ended:
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	during(func(h *hall) {
		h.script(0)
		h.reach(nodeID(0), inventory.Discovered)
	})
	var got []string
	for range 7 {
		during(func(h *hall) { got = append(got, h.script(0).Action.String()) })
		w.pass(time.Minute)
	}
	if s := fmt.Sprint(got); s != "[kernel kernel kernel kernel kernel hold hold]" {
		t.Errorf("one boot in each life of the server: %s", s)
	}
}
