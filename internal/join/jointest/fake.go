package jointest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"smelt/internal/join"
	"smelt/inventory"
)

// Fake is a cluster in memory. It passes Run.
type Fake struct {
	mu    sync.Mutex
	nodes map[inventory.NodeID]*record
	calls []string
}

type record struct {
	registered bool
	hold       string // "" not held
}

const prefix = "smelt: "

var _ join.Driver = (*Fake)(nil)

// NewFake returns an empty cluster.
func NewFake() *Fake { return &Fake{nodes: make(map[inventory.NodeID]*record)} }

func (f *Fake) String() string { return "fake cluster" }

// Register is the node's daemon reporting; a node nobody prepared is taken as
// it comes, ready for work, which is what a conductor must not let happen.
func (f *Fake) Register(node inventory.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.nodes[node]
	if r == nil {
		r = &record{}
		f.nodes[node] = r
	}
	r.registered = true
}

// HoldForeign holds the node as an administrator would; an empty reason lifts it.
func (f *Fake) HoldForeign(node inventory.NodeID, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[node].hold = reason
}

// Calls lists what was asked, "verb node", oldest first.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *Fake) enter(verb string, node inventory.NodeID) (*record, func()) {
	f.mu.Lock()
	f.calls = append(f.calls, verb+" "+string(node))
	return f.nodes[node], f.mu.Unlock
}

// Prepare implements join.Driver.
func (f *Fake) Prepare(_ context.Context, m join.Member) error {
	r, leave := f.enter("prepare", m.Node)
	defer leave()
	if r == nil {
		r = &record{}
		f.nodes[m.Node] = r
	}
	if r.hold == "" {
		r.hold = prefix + "not yet admitted"
	}
	return nil
}

// Grant implements join.Driver.
func (f *Fake) Grant(_ context.Context, m join.Member) (join.Grant, error) {
	return join.Grant{Kind: "fake", Options: map[string]string{"node": string(m.Node)}}, nil
}

// Observe implements join.Driver.
func (f *Fake) Observe(_ context.Context, node inventory.NodeID) (join.Standing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.nodes[node]
	if r == nil {
		return join.Standing{}, nil
	}
	held := r.hold != ""
	return join.Standing{Known: true, Registered: r.registered, Held: held,
		HeldByUs: strings.HasPrefix(r.hold, prefix), Ready: r.registered && !held, Detail: r.hold}, nil
}

// Hold implements join.Driver.
func (f *Fake) Hold(_ context.Context, node inventory.NodeID, reason string) error {
	r, leave := f.enter("hold", node)
	defer leave()
	if r == nil {
		return fmt.Errorf("node %s is not in the cluster", node)
	}
	if r.hold == "" || strings.HasPrefix(r.hold, prefix) {
		r.hold = prefix + reason
	}
	return nil
}

// Release implements join.Driver.
func (f *Fake) Release(_ context.Context, node inventory.NodeID) error {
	r, leave := f.enter("release", node)
	defer leave()
	if r != nil && strings.HasPrefix(r.hold, prefix) {
		r.hold = ""
	}
	return nil
}

// Verify implements join.Driver.
func (f *Fake) Verify(_ context.Context, node inventory.NodeID) (string, error) {
	r, leave := f.enter("verify", node)
	defer leave()
	if r == nil || !r.registered || r.hold != "" {
		return "", fmt.Errorf("node %s takes no work", node)
	}
	return string(node), nil
}

// Remove implements join.Driver.
func (f *Fake) Remove(_ context.Context, node inventory.NodeID) error {
	_, leave := f.enter("remove", node)
	defer leave()
	delete(f.nodes, node)
	return nil
}
