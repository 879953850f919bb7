// Package bmc switches machines through their management controller: IPMI 2.0
// over LAN (bmclib's ipmitool provider) or Redfish (a small client of its own,
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
	"net"
	"net/url"
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
	// and Controller.Pin tells it.
	Pin string
}

// Controller is a power.Controller, power.SoftOffer and power.Meter.
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

// Pin is the pin of the BMC's key: the configured one, else the one of the
// first connection, else "". IPMI has none.
func (c *Controller) Pin() string {
	if r, ok := c.driver.(*redfish); ok {
		return r.pinned()
	}
	return ""
}

// hostPort splits HOST[:PORT], IPv6 with or without brackets.
func hostPort(s, port string) (string, string, error) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		s, port = h, p
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if s == "" || port == "" || strings.ContainsAny(s, "/@ ") || strings.HasPrefix(s, "-") {
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
