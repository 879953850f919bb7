package convert

import (
	"context"
	"fmt"
	"time"

	"smelt/inventory"
)

// What power controllers that cannot read a machine go by: when it was last
// heard of, and an order that its agent takes.

// sight notes that the machine asked the boot service for something.
func (c *Conductor) sight(node inventory.NodeID) {
	c.mu.Lock()
	was := c.sighted[node]
	c.sighted[node] = c.Now()
	c.mu.Unlock()
	if c.Now().Sub(was) > time.Second {
		c.poke(node, c.Now()) // who waits for it looks
	}
}

// AgentHeard is when an agent on the machine last spoke; the zero time if none
// did since this process began.
func (c *Conductor) AgentHeard(node inventory.NodeID) time.Time { return c.Live(node).LastSeen }

// Heard is when the machine was last heard of, and by what: a boot request, or
// its agent. The zero time if it was not since this process began.
func (c *Conductor) Heard(node inventory.NodeID) (at time.Time, by string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, by = c.live[node].LastSeen, "its agent"
	if s := c.sighted[node]; s.After(at) {
		at, by = s, "a boot request"
	}
	return at, by
}

// A told is an order that waits for the agent. It lives as long as the call of
// Tell: one that nobody waits for is never carried out.
type told struct {
	order Order
	taken chan struct{} // closed when it was handed out
	done  chan struct{} // closed when the agent said that it does it
}

// tellWait is how long an agent may take to come for an order: it asks again
// after each answer, and waits for one 25 s at most.
const tellWait = 40 * time.Second

// tellAgain is how long a taken order is handed out again: its answer may have
// been lost.
const tellAgain = 5 * time.Second

// Tell gives the agent of a node an order that its state does not ask for: off
// or reboot. It returns once the agent took it; what comes of it is seen. An
// agent of an earlier boot does not get it.
func (c *Conductor) Tell(ctx context.Context, node inventory.NodeID, verb string) error {
	if verb != orderOff && verb != orderReboot {
		return fmt.Errorf("tell the agent on %s: order %q: want off or reboot", node, verb)
	}
	at := c.Now()
	o := &told{order: Order{ID: "told/" + verb + "/" + stamp(at), Kind: verb, Why: "its power controller says so"}, taken: make(chan struct{}), done: make(chan struct{})}
	c.mu.Lock()
	if c.told[node] != nil {
		c.mu.Unlock()
		return fmt.Errorf("tell the agent on %s: it is being told something else", node)
	}
	c.told[node] = o
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.told, node)
	}()
	c.announce(node)
	wait := time.NewTimer(tellWait)
	defer wait.Stop()
	select {
	case <-o.taken:
	case <-wait.C:
		return fmt.Errorf("tell the agent on %s: it did not come for the order within %v", node, tellWait)
	case <-ctx.Done():
		return fmt.Errorf("tell the agent on %s: it did not come for the order: %w", node, ctx.Err())
	}
	wait.Reset(tellAgain)
	select {
	case <-o.done:
	case <-wait.C:
	case <-ctx.Done():
	}
	return nil
}

// toldOrder is the order that a controller gave, if there is one.
func (t *turn) toldOrder(o Order) (Order, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.told[t.n.ID]
	if w == nil {
		return o, false
	}
	select {
	case <-w.taken:
	default:
		close(w.taken)
	}
	order := w.order
	order.Fence = o.Fence
	return order, true
}

// obeyed takes in that the agent does what it was told, and tells whether r is
// about that.
func (c *Conductor) obeyed(node inventory.NodeID, r Result) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.told[node]; w != nil && w.order.ID == r.Order {
		select {
		case <-w.done:
		default:
			close(w.done)
		}
		return true
	}
	return r.Kind == orderOff
}
