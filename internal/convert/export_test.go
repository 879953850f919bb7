package convert

import (
	"context"
	"time"

	"smelt/images"
	"smelt/internal/join"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// OnBoundary calls f at every point where the process may die with something
// half done.
func (c *Conductor) OnBoundary(f func(node inventory.NodeID, what string)) { c.testOnlyBoundary = f }

// PauseCluster is how long the cluster is left alone.
func (c *Conductor) PauseCluster(d time.Duration) { c.testOnlyPause = d }

// BootMode is what a node would boot.
func (c *Conductor) BootMode(n inventory.Node) (string, error) {
	mode, _, err := c.bootMode(context.Background(), n)
	return mode, err
}

// Approval is what choose needs of an approval.
type Approval struct {
	Target, Disks string
	Allow         []string
	Rule          inventory.DiskRule
}

// Choose picks the disks of a plan.
func Choose(disks []inventory.Disk, a Approval, size int64) (inventory.DiskID, []inventory.DiskID, error) {
	return choose(disks, approval{target: a.Target, disks: a.Disks, allow: a.Allow}, a.Rule, size)
}

// VerdictTasks makes work of a verdict.
var VerdictTasks = verdictTasks

// Member is the node as the cluster would be told of it.
func (c *Conductor) Member(n inventory.Node) (join.Member, error) {
	return c.turn(context.Background(), n).member()
}

// SetMaxUnknown changes how many machines nobody need expect.
func SetMaxUnknown(n int) (restore func()) {
	was := maxUnknown
	maxUnknown = n
	return func() { maxUnknown = was }
}

// Locks is how many nodes were ever locked.
func (c *Conductor) Locks() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.locks)
}

// WithImages is a conductor that knows images and nothing else.
func WithImages(s *images.Store) *Conductor { return &Conductor{Config: Config{Images: s}} }

// Titles are the images that a name may stand for.
func (c *Conductor) Titles(name string) ([]string, error) {
	all, err := c.variants(name)
	var out []string
	for _, v := range all {
		out = append(out, v.stack.Image)
	}
	return out, err
}

// Look makes the conductor look at a node now.
func (c *Conductor) Look(node inventory.NodeID) { c.poke(node, c.Now()) }

// PaceMeters is how often everything is measured and looked at.
func (c *Conductor) PaceMeters(d time.Duration) { c.testOnlyMeter = d }

// Lead takes the lease and makes what lives in memory, without Run.
func (c *Conductor) Lead(ctx context.Context) error {
	if err := c.lead(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.until = time.Now().Add(time.Hour)
	c.mu.Unlock()
	if err := c.restore(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.restored = true
	c.mu.Unlock()
	return nil
}

// Tend looks after the power of the hall once.
func (c *Conductor) Tend(ctx context.Context) error { return c.tendOnce(ctx) }

// Step does what there is to do about a node.
func (c *Conductor) Step(ctx context.Context, id inventory.NodeID) error { return c.step(ctx, id) }

// Jobs waits for all that were begun.
func (c *Conductor) Jobs() { c.jobs.Wait() }

// Sampled is what a controller says of a machine.
func (c *Conductor) Sampled(id inventory.NodeID, s power.State, watts float64, at time.Time) {
	c.sampled(id, s, watts, at)
}

// Saw is what came of reading a machine.
func (c *Conductor) Saw(s power.Sample) { c.saw(s) }

// OrderPower carries out an order about the site's power.
func (c *Conductor) OrderPower(ctx context.Context, i store.Intent) error {
	return c.orderPower(ctx, i)
}

// Load is how much a node may draw.
func (c *Conductor) Load(n inventory.Node) inventory.Load {
	return c.turn(context.Background(), n).load()
}
