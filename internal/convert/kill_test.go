package convert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"

	"go.uber.org/goleak"
)

// childEnv carries the layout to the server's process.
const childEnv = "SMELT_TEST_CONVERT_CHILD"

func TestMain(m *testing.M) {
	if raw := os.Getenv(childEnv); raw != "" {
		var l layout
		err := json.Unmarshal([]byte(raw), &l)
		if err == nil {
			err = serve(context.Background(), l, testLog(), nil, nil)
		}
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

// TestKill kills the server's process again and again while machines are
// converted, and looks afterwards for anything lost, doubled or wrongly wiped.
func TestKill(t *testing.T) {
	kills, nodes := 50, 24
	if s := os.Getenv("SMELT_TEST_KILLS"); s != "" {
		kills, _ = strconv.Atoi(s)
	}
	l := layout{
		Dir: t.TempDir(), Nodes: nodes, Max: 10, Feed: 200,
		Faults:  map[int]string{3: "gpu-lost", 4: "wipe", 5: "image"},
		Manual:  map[int]bool{6: true},
		Protect: map[int]bool{7: true},
	}
	const protected, held, unapproved, manual = 7, 8, 9, 6
	want := map[inventory.NodeID]inventory.State{}
	for i := range nodes {
		want[nodeID(i)] = inventory.InService
	}
	for _, i := range []int{3, 4, 5} {
		want[nodeID(i)] = inventory.NeedsWork
	}
	for _, i := range []int{protected, held, unapproved} {
		want[nodeID(i)] = inventory.Inspected
	}
	var err error
	if l.Listen, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	w, err := newWorld(&l, 25*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			w.close()
		}
	}()

	// The server dies at random moments for as long as there are kills left.
	var log bytes.Buffer
	var killed atomic.Int64
	seed := uint64(time.Now().UnixNano())
	rnd, rnd2 := rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 80*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := child(l, &log)
			if err := cmd.Start(); err != nil {
				ended <- err
				return
			}
			died := make(chan error, 1)
			go func() { died <- cmd.Wait() }()
			var kill <-chan time.Time
			if killed.Load() < int64(kills) {
				kill = time.After(time.Duration(60+rnd.IntN(340)) * time.Millisecond)
			}
			select {
			case <-kill:
				killed.Add(1)
				_ = cmd.Process.Signal(syscall.SIGKILL)
				<-died
			case <-ctx.Done():
				_ = cmd.Process.Signal(syscall.SIGKILL)
				<-died
			case err := <-died:
				ended <- fmt.Errorf("the server ended by itself: %v\n%s", err, log.Bytes())
				return
			}
		}
	}()

	// An operator works through it all.
	op, err := operator(l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		if err := w.machines[nodeID(i)].PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
	asked := map[inventory.NodeID]bool{}
	cuts := map[inventory.NodeID]int{}
	heldOnce := false
	started, late := time.Now(), time.After(5*time.Minute)
	for {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-late:
			now := standing(l, w)
			cancel()
			<-ended
			t.Fatalf("not done after %s and %d kills: %s\n%s", time.Since(started), killed.Load(), now, log.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
		list, err := op.Nodes(ctx)
		if err != nil {
			continue // it is dead just now
		}
		done := killed.Load() >= int64(kills)
		for _, v := range list.Items {
			n := v.Node
			done = done && n.State == want[n.ID]
			switch {
			case n.ID == nodeID(unapproved):
			case n.ID == nodeID(held) && !heldOnce:
				if tryDo(ctx, op, n.ID, "hold", map[string]string{"reason": "customer data"}) {
					heldOnce = true
				}
			case n.ID == nodeID(held) && n.Hold == nil:
				t.Fatal("the hold was lost")
			case n.State == inventory.Inspected && !asked[n.ID]:
				ok := tryDo(ctx, op, n.ID, "approve", map[string]string{"confirm": string(n.ID)})
				asked[n.ID] = ok || n.ID == nodeID(protected) || n.ID == nodeID(held)
			case n.State == inventory.Approved && n.ID == nodeID(manual):
				press(ctx, op, w, n.ID)
			case (n.State == inventory.Wiping || n.State == inventory.Imaging) && cuts[n.ID] < 2 && rnd2.IntN(8) == 0:
				// The hall loses power there: the machine comes back by itself.
				cuts[n.ID]++
				_ = w.machines[n.ID].Reset(ctx)
			}
		}
		if done {
			break
		}
	}
	t.Logf("%d nodes through %d kills and %d power cuts in %s", nodes, killed.Load(), len(cuts), time.Since(started).Round(time.Millisecond))
	cancel()
	for err := range ended {
		t.Fatal(err)
	}
	w.close()
	closed = true
	audit(t, l, w, want)
}

// TestKillAtEveryBoundary lets the server die once at each point between two
// effects, each time in the middle of another machine's conversion. Without
// SMELT_TEST_E2E=1 it takes those around permits and a sample of the others.
func TestKillAtEveryBoundary(t *testing.T) {
	names := boundaries(t)
	if os.Getenv("SMELT_TEST_E2E") == "" {
		names = sample(names, 16)
	}
	l := layout{Dir: t.TempDir(), Nodes: len(names), Max: 12, Feed: 1000, Auto: true, Die: map[inventory.NodeID]string{}}
	want := map[inventory.NodeID]inventory.State{}
	for i, name := range names {
		l.Die[nodeID(i)] = name
		want[nodeID(i)] = inventory.InService
	}
	var err error
	if l.Listen, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	w, err := newWorld(&l, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	close := sync.OnceFunc(w.close)
	defer close()
	for id := range want {
		_ = w.machines[id].PowerOn(t.Context())
	}
	op, err := operator(l)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	started := time.Now()
	deaths := 0
	for done := false; !done; {
		cmd := child(l, &log)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		died := make(chan error, 1)
		go func() { died <- cmd.Wait() }()
	alive:
		for {
			select {
			case err := <-died:
				if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
					t.Fatalf("the server ended by itself: %v\n%s", err, log.Bytes())
				}
				deaths++
				break alive
			case <-time.After(50 * time.Millisecond):
			}
			list, err := op.Nodes(t.Context())
			done = err == nil && len(list.Items) == len(want)
			for _, v := range list.Items {
				done = done && v.Node.State == want[v.Node.ID]
			}
			late := time.Since(started) > 5*time.Minute
			if late {
				t.Errorf("not done after %d deaths: %s", deaths, standing(l, w))
			}
			if done || late {
				done = true
				_ = cmd.Process.Kill()
				<-died
				break alive
			}
		}
	}
	t.Logf("%d boundaries, %d deaths, %s", len(names), deaths, time.Since(started).Round(time.Millisecond))
	// Some turns take in two things at once or one by one, as they come, and a
	// machine may pass its boundary just as the server dies for another.
	missed := 0
	for i, name := range names {
		if _, err := os.Stat(l.grave(nodeID(i))); err == nil {
			continue
		}
		missed++
		t.Logf("no machine passed %q", name)
	}
	if missed > len(names)/4 {
		t.Errorf("%d of %d boundaries were not passed", missed, len(names))
	}
	close()
	audit(t, l, w, want)
}

// critical boundaries lie around what cannot be taken back.
func critical(name string) bool {
	return strings.Contains(name, "permit") || strings.Contains(name, "nonce used") || strings.Contains(name, "handoff")
}

// sample returns the critical names and some others, n in all.
func sample(names []string, n int) []string {
	var out, rest []string
	for _, name := range names {
		if critical(name) {
			out = append(out, name)
		} else {
			rest = append(rest, name)
		}
	}
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return append(out, rest[:max(0, min(len(rest), n-len(out)))]...)
}

// boundaries lists the points that one whole conversion passes.
func boundaries(t *testing.T) []string {
	t.Helper()
	var mu sync.Mutex
	var names []string
	note := func(_ inventory.NodeID, what string) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(names, what) {
			names = append(names, what)
		}
	}
	h := newHallWith(t, layout{Nodes: 1, Max: 1, Feed: 20, Auto: true}, func(c *convert.Conductor, _ *store.Store) { c.OnBoundary(note) })
	h.on(nodeID(0))
	h.reach(nodeID(0), inventory.InService)
	mu.Lock()
	defer mu.Unlock()
	return names
}

// child is the server as its own process.
func child(l layout, log *bytes.Buffer) *exec.Cmd {
	raw, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+string(raw))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// tryDo asks once; an answer that is lost with the server counts as no.
func tryDo(ctx context.Context, op *api.Client, id inventory.NodeID, verb string, params map[string]string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := op.Do(ctx, id, verb, params)
	return err == nil
}

// press is the technician who is asked to restart a machine.
func press(ctx context.Context, op *api.Client, w *world, id inventory.NodeID) {
	tasks, err := op.Tasks(ctx)
	if err != nil {
		return
	}
	for _, task := range tasks.Items {
		if task.Node == id && task.Verb == "press" && task.Open() {
			_ = w.machines[id].PowerOff(ctx)
			_ = w.machines[id].PowerOn(ctx)
		}
	}
}

func standing(l layout, w *world) string {
	op, err := operator(l)
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	list, err := op.Nodes(ctx)
	if err != nil {
		return err.Error()
	}
	var b bytes.Buffer
	for _, v := range list.Items {
		doing := "none"
		if m := w.machines[v.Node.ID]; m != nil {
			doing = m.Doing()
		}
		fmt.Fprintf(&b, "\n%s %s since %s (%s); machine: %s", v.Node.ID, v.Node.State, v.Node.Since.Format(time.TimeOnly), v.Node.Note, doing)
	}
	return b.String()
}

// audit holds what is stored against what the machines' disks saw.
func audit(t *testing.T, l layout, w *world, want map[inventory.NodeID]inventory.State) {
	t.Helper()
	ctx := t.Context()
	s, err := store.Open(ctx, "sqlite:"+filepath.Join(l.Dir, "smelt.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var writes, wipes int
	for id, state := range want {
		n, err := s.Node(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if n.State != state {
			t.Errorf("node %s is %s, want %s", id, n.State, state)
		}
		events, err := s.NodeEvents(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		replayed(t, n, events)
		permits, err := s.Permits(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{} // permit -> action on the disk
		var fence uint64
		for _, wr := range w.machines[id].Writes() {
			writes++
			if wr.Action == "wipe" {
				wipes++
			}
			if other, ok := seen[wr.Permit]; ok {
				t.Errorf("node %s: permit %s was used for %s and %s", id, wr.Permit, other, wr.Action)
			}
			seen[wr.Permit] = wr.Action
			if wr.Fence < fence {
				t.Errorf("node %s: a write with fence %d after one with %d", id, wr.Fence, fence)
			}
			fence = wr.Fence
			p := permitOf(permits, wr.Permit)
			switch {
			case p == nil:
				t.Errorf("node %s: written with permit %s that is not in the ledger", id, wr.Permit)
				continue
			case p.Used.IsZero():
				t.Errorf("node %s: written with permit %s that the ledger says is unused", id, wr.Permit)
			case p.Fence != wr.Fence || p.Action != wr.Action || p.Plan != wr.Plan:
				t.Errorf("node %s: permit %+v and write %+v differ", id, p.Permit, wr)
			}
			if !approvedAt(events, wr.Plan, p.Used) {
				t.Errorf("node %s: written at %s, when plan %.12s was not being carried out", id, wr.At, wr.Plan)
			}
		}
		if state == inventory.Inspected && len(seen) > 0 {
			t.Errorf("node %s: protected, held or not approved, and written: %v", id, w.machines[id].Writes())
		}
		if state == inventory.InService {
			entered := 0
			for _, e := range events {
				if e.Kind == inventory.KindMoved && e.To == inventory.InService {
					entered++
				}
			}
			if entered != 1 {
				t.Errorf("node %s entered service %d times", id, entered)
			}
			if st, err := w.cluster.Observe(ctx, id); err != nil || !st.Ready {
				t.Errorf("node %s is in service and the cluster says %+v, %v", id, st, err)
			}
		} else if st, _ := w.cluster.Observe(ctx, id); st.Known {
			t.Errorf("node %s is %s and the cluster knows it: %+v", id, state, st)
		}
	}
	t.Logf("%d destructive writes, %d of them wipes", writes, wipes)
}

// replayed checks that the events have no gap and make the stored node.
func replayed(t *testing.T, n inventory.Node, events []inventory.Event) {
	t.Helper()
	var r inventory.Node
	var err error
	for i, e := range events {
		if e.Version != uint64(i+1) {
			t.Fatalf("node %s: event %d has version %d", n.ID, i+1, e.Version)
		}
		if r, err = r.Apply(e); err != nil {
			t.Fatalf("node %s: replay: %v", n.ID, err)
		}
	}
	got, _ := json.Marshal(r)
	stored, _ := json.Marshal(n)
	if !bytes.Equal(got, stored) {
		t.Errorf("node %s: its events make\n%s\nstored is\n%s", n.ID, got, stored)
	}
}

func permitOf(list []store.PermitUse, id string) *store.PermitUse {
	for i := range list {
		if list[i].ID == id {
			return &list[i]
		}
	}
	return nil
}

// approvedAt tells whether the plan with this digest was approved and its
// disks might be written at a time.
func approvedAt(events []inventory.Event, plan string, at time.Time) bool {
	var n inventory.Node
	for _, e := range events {
		if e.At.After(at) {
			break
		}
		n, _ = n.Apply(e)
	}
	return n.Plan != nil && n.Plan.Digest == plan && n.Convertible() == nil
}
