// Command storebench measures durable writes a second: one write is a change
// of state and its event, committed by Store.Commit, from 256 writers at once,
// on SQLite and on a real PostgreSQL with its default durability.
//
// The last line on stdout is one JSON object; a line for people goes to stderr.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"smelt/internal/store"
	"smelt/internal/store/pgtest"
	"smelt/inventory"
)

const writers = 256

func main() {
	d := flag.Duration("time", 5*time.Second, "how long to measure each database")
	dir := flag.String("dir", "", "folder for the SQLite file (default: a temporary one; tmpfs would measure nothing)")
	flag.Parse()
	if err := run(*d, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "storebench:", err)
		os.Exit(1)
	}
}

func run(d time.Duration, dir string) error {
	ctx := context.Background()
	dir, err := os.MkdirTemp(dir, "smelt-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lite, err := measure(ctx, "sqlite", "sqlite:"+filepath.Join(dir, "smelt.db"), d)
	if err != nil {
		return err
	}
	pg, err := pgtest.Start(ctx)
	if err != nil {
		return err
	}
	defer pg.Stop()
	dsn, err := pg.Database(ctx)
	if err != nil {
		return err
	}
	post, err := measure(ctx, "postgres", dsn, d)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"bench":   "store",
		"results": map[string]int{"sqlite_writes_per_s": lite, "postgres_writes_per_s": post},
	})
}

// measure lets each writer move a node of its own to and fro for d.
func measure(ctx context.Context, name, dsn string, d time.Duration) (int, error) {
	s, err := store.Open(ctx, dsn)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	nodes := make([]inventory.Node, writers)
	for i := range nodes {
		n, err := commit(ctx, s, inventory.Node{}, inventory.Event{
			Node: inventory.NodeID(fmt.Sprintf("rig-%03d", i)), Kind: inventory.KindCreated, To: inventory.Discovered,
			MACs: []inventory.MAC{{0x52, 0x54, 0, 0, 0, byte(i)}},
		})
		if err != nil {
			return 0, err
		}
		nodes[i] = n
	}
	var count atomic.Int64
	errs := make(chan error, writers)
	var wg sync.WaitGroup
	start := time.Now()
	for _, n := range nodes {
		wg.Go(func() {
			for time.Since(start) < d {
				e := inventory.Event{Kind: inventory.KindMoved, To: inventory.NeedsWork, Reason: "the rig lost a GPU under load",
					Failure: &inventory.Failure{Step: n.State, Cause: "gpu-lost", Detail: "GPU 3 fell off the bus"}}
				if n.State == inventory.NeedsWork {
					e = inventory.Event{Kind: inventory.KindMoved, To: inventory.Discovered, Reason: "a technician reseated it"}
				}
				var err error
				if n, err = commit(ctx, s, n, e); err != nil {
					errs <- err
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	rate := float64(count.Load()) / took.Seconds()
	fmt.Fprintf(os.Stderr, "%s: %d durable writes in %s by %d writers: %.0f/s\n", name, count.Load(), took.Round(time.Millisecond), writers, rate)
	return int(rate), nil
}

func commit(ctx context.Context, s *store.Store, n inventory.Node, e inventory.Event) (inventory.Node, error) {
	if e.Node == "" {
		e.Node = n.ID
	}
	e.Version, e.At, e.Actor = n.Version+1, time.Now(), "system"
	n, err := n.Apply(e)
	if err != nil {
		return n, err
	}
	_, err = s.Commit(ctx, store.Change{Node: n, Events: []inventory.Event{e}})
	return n, err
}
