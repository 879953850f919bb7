package convert

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
	"smelt/power"
)

// otherMachine is the code of the finding that the BMC of a node is another
// node's: whoever switches one of the two switches the other.
const otherMachine = "other-machine"

// whose holds the serial number that a BMC says of its machine against those of
// all nodes. Only one that is another node's, and none of this one's, says
// something: firmware may know a number that the machine does not show.
func (t *turn) whose(a *power.Audit) error {
	if inventory.Junk(a.Serial) || t.n.Spec.Serial == "" && t.n.Hardware == nil || carries(t.n, a.Serial, true) {
		return nil
	}
	nodes, err := t.Store.Nodes(t.ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.ID == t.n.ID || n.State == inventory.Retired || !carries(n, a.Serial, false) {
			continue
		}
		f := power.Finding{Code: otherMachine, What: fmt.Sprintf("it says that its machine has the serial number %s, and that is %s", a.Serial, n.ID),
			Fix: "compare the addresses of the BMCs of both in site.yaml with the labels at the rack; switch neither before"}
		a.Findings = append(a.Findings, f)
		t.alarm("its BMC is that of another machine: "+f.What, map[string]string{"other": string(n.ID), "serial": a.Serial})
	}
	return nil
}

// distrust lets nobody switch a node by a BMC that was found to be another one's,
// until it is looked at again.
func (c *Conductor) distrust(id inventory.NodeID, a power.Audit) {
	v := c.Power[id]
	if v == nil {
		return
	}
	v.Distrust(nil)
	for _, f := range a.Findings {
		if f.Code == otherMachine {
			v.Distrust(fmt.Errorf("%w: at the last look %s; %s; then smelt bmc audit %s", power.ErrMismatch, f.What, f.Fix, id))
		}
	}
}

// distrustStored does that for what an earlier process found.
func (c *Conductor) distrustStored(ctx context.Context) error {
	list, err := c.BMCs(ctx)
	if err != nil {
		return err
	}
	for _, b := range list {
		c.distrust(b.Node, b.Audit)
	}
	return nil
}

// carries tells whether serial is one of n's. Machines of one chassis share its
// number.
func carries(n inventory.Node, serial string, chassis bool) bool {
	own := []string{n.Spec.Serial}
	if n.Hardware != nil {
		own = append(own, n.Hardware.Board.Serial, n.Hardware.Board.SystemSerial)
		if chassis {
			own = append(own, n.Hardware.Board.ChassisSerial)
		}
	}
	return slices.ContainsFunc(own, func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), strings.TrimSpace(serial)) })
}
