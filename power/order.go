package power

import "context"

// An Orderer is a Controller that can put right the machine's own boot order:
// installers and firmware updates lose it.
type Orderer interface {
	// SetBootOrder puts d first, keeps the rest in its order, and returns the
	// order that the device reads back. Some firmware takes it over at the next
	// start only.
	SetBootOrder(ctx context.Context, first Device) ([]string, error)
}

// SetBootOrder puts first at the head of the machine's own boot order.
func (v *Verified) SetBootOrder(ctx context.Context, first Device) ([]string, error) {
	return ask(ctx, v, "boot order", func(ctx context.Context, o Orderer) ([]string, error) { return o.SetBootOrder(ctx, first) })
}

// SetBootOrder is the first link's that can.
func (c *Chain) SetBootOrder(ctx context.Context, first Device) ([]string, error) {
	return firstOf(c, "boot order", func(v *Verified) ([]string, error) { return v.SetBootOrder(ctx, first) })
}
