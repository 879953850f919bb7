package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"smelt/inventory"
)

// query reads rows with scan from the read-only pool.
func (s *Store) query(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := s.r.QueryContext(ctx, s.dialect.text(query), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// docs reads the JSON documents that query selects.
func docs[T any](ctx context.Context, s *Store, what, query string, args ...any) ([]T, error) {
	var out []T
	err := s.query(ctx, func(r *sql.Rows) error {
		var doc []byte
		if err := r.Scan(&doc); err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(doc, &v); err != nil {
			return fmt.Errorf("stored document: %w", err)
		}
		out = append(out, v)
		return nil
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return out, nil
}

// Node returns one node, ErrNotFound if there is none.
func (s *Store) Node(ctx context.Context, id inventory.NodeID) (inventory.Node, error) {
	list, err := docs[inventory.Node](ctx, s, "node "+string(id), `SELECT doc FROM nodes WHERE id = $1`, string(id))
	if err != nil {
		return inventory.Node{}, err
	}
	if len(list) == 0 {
		return inventory.Node{}, fmt.Errorf("node %s: %w", id, ErrNotFound)
	}
	return list[0], nil
}

// NodeByMAC finds the node that a MAC labels, ErrNotFound if there is none. A
// MAC that labels two nodes (cloned cards exist) is ErrAmbiguous: neither may
// be booted on the word of that MAC.
func (s *Store) NodeByMAC(ctx context.Context, m inventory.MAC) (inventory.Node, error) {
	list, err := docs[inventory.Node](ctx, s, "node with MAC "+m.String(),
		`SELECT n.doc FROM nodes n JOIN node_macs m ON m.node = n.id WHERE m.mac = $1 ORDER BY n.id`, m.String())
	if err != nil {
		return inventory.Node{}, err
	}
	switch len(list) {
	case 0:
		return inventory.Node{}, fmt.Errorf("node with MAC %s: %w", m, ErrNotFound)
	case 1:
		return list[0], nil
	}
	return inventory.Node{}, fmt.Errorf("MAC %s: %w: %s and %s", m, ErrAmbiguous, list[0].ID, list[1].ID)
}

// Nodes returns all nodes ordered by ID.
func (s *Store) Nodes(ctx context.Context) ([]inventory.Node, error) {
	// COLLATE "C" is the order of bytes; PostgreSQL's default may be a locale's.
	order := `id`
	if s.dialect == postgres {
		order = `id COLLATE "C"`
	}
	return docs[inventory.Node](ctx, s, "nodes", `SELECT doc FROM nodes ORDER BY `+order)
}

// EventsAfter returns up to limit events of the site with Seq > after, in order.
func (s *Store) EventsAfter(ctx context.Context, after uint64, limit int) ([]inventory.Event, error) {
	return docs[inventory.Event](ctx, s, "events", `SELECT doc FROM events WHERE seq > $1 ORDER BY seq LIMIT $2`, int64(after), limit)
}

// NodeEvents returns the events of one node, oldest first.
func (s *Store) NodeEvents(ctx context.Context, id inventory.NodeID) ([]inventory.Event, error) {
	return docs[inventory.Event](ctx, s, "events of node "+string(id), `SELECT doc FROM events WHERE node = $1 ORDER BY version`, string(id))
}

// LastSeq is the sequence number of the newest event, 0 if there is none.
func (s *Store) LastSeq(ctx context.Context) (uint64, error) {
	var seq int64
	err := s.r.QueryRowContext(ctx, `SELECT seq FROM site WHERE id = 1`).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("read the last event number: %w", err)
	}
	return uint64(seq), nil
}

// Tasks returns tasks, open ones first; all nodes when node is empty.
func (s *Store) Tasks(ctx context.Context, node inventory.NodeID) ([]inventory.Task, error) {
	return docs[inventory.Task](ctx, s, "tasks",
		`SELECT doc FROM tasks WHERE $1 = '' OR node = $1 ORDER BY CASE WHEN done = 0 THEN 0 ELSE 1 END, opened, id`, string(node))
}

// missing turns "no row" into ErrNotFound.
func missing(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
