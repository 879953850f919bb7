package power

import (
	"time"

	"smelt/inventory"
)

// Budget grants sustained watts and start slots on every level of the power
// tree. It is pure bookkeeping: after a restart the conductor rebuilds it from
// stored state by granting again what already runs (Restore).
type Budget struct{ contract }

// NewBudget checks the tree: every parent exists, no cycle, positive ratings.
// slots is how many machines may start on one lowest circuit within window.
func NewBudget(tree []inventory.Circuit, slots int, window time.Duration) (*Budget, error) {
	panic(unbuilt)
}

// Grant reserves watts for node on circuit and all levels above, and a start
// slot at now. The error says which level has no room and how much is free;
// granting again to the same node replaces its grant. A node without a circuit
// ("") is always granted.
func (b *Budget) Grant(node inventory.NodeID, circuit string, watts float64, now time.Time) error {
	panic(unbuilt)
}

// Restore reserves without asking for a start slot or room: what runs, runs.
func (b *Budget) Restore(node inventory.NodeID, circuit string, watts float64) { panic(unbuilt) }

// Release gives back what node holds.
func (b *Budget) Release(node inventory.NodeID) { panic(unbuilt) }

// Level is one circuit and what is granted on it, in watts.
type Level struct {
	inventory.Circuit
	Granted float64                      `json:"granted"`
	Limit   float64                      `json:"limit"`
	Holders map[inventory.NodeID]float64 `json:"holders,omitempty"`
}

// Levels lists the tree, parents first.
func (b *Budget) Levels() []Level { panic(unbuilt) }
