// Package join brings validated nodes into a cluster and takes them out. Each
// cluster is a Driver that drives the real thing (scontrol, kube-apiserver)
// and never imitates it; jointest holds every driver to the same promises.
package join

import (
	"context"

	"smelt/inventory"
)

// Standing is how the cluster sees a node.
type Standing struct {
	Known      bool   `json:"known"`      // the cluster has a record of it
	Registered bool   `json:"registered"` // its daemon has reported
	Held       bool   `json:"held"`       // takes no work
	HeldByUs   bool   `json:"heldByUs"`   // and the reason carries our prefix
	Ready      bool   `json:"ready"`      // takes work
	Busy       bool   `json:"busy"`       // runs work now, held or not
	Detail     string `json:"detail"`     // the cluster's own words
}

// Grant is what the node needs to run the cluster's daemon. Secrets reach only
// a node that passed burn-in, over the agent's pinned connection, and are
// never logged.
type Grant struct {
	Kind    string            `json:"kind"` // slurm
	Files   []File            `json:"files"`
	Units   []string          `json:"units"` // systemd units to enable and start, in order
	Env     map[string]string `json:"env,omitempty"`
	Options map[string]string `json:"options,omitempty"`
}

// File is written on the node before the units start.
type File struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`
	Owner  string `json:"owner,omitempty"` // user name; root when empty
	Data   []byte `json:"data"`
	Secret bool   `json:"secret,omitempty"`
}

// Member is a node as a cluster needs it.
type Member struct {
	Node     inventory.NodeID
	Addr     string // IP address the cluster reaches it at
	CPUs     int
	MemoryMB int64
	GPUs     map[string]int // type -> count
}

// A Driver joins nodes to one cluster. Every method is idempotent: a crash
// between any two calls is repaired by calling again.
type Driver interface {
	String() string
	// Prepare makes the cluster know the node, held, before its daemon starts.
	Prepare(ctx context.Context, m Member) error
	// Grant returns what the agent must install and start.
	Grant(ctx context.Context, m Member) (Grant, error)
	// Observe reports the node's standing; an unknown node is no error.
	Observe(ctx context.Context, node inventory.NodeID) (Standing, error)
	// Hold stops new work on the node, with our prefix before the reason.
	Hold(ctx context.Context, node inventory.NodeID, reason string) error
	// Release lifts only a hold that is ours.
	Release(ctx context.Context, node inventory.NodeID) error
	// Verify runs the smallest piece of real work on the node and returns its output.
	Verify(ctx context.Context, node inventory.NodeID) (string, error)
	// Remove takes the node out; an unknown node is no error.
	Remove(ctx context.Context, node inventory.NodeID) error
}
