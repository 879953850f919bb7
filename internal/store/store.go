// Package store keeps a site's state in SQLite (one process) or PostgreSQL
// (several controllers): nodes, their events, intents and observations,
// permits, leases, tasks, reports, agents and tokens. The SQL is hand-written
// and the same for both.
//
// Only the conductor changes nodes (Commit). The API, the boot service and the
// agents add intents and observations, which it consumes.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"smelt/inventory"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict: the node changed meanwhile")
	ErrFenced   = errors.New("fenced: another controller is responsible now")
	ErrUsed     = errors.New("already used")
	ErrNewer    = errors.New("the database was written by a newer smelt")
)

// Store is one open database. Its methods may be called from any goroutine.
type Store struct{ contract }

type contract struct{}

const unbuilt = "store: being built"

// Open opens and migrates the database that dsn names: "sqlite:PATH" or
// "postgres://...". A database from a newer smelt is ErrNewer.
func Open(ctx context.Context, dsn string) (*Store, error) { panic(unbuilt) }

// Close flushes the writer and closes the database.
func (s *Store) Close() error { panic(unbuilt) }

// A Lease says that this process is responsible for a name (for example
// "conductor"). Fence rises with every change of hands.
type Lease struct {
	Name  string
	Owner string
	Fence uint64
	Until time.Time // database clock
}

// Acquire takes the lease if it is free, expired or ours. ErrConflict names
// the owner otherwise. On SQLite one process holds the file's lock, so an old
// lease is void at once.
func (s *Store) Acquire(ctx context.Context, name, owner string, ttl time.Duration) (Lease, error) {
	panic(unbuilt)
}

// Renew extends l, or is ErrFenced.
func (s *Store) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) { panic(unbuilt) }

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
func (s *Store) Commit(ctx context.Context, c Change) (uint64, error) { panic(unbuilt) }

// Node returns one node, ErrNotFound if there is none.
func (s *Store) Node(ctx context.Context, id inventory.NodeID) (inventory.Node, error) {
	panic(unbuilt)
}

// NodeByMAC finds the node that a MAC labels, ErrNotFound if there is none.
func (s *Store) NodeByMAC(ctx context.Context, m inventory.MAC) (inventory.Node, error) {
	panic(unbuilt)
}

// Nodes returns all nodes ordered by ID.
func (s *Store) Nodes(ctx context.Context) ([]inventory.Node, error) { panic(unbuilt) }

// EventsAfter returns up to limit events of the site with Seq > after, in order.
func (s *Store) EventsAfter(ctx context.Context, after uint64, limit int) ([]inventory.Event, error) {
	panic(unbuilt)
}

// NodeEvents returns the events of one node, oldest first.
func (s *Store) NodeEvents(ctx context.Context, id inventory.NodeID) ([]inventory.Event, error) {
	panic(unbuilt)
}

// LastSeq is the sequence number of the newest event, 0 if there is none.
func (s *Store) LastSeq(ctx context.Context) (uint64, error) { panic(unbuilt) }

// Changed is closed when something was committed through this Store after the
// call: the hint that replaces polling inside one process.
func (s *Store) Changed() <-chan struct{} { panic(unbuilt) }

// An Intent is something a person or a rule wants. The conductor carries it
// out or refuses it.
type Intent struct {
	ID     string            `json:"id"` // chosen by the client: repeating it changes nothing
	Node   inventory.NodeID  `json:"node,omitempty"`
	Verb   string            `json:"verb"` // approve reject hold release convert power task-done import retire reinspect
	Actor  string            `json:"actor"`
	Params map[string]string `json:"params,omitempty"`
	At     time.Time         `json:"at"`
}

// IntentResult is what became of an intent.
type IntentResult struct {
	ID    string    `json:"id"`
	OK    bool      `json:"ok"`
	Error string    `json:"error,omitempty"` // why it was refused
	At    time.Time `json:"at"`
}

// AddIntent stores an intent; an ID that is already there changes nothing.
func (s *Store) AddIntent(ctx context.Context, i Intent) error { panic(unbuilt) }

// PendingIntents returns the intents without a result, oldest first.
func (s *Store) PendingIntents(ctx context.Context) ([]Intent, error) { panic(unbuilt) }

// IntentResult returns the result of an intent, ErrNotFound while it is pending.
func (s *Store) IntentResult(ctx context.Context, id string) (IntentResult, error) { panic(unbuilt) }

// FinishIntent records the result of an intent that changed no node.
func (s *Store) FinishIntent(ctx context.Context, r IntentResult) error { panic(unbuilt) }

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
func (s *Store) Observe(ctx context.Context, o Observation) error { panic(unbuilt) }

// Unconsumed returns the observations no Change consumed, oldest first; all
// nodes when node is empty.
func (s *Store) Unconsumed(ctx context.Context, node inventory.NodeID) ([]Observation, error) {
	panic(unbuilt)
}

// Consume marks observations that changed nothing.
func (s *Store) Consume(ctx context.Context, ids ...uint64) error { panic(unbuilt) }

// UsePermit marks a permit used; the second time is ErrUsed, an unknown one
// ErrNotFound, one past its time ErrUsed.
func (s *Store) UsePermit(ctx context.Context, id string, now time.Time) (inventory.Permit, error) {
	panic(unbuilt)
}

// Permits returns the permits issued for a node, newest first.
func (s *Store) Permits(ctx context.Context, node inventory.NodeID) ([]PermitUse, error) {
	panic(unbuilt)
}

// PermitUse is an issued permit and when it was used (zero: never).
type PermitUse struct {
	inventory.Permit
	Used time.Time `json:"used,omitzero"`
}

// Tasks returns tasks, open ones first; all nodes when node is empty.
func (s *Store) Tasks(ctx context.Context, node inventory.NodeID) ([]inventory.Task, error) {
	panic(unbuilt)
}

// A Nonce lets one machine enrol once.
type Nonce struct {
	Nonce   string
	Node    inventory.NodeID
	MAC     inventory.MAC
	Mode    string // inspect, convert
	Fence   uint64
	Expires time.Time
}

// AddNonce stores n.
func (s *Store) AddNonce(ctx context.Context, n Nonce) error { panic(unbuilt) }

// UseNonce takes a nonce: ErrNotFound if unknown or expired at now, ErrUsed
// the second time.
func (s *Store) UseNonce(ctx context.Context, nonce string, now time.Time) (Nonce, error) {
	panic(unbuilt)
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
func (s *Store) PutAgent(ctx context.Context, a Agent) error { panic(unbuilt) }

// Agent finds an unexpired session.
func (s *Store) Agent(ctx context.Context, session string, now time.Time) (Agent, error) {
	panic(unbuilt)
}

// EndAgents ends all sessions of a node.
func (s *Store) EndAgents(ctx context.Context, node inventory.NodeID) error { panic(unbuilt) }

// A Token is an operator's credential: stored only as a hash.
type Token struct {
	Hash    string
	Name    string
	Role    string // viewer, technician, operator
	Created time.Time
}

// PutToken stores t.
func (s *Store) PutToken(ctx context.Context, t Token) error { panic(unbuilt) }

// TokenByHash finds a token, ErrNotFound if there is none.
func (s *Store) TokenByHash(ctx context.Context, hash string) (Token, error) { panic(unbuilt) }

// Tokens lists all tokens.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) { panic(unbuilt) }

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
func (s *Store) PutBlob(ctx context.Context, b Blob) error { panic(unbuilt) }

// Blob returns one, ErrNotFound if there is none.
func (s *Store) Blob(ctx context.Context, node inventory.NodeID, name string) (Blob, error) {
	panic(unbuilt)
}

// Blobs lists (without Data) those of a node whose name begins with prefix.
func (s *Store) Blobs(ctx context.Context, node inventory.NodeID, prefix string) ([]Blob, error) {
	panic(unbuilt)
}
