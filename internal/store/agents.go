package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"smelt/inventory"
)

// A Nonce lets one machine enrol once.
type Nonce struct {
	Nonce   string
	Node    inventory.NodeID
	MAC     inventory.MAC
	Mode    string // inspect, convert
	Fence   uint64
	Expires time.Time
}

// A nonce that expired is kept for a while, so that who comes with one that was
// used is told apart from who made one up. Old ones are dropped now and then:
// whoever is on a network of machines can have as many made as he likes.
const (
	nonceKept  = 2 * time.Hour
	nonceSweep = 10 * time.Minute
)

// AddNonce stores n.
func (s *Store) AddNonce(ctx context.Context, n Nonce) error {
	if n.Nonce == "" {
		return errors.New("store: empty nonce")
	}
	s.mu.Lock()
	sweep := n.Expires.Sub(s.swept) > nonceSweep
	if sweep {
		s.swept = n.Expires
	}
	s.mu.Unlock()
	err := s.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO nonces (nonce, node, mac, mode, fence, expires) VALUES ($1, $2, $3, $4, $5, $6)`,
			n.Nonce, string(n.Node), n.MAC.String(), n.Mode, int64(n.Fence), nanos(n.Expires))
		if err != nil || !sweep {
			return err
		}
		_, err = t.exec(`DELETE FROM nonces WHERE expires < $1`, nanos(n.Expires.Add(-nonceKept)))
		return err
	})
	if err != nil {
		return fmt.Errorf("store boot nonce of node %s: %w", n.Node, err)
	}
	return nil
}

// UseNonce takes a nonce for the agent whose key has the fingerprint by:
// ErrNotFound if unknown or expired at now, ErrUsed once another agent took it.
// The agent that took it may take it again, for its first answer may have been
// lost with the server. With ErrUsed the Nonce is returned too, so that the
// alarm can name the node somebody tried to be.
func (s *Store) UseNonce(ctx context.Context, nonce, by string, now time.Time) (Nonce, error) {
	n := Nonce{Nonce: nonce}
	err := s.do(ctx, func(t *tx) error {
		var mac, usedBy string
		var fence, expires, used int64
		err := t.row(`SELECT node, mac, mode, fence, expires, used, used_by FROM nonces WHERE nonce = $1`, nonce).
			Scan(&n.Node, &mac, &n.Mode, &fence, &expires, &used, &usedBy)
		if err != nil {
			return missing(err)
		}
		if err := unmarshalMAC(mac, &n.MAC); err != nil {
			return err
		}
		n.Fence, n.Expires = uint64(fence), fromNanos(expires)
		switch {
		case used != 0 && (by == "" || usedBy != by):
			return ErrUsed
		case now.UnixNano() >= expires:
			return fmt.Errorf("expired: %w", ErrNotFound)
		}
		_, err = t.exec(`UPDATE nonces SET used = $1, used_by = $2 WHERE nonce = $3`, now.UnixNano(), by, nonce)
		return err
	})
	if err != nil {
		if !errors.Is(err, ErrUsed) {
			n = Nonce{}
		}
		return n, fmt.Errorf("boot nonce: %w", err) // the nonce itself is a secret
	}
	return n, nil
}

// unmarshalMAC reads a stored MAC; the zero MAC is stored as zeros.
func unmarshalMAC(s string, m *inventory.MAC) error {
	if s == (inventory.MAC{}).String() {
		*m = inventory.MAC{}
		return nil
	}
	return m.UnmarshalText([]byte(s))
}

// An Agent is an enrolled agent: its session is stored only as a hash.
type Agent struct {
	Session     string           // SHA-256 of the bearer token, hexadecimal
	Node        inventory.NodeID //
	Mode        string           // inspect, convert, installed
	Fingerprint string           // of the agent's ed25519 key
	Fence       uint64
	Expires     time.Time
}

// PutAgent stores a and ends every other session of the same node and mode.
func (s *Store) PutAgent(ctx context.Context, a Agent) error {
	if a.Session == "" || a.Node == "" {
		return errors.New("store: an agent needs a session and a node")
	}
	err := s.do(ctx, func(t *tx) error {
		if _, err := t.exec(`DELETE FROM agents WHERE node = $1 AND mode = $2`, string(a.Node), a.Mode); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO agents (session, node, mode, fingerprint, fence, expires) VALUES ($1, $2, $3, $4, $5, $6)`,
			a.Session, string(a.Node), a.Mode, a.Fingerprint, int64(a.Fence), nanos(a.Expires))
		return err
	})
	if err != nil {
		return fmt.Errorf("store agent session of node %s: %w", a.Node, err)
	}
	return nil
}

// Agent finds an unexpired session.
func (s *Store) Agent(ctx context.Context, session string, now time.Time) (Agent, error) {
	a := Agent{Session: session}
	var fence, expires int64
	err := s.r.QueryRowContext(ctx, s.dialect.text(`SELECT node, mode, fingerprint, fence, expires FROM agents WHERE session = $1 AND expires > $2`),
		session, now.UnixNano()).Scan(&a.Node, &a.Mode, &a.Fingerprint, &fence, &expires)
	if err != nil {
		return Agent{}, fmt.Errorf("agent session: %w", missing(err))
	}
	a.Fence, a.Expires = uint64(fence), fromNanos(expires)
	return a, nil
}

// EndAgents ends all sessions of a node.
func (s *Store) EndAgents(ctx context.Context, node inventory.NodeID) error {
	return s.do(ctx, func(t *tx) error {
		_, err := t.exec(`DELETE FROM agents WHERE node = $1`, string(node))
		return err
	})
}

// A Token is an operator's credential: stored only as a hash.
type Token struct {
	Hash    string
	Name    string
	Role    string // viewer, technician, operator
	Created time.Time
}

// PutToken stores t.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	if t.Hash == "" || t.Name == "" || t.Role == "" {
		return errors.New("store: a token needs a hash, a name and a role")
	}
	return s.do(ctx, func(x *tx) error {
		_, err := x.exec(`INSERT INTO tokens (hash, name, role, created) VALUES ($1, $2, $3, $4)
			ON CONFLICT (hash) DO UPDATE SET name = excluded.name, role = excluded.role, created = excluded.created`,
			t.Hash, t.Name, t.Role, nanos(t.Created))
		return err
	})
}

// TokenByHash finds a token, ErrNotFound if there is none.
func (s *Store) TokenByHash(ctx context.Context, hash string) (Token, error) {
	list, err := s.tokens(ctx, `SELECT hash, name, role, created FROM tokens WHERE hash = $1`, hash)
	if err != nil {
		return Token{}, err
	}
	if len(list) == 0 {
		return Token{}, fmt.Errorf("token: %w", ErrNotFound)
	}
	return list[0], nil
}

// Tokens lists all tokens.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	return s.tokens(ctx, `SELECT hash, name, role, created FROM tokens ORDER BY created, name, hash`)
}

func (s *Store) tokens(ctx context.Context, query string, args ...any) ([]Token, error) {
	var out []Token
	err := s.query(ctx, func(r *sql.Rows) error {
		var t Token
		var created int64
		if err := r.Scan(&t.Hash, &t.Name, &t.Role, &created); err != nil {
			return err
		}
		t.Created = fromNanos(created)
		out = append(out, t)
		return nil
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return out, nil
}
