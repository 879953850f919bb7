package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"smelt/inventory"
)

// A Blob is a document kept beside the nodes: a report (JSON, HTML), a chunk
// map, a log. (Node, Name) is its key.
type Blob struct {
	Node inventory.NodeID `json:"node"`
	Name string           `json:"name"` // reports/ID.json, reports/ID.html, chunks/RUN
	Type string           `json:"type"` // media type
	Data []byte           `json:"-"`
	At   time.Time        `json:"at"`
}

// PutBlob stores or replaces b.
func (s *Store) PutBlob(ctx context.Context, b Blob) error {
	if b.Name == "" {
		return errors.New("store: a blob needs a name")
	}
	if b.Data == nil {
		b.Data = []byte{}
	}
	err := s.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO blobs (node, name, type, data, at) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (node, name) DO UPDATE SET type = excluded.type, data = excluded.data, at = excluded.at`,
			string(b.Node), b.Name, b.Type, b.Data, nanos(b.At))
		return err
	})
	if err != nil {
		return fmt.Errorf("store %s of node %s: %w", b.Name, b.Node, err)
	}
	return nil
}

// Blob returns one, ErrNotFound if there is none.
func (s *Store) Blob(ctx context.Context, node inventory.NodeID, name string) (Blob, error) {
	b := Blob{Node: node, Name: name}
	var at int64
	err := s.r.QueryRowContext(ctx, s.dialect.text(`SELECT type, data, at FROM blobs WHERE node = $1 AND name = $2`), string(node), name).
		Scan(&b.Type, &b.Data, &at)
	if err != nil {
		return Blob{}, fmt.Errorf("%s of node %s: %w", name, node, missing(err))
	}
	b.At = fromNanos(at)
	return b, nil
}

// Blobs lists (without Data) those of a node whose name begins with prefix.
func (s *Store) Blobs(ctx context.Context, node inventory.NodeID, prefix string) ([]Blob, error) {
	var out []Blob
	err := s.query(ctx, func(r *sql.Rows) error {
		b := Blob{Node: node}
		var at int64
		if err := r.Scan(&b.Name, &b.Type, &at); err != nil {
			return err
		}
		b.At = fromNanos(at)
		out = append(out, b)
		return nil
	}, `SELECT name, type, at FROM blobs WHERE node = $1 AND substr(name, 1, length($2)) = $2 ORDER BY at, name`, string(node), prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s* of node %s: %w", prefix, node, err)
	}
	return out, nil
}
