// Package care takes BMCs over: it proves the credential that came with one,
// gives its account a random password that nobody else has, proves that one,
// and makes the machine stay off when power comes back, so that Smelt decides
// the order of starts. A crash at any point loses no password.
package care

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// A Vault keeps passwords, encrypted at rest.
type Vault interface {
	// Get returns "" when nothing is kept under the name.
	Get(name string) (string, error)
	// Set is durable when it returns: the old value stays until then.
	Set(name, value string) error
	Delete(name string) error
}

// A Device is one BMC, and where its password is.
type Device struct {
	Node  inventory.NodeID
	User  string
	Given func(context.Context) (string, error) // what site.yaml names
	Vault Vault
	// With makes a controller of the device that logs in with another
	// credential.
	With func(user, password string) (power.Controller, error)
	// Try guards the credential that is in use: one that was refused before is
	// not tried again. nil: it is.
	Try power.Try
	// Kept is the node under whose name the password is kept, where several have
	// one BMC and log in by one account; empty: Node.
	Kept inventory.NodeID
}

// The names in the vault. A password is written under the second name before
// the device hears it, and moves to the first once it is proven.
func (d Device) adopted() string  { return "adopted." + d.kept() }
func (d Device) adopting() string { return "adopting." + d.kept() }

func (d Device) kept() string { return string(cmp.Or(d.Kept, d.Node)) }

// SecretName is under which name its password is kept once it is adopted.
func (d Device) SecretName() string { return d.adopted() }

// Password is what to log in with: the device's own once it is adopted, else
// what was given.
func (d Device) Password(ctx context.Context) (string, error) {
	p, err := d.Vault.Get(d.adopted())
	if err != nil || p != "" {
		return p, err
	}
	return d.Given(ctx)
}

// Adopted tells whether the device has a password of its own.
func (d Device) Adopted() (bool, error) {
	p, err := d.Vault.Get(d.adopted())
	return p != "", err
}

// Adoption is what was done, for an event; it never holds a password.
type Adoption struct {
	Audit power.Audit `json:"audit"` // afterwards
	Notes []string    `json:"notes,omitempty"`
}

// settle is how long a BMC may take until it knows its new password: some
// restart their user service first.
var settle = 5 * time.Second

// Adopt gives the device a password of its own and proves it. It is safe to
// repeat, after an error or a crash too: a password that the device may have
// heard is never thrown away, and each password is tried once.
func (d Device) Adopt(ctx context.Context) (Adoption, error) {
	var out Adoption
	fail := func(err error) (Adoption, error) {
		return out, fmt.Errorf("adopt the BMC of %s: %w", d.Node, err)
	}
	current, err := d.Password(ctx)
	if err != nil {
		return fail(err)
	}
	next, err := d.Vault.Get(d.adopting())
	if err != nil {
		return fail(err)
	}
	if next != "" {
		// An earlier try ended between two steps; the device may know either.
		switch err := d.proves(ctx, next); {
		case err == nil:
			out.Notes = append(out.Notes, "an earlier try had got as far as the device")
			return d.keep(ctx, next, out)
		case !errors.Is(err, power.ErrAuth):
			return fail(err)
		}
	}
	c, err := d.With(d.User, current)
	if err != nil {
		return fail(err)
	}
	keeper, ok := c.(power.Keeper)
	if !ok {
		return fail(fmt.Errorf("accounts of %s: %w", c, power.ErrUnsupported))
	}
	// The credential is tried once, by reading, before anything is made.
	look := func(ctx context.Context) (err error) {
		out.Audit, err = keeper.Audit(ctx)
		return err
	}
	if d.Try == nil {
		err = look(ctx)
	} else {
		err = d.Try(ctx, look)
	}
	if err != nil {
		return fail(fmt.Errorf("with the credential it has now: %w", err))
	}
	if next == "" {
		if next, err = password(); err != nil {
			return fail(err)
		}
		if err := d.Vault.Set(d.adopting(), next); err != nil {
			return fail(err)
		}
	}
	if err := keeper.SetPassword(ctx, next); err != nil {
		// It may have worked all the same; what is true is found by logging in.
		out.Notes = append(out.Notes, "the device refused the new password, the next login decides: "+err.Error())
		if errors.Is(err, power.ErrAuth) || errors.Is(err, power.ErrUnsupported) {
			return fail(err)
		}
	}
	if err := pause(ctx, settle); err != nil {
		return fail(err)
	}
	if err := d.proves(ctx, next); err != nil {
		return fail(fmt.Errorf("it does not take the new password, which is kept for the next try: %w", err))
	}
	return d.keep(ctx, next, out)
}

// keep makes the proven password the device's own, and ends the adoption.
func (d Device) keep(ctx context.Context, proven string, out Adoption) (Adoption, error) {
	if err := d.Vault.Set(d.adopted(), proven); err != nil {
		return out, fmt.Errorf("adopt the BMC of %s: %w", d.Node, err)
	}
	if err := d.Vault.Delete(d.adopting()); err != nil {
		return out, fmt.Errorf("adopt the BMC of %s: %w", d.Node, err)
	}
	c, err := d.With(d.User, proven)
	if err != nil {
		return out, err
	}
	keeper, ok := c.(power.Keeper)
	if !ok {
		return out, nil
	}
	if err := keeper.SetRestorePolicy(ctx, power.AlwaysOff); err != nil {
		out.Notes = append(out.Notes, "what it does when power comes back was not changed: "+err.Error())
	}
	if a, err := keeper.Audit(ctx); err == nil {
		out.Audit = a
	} else {
		out.Notes = append(out.Notes, "it could not be looked at afterwards: "+err.Error())
	}
	return out, nil
}

// proves logs in once.
func (d Device) proves(ctx context.Context, password string) error {
	c, err := d.With(d.User, password)
	if err != nil {
		return err
	}
	_, err = c.State(ctx)
	return err
}

// ErrAdopted: the device has a password of its own, so no other is tried.
var ErrAdopted = errors.New("its BMC has a password of its own")

// TryDefault logs in once with a maker's well-known credential and, where that
// works, adopts the device at once. The caller sees to it that a device is
// tried once a day at most: BMCs lock an account after three to five attempts.
func (d Device) TryDefault(ctx context.Context, c Default) (Adoption, error) {
	switch ok, err := d.Adopted(); {
	case err != nil:
		return Adoption{}, err
	case ok:
		return Adoption{}, fmt.Errorf("default credential of %s on %s: %w", c.Vendor, d.Node, ErrAdopted)
	}
	if next, err := d.Vault.Get(d.adopting()); err != nil {
		return Adoption{}, err
	} else if next != "" {
		return Adoption{}, fmt.Errorf("default credential of %s on %s: an adoption is half done: smelt bmc adopt %s", c.Vendor, d.Node, d.Node)
	}
	if c.User != d.User {
		return Adoption{}, fmt.Errorf("default credential of %s: its account is %s, and site.yaml says %s for %s: correct user, the password stays with the account", c.Vendor, c.User, d.User, d.Node)
	}
	d.Given = func(context.Context) (string, error) { return c.Password, nil }
	d.Try = nil // it is not the one in use
	return d.Adopt(ctx)
}

// passwordLen is what every BMC takes: IPMI 2.0 carries 20 bytes, IPMI 1.5 and
// some firmware 16. Sixteen letters and digits are 95 bits.
const passwordLen = 16

const (
	lower  = "abcdefghijkmnopqrstuvwxyz"
	upper  = "ABCDEFGHJKLMNPQRSTUVWXYZ"
	digits = "23456789"
)

// password makes one that firmware accepts that wants a small and a capital
// letter and a digit, and that needs no escaping anywhere. What people mix up
// (l, I, 1, O, 0) is left out: somebody may have to read it from a printout.
func password() (string, error) {
	for {
		b := make([]byte, passwordLen)
		var kinds [3]bool
		for i := range b {
			n, err := rand.Int(rand.Reader, big.NewInt(int64(len(lower)+len(upper)+len(digits))))
			if err != nil {
				return "", err
			}
			k := int(n.Int64())
			switch {
			case k < len(lower):
				b[i], kinds[0] = lower[k], true
			case k < len(lower)+len(upper):
				b[i], kinds[1] = upper[k-len(lower)], true
			default:
				b[i], kinds[2] = digits[k-len(lower)-len(upper)], true
			}
		}
		if kinds == [3]bool{true, true, true} {
			return string(b), nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
