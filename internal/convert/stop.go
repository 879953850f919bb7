package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"smelt/internal/store"
)

// stop is the global stop: no permit is issued or used while it is set. It is
// stored as a blob of the site (the empty node), so that it survives restarts
// and every controller sees it.
type stop struct {
	On     bool      `json:"on"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

const stopBlob = "site/stop"

// Stop sets or clears the global stop.
func (c *Conductor) Stop(ctx context.Context, on bool, actor, reason string) error {
	s := stop{On: on, Actor: actor, Reason: reason, At: c.Now().UTC()}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := c.Store.PutBlob(ctx, store.Blob{Name: stopBlob, Type: "application/json", Data: data, At: s.At}); err != nil {
		return fmt.Errorf("global stop: %w", err)
	}
	c.mu.Lock()
	c.stop = s
	for id := range c.active {
		c.due[id] = c.Now()
	}
	c.mu.Unlock()
	c.Log.Warn("global stop", "on", on, "actor", actor, "reason", reason)
	nodes, err := c.Store.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		c.poke(n.ID, c.Now())
		c.announce(n.ID)
	}
	return nil
}

// Stopped tells whether the global stop is set.
func (c *Conductor) Stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop.On
}

// stopSet asks the store: another controller may have set it.
func (c *Conductor) stopSet(ctx context.Context) (bool, error) {
	if err := c.loadStop(ctx); err != nil {
		return true, err
	}
	return c.Stopped(), nil
}

func (c *Conductor) loadStop(ctx context.Context) error {
	b, err := c.Store.Blob(ctx, "", stopBlob)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var s stop
	if err := json.Unmarshal(b.Data, &s); err != nil {
		return fmt.Errorf("global stop: %w", err)
	}
	c.mu.Lock()
	c.stop = s
	c.mu.Unlock()
	return nil
}
