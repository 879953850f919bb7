package convert

import "smelt/inventory"

// OnBoundary calls f at every point where the process may die with something
// half done.
func (c *Conductor) OnBoundary(f func(node inventory.NodeID, what string)) { c.testOnlyBoundary = f }
