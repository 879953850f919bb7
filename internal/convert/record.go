package convert

import (
	"context"
	"errors"

	"smelt/internal/store"
	"smelt/inventory"
)

// Record adds to the story of a node what was done with it beside its life: who
// typed into its console, what was lit to find it. It changes nothing else.
func (c *Conductor) Record(ctx context.Context, node inventory.NodeID, actor, reason string, evidence map[string]string) error {
	if err := c.serving(); err != nil {
		return err
	}
	unlock := c.lock(node)
	defer unlock()
	for tries := 0; ; tries++ {
		n, err := c.Store.Node(ctx, node)
		if err != nil {
			return err
		}
		t := c.turn(ctx, n)
		t.add(inventory.Event{Kind: inventory.KindStep, Actor: actor, Reason: reason, Evidence: evidence})
		if err := t.commit(); !errors.Is(err, store.ErrConflict) || tries == 3 {
			return err // with a conflict another writer was faster
		}
	}
}
