// Package pdu switches and measures machines at the outlets of switched PDUs
// over SNMP. PDU models are data (models.yaml); nothing is written to a device
// whose sysObjectID names none of them.
package pdu

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gosnmp/gosnmp"

	"smelt/power"
)

// Secret fetches a secret for each call.
type Secret = func(context.Context) (string, error)

// Config is one PDU.
type Config struct {
	Name    string
	Address string // HOST or HOST:PORT
	Version string // v1, v2c or v3
	Model   string // one of Models; when empty, what the PDU says it is

	Community  Secret // v1, v2c: one that may write
	User       string // v3: SHA-256 and AES
	Auth, Priv Secret // v3

	// Names says whether an outlet's name on the PDU is held against the node
	// before it is switched: check (also when empty) or ignore.
	Names string
	// Nodes are the names of all nodes of the site, so that an outlet with the
	// name of another one is recognised.
	Nodes []string
}

// A Unit is one PDU, shared by the controllers of its outlets. Its management
// card is slow: it gets one request at a time.
type Unit struct {
	cfg   Config
	host  string
	port  uint16
	order int64 // several units are locked in this order
	turn  chan struct{}

	known           // guarded by turn, as is
	refused refusal // what the PDU refused
}

// A refusal is a login that a PDU refused. It is not tried again for any of its
// machines; another passphrase is, and after Reset this one too.
type refusal struct {
	login [sha256.Size]byte // of user and passphrases
	err   error
}

var units atomic.Int64

// NewUnit checks c. It does not talk to the PDU.
func NewUnit(c Config) (*Unit, error) {
	fail := func(format string, a ...any) error {
		return fmt.Errorf("PDU %s: %s", c.Name, fmt.Sprintf(format, a...))
	}
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(c.Address, "["), "]"), "161"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" || n == 0 {
		return nil, fail("address %q: want HOST or HOST:PORT", c.Address)
	}
	if c.Model != "" && !slices.Contains(Models(), c.Model) {
		return nil, fail("model %q is unknown, want one of %q", c.Model, Models())
	}
	if !slices.Contains([]string{"", "check", "ignore"}, c.Names) {
		return nil, fail("names %q: want check or ignore", c.Names)
	}
	switch c.Version {
	case "v1", "v2c":
		if c.Community == nil {
			return nil, fail("SNMP %s needs a community", c.Version)
		}
	case "v3":
		if c.User == "" || c.Auth == nil || c.Priv == nil {
			return nil, fail("SNMP v3 needs a user, an authentication and a privacy passphrase")
		}
	default:
		return nil, fail("SNMP version %q: want v1, v2c or v3", c.Version)
	}
	u := &Unit{cfg: c, host: host, port: uint16(n), order: units.Add(1), turn: make(chan struct{}, 1)}
	u.forget()
	return u, nil
}

func (u *Unit) String() string { return "pdu " + u.cfg.Name }

// with opens the PDU, finds out which model it is and runs f. The model is
// asked for each time: a PDU that was replaced may keep its address.
func (u *Unit) with(ctx context.Context, f func(*session) error) error {
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-u.turn }()
	s, err := u.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Conn.Close()
	// gosnmp looks at the deadline of ctx, not at its end.
	stop := context.AfterFunc(ctx, func() { s.Conn.Close() })
	defer stop()
	err = s.identify()
	switch {
	case err == nil:
		u.refused = refusal{}
		err = f(s)
	case u.cfg.Version == "v3" && errors.Is(err, power.ErrAuth):
		u.refused = refusal{s.login, err}
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("no answer: %w", ctx.Err()) // and not that its socket is closed
	}
	return err
}

// withAll opens several PDUs at once to switch something, always in the same
// order, so that two callers never wait for each other.
func withAll(ctx context.Context, us []*Unit, f func([]*session) error) error {
	us = slices.Clone(us)
	slices.SortFunc(us, func(a, b *Unit) int { return int(a.order - b.order) })
	var open []*session
	var next func() error
	next = func() error {
		if len(open) == len(us) {
			return f(open)
		}
		u := us[len(open)]
		inner := false
		err := u.with(ctx, func(s *session) error {
			inner = true
			open = append(open, s)
			return next()
		})
		if err != nil && !inner {
			return fmt.Errorf("nothing was switched: %s: %w", u, err)
		}
		return err
	}
	return next()
}

// One request is repeated twice: SNMP is UDP, and to set an outlet to what it
// is already does nothing.
const (
	timeout = time.Second
	retries = 2
)

func (u *Unit) dial(ctx context.Context) (*session, error) {
	g := &gosnmp.GoSNMP{
		Target: u.host, Port: u.port, Transport: "udp",
		Timeout: timeout, MaxOids: gosnmp.MaxOids, Context: ctx,
	}
	secret := func(f Secret, what string) (string, error) {
		s, err := f(ctx)
		if err != nil {
			return "", fmt.Errorf("%s of the PDU: %w", what, err)
		}
		return s, nil
	}
	var err error
	var login [sha256.Size]byte
	switch u.cfg.Version {
	case "v1", "v2c":
		g.Version = gosnmp.Version2c
		if u.cfg.Version == "v1" {
			g.Version = gosnmp.Version1
		}
		if g.Community, err = secret(u.cfg.Community, "community"); err != nil {
			return nil, err
		}
	case "v3":
		usm := &gosnmp.UsmSecurityParameters{
			UserName: u.cfg.User, AuthenticationProtocol: gosnmp.SHA256, PrivacyProtocol: gosnmp.AES,
		}
		if usm.AuthenticationPassphrase, err = secret(u.cfg.Auth, "authentication passphrase"); err != nil {
			return nil, err
		}
		if usm.PrivacyPassphrase, err = secret(u.cfg.Priv, "privacy passphrase"); err != nil {
			return nil, err
		}
		g.Version, g.SecurityModel, g.MsgFlags, g.SecurityParameters = gosnmp.Version3, gosnmp.UserSecurityModel, gosnmp.AuthPriv, usm
		login = sha256.Sum256(fmt.Appendf(nil, "%q %q %q", u.cfg.User, usm.AuthenticationPassphrase, usm.PrivacyPassphrase))
		if u.refused.err != nil && u.refused.login == login {
			return nil, fmt.Errorf("not tried again (correct the passphrase, or reset the controllers of this PDU): %w", u.refused.err)
		}
	}
	if err := g.Connect(); err != nil {
		return nil, err
	}
	return &session{GoSNMP: g, unit: u, login: login}, nil
}
