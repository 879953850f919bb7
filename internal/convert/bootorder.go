package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// bmcOrder puts the network or the disk first in the machine's own boot order,
// as its controller reads it back, and looks at the BMC again.
func (t *turn) bmcOrder(i store.Intent) (bool, error) {
	v := t.Power[t.n.ID]
	if v == nil {
		return false, errors.New("nothing here reaches its BMC: site.yaml gives it no power driver")
	}
	if err := t.mayTouch(i.Actor); err != nil {
		return false, err
	}
	var first power.Device
	for _, d := range []power.Device{power.Network, power.Disk} {
		if i.Params["first"] == d.String() {
			first = d
		}
	}
	if first == 0 {
		return false, fmt.Errorf("first %q: want %s or %s", i.Params["first"], power.Network, power.Disk)
	}
	if t.busy() {
		return false, nil
	}
	t.start("set its boot order", func(ctx context.Context) func(*turn) error {
		order, err := v.SetBootOrder(ctx, first)
		var a power.Audit
		var unread error
		if err == nil {
			a, unread = v.Audit(ctx)
		}
		return func(t *turn) error {
			if err != nil {
				t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: i.ID, Error: err.Error(), At: t.at})
				return nil
			}
			t.add(inventory.Event{Kind: inventory.KindStep, Actor: i.Actor, Reason: "its boot order was put right: " + first.String() + " first",
				Evidence: map[string]string{"controller": v.String(), "order": strings.Join(order, " ")}})
			return t.audited(i, v, a, unread)
		}
	})
	return false, nil
}
