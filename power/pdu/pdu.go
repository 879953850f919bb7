// Package pdu switches machines at the outlets of switched PDUs over SNMP.
// PDU models are data (model.go); nothing is written to a device whose
// sysObjectID names none of them.
package pdu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
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
}

// A Unit is one PDU, shared by the controllers of its outlets. Its management
// card is slow: it gets one request at a time.
type Unit struct {
	cfg  Config
	host string
	port uint16
	turn chan struct{}
}

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
	return &Unit{cfg: c, host: host, port: uint16(n), turn: make(chan struct{}, 1)}, nil
}

func (u *Unit) String() string { return "pdu " + u.cfg.Name }

// An Outlet is one outlet of a unit.
type Outlet struct {
	Unit   *Unit
	Number int // from 1
	// Label is a word that the outlet's name on the PDU must contain before
	// anything is written; the node's name, where outlets are named. Empty: the
	// name is not looked at.
	Label string
}

func (o Outlet) String() string { return fmt.Sprintf("%s outlet %d", o.Unit, o.Number) }

// Controller switches the machine behind one or more outlets: a machine with
// two power supplies is off only when both are. It is a power.Controller and a
// power.Meter.
type Controller struct{ outlets []Outlet }

// New returns the controller of the machine that hangs on outlets.
func New(outlets ...Outlet) (*Controller, error) {
	if len(outlets) == 0 {
		return nil, errors.New("PDU: a machine needs at least one outlet")
	}
	for i, o := range outlets {
		if o.Unit == nil || o.Number < 1 {
			return nil, fmt.Errorf("PDU: outlet %d: outlets are counted from 1, on a unit", o.Number)
		}
		if slices.ContainsFunc(outlets[:i], func(p Outlet) bool { return p.Unit == o.Unit && p.Number == o.Number }) {
			return nil, fmt.Errorf("PDU: %s is there twice", o)
		}
	}
	return &Controller{outlets: slices.Clone(outlets)}, nil
}

func (c *Controller) String() string {
	var s []string
	for _, o := range c.outlets {
		s = append(s, o.String())
	}
	return strings.Join(s, ", ")
}

// State is On when an outlet is on, Off when all are off. An outlet that
// waits for a delay is neither.
func (c *Controller) State(ctx context.Context) (power.State, error) {
	state := power.Off
	for _, o := range c.outlets {
		s, err := o.state(ctx)
		if err != nil {
			return power.Unknown, fmt.Errorf("%s: %w", o, err)
		}
		if s == power.On || state == power.Off {
			state = s
		}
	}
	return state, nil
}

// Set switches all outlets, one after the other within a second or so. An
// outlet that fails does not keep the others from being switched.
func (c *Controller) Set(ctx context.Context, s power.State) error {
	if s != power.On && s != power.Off {
		return fmt.Errorf("set %s: %w", s, power.ErrUnsupported)
	}
	var failed []error
	for _, o := range c.outlets {
		if err := o.set(ctx, s); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", o, err))
		}
	}
	return errors.Join(failed...)
}

// BootOnce is not supported: an outlet knows nothing of boot devices.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s by an outlet: %w", d, power.ErrUnsupported)
}

// Readings is what all outlets together draw.
func (c *Controller) Readings(ctx context.Context) (power.Readings, error) {
	r := power.Readings{Watts: math.NaN()}
	sum := 0.0
	for _, o := range c.outlets {
		w, err := o.watts(ctx)
		if err != nil {
			return r, fmt.Errorf("%s: %w", o, err)
		}
		sum += w
	}
	r.Watts, r.At = sum, time.Now()
	return r, nil
}

const sysObjectID = "1.3.6.1.2.1.1.2.0"

// with opens the PDU, finds out which model it is and runs f. The model is
// asked for each time: a PDU that was replaced may keep its address.
func (u *Unit) with(ctx context.Context, f func(*conn) error) error {
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-u.turn }()
	c, err := u.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Conn.Close()
	// gosnmp looks at the deadline of ctx, not at its end.
	stop := context.AfterFunc(ctx, func() { c.Conn.Close() })
	defer stop()
	err = c.identify(u.cfg.Model)
	if err == nil {
		err = f(c)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
	return err
}

// One request is repeated twice: SNMP is UDP, and to set an outlet to what it
// is already does nothing.
const (
	timeout = time.Second
	retries = 2
)

func (u *Unit) dial(ctx context.Context) (*conn, error) {
	g := &gosnmp.GoSNMP{
		Target: u.host, Port: u.port, Transport: "udp",
		Timeout: timeout, Retries: retries, MaxOids: gosnmp.MaxOids, Context: ctx,
	}
	secret := func(f Secret, what string) (string, error) {
		s, err := f(ctx)
		if err != nil {
			return "", fmt.Errorf("%s of the PDU: %w", what, err)
		}
		return s, nil
	}
	var err error
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
	}
	if err := g.Connect(); err != nil {
		return nil, err
	}
	return &conn{GoSNMP: g}, nil
}

// A conn is one use of a PDU.
type conn struct {
	*gosnmp.GoSNMP
	model model
}

// identify finds the model, and refuses a device that is another one than the
// site says: the same words switch other things elsewhere.
func (c *conn) identify(want string) error {
	v, err := c.get(sysObjectID)
	if err != nil {
		return fmt.Errorf("which PDU is it: %w", err)
	}
	object, ok := v.Value.(string)
	if !ok {
		return fmt.Errorf("which PDU is it: sysObjectID is %s", v.Type)
	}
	object = strings.TrimPrefix(object, ".")
	m, ok := modelOf(object)
	switch {
	case !ok:
		return fmt.Errorf("sysObjectID %s is no model that Smelt knows, so nothing is switched", object)
	case want != "" && m.name != want:
		return fmt.Errorf("the site says that it is a %s, sysObjectID %s says %s, so nothing is switched", want, object, m.name)
	}
	c.model = m
	return nil
}

// answer checks what came back. A Set is answered without an error of the
// transport even when the device refused it.
func answer(p *gosnmp.SnmpPacket, err error) (gosnmp.SnmpPDU, error) {
	switch {
	case errors.Is(err, gosnmp.ErrUnknownUsername), errors.Is(err, gosnmp.ErrWrongDigest),
		errors.Is(err, gosnmp.ErrDecryption), errors.Is(err, gosnmp.ErrUnknownSecurityLevel):
		return gosnmp.SnmpPDU{}, fmt.Errorf("%w: %w", power.ErrAuth, err)
	case errors.Is(err, gosnmp.ErrMaxRetriesExceeded):
		return gosnmp.SnmpPDU{}, fmt.Errorf("no answer (a wrong community looks like that too): %w", err)
	case err != nil && strings.Contains(err.Error(), "not authentic"):
		// The report that says "wrong digest" is not signed, so gosnmp 1.47
		// drops it with an error that has no name.
		return gosnmp.SnmpPDU{}, fmt.Errorf("%w: %w", power.ErrAuth, err)
	case err != nil:
		return gosnmp.SnmpPDU{}, err
	}
	switch p.Error {
	case gosnmp.NoError:
	case gosnmp.NoSuchName:
		return gosnmp.SnmpPDU{}, errNoOutlet
	case gosnmp.NoAccess, gosnmp.ReadOnly, gosnmp.NotWritable, gosnmp.AuthorizationError:
		return gosnmp.SnmpPDU{}, fmt.Errorf("%w: the PDU answers %s; may this community or user write?", power.ErrAuth, p.Error)
	default:
		return gosnmp.SnmpPDU{}, fmt.Errorf("the PDU answers %s", p.Error)
	}
	if len(p.Variables) != 1 {
		return gosnmp.SnmpPDU{}, fmt.Errorf("the PDU answers with %d values, not one", len(p.Variables))
	}
	v := p.Variables[0]
	switch v.Type {
	case gosnmp.NoSuchInstance, gosnmp.NoSuchObject, gosnmp.EndOfMibView, gosnmp.Null:
		return v, errNoOutlet
	}
	return v, nil
}

var errNoOutlet = errors.New("there is no such outlet")

func (c *conn) get(oid string) (gosnmp.SnmpPDU, error) { return answer(c.Get([]string{oid})) }

func (c *conn) number(oid string) (int, error) {
	v, err := c.get(oid)
	if err != nil {
		return 0, err
	}
	switch v.Type {
	case gosnmp.Integer, gosnmp.Gauge32, gosnmp.Uinteger32, gosnmp.Counter32:
		return int(gosnmp.ToBigInt(v.Value).Int64()), nil
	}
	return 0, fmt.Errorf("the PDU answers with %s, not with a number", v.Type)
}

func (o Outlet) state(ctx context.Context) (power.State, error) {
	state := power.Unknown
	err := o.Unit.with(ctx, func(c *conn) error {
		n, err := c.number(at(c.model.status, o.Number))
		switch {
		case err != nil:
			return fmt.Errorf("state: %w", err)
		case slices.Contains(c.model.isOn, n):
			state = power.On
		case slices.Contains(c.model.isOff, n):
			state = power.Off
		}
		return nil
	})
	return state, err
}

func (o Outlet) set(ctx context.Context, s power.State) error {
	return o.Unit.with(ctx, func(c *conn) error {
		if err := o.named(c); err != nil {
			return err
		}
		// To read before writing finds an outlet that is not there: a v2c Set
		// on it may be answered without an error.
		if _, err := c.number(at(c.model.status, o.Number)); err != nil {
			return fmt.Errorf("state: %w", err)
		}
		w := c.model.on
		if s == power.Off {
			w = c.model.off
		}
		_, err := answer(c.Set([]gosnmp.SnmpPDU{{Name: at(w.column, o.Number), Type: gosnmp.Integer, Value: w.value}}))
		if err != nil {
			return fmt.Errorf("switch %s: %w", s, err)
		}
		return nil
	})
}

// named holds the outlet's name against its label: the wrong outlet is the
// wrong machine.
func (o Outlet) named(c *conn) error {
	if o.Label == "" {
		return nil
	}
	if c.model.label == "" {
		return fmt.Errorf("where a %s keeps outlet names is not known, so the name %q cannot be checked", c.model.name, o.Label)
	}
	v, err := c.get(at(c.model.label, o.Number))
	if err != nil {
		return fmt.Errorf("name: %w", err)
	}
	b, ok := v.Value.([]byte)
	if !ok || !hasWord(string(b), o.Label) {
		return fmt.Errorf("the PDU calls it %q, not %q: wrong outlet, or not named yet", b, o.Label)
	}
	return nil
}

// hasWord tells whether name has word in it, so that rig-1 is in "rig-1 left"
// and not in "rig-10".
func hasWord(name, word string) bool {
	fields := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.')
	})
	return slices.Contains(fields, strings.ToLower(word))
}

func (o Outlet) watts(ctx context.Context) (float64, error) {
	var w float64
	err := o.Unit.with(ctx, func(c *conn) error {
		if c.model.watts == "" {
			return fmt.Errorf("outlet watts of a %s: %w", c.model.name, power.ErrUnsupported)
		}
		n, err := c.number(at(c.model.watts, o.Number))
		w = float64(n)
		return err
	})
	return w, err
}
