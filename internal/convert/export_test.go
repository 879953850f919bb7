package convert

import (
	"context"
	"time"

	"smelt/images"
	"smelt/internal/join"
	"smelt/inventory"
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
