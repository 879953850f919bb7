package power

import "context"

// Alone runs f on the bare controller while no verb and no read of v is under
// way: to give a device another password, which each other login would meet
// half done. Afterwards a refused credential and an outage are forgotten if f
// succeeded, because f has just shown that the device answers.
func (v *Verified) Alone(ctx context.Context, f func(context.Context, Controller) error) error {
	if err := v.verb.get(ctx); err != nil {
		return err
	}
	defer v.verb.put()
	alone := func(ctx context.Context) error { return f(ctx, v.c) }
	if v.shared != nil {
		return v.login.alone(ctx, func(ctx context.Context) error { return v.shared.alone(ctx, alone) })
	}
	return v.login.alone(ctx, alone)
}
