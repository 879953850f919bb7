package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"smelt/inventory"
)

// Check reads the whole store and says what is wrong with it, or nil: events
// numbered without gaps, their hash chain unbroken to the site's head, and
// every node exactly what its events make of it. It reads one snapshot, so it
// may run beside the writer.
func (s *Store) Check(ctx context.Context) error {
	tx, err := s.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: s.dialect.snapshot})
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	defer tx.Rollback()
	if err := check(ctx, tx); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}

func check(ctx context.Context, tx *sql.Tx) error {
	var seq int64
	var head string
	if err := tx.QueryRowContext(ctx, `SELECT seq, head FROM site WHERE id = 1`).Scan(&seq, &head); err != nil {
		return err
	}
	nodes := map[inventory.NodeID]inventory.Node{}
	var last int64
	var hash string
	err := scan(ctx, tx, `SELECT seq, doc, hash FROM events ORDER BY seq`, func(r *sql.Rows) error {
		var n int64
		var doc []byte
		var stored string
		if err := r.Scan(&n, &doc, &stored); err != nil {
			return err
		}
		if n != last+1 {
			return fmt.Errorf("event %d follows event %d", n, last)
		}
		last = n
		if hash = link(hash, doc); hash != stored {
			return fmt.Errorf("event %d is not what was written: its hash is %s, not %s", n, hash, stored)
		}
		var e inventory.Event
		if err := json.Unmarshal(doc, &e); err != nil {
			return fmt.Errorf("event %d: %w", n, err)
		}
		var err error
		nodes[e.Node], err = nodes[e.Node].Apply(e)
		return err
	})
	if err != nil {
		return err
	}
	if last != seq || hash != head {
		return fmt.Errorf("the site is at event %d (%.12s), its events end at %d (%.12s)", seq, head, last, hash)
	}
	stored := 0
	err = scan(ctx, tx, `SELECT id, doc FROM nodes`, func(r *sql.Rows) error {
		var id inventory.NodeID
		var doc []byte
		if err := r.Scan(&id, &doc); err != nil {
			return err
		}
		stored++
		want, err := json.Marshal(nodes[id])
		if err != nil {
			return fmt.Errorf("node %s has no events", id)
		}
		if !bytes.Equal(doc, want) {
			return fmt.Errorf("node %s is not what its events make of it", id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if stored != len(nodes) {
		return fmt.Errorf("%d nodes are stored, the events tell of %d", stored, len(nodes))
	}
	return nil
}

func scan(ctx context.Context, tx *sql.Tx, query string, f func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
