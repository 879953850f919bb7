package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"smelt/inventory"
)

// Change is everything one step of the conductor writes, in one durable
// transaction. Node is the node after Events were applied; its version before
// must be what the database holds (ErrConflict), and Lease must be current
// (ErrFenced; the zero Lease is not checked, for tests and tools).
type Change struct {
	Lease        Lease
	Node         inventory.Node
	Events       []inventory.Event // versions Node.Version-len+1 .. Node.Version
	Tasks        []inventory.Task  // upserted by ID
	Permit       *inventory.Permit // issued
	IntentsDone  []IntentResult
	Observations []uint64 // consumed
}

// Commit writes c and returns the sequence number of its last event.
//
// It applies the events once more to the stored node and refuses a Node that
// is anything else than the result: what is stored is always the fold of its
// events.
func (s *Store) Commit(ctx context.Context, c Change) (uint64, error) {
	p, err := s.plan(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("commit node %s version %d: %w", c.Node.ID, c.Node.Version, err)
	}
	var seq int64
	err = s.do(ctx, func(t *tx) error {
		if err := p.write(t); err != nil {
			return err
		}
		seq = t.seq
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("commit node %s version %d: %w", c.Node.ID, c.Node.Version, err)
	}
	return uint64(seq), nil
}

// planned is a Change that was checked and marshalled by its own goroutine, so
// that the writer has little to do.
type planned struct {
	Change
	before uint64 // version the database must hold; 0: no such node
	doc    []byte // of Node
	macs   bool   // Node.MACs may have changed
	tasks  [][]byte
	permit []byte
}

func (s *Store) plan(ctx context.Context, c Change) (planned, error) {
	p := planned{Change: c}
	if c.Node.Version < uint64(len(c.Events)) {
		return p, fmt.Errorf("%d events make no node of version %d", len(c.Events), c.Node.Version)
	}
	p.before = c.Node.Version - uint64(len(c.Events))
	if c.Node.ID != "" {
		var err error
		if p.doc, err = json.Marshal(c.Node); err != nil {
			return p, err
		}
		if p.Events, err = s.replay(ctx, p); err != nil {
			return p, err
		}
	} else if len(c.Events) > 0 {
		return p, errors.New("events without a node")
	}
	for _, e := range c.Events {
		p.macs = p.macs || e.Kind == inventory.KindCreated || e.Spec != nil || e.Hardware != nil || len(e.MACs) > 0
	}
	for _, task := range c.Tasks {
		b, err := json.Marshal(task)
		if err != nil {
			return p, err
		}
		p.tasks = append(p.tasks, b)
	}
	if c.Permit != nil {
		b, err := json.Marshal(c.Permit)
		if err != nil {
			return p, err
		}
		p.permit = b
	}
	return p, nil
}

// replay holds p.Node against the stored node and its events. It reads outside
// the transaction: the version check inside it covers this read, because a
// version of a node is only ever one document.
//
// It returns the events with the state that each move leaves.
func (s *Store) replay(ctx context.Context, p planned) ([]inventory.Event, error) {
	var n inventory.Node
	if p.before > 0 {
		var err error
		if n, err = s.Node(ctx, p.Node.ID); err != nil {
			if errors.Is(err, ErrNotFound) {
				return nil, fmt.Errorf("%w: it is not stored", ErrConflict)
			}
			return nil, err
		}
		if n.Version != p.before {
			return nil, fmt.Errorf("%w: it is at version %d, not %d", ErrConflict, n.Version, p.before)
		}
	}
	events := slices.Clone(p.Events)
	for i, e := range events {
		if e.Node != p.Node.ID {
			return nil, fmt.Errorf("event %d is for node %s", e.Version, e.Node)
		}
		if e.Kind == inventory.KindMoved {
			events[i].From = n.State
		}
		var err error
		if n, err = n.Apply(e); err != nil {
			return nil, err
		}
	}
	doc, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(doc, p.doc) {
		return nil, errors.New("the node is not what its events make of the stored one")
	}
	return events, nil
}

func (p planned) write(t *tx) error {
	if err := t.held(p.Lease); err != nil {
		return err
	}
	if p.Node.ID != "" {
		if err := p.writeNode(t); err != nil {
			return err
		}
	}
	for i, task := range p.Tasks {
		_, err := t.exec(`INSERT INTO tasks (id, node, opened, done, doc) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (id) DO UPDATE SET node = excluded.node, opened = excluded.opened, done = excluded.done, doc = excluded.doc`,
			task.ID, string(task.Node), nanos(task.Opened), nanos(task.DoneAt), string(p.tasks[i]))
		if err != nil {
			return fmt.Errorf("task %s: %w", task.ID, err)
		}
	}
	if p.Permit != nil {
		_, err := t.exec(`INSERT INTO permits (id, node, n, not_after, doc) VALUES ($1, $2, $3, $4, $5)`,
			p.Permit.ID, string(p.Permit.Node), t.number(), nanos(p.Permit.NotAfter), string(p.permit))
		if err != nil {
			return fmt.Errorf("permit %s: %w", p.Permit.ID, err)
		}
	}
	for _, r := range p.IntentsDone {
		if err := t.finishIntent(r); err != nil {
			return err
		}
	}
	return t.consume(p.Observations)
}

func (p planned) writeNode(t *tx) error {
	n, id := p.Node, string(p.Node.ID)
	var rows int64
	var err error
	if p.before == 0 {
		rows, err = t.exec(`INSERT INTO nodes (id, version, state, fence, doc) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING`,
			id, int64(n.Version), n.State.String(), int64(n.Fence), string(p.doc))
	} else {
		rows, err = t.exec(`UPDATE nodes SET version = $1, state = $2, fence = $3, doc = $4 WHERE id = $5 AND version = $6`,
			int64(n.Version), n.State.String(), int64(n.Fence), string(p.doc), id, int64(p.before))
	}
	if err != nil {
		return err
	}
	if rows != 1 {
		return fmt.Errorf("%w: it is no longer at version %d", ErrConflict, p.before)
	}
	if p.macs {
		if err := t.label(n); err != nil {
			return err
		}
	}
	for _, e := range p.Events {
		if err := t.append(e); err != nil {
			return err
		}
	}
	return nil
}

// label makes node_macs say what n.MACs says.
func (t *tx) label(n inventory.Node) error {
	if _, err := t.exec(`DELETE FROM node_macs WHERE node = $1`, string(n.ID)); err != nil {
		return err
	}
	for _, m := range n.MACs {
		if _, err := t.exec(`INSERT INTO node_macs (mac, node) VALUES ($1, $2) ON CONFLICT (mac, node) DO NOTHING`, m.String(), string(n.ID)); err != nil {
			return err
		}
	}
	return nil
}

// append adds e to the site's chain of events.
func (t *tx) append(e inventory.Event) error {
	e.Seq = uint64(t.seq + 1)
	doc, err := json.Marshal(e)
	if err != nil {
		return err
	}
	head := link(t.head, doc)
	_, err = t.exec(`INSERT INTO events (seq, node, version, doc, hash) VALUES ($1, $2, $3, $4, $5)`,
		t.seq+1, string(e.Node), int64(e.Version), string(doc), head)
	if err != nil {
		return fmt.Errorf("event %d: %w", e.Version, err)
	}
	t.seq, t.head = t.seq+1, head
	return nil
}

// link is the hash of an event: it covers every event before it.
func link(previous string, doc []byte) string {
	h := sha256.New()
	h.Write([]byte(previous))
	h.Write(doc)
	return hex.EncodeToString(h.Sum(nil))
}

// finishIntent records a result once; the first one stands.
func (t *tx) finishIntent(r IntentResult) error {
	doc, err := json.Marshal(r)
	if err != nil {
		return err
	}
	n, err := t.exec(`UPDATE intents SET result = $1 WHERE id = $2 AND result = ''`, string(doc), r.ID)
	if err != nil || n == 1 {
		return err
	}
	var id string
	err = t.row(`SELECT id FROM intents WHERE id = $1`, r.ID).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("intent %s: %w", r.ID, ErrNotFound)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("intent %s has its result: %w", r.ID, ErrUsed)
}

func (t *tx) consume(ids []uint64) error {
	for _, id := range ids {
		if _, err := t.exec(`UPDATE observations SET consumed = 1 WHERE id = $1`, int64(id)); err != nil {
			return fmt.Errorf("observation %d: %w", id, err)
		}
	}
	return nil
}
