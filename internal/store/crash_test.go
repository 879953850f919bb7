package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
)

// childEnv makes this test binary the process that is killed.
const childEnv = "SMELT_STORE_CHILD"

func escape(path string) string { return (&url.URL{Path: path}).EscapedPath() }

func errorHas(err error, s string) bool { return strings.Contains(err.Error(), s) }

const crashWriters = 8

// writeUntilKilled commits with several writers and prints "NODE VERSION" once
// a commit was acknowledged.
func writeUntilKilled(dsn string) int {
	ctx := context.Background()
	s, err := store.Open(ctx, dsn)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range crashWriters {
		id := inventory.NodeID(fmt.Sprintf("rig-%d", i))
		wg.Go(func() {
			n, err := s.Node(ctx, id)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return
			}
			for {
				e := inventory.Event{Node: id, Version: n.Version + 1, At: time.Now(), Actor: "system", Kind: inventory.KindNote, Reason: "alive"}
				if n.Version == 0 {
					e.Kind, e.To = inventory.KindCreated, inventory.Discovered
				}
				if n, err = n.Apply(e); err != nil {
					break
				}
				task := inventory.Task{ID: fmt.Sprintf("%s-%d", id, n.Version), Node: id, Opened: e.At}
				if _, err = s.Commit(ctx, store.Change{Node: n, Events: []inventory.Event{e}, Tasks: []inventory.Task{task}}); err != nil {
					break
				}
				mu.Lock()
				fmt.Println(id, n.Version) // one write(2) each: nothing is lost in a buffer
				mu.Unlock()
			}
			fmt.Fprintln(os.Stderr, err)
		})
	}
	wg.Wait()
	return 1
}

// TestKill kills a writing process with SIGKILL at a different moment each
// round: what it said was committed is there, and nothing is there by half.
func TestKill(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		acked := map[inventory.NodeID]uint64{}
		total := 0
		for round := range 4 {
			total += killOnce(t, dsn, 20+35*round, acked)
			s, err := store.Open(t.Context(), dsn) // at once: no wait for a dead owner
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			whole(t, s, acked)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d acknowledged commits survived 4 kills", total)
	})
}

func killOnce(t *testing.T, dsn string, after int, acked map[inventory.NodeID]uint64) int {
	t.Helper()
	exe, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), exe)
	child.Env = append(os.Environ(), childEnv+"="+dsn)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() { // to the end: also what was printed before the kill took effect
		id, v, _ := strings.Cut(lines.Text(), " ")
		version, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			break // the last line may be cut
		}
		acked[inventory.NodeID(id)] = version
		if seen++; seen == after {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil || seen < after {
		t.Fatalf("the child ended by itself after %d commits: %v", seen, err)
	}
	return seen
}

// whole holds every node against its events, its tasks and what was promised.
func whole(t *testing.T, s *store.Store, acked map[inventory.NodeID]uint64) {
	t.Helper()
	for id, version := range acked {
		n, err := s.Node(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		// One commit a writer may have become durable without being told.
		if n.Version < version {
			t.Errorf("%s: version %d was acknowledged, %d is stored", id, version, n.Version)
		}
		same(t, "replay of "+string(id), replayed(t, s, id), n)
		tasks, err := s.Tasks(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if uint64(len(tasks)) != n.Version {
			t.Errorf("%s: %d tasks for version %d", id, len(tasks), n.Version)
		}
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func replayed(t *testing.T, s *store.Store, id inventory.NodeID) inventory.Node {
	t.Helper()
	events, err := s.NodeEvents(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var n inventory.Node
	for _, e := range events {
		if n, err = n.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Check finds what somebody changed behind the store's back.
func TestCheckFindsTampering(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s, err := store.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		n := put(t, s, inventory.Node{}, created("rig-1"))
		n = put(t, s, n, note("first"))
		put(t, s, n, note("second"))
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for what, change := range map[string][2]string{
			"an event rewritten": {`UPDATE events SET doc = replace(doc, 'first', 'other') WHERE seq = 2`, `UPDATE events SET doc = replace(doc, 'other', 'first') WHERE seq = 2`},
			"a node rewritten":   {`UPDATE nodes SET doc = replace(doc, 'discovered', 'in-service')`, `UPDATE nodes SET doc = replace(doc, 'in-service', 'discovered')`},
			"the head moved":     {`UPDATE site SET seq = 4`, `UPDATE site SET seq = 3`},
			"a node invented":    {`INSERT INTO nodes (id, version, state, fence, doc) VALUES ('rig-2', 1, 'discovered', 0, '{}')`, `DELETE FROM nodes WHERE id = 'rig-2'`},
		} {
			raw(t, dsn, change[0])
			s, err := store.Open(t.Context(), dsn)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Check(t.Context()); err == nil {
				t.Errorf("%s: nothing found", what)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			raw(t, dsn, change[1])
		}
		s = open(t, dsn)
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("after everything was put back: %v", err)
		}
	})
}
