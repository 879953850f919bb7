package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"smelt/internal/store"
	"smelt/internal/store/pgtest"
	"smelt/inventory"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(writeUntilKilled(path))
	}
	code := m.Run()
	if server.pg != nil {
		if err := server.pg.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// server is the one PostgreSQL of this test binary, started when first asked.
var server struct {
	once sync.Once
	pg   *pgtest.Server
	err  error
}

func postgresDSN(t *testing.T) string {
	t.Helper()
	server.once.Do(func() {
		// No test here cuts the power, so fsync would only cost time.
		server.pg, server.err = pgtest.Start(context.Background(), "fsync=off")
	})
	if errors.Is(server.err, pgtest.ErrMissing) {
		skip(t, server.err.Error())
	}
	if server.err != nil {
		t.Fatal(server.err)
	}
	dsn, err := server.pg.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal("may not skip here: ", why)
	}
	t.Skip(why)
}

// each runs f on both databases. dsn names an empty one.
func each(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, "sqlite:"+filepath.Join(t.TempDir(), "smelt #1?.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, postgresDSN(t)) })
}

func open(t *testing.T, dsn string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// at is a fixed time with nanoseconds and a zone, so that what comes back can
// be compared exactly.
var at = time.Date(2026, 11, 22, 8, 0, 0, 123456789, time.UTC)

// next is n after e, with what every event needs filled in.
func next(t *testing.T, n inventory.Node, e inventory.Event) (inventory.Node, inventory.Event) {
	t.Helper()
	if e.Node == "" {
		e.Node = n.ID
	}
	e.Version = n.Version + 1
	if e.At.IsZero() {
		e.At = at
	}
	if e.Actor == "" {
		e.Actor = "system"
	}
	out, err := n.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	return out, e
}

func created(id inventory.NodeID, macs ...inventory.MAC) inventory.Event {
	return inventory.Event{Node: id, Kind: inventory.KindCreated, To: inventory.Discovered, MACs: macs}
}

func note(text string) inventory.Event {
	return inventory.Event{Kind: inventory.KindNote, Reason: text}
}

// put commits e on n without a lease.
func put(t *testing.T, s *store.Store, n inventory.Node, e inventory.Event) inventory.Node {
	t.Helper()
	n, e = next(t, n, e)
	if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	return n
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestNode(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		mac := inventory.MAC{0x52, 0x54, 0, 0, 0, 1}
		_, err := s.Node(t.Context(), "rig-1")
		wantErr(t, err, store.ErrNotFound)
		_, err = s.NodeByMAC(t.Context(), mac)
		wantErr(t, err, store.ErrNotFound)

		n := put(t, s, inventory.Node{}, created("rig-1", mac))
		n = put(t, s, n, inventory.Event{Kind: inventory.KindInspected, Hardware: &inventory.Hardware{
			NICs: []inventory.NIC{{Name: "eth0", MAC: mac}, {Name: "eth1", MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 2}}},
		}})
		got, err := s.Node(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "node", got, n)
		got, err = s.NodeByMAC(t.Context(), inventory.MAC{0x52, 0x54, 0, 0, 0, 2})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "node by the MAC that inspection found", got, n)

		put(t, s, inventory.Node{}, created("ig-0x"))
		all, err := s.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || all[0].ID != "ig-0x" || all[1].ID != "rig-1" {
			t.Errorf("nodes are %v", all)
		}
		events, err := s.NodeEvents(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		if len(events) != 2 || events[0].Seq != 1 || events[1].Seq != 2 || events[1].Hardware == nil {
			t.Errorf("events are %+v", events)
		}
	})
}

func TestMovesSayWhatTheyLeave(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		put(t, s, n, inventory.Event{Kind: inventory.KindMoved, To: inventory.Rejected, Reason: "not ours"})
		events, err := s.NodeEvents(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		if e := events[1]; e.From != inventory.Discovered || e.To != inventory.Rejected {
			t.Errorf("moved from %s to %s", e.From, e.To)
		}
	})
}

func TestOrderIsOfBytes(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		for _, id := range []inventory.NodeID{"a.b", "a-c", "ab", "a0"} {
			put(t, s, inventory.Node{}, created(id))
		}
		all, err := s.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ids []inventory.NodeID
		for _, n := range all {
			ids = append(ids, n.ID)
		}
		same(t, "order", ids, []inventory.NodeID{"a-c", "a.b", "a0", "ab"})
	})
}

// One MAC on two nodes must stop both: a boot on its word could wipe either.
func TestClonedMAC(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		mac := inventory.MAC{0x52, 0x54, 0, 0, 0, 1}
		put(t, s, inventory.Node{}, created("rig-1", mac))
		put(t, s, inventory.Node{}, created("rig-2", mac))
		_, err := s.NodeByMAC(t.Context(), mac)
		wantErr(t, err, store.ErrAmbiguous)
	})
}

func TestLostUpdate(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		a, ea := next(t, n, note("a"))
		b, eb := next(t, n, note("b"))
		if _, err := s.Commit(t.Context(), store.Change{Node: a, Events: []inventory.Event{ea}}); err != nil {
			t.Fatal(err)
		}
		_, err := s.Commit(t.Context(), store.Change{Node: b, Events: []inventory.Event{eb}})
		wantErr(t, err, store.ErrConflict)
		_, err = s.Commit(t.Context(), store.Change{Node: a, Events: []inventory.Event{ea}})
		wantErr(t, err, store.ErrConflict) // the same change twice
		c, ec := next(t, inventory.Node{}, created("rig-1"))
		_, err = s.Commit(t.Context(), store.Change{Node: c, Events: []inventory.Event{ec}})
		wantErr(t, err, store.ErrConflict) // created twice
		got, err := s.Node(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "node", got, a)
	})
}

// Many writers race for the same version of one node: one wins each round.
func TestRaceForOneVersion(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		for range 5 {
			var mu sync.Mutex
			var won []inventory.Node
			var wg sync.WaitGroup
			for i := range 16 {
				m, e := next(t, n, note(fmt.Sprint(i)))
				wg.Go(func() {
					_, err := s.Commit(t.Context(), store.Change{Node: m, Events: []inventory.Event{e}})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won = append(won, m)
					} else if !errors.Is(err, store.ErrConflict) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if len(won) != 1 {
				t.Fatalf("%d writers won one version", len(won))
			}
			n = won[0]
		}
	})
}

// A Node that its events do not make is refused, whatever it claims.
func TestCommitHoldsNodeAgainstEvents(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		forged, e := next(t, n, note("x"))
		forged.State = inventory.InService
		for name, c := range map[string]store.Change{
			"other state":    {Node: forged, Events: []inventory.Event{e}},
			"no event":       {Node: forged},
			"foreign event":  {Node: forged, Events: []inventory.Event{{Node: "rig-2", Version: 2, At: at, Actor: "system", Kind: inventory.KindNote}}},
			"too many":       {Node: inventory.Node{ID: "rig-9", Version: 1}, Events: []inventory.Event{e, e}},
			"nameless node":  {Events: []inventory.Event{e}},
			"forbidden move": {Node: forged, Events: []inventory.Event{{Node: "rig-1", Version: 2, At: at, Actor: "system", Kind: inventory.KindMoved, To: inventory.InService, Reason: "x"}}},
		} {
			if _, err := s.Commit(t.Context(), c); err == nil {
				t.Errorf("%s: was committed", name)
			}
		}
		got, err := s.Node(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "node", got, n)
		if seq, _ := s.LastSeq(t.Context()); seq != 1 {
			t.Errorf("last event is %d, want 1", seq)
		}
	})
}

func TestFencing(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		const long = time.Hour
		a, err := s.Acquire(t.Context(), "conductor", "a", time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if a.Fence != 1 {
			t.Errorf("first fence is %d", a.Fence)
		}
		n, e := next(t, inventory.Node{}, created("rig-1"))
		if _, err := s.Commit(t.Context(), store.Change{Lease: a, Node: n, Events: []inventory.Event{e}}); err != nil {
			t.Fatal(err)
		}
		var b store.Lease
		for deadline := time.Now().Add(5 * time.Second); ; {
			if b, err = s.Acquire(t.Context(), "conductor", "b", long); err == nil {
				break
			}
			if !errors.Is(err, store.ErrConflict) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if b.Fence != 2 {
			t.Errorf("second fence is %d", b.Fence)
		}
		m, e := next(t, n, note("by a, which sleeps"))
		_, err = s.Commit(t.Context(), store.Change{Lease: a, Node: m, Events: []inventory.Event{e}})
		wantErr(t, err, store.ErrFenced)
		_, err = s.Renew(t.Context(), a, long)
		wantErr(t, err, store.ErrFenced)
		_, err = s.Acquire(t.Context(), "conductor", "a", long)
		wantErr(t, err, store.ErrConflict)
		forged := b
		forged.Fence++
		_, err = s.Commit(t.Context(), store.Change{Lease: forged, Node: m, Events: []inventory.Event{e}})
		wantErr(t, err, store.ErrFenced)
		if b, err = s.Renew(t.Context(), b, long); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), store.Change{Lease: b, Node: m, Events: []inventory.Event{e}}); err != nil {
			t.Fatal(err)
		}
		again, err := s.Acquire(t.Context(), "conductor", "b", long)
		if err != nil {
			t.Fatal(err)
		}
		if again.Fence != 3 {
			t.Errorf("b came back with fence %d, want 3", again.Fence)
		}
		_, err = s.Commit(t.Context(), store.Change{Lease: b, Node: m})
		wantErr(t, err, store.ErrFenced) // b's former life
	})
}

// Two processes on one PostgreSQL are two Stores: fences hold between them.
func TestTwoControllersOnPostgres(t *testing.T) {
	dsn := postgresDSN(t)
	x, y := open(t, dsn), open(t, dsn)
	a, err := x.Acquire(t.Context(), "conductor", "x", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, err = y.Acquire(t.Context(), "conductor", "y", time.Hour)
	wantErr(t, err, store.ErrConflict)
	n, e := next(t, inventory.Node{}, created("rig-1"))
	if _, err := x.Commit(t.Context(), store.Change{Lease: a, Node: n, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	if a, err = x.Renew(t.Context(), a, time.Microsecond); err != nil { // its time ends
		t.Fatal(err)
	}
	b, err := y.Acquire(t.Context(), "conductor", "y", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m, e := next(t, n, note("who?"))
	_, err = x.Commit(t.Context(), store.Change{Lease: a, Node: m, Events: []inventory.Event{e}})
	wantErr(t, err, store.ErrFenced)
	if _, err := y.Commit(t.Context(), store.Change{Lease: b, Node: m, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	got, err := x.Node(t.Context(), "rig-1")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "what x reads of y's commit", got, m)
}

func TestSQLiteIsOneProcess(t *testing.T) {
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "smelt.db")
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), dsn); err == nil {
		t.Fatal("opened twice")
	}
	l, err := s.Acquire(t.Context(), "conductor", "old", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dsn)
	m, err := s.Acquire(t.Context(), "conductor", "new", time.Hour) // no wait for old's hour
	if err != nil {
		t.Fatal(err)
	}
	if m.Fence <= l.Fence {
		t.Errorf("fence went from %d to %d", l.Fence, m.Fence)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, dsn := range []string{"", "sqlite:", "mysql://root:hunter2@db/smelt", "/var/lib/smelt.db", "sqlite:/no/such/folder/x.db"} {
		s, err := store.Open(t.Context(), dsn)
		if err == nil {
			s.Close()
			t.Errorf("%q was opened", dsn)
		}
		if err != nil && len(dsn) > 8 && errorHas(err, "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestNewerSchema(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s, err := store.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		n := put(t, s, inventory.Node{}, created("rig-1"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		raw(t, dsn, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
		_, err = store.Open(t.Context(), dsn)
		wantErr(t, err, store.ErrNewer)
		raw(t, dsn, `DELETE FROM goose_db_version WHERE version_id = 99999`)
		s = open(t, dsn) // the refusal left no lock and no change
		got, err := s.Node(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "node", got, n)
	})
}

// raw runs a statement behind the store's back.
func raw(t *testing.T, dsn, query string) {
	t.Helper()
	driver, name := "pgx", dsn
	if len(dsn) > 7 && dsn[:7] == "sqlite:" {
		driver, name = "sqlite", dsn[7:]
		// The test's file name has a '?', which modernc takes for options.
		db, err := sql.Open(driver, "file:"+escape(name))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
		return
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func TestNoGapsUnderManyCommitters(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		const committers, each = 64, 10
		var wg sync.WaitGroup
		for i := range committers {
			n, e := next(t, inventory.Node{}, created(inventory.NodeID(fmt.Sprintf("rig-%d", i))))
			wg.Go(func() {
				for j := range each {
					if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
						t.Error(err)
						return
					}
					// A change that fails late, with its node and event already
					// written, must cost its neighbours nothing and leave nothing.
					m, doomed := next(t, n, note("doomed"))
					_, err := s.Commit(t.Context(), store.Change{Node: m, Events: []inventory.Event{doomed}, IntentsDone: []store.IntentResult{{ID: "nobody's"}}})
					if !errors.Is(err, store.ErrNotFound) {
						t.Errorf("got %v, want ErrNotFound", err)
					}
					e = note(fmt.Sprint(j))
					e.Node, e.Version, e.At, e.Actor = n.ID, n.Version+1, at, "system"
					if n, err = n.Apply(e); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		var after uint64
		versions := map[inventory.NodeID]uint64{}
		for {
			page, err := s.EventsAfter(t.Context(), after, 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				if e.Seq != after+1 {
					t.Fatalf("event %d follows %d", e.Seq, after)
				}
				after = e.Seq
				versions[e.Node]++
				if e.Version != versions[e.Node] {
					t.Fatalf("%s: version %d follows %d", e.Node, e.Version, versions[e.Node]-1)
				}
			}
		}
		last, err := s.LastSeq(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if after != committers*each || last != after {
			t.Errorf("%d events, LastSeq %d, want %d", after, last, committers*each)
		}
	})
}

func TestChanged(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		c := s.Changed()
		select {
		case <-c:
			t.Fatal("changed before anything was committed")
		default:
		}
		put(t, s, inventory.Node{}, created("rig-1"))
		<-c
		if c == s.Changed() {
			t.Error("the same channel again")
		}
	})
}

func TestIntents(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		a := store.Intent{ID: "a", Node: "rig-1", Verb: "approve", Actor: "operator:anna", Params: map[string]string{"image": "x"}, At: at}
		b := store.Intent{ID: "b", Verb: "import", Actor: "operator:anna", At: at}
		for _, i := range []store.Intent{b, a, a, {ID: "a", Verb: "wipe", Actor: "operator:eve"}} {
			if err := s.AddIntent(t.Context(), i); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.AddIntent(t.Context(), store.Intent{ID: "c"}); err == nil {
			t.Error("an intent without verb and actor was stored")
		}
		got, err := s.PendingIntents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same(t, "pending", got, []store.Intent{b, a})
		_, err = s.IntentResult(t.Context(), "a")
		wantErr(t, err, store.ErrNotFound)

		ra, rb := store.IntentResult{ID: "a", OK: true, At: at}, store.IntentResult{ID: "b", Error: "held by cluster", At: at}
		n, e := next(t, inventory.Node{}, created("rig-1"))
		change := store.Change{Node: n, Events: []inventory.Event{e}, IntentsDone: []store.IntentResult{ra}}
		if _, err := s.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if err := s.FinishIntent(t.Context(), rb); err != nil {
			t.Fatal(err)
		}
		wantErr(t, s.FinishIntent(t.Context(), store.IntentResult{ID: "b", OK: true}), store.ErrUsed)
		wantErr(t, s.FinishIntent(t.Context(), store.IntentResult{ID: "z", OK: true}), store.ErrNotFound)
		// An intent is carried out once: with the second, the change falls too.
		m, e := next(t, n, note("again"))
		_, err = s.Commit(t.Context(), store.Change{Node: m, Events: []inventory.Event{e}, IntentsDone: []store.IntentResult{ra}})
		wantErr(t, err, store.ErrUsed)
		if stored, _ := s.Node(t.Context(), "rig-1"); stored.Version != 1 {
			t.Errorf("half of a refused change was written: version %d", stored.Version)
		}
		for _, want := range []store.IntentResult{ra, rb} {
			got, err := s.IntentResult(t.Context(), want.ID)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "result", got, want)
		}
		if got, _ := s.PendingIntents(t.Context()); len(got) != 0 {
			t.Errorf("still pending: %v", got)
		}
	})
}

func TestObservations(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		obs := func(node inventory.NodeID, key, data string) store.Observation {
			return store.Observation{Node: node, Kind: "order", Key: key, Data: json.RawMessage(data), At: at}
		}
		for _, o := range []store.Observation{obs("rig-1", "1", `{"a":1}`), obs("rig-2", "1", ``), obs("rig-1", "1", `{"a":2}`), obs("rig-1", "2", `[]`)} {
			if err := s.Observe(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Observe(t.Context(), obs("rig-1", "3", `{"a":`)); err == nil {
			t.Error("data that is not JSON was stored")
		}
		got, err := s.Unconsumed(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for _, o := range got {
			if !o.At.Equal(at) {
				t.Errorf("observed at %s", o.At)
			}
			said = append(said, fmt.Sprint(o.Node, " ", o.Key, " ", string(o.Data)))
		}
		same(t, "observations", said, []string{`rig-1 1 {"a":1}`, `rig-2 1 null`, `rig-1 2 []`})

		n, e := next(t, inventory.Node{}, created("rig-1"))
		if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}, Observations: []uint64{got[0].ID}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Consume(t.Context(), got[1].ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Observe(t.Context(), obs("rig-1", "1", `{"a":3}`)); err != nil { // a late repeat
			t.Fatal(err)
		}
		left, err := s.Unconsumed(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "left", left, got[2:])
		if left, _ := s.Unconsumed(t.Context(), "rig-2"); len(left) != 0 {
			t.Errorf("left for rig-2: %v", left)
		}
	})
}

func TestPermits(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		issue := func(id string) inventory.Permit {
			p := inventory.Permit{ID: id, Node: "rig-1", Action: "wipe", Disks: []inventory.DiskID{{Serial: "S1", Size: 1}}, Fence: 3, Issued: at, NotAfter: at.Add(time.Minute)}
			var e inventory.Event
			n, e = next(t, n, inventory.Event{Kind: inventory.KindStep, Reason: "permit issued"})
			if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}, Permit: &p}); err != nil {
				t.Fatal(err)
			}
			return p
		}
		p, q := issue("p"), issue("q")
		got, err := s.UsePermit(t.Context(), "p", at)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "permit", got, p)
		_, err = s.UsePermit(t.Context(), "p", at)
		wantErr(t, err, store.ErrUsed)
		_, err = s.UsePermit(t.Context(), "q", q.NotAfter)
		wantErr(t, err, store.ErrUsed)
		_, err = s.UsePermit(t.Context(), "r", at)
		wantErr(t, err, store.ErrNotFound)
		uses, err := s.Permits(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "permits", uses, []store.PermitUse{{Permit: q}, {Permit: p, Used: at}})
		// The same id is never issued twice.
		m, e := next(t, n, note("x"))
		if _, err := s.Commit(t.Context(), store.Change{Node: m, Events: []inventory.Event{e}, Permit: &p}); err == nil {
			t.Error("a permit was issued twice")
		}
	})
}

// Of many that show one permit or nonce at once, one gets through.
func TestOnlyOneUses(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n, e := next(t, inventory.Node{}, created("rig-1"))
		p := inventory.Permit{ID: "p", Node: "rig-1", NotAfter: at.Add(time.Minute)}
		if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}, Permit: &p}); err != nil {
			t.Fatal(err)
		}
		if err := s.AddNonce(t.Context(), store.Nonce{Nonce: "n", Expires: at.Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		for what, use := range map[string]func() error{
			"permit": func() error { _, err := s.UsePermit(t.Context(), "p", at); return err },
			"nonce":  func() error { _, err := s.UseNonce(t.Context(), "n", "", at); return err },
		} {
			errs := make(chan error, 32)
			var wg sync.WaitGroup
			for range cap(errs) {
				wg.Go(func() { errs <- use() })
			}
			wg.Wait()
			close(errs)
			ok := 0
			for err := range errs {
				if err == nil {
					ok++
				} else if !errors.Is(err, store.ErrUsed) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if ok != 1 {
				t.Errorf("%s was used %d times", what, ok)
			}
		}
	})
}

func TestTasks(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		n := put(t, s, inventory.Node{}, created("rig-1"))
		task := func(id string, node inventory.NodeID, opened, done time.Time) inventory.Task {
			return inventory.Task{ID: id, Node: node, Verb: "move", What: "GPU", Where: "slot 2", Proof: "reinspect", Opened: opened, DoneAt: done}
		}
		write := func(tasks ...inventory.Task) {
			t.Helper()
			var e inventory.Event
			n, e = next(t, n, inventory.Event{Kind: inventory.KindTask, Task: tasks[0].ID})
			if _, err := s.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}, Tasks: tasks}); err != nil {
				t.Fatal(err)
			}
		}
		a, b, c := task("a", "rig-1", at, time.Time{}), task("b", "rig-2", at.Add(-time.Hour), time.Time{}), task("c", "rig-1", at.Add(-2*time.Hour), at)
		write(a, b, c)
		all, err := s.Tasks(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "tasks", all, []inventory.Task{b, a, c})
		a.DoneAt, a.DoneBy = at, "technician:bo"
		write(a)
		one, err := s.Tasks(t.Context(), "rig-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "tasks of rig-1", one, []inventory.Task{c, a})
	})
}

func TestNonces(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		want := store.Nonce{Nonce: "secret", Node: "rig-1", MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 1}, Mode: "inspect", Fence: 7, Expires: at}
		if err := s.AddNonce(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if err := s.AddNonce(t.Context(), want); err == nil {
			t.Error("the same nonce was stored twice")
		}
		_, err := s.UseNonce(t.Context(), "other", "key 1", at)
		wantErr(t, err, store.ErrNotFound)
		_, err = s.UseNonce(t.Context(), "secret", "key 1", at)
		wantErr(t, err, store.ErrNotFound)
		if errorHas(err, "secret") {
			t.Errorf("the error shows the nonce: %v", err)
		}
		got, err := s.UseNonce(t.Context(), "secret", "key 1", at.Add(-time.Second))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "nonce", got, want)
		if _, err = s.UseNonce(t.Context(), "secret", "key 1", at.Add(-time.Second)); err != nil {
			t.Errorf("the agent that took it asks again: %v", err)
		}
		got, err = s.UseNonce(t.Context(), "secret", "key 2", at.Add(-time.Second))
		wantErr(t, err, store.ErrUsed)
		if got.Node != "rig-1" {
			t.Errorf("a replay names node %q", got.Node)
		}
		later := want
		later.Nonce, later.Expires = "later", at.Add(time.Hour)
		if err := s.AddNonce(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		_, err = s.UseNonce(t.Context(), "secret", "key 2", at)
		wantErr(t, err, store.ErrUsed) // still told apart
		later.Nonce, later.Expires = "much later", at.Add(nonceForgotten)
		if err := s.AddNonce(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		_, err = s.UseNonce(t.Context(), "secret", "key 1", at.Add(-time.Second))
		wantErr(t, err, store.ErrNotFound)
	})
}

// nonceForgotten is more than how long a nonce is kept after its end.
const nonceForgotten = 3 * time.Hour

func TestAgents(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		a := store.Agent{Session: "h1", Node: "rig-1", Mode: "inspect", Fingerprint: "f", Fence: 2, Expires: at}
		b, c := a, a
		b.Session, c.Session, c.Mode = "h2", "h3", "installed"
		for _, x := range []store.Agent{a, c, b} { // b ends a
			if err := s.PutAgent(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}
		early := at.Add(-time.Second)
		_, err := s.Agent(t.Context(), "h1", early)
		wantErr(t, err, store.ErrNotFound)
		for _, want := range []store.Agent{b, c} {
			got, err := s.Agent(t.Context(), want.Session, early)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "agent", got, want)
		}
		_, err = s.Agent(t.Context(), "h2", at)
		wantErr(t, err, store.ErrNotFound)
		if err := s.EndAgents(t.Context(), "rig-1"); err != nil {
			t.Fatal(err)
		}
		_, err = s.Agent(t.Context(), "h3", early)
		wantErr(t, err, store.ErrNotFound)
	})
}

func TestTokens(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		a, b := store.Token{Hash: "h1", Name: "anna", Role: "operator", Created: at}, store.Token{Hash: "h2", Name: "bo", Role: "technician", Created: at.Add(time.Second)}
		for _, x := range []store.Token{b, a} {
			if err := s.PutToken(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.TokenByHash(t.Context(), "h3")
		wantErr(t, err, store.ErrNotFound)
		got, err := s.TokenByHash(t.Context(), "h2")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "token", got, b)
		all, err := s.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same(t, "tokens", all, []store.Token{a, b})
	})
}

func TestBlobs(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		blob := func(name string, data []byte) store.Blob {
			return store.Blob{Node: "rig-1", Name: name, Type: "application/octet-stream", Data: data, At: at}
		}
		for _, b := range []store.Blob{blob("reports/1.json", []byte("old")), blob("reports/1.json", []byte{0, 0xff, 1}), blob("reports_2", nil), blob("chunks/1", []byte{})} {
			if err := s.PutBlob(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Blob(t.Context(), "rig-1", "reports/1.json")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "blob", got, blob("reports/1.json", []byte{0, 0xff, 1}))
		_, err = s.Blob(t.Context(), "rig-2", "reports/1.json")
		wantErr(t, err, store.ErrNotFound)
		list, err := s.Blobs(t.Context(), "rig-1", "reports/")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "list", list, []store.Blob{blob("reports/1.json", nil)})
		if list, _ = s.Blobs(t.Context(), "rig-1", ""); len(list) != 3 {
			t.Errorf("all blobs: %v", list)
		}
	})
}

func TestClosedAndCancelled(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s, err := store.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		n := put(t, s, inventory.Node{}, created("rig-1"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		m, e := next(t, n, note("x"))
		if _, err := s.Commit(ctx, store.Change{Node: m, Events: []inventory.Event{e}}); err == nil {
			t.Error("committed under a cancelled context")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		wantErr(t, s.AddIntent(t.Context(), store.Intent{ID: "a", Verb: "hold", Actor: "operator"}), store.ErrClosed)
	})
}
