package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"smelt/inventory"
)

// An Observation is something seen: a boot request, an inspection, the result
// of an order, a report. Key makes repeats harmless: one row for each
// (Node, Kind, Key).
type Observation struct {
	ID   uint64           `json:"id"`
	Node inventory.NodeID `json:"node"`
	Kind string           `json:"kind"`
	Key  string           `json:"key"`
	Data json.RawMessage  `json:"data"`
	At   time.Time        `json:"at"`
}

// Observe stores o; an observation with the same node, kind and key changes nothing.
func (s *Store) Observe(ctx context.Context, o Observation) error {
	if o.Kind == "" {
		return errors.New("store: an observation needs a kind")
	}
	if len(o.Data) == 0 {
		o.Data = json.RawMessage("null")
	}
	if !json.Valid(o.Data) {
		return fmt.Errorf("store: observation %s of node %s is not JSON", o.Kind, o.Node)
	}
	err := s.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO observations (id, node, kind, key, data, at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (node, kind, key) DO NOTHING`,
			t.number(), string(o.Node), o.Kind, o.Key, []byte(o.Data), nanos(o.At))
		return err
	})
	if err != nil {
		return fmt.Errorf("store observation %s of node %s: %w", o.Kind, o.Node, err)
	}
	return nil
}

// Unconsumed returns the observations no Change consumed, oldest first; all
// nodes when node is empty.
func (s *Store) Unconsumed(ctx context.Context, node inventory.NodeID) ([]Observation, error) {
	var out []Observation
	err := s.query(ctx, func(r *sql.Rows) error {
		var o Observation
		var at int64
		if err := r.Scan(&o.ID, &o.Node, &o.Kind, &o.Key, (*[]byte)(&o.Data), &at); err != nil {
			return err
		}
		o.At = fromNanos(at)
		out = append(out, o)
		return nil
	}, `SELECT id, node, kind, key, data, at FROM observations WHERE consumed = 0 AND ($1 = '' OR node = $1) ORDER BY id`, string(node))
	if err != nil {
		return nil, fmt.Errorf("read observations: %w", err)
	}
	return out, nil
}

// Consume marks observations that changed nothing.
func (s *Store) Consume(ctx context.Context, ids ...uint64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.do(ctx, func(t *tx) error { return t.consume(ids) })
}
