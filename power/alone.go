package power

import (
	"context"
	"errors"
)

// A Try makes a call with the credential that is in use, unless the device has
// refused it before; a refusal is remembered.
type Try func(ctx context.Context, call func(context.Context) error) error

// Alone runs f while no verb and no read of v is under way, and nobody else
// talks to its device, of a chain to the one that needs care: to give a device
// another password, which each other login would meet half done. Afterwards a
// refused credential and an outage are forgotten if f succeeded, because f has
// just shown that the device answers.
func (v *Verified) Alone(ctx context.Context, f func(context.Context, Try) error) error {
	if err := v.verb.get(ctx); err != nil {
		return err
	}
	defer v.verb.put()
	// From the outermost gate to the one of the device, as each call passes them.
	gates := []*Login{v.login}
	if l := v.keeper(); l != v {
		gates = append(gates, l.login, l.shared)
	} else {
		gates = append(gates, v.shared)
	}
	if gates[len(gates)-1] == nil {
		gates = gates[:len(gates)-1]
	}
	device := gates[len(gates)-1]
	var within func(context.Context, []*Login) error
	within = func(ctx context.Context, rest []*Login) error {
		if len(rest) == 0 {
			return f(ctx, device.try)
		}
		return rest[0].alone(ctx, func(ctx context.Context) error { return within(ctx, rest[1:]) })
	}
	return within(ctx, gates)
}

// keeper is v, or of a chain the first link whose device needs care.
func (v *Verified) keeper() *Verified {
	if c, ok := v.c.(*Chain); ok {
		for _, l := range c.links {
			if can[Keeper](l.Verified) {
				return l.Verified
			}
		}
	}
	return v
}

// try is a Try for who has the gate alone.
func (l *Login) try(ctx context.Context, call func(context.Context) error) error {
	version, err := l.version(ctx)
	if err != nil {
		return err
	}
	g := l.gate
	if err := g.refused.check(g.device, l.user, version); err != nil {
		return err
	}
	err = call(ctx)
	if errors.Is(err, ErrAuth) {
		return errors.Join(err, g.refused.add(g.device, l.user, version, err))
	}
	return err
}
