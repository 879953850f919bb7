package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"smelt/inventory"
)

// PermitUse is an issued permit and when it was used (zero: never).
type PermitUse struct {
	inventory.Permit
	Used time.Time `json:"used,omitzero"`
}

// UsePermit marks a permit used; the second time is ErrUsed, an unknown one
// ErrNotFound, one past its time ErrUsed.
func (s *Store) UsePermit(ctx context.Context, id string, now time.Time) (inventory.Permit, error) {
	var p inventory.Permit
	err := s.do(ctx, func(t *tx) error {
		var doc []byte
		var notAfter, used int64
		err := t.row(`SELECT doc, not_after, used FROM permits WHERE id = $1`, id).Scan(&doc, &notAfter, &used)
		if err != nil {
			return missing(err)
		}
		if used != 0 {
			return fmt.Errorf("%w at %s", ErrUsed, fromNanos(used).Format(time.RFC3339))
		}
		if now.UnixNano() >= notAfter {
			return fmt.Errorf("%w: it expired at %s", ErrUsed, fromNanos(notAfter).Format(time.RFC3339))
		}
		if err := json.Unmarshal(doc, &p); err != nil {
			return err
		}
		_, err = t.exec(`UPDATE permits SET used = $1 WHERE id = $2`, now.UnixNano(), id)
		return err
	})
	if err != nil {
		return inventory.Permit{}, fmt.Errorf("use permit %s: %w", id, err)
	}
	return p, nil
}

// Permits returns the permits issued for a node, newest first.
func (s *Store) Permits(ctx context.Context, node inventory.NodeID) ([]PermitUse, error) {
	var out []PermitUse
	err := s.query(ctx, func(r *sql.Rows) error {
		var p PermitUse
		var doc []byte
		var used int64
		if err := r.Scan(&doc, &used); err != nil {
			return err
		}
		if err := json.Unmarshal(doc, &p.Permit); err != nil {
			return err
		}
		p.Used = fromNanos(used)
		out = append(out, p)
		return nil
	}, `SELECT doc, used FROM permits WHERE node = $1 ORDER BY n DESC`, string(node))
	if err != nil {
		return nil, fmt.Errorf("read permits of node %s: %w", node, err)
	}
	return out, nil
}
