package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/ipmitool"

	"smelt/power"
)

// ipmi is bmclib's ipmitool provider without the rest of bmclib: its client
// would log in up to eight times through seven providers to find one that
// works. The provider's verbs begin with reading the state and take a failure
// for "off" (soft off then succeeds without a word to the machine), so each
// verb here reads the state itself first and stops when that fails.
type ipmi struct {
	cfg        Config
	host, port string
}

func newIPMI(c Config) (*ipmi, error) {
	host, port, err := hostPort(c.Address, "623")
	if err != nil {
		return nil, err
	}
	if c.CipherSuite == 0 {
		c.CipherSuite = 17
	}
	if c.CipherSuite != 3 && c.CipherSuite != 17 {
		// 0 to 2 and 6 authenticate nobody or send in the clear.
		return nil, fmt.Errorf("cipher suite %d: want 17, or 3 for a BMC that knows no better", c.CipherSuite)
	}
	return &ipmi{cfg: c, host: host, port: port}, nil
}

// session is one use of the BMC: the provider, and the state it read.
func (i *ipmi) session(ctx context.Context) (*ipmitool.Conn, power.State, error) {
	password, err := i.cfg.Password(ctx)
	if err != nil {
		return nil, power.Unknown, fmt.Errorf("password of the BMC: %w", err)
	}
	if len(password) > 20 {
		return nil, power.Unknown, errors.New("the password has more than 20 bytes, which IPMI 2.0 cannot carry")
	}
	host := i.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	conn, err := ipmitool.New(host, i.cfg.User, password,
		ipmitool.WithPort(i.port), ipmitool.WithCipherSuite(strconv.Itoa(i.cfg.CipherSuite)))
	if err != nil {
		return nil, power.Unknown, fmt.Errorf("ipmitool (Debian package ipmitool): %w", err)
	}
	began := time.Now()
	text, err := conn.PowerStateGet(ctx)
	if err != nil {
		return nil, power.Unknown, i.explain(ctx, err, time.Since(began))
	}
	return conn, ipmiState(text), nil
}

// ipmiState reads "Chassis Power is on".
func ipmiState(text string) power.State {
	for line := range strings.Lines(text) {
		switch strings.TrimSpace(line) {
		case "Chassis Power is on":
			return power.On
		case "Chassis Power is off":
			return power.Off
		}
	}
	return power.Unknown
}

// retransmit is how long ipmitool waits before it asks again (bmclib's -N 5).
const retransmit = 5 * time.Second

// explain finds out why no session came about. ipmitool prints the same line
// for a refused credential and for silence; but it gives up at once only when
// the BMC refused, and a BMC that is there answers a question that needs no
// session.
func (i *ipmi) explain(ctx context.Context, err error, took time.Duration) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
	said := err.Error()
	switch {
	case strings.Contains(said, "invalid authentication algorithm"), strings.Contains(said, "no cipher suite"),
		strings.Contains(said, "no matching cipher suite"):
		return fmt.Errorf("the BMC does not know cipher suite %d (3 is the older one): %s", i.cfg.CipherSuite, said)
	case strings.Contains(said, "Unable to establish IPMI v2 / RMCP+ session") &&
		!strings.Contains(said, "insufficient resources") && took < retransmit && i.alive(ctx):
		return fmt.Errorf("user %s: %w", i.cfg.User, power.ErrAuth)
	}
	return errors.New(said)
}

// capabilities is Get Channel Authentication Capabilities (IPMI 2.0, section
// 22.13), which every BMC answers before a session.
var capabilities = []byte{
	0x06, 0x00, 0xff, 0x07, // RMCP, class IPMI
	0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, // no authentication, sequence, session, 9 bytes
	0x20, 0x18, 0xc8, 0x81, 0x00, 0x38, 0x8e, 0x04, 0xb5,
}

// alive tells whether something answers IPMI at the address.
func (i *ipmi) alive(ctx context.Context) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(i.host, i.port))
	if err != nil {
		return false
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 256)
	for range 3 {
		if _, err := c.Write(capabilities); err != nil {
			return false
		}
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := c.Read(buf); err == nil && n > 4 && buf[0] == 0x06 {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return false
}

func (i *ipmi) State(ctx context.Context) (power.State, error) {
	_, s, err := i.session(ctx)
	return s, err
}

// done words the answer of the provider to a command.
func done(ctx context.Context, ok bool, err error) error {
	switch {
	case err == nil && ok:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("no answer: %w", ctx.Err())
	case err == nil:
		return errors.New("ipmitool said nothing")
	}
	return errors.New(err.Error())
}

func (i *ipmi) Set(ctx context.Context, s power.State) error {
	if s != power.On && s != power.Off {
		return fmt.Errorf("set %s: %w", s, power.ErrUnsupported)
	}
	conn, _, err := i.session(ctx)
	if err != nil {
		return err
	}
	ok, err := conn.PowerSet(ctx, s.String())
	return done(ctx, ok, err)
}

func (i *ipmi) SoftOff(ctx context.Context) error {
	conn, s, err := i.session(ctx)
	if err != nil {
		return err
	}
	if s != power.On {
		return fmt.Errorf("shut down: the machine is %s", s)
	}
	ok, err := conn.PowerSet(ctx, "soft")
	return done(ctx, ok, err)
}

func (i *ipmi) BootOnce(ctx context.Context, d power.Device) error {
	name, ok := map[power.Device]string{power.Network: "pxe", power.Disk: "disk"}[d]
	if !ok {
		return fmt.Errorf("boot once from %s: %w", d, power.ErrUnsupported)
	}
	conn, _, err := i.session(ctx)
	if err != nil {
		return err
	}
	ok, err = conn.BootDeviceSet(ctx, name, false, i.cfg.UEFI)
	return done(ctx, ok, err)
}

func (i *ipmi) Readings(context.Context) (power.Readings, error) {
	return power.Readings{}, fmt.Errorf("readings over IPMI: %w", power.ErrUnsupported)
}
