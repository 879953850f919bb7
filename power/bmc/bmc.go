// Package bmc switches machines through their management controller: IPMI 2.0
// over LAN (ipmitool, see docs/decisions/0019-ipmi.md) or Redfish (a client of its own,
// see docs/decisions/0003-redfish-client.md).
//
// Each call opens a session, does one thing and closes it, so that a call is
// exactly one login at the BMC. A refused credential is power.ErrAuth, after
// which power.Verified stops.
package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"

	"smelt/power"
)

// Config is one BMC.
type Config struct {
	Kind     string // ipmi or redfish
	Address  string // ipmi: HOST or HOST:PORT; redfish: https://HOST[:PORT] or HOST[:PORT]
	User     string
	Password func(context.Context) (string, error) // asked for each call, kept by nobody

	// CipherSuite is IPMI's: 17, or 3 for a BMC that knows no better.
	CipherSuite int
	// UEFI asks IPMI for a UEFI boot where a boot device is chosen.
	UEFI bool

	// SystemID is the id of the Redfish system, needed only where a BMC has
	// several.
	SystemID string
	// Pin is the SHA-256 of the public key of the BMC, base64 (RFC 7469
	// section 2.4). When empty the key of the first connection is trusted,
	// and Controller.Keys tells it.
	Pin string
	// Sessions is a folder with one small file for each Redfish BMC: the
	// sessions that must not outlive this process, and the key that was trusted
	// first. It holds no password and no token. With it a session is deleted
	// also after a crash, by the next call to that BMC or by Sweep, and calls to
	// one BMC wait for each other, across controllers and processes. Without it
	// a crash leaves a session behind until the BMC ends it.
	Sessions string
}

// Controller is a power.Controller with every ability of package power; those
// that its protocol or its BMC does not have return power.ErrUnsupported.
type Controller struct {
	driver
	name string
}

// A driver is one protocol.
type driver interface {
	State(context.Context) (power.State, error)
	Set(context.Context, power.State) error
	SoftOff(context.Context) error
	BootOnce(context.Context, power.Device) error
	Readings(context.Context) (power.Readings, error)
}

// New checks c. It does not talk to the BMC.
func New(c Config) (*Controller, error) {
	// A URL may carry a password, which New refuses and must not repeat.
	shown := c.Address[strings.LastIndex(c.Address, "@")+1:]
	if c.User == "" || c.Password == nil {
		return nil, fmt.Errorf("BMC %s: it needs a user and a password", shown)
	}
	var d driver
	var err error
	switch c.Kind {
	case "ipmi":
		d, err = newIPMI(c)
	case "redfish":
		d, err = newRedfish(c)
	default:
		err = errors.New("want ipmi or redfish")
	}
	if err != nil {
		return nil, fmt.Errorf("BMC %q %s: %w", c.Kind, shown, err)
	}
	return &Controller{driver: d, name: c.Kind + " " + strings.TrimPrefix(shown, "https://")}, nil
}

func (c *Controller) String() string { return c.name }

// Keys is the key of the BMC; IPMI has none.
func (c *Controller) Keys() []power.Key {
	r, ok := c.driver.(*redfish)
	if !ok {
		return nil
	}
	k := r.trust.Key()
	k.Via = c.name
	return []power.Key{k}
}

// Sweep deletes the sessions that a process which was killed has left at the
// BMC. Without such sessions it does not talk to the BMC. The next call of any
// other method does the same first.
func (c *Controller) Sweep(ctx context.Context) error {
	s, ok := c.driver.(interface{ Sweep(context.Context) error })
	if !ok {
		return nil // IPMI: a session ends with the process that keeps it
	}
	if err := s.Sweep(ctx); err != nil {
		return fmt.Errorf("sessions left at %s: %w", c, err)
	}
	return nil
}

// Remarks returns what was odd about the calls so far, and is no error.
func (c *Controller) Remarks() []string {
	if r, ok := c.driver.(power.Remarker); ok {
		return r.Remarks()
	}
	return nil
}

func unsupported(what string) error { return fmt.Errorf("%s: %w", what, power.ErrUnsupported) }

// Identify lights what a person looks for at the rack.
func (c *Controller) Identify(ctx context.Context, on bool) error {
	if i, ok := c.driver.(power.Identifier); ok {
		return i.Identify(ctx, on)
	}
	return unsupported("locate light")
}

// Light names it.
func (c *Controller) Light() string {
	if i, ok := c.driver.(power.Identifier); ok {
		return i.Light()
	}
	return "no light"
}

// EventLog reads the log of the BMC.
func (c *Controller) EventLog(ctx context.Context) ([]power.LogEntry, error) {
	if l, ok := c.driver.(power.Logger); ok {
		return l.EventLog(ctx)
	}
	return nil, unsupported("event log")
}

// Console opens the serial port of the machine.
func (c *Controller) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	if o, ok := c.driver.(power.Consoler); ok {
		return o.Console(ctx)
	}
	return nil, unsupported("serial console")
}

// Screen is a picture of the machine's screen.
func (c *Controller) Screen(ctx context.Context) (power.Picture, error) {
	if s, ok := c.driver.(power.Screener); ok {
		return s.Screen(ctx)
	}
	return power.Picture{}, unsupported("screen")
}

// Audit looks at the BMC itself.
func (c *Controller) Audit(ctx context.Context) (power.Audit, error) {
	if k, ok := c.driver.(power.Keeper); ok {
		return k.Audit(ctx)
	}
	return power.Audit{}, unsupported("audit")
}

// SetPassword changes the password of the account it logs in with.
func (c *Controller) SetPassword(ctx context.Context, password string) error {
	if k, ok := c.driver.(power.Keeper); ok {
		return k.SetPassword(ctx, password)
	}
	return unsupported("set the password")
}

// SetRestorePolicy chooses what the machine does when power comes back.
func (c *Controller) SetRestorePolicy(ctx context.Context, p power.RestorePolicy) error {
	if k, ok := c.driver.(power.Keeper); ok {
		return k.SetRestorePolicy(ctx, p)
	}
	return unsupported("set the restore policy")
}

// SetBootOrder puts d first in the machine's own boot order, keeps the rest in
// its order, and returns the order that the BMC reads back. Some firmware takes
// it over at the next start only.
func (c *Controller) SetBootOrder(ctx context.Context, first power.Device) ([]string, error) {
	if o, ok := c.driver.(power.Orderer); ok {
		return o.SetBootOrder(ctx, first)
	}
	return nil, unsupported("set the boot order")
}

// hostPort splits HOST[:PORT], IPv6 with or without brackets.
func hostPort(s, port string) (string, string, error) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		s, port = h, p
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	// Both become arguments of ipmitool: "admin:PASSWORD@HOST" must not.
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || s == "" || strings.ContainsAny(s, "/@ ") || strings.HasPrefix(s, "-") {
		return "", "", errors.New("want HOST or HOST:PORT")
	}
	return s, port, nil
}

// base is the root of a Redfish service.
func base(address string) (*url.URL, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address is no URL")
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, errors.New("want https://HOST[:PORT] and nothing more")
	}
	u.Path = ""
	return u, nil
}
