// Package jointest holds every join.Driver to the promises of package join,
// and has a cluster in memory that keeps them.
package jointest

import (
	"context"
	"strings"
	"testing"
	"time"

	"smelt/internal/join"
	"smelt/inventory"
)

// Cluster is a real cluster as the suite needs it.
type Cluster struct {
	Driver join.Driver
	Member join.Member // a node the cluster does not know yet
	// Start starts the node's daemon with what was granted.
	Start func(t *testing.T, g join.Grant)
	// Foreign holds the node as an administrator would, without the driver.
	Foreign func(t *testing.T, reason string)
	// Lift ends that hold.
	Lift func(t *testing.T)
	// Patience bounds every wait for the cluster.
	Patience time.Duration
}

// Run goes through the life of one member: each promise in the order in which
// the conductor relies on it. Each call is made twice where it must be
// idempotent, because a crash may fall between any two.
func Run(t *testing.T, c Cluster) {
	ctx, d, node := t.Context(), c.Driver, c.Member.Node
	twice := func(what string, f func() error) {
		t.Helper()
		for i, nth := range []string{"first", "second"} {
			if err := f(); err != nil {
				t.Fatalf("%s, %s time (%d): %v", what, nth, i, err)
			}
		}
	}
	see := func(what string, ok func(join.Standing) bool) join.Standing {
		t.Helper()
		deadline := time.Now().Add(c.Patience)
		for {
			s, err := d.Observe(ctx, node)
			if err == nil && ok(s) {
				return s
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not seen within %s, last %+v, %v", what, c.Patience, s, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}

	// A node the cluster does not know is no error for Observe, Release, Remove.
	if s, err := d.Observe(ctx, node); err != nil || s != (join.Standing{}) {
		t.Fatalf("observe of an unknown node: %+v, %v; want the zero standing", s, err)
	}
	twice("release of an unknown node", func() error { return d.Release(ctx, node) })
	twice("remove of an unknown node", func() error { return d.Remove(ctx, node) })
	if err := d.Hold(ctx, node, "x"); err == nil {
		t.Fatal("hold of an unknown node succeeded: nothing was held")
	}

	// Prepared, it is known and held by us before its daemon ever ran.
	twice("prepare", func() error { return d.Prepare(ctx, c.Member) })
	see("prepared", func(s join.Standing) bool {
		return s.Known && s.Held && s.HeldByUs && !s.Registered && !s.Ready
	})
	g, err := d.Grant(ctx, c.Member)
	if err != nil {
		t.Fatalf("grant: %v", err)
	}
	if g.Kind == "" {
		t.Fatal("the grant names no kind")
	}

	// Its daemon reports: it is registered and still held.
	c.Start(t, g)
	see("registered and held", func(s join.Standing) bool { return s.Registered && s.Held && !s.Ready })
	twice("hold", func() error { return d.Hold(ctx, node, "waits for its verdict") })
	if s := see("held by us", func(s join.Standing) bool { return s.HeldByUs }); !strings.Contains(s.Detail, "waits for its verdict") {
		t.Fatalf("the hold's reason is not in the standing: %q", s.Detail)
	}
	if out, err := d.Verify(within(ctx, t, 5*time.Second), node); err == nil {
		t.Fatalf("a held node ran the verify job: %q", out)
	}

	// Somebody else's hold is neither taken over nor lifted.
	c.Foreign(t, "bad fan, Anna")
	see("held by others", func(s join.Standing) bool { return s.Held && !s.HeldByUs })
	twice("hold over a foreign hold", func() error { return d.Hold(ctx, node, "ours too") })
	twice("release of a foreign hold", func() error { return d.Release(ctx, node) })
	if s := see("still held by others", func(s join.Standing) bool { return s.Held && !s.HeldByUs && !s.Ready }); !strings.Contains(s.Detail, "Anna") {
		t.Fatalf("the foreign reason was lost: %q", s.Detail)
	}
	// Preparing again (a crash before joining was committed) lifts nothing either.
	if err := d.Prepare(ctx, c.Member); err != nil {
		t.Fatalf("prepare over a foreign hold: %v", err)
	}
	see("still held by others", func(s join.Standing) bool { return s.Held && !s.HeldByUs && !s.Ready })
	c.Lift(t)

	// Ours is lifted, and the node works.
	if err := d.Hold(ctx, node, "waits for its verdict"); err != nil {
		t.Fatalf("hold: %v", err)
	}
	twice("release", func() error { return d.Release(ctx, node) })
	see("ready", func(s join.Standing) bool { return s.Ready && !s.Held })
	out, err := d.Verify(ctx, node)
	if err != nil || out == "" {
		t.Fatalf("verify: %q, %v", out, err)
	}

	// And out again.
	twice("hold", func() error { return d.Hold(ctx, node, "leaving") })
	see("held", func(s join.Standing) bool { return s.HeldByUs && !s.Ready })
	twice("remove", func() error { return d.Remove(ctx, node) })
	see("gone", func(s join.Standing) bool { return !s.Known })
}

func within(ctx context.Context, t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return ctx
}

// Node is the member that suites use.
const Node inventory.NodeID = "rig-01"
