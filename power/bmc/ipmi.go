package bmc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"smelt/power"
)

// ipmi speaks IPMI 2.0 over LAN through ipmitool (ipmi_shell.go). A call is
// one session, in which it asks for bytes ("raw") and reads them by the
// specification: ipmitool's own words differ between versions, and its exit
// status is 0 for many a failure. See docs/decisions/0019-ipmi.md.
type ipmi struct {
	cfg        Config
	host, port string

	mu      sync.Mutex
	sdr     repository // the sensors, read once
	remarks []string
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
	if len(c.User) > maxUser || strings.ContainsFunc(c.User, unprintable) {
		return nil, fmt.Errorf("user %q: IPMI takes up to %d printable bytes", c.User, maxUser)
	}
	return &ipmi{cfg: c, host: host, port: port}, nil
}

// The longest user name and password (IPMI 2.0, sections 22.29 and 22.30).
const (
	maxUser     = 16
	maxPassword = 20
)

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// The commands, as network function and command (IPMI 2.0, appendix G).
var (
	getChassisStatus = command{"get chassis status", 0x00, 0x01}
	chassisControl   = command{"chassis control", 0x00, 0x02}
	chassisIdentify  = command{"chassis identify", 0x00, 0x04}
	setRestorePolicy = command{"set power restore policy", 0x00, 0x06}
	setBootOptions   = command{"set system boot options", 0x00, 0x08}
	getBootOptions   = command{"get system boot options", 0x00, 0x09}
)

// chassis is the answer to Get Chassis Status (section 28.2).
type chassis struct {
	state    power.State
	restore  power.RestorePolicy // "" where the BMC does not know
	light    bool                // the identify light is on
	lightSet bool                // the BMC tells about the light
}

func parseChassis(b []byte) (chassis, error) {
	if len(b) < 3 {
		return chassis{}, fmt.Errorf("chassis status of %d bytes, want 3 or more", len(b))
	}
	c := chassis{state: power.Off}
	if b[0]&0x01 != 0 {
		c.state = power.On
	}
	c.restore = map[byte]power.RestorePolicy{0: power.AlwaysOff, 1: power.LastState, 2: power.AlwaysOn}[b[0]>>5&3]
	c.lightSet = b[2]&0x40 != 0
	c.light = b[2]&0x30 != 0
	return c, nil
}

func (s *shell) chassis() (chassis, error) {
	b, err := s.raw(getChassisStatus)
	if err != nil {
		return chassis{state: power.Unknown}, err
	}
	return parseChassis(b)
}

func (i *ipmi) State(ctx context.Context) (power.State, error) {
	state := power.Unknown
	err := i.session(ctx, func(s *shell) error {
		c, err := s.chassis()
		if err == nil {
			state = c.state
		}
		return err
	})
	if err != nil {
		return power.Unknown, err
	}
	return state, nil
}

func (i *ipmi) Set(ctx context.Context, want power.State) error {
	order, ok := map[power.State]byte{power.Off: 0, power.On: 1}[want] // section 28.3
	if !ok {
		return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
	}
	return i.session(ctx, func(s *shell) error {
		_, err := s.raw(chassisControl, order)
		if errors.Is(err, wrongState) {
			// Some refuse to switch off what is off.
			if c, err := s.chassis(); err == nil && c.state == want {
				return nil
			}
		}
		return err
	})
}

func (i *ipmi) SoftOff(ctx context.Context) error {
	return i.session(ctx, func(s *shell) error {
		c, err := s.chassis()
		if err != nil {
			return err
		}
		if c.state != power.On {
			return fmt.Errorf("shut down: the machine is %s", c.state)
		}
		_, err = s.raw(chassisControl, 5) // by ACPI
		return err
	})
}

// The parameters of Set System Boot Options (table 28-14).
const (
	bootProgress = 0
	bootExpiry   = 3
	bootSeen     = 4
	bootFlags    = 5
)

// BootOnce does what "ipmitool chassis bootdev" and Ironic do. The BMC forgets
// the choice 60 s after it was told, unless it is told not to first.
func (i *ipmi) BootOnce(ctx context.Context, d power.Device) error {
	from, ok := map[power.Device]byte{power.Network: 1, power.Disk: 2}[d]
	if !ok {
		return fmt.Errorf("boot once from %s: %w", d, power.ErrUnsupported)
	}
	want := []byte{0x80, from << 2, 0, 0, 0} // valid, at the next boot only
	if i.cfg.UEFI {
		want[0] |= 0x20
	}
	return i.session(ctx, func(s *shell) error {
		if _, err := s.raw(setBootOptions, bootExpiry, 0x08); err != nil {
			i.remark("the BMC may forget the boot device after 60 s: %v", err)
		}
		// Many BMCs do without the next two.
		_, inProgress := s.raw(setBootOptions, bootProgress, 1)
		_, _ = s.raw(setBootOptions, bootSeen, 1, 1) // the BIOS has not seen it
		_, err := s.raw(setBootOptions, append([]byte{bootFlags}, want...)...)
		if inProgress == nil {
			if _, err := s.raw(setBootOptions, bootProgress, 0); err != nil {
				i.remark("the BMC still believes that boot options are being written: %v", err)
			}
		}
		if err != nil {
			return unlessKnown(err)
		}
		got, err := s.raw(getBootOptions, bootFlags, 0, 0)
		if err != nil {
			i.remark("the BMC does not read the boot device back: %v", err)
			return nil
		}
		return i.kept(want, got)
	})
}

// kept holds the boot flags that a BMC reads back against what it was told.
// Another device is an error; a bit that it does not keep is a remark, because
// BMCs are seen that clear "valid" in what they read back and obey all the
// same (ipmi_sim is one).
func (i *ipmi) kept(want, got []byte) error {
	if len(got) < 4 || got[1]&0x7f != bootFlags {
		return fmt.Errorf("boot flags read back as % x", got)
	}
	got = got[2:]
	if a, b := want[1]>>2&0x0f, got[1]>>2&0x0f; a != b {
		return fmt.Errorf("the BMC took boot device %d and reads back %d (IPMI 2.0, table 28-14)", a, b)
	}
	if got[0]&0x80 == 0 {
		i.remark("the BMC reads the boot device back as not valid")
	}
	if want[0]&0x20 != got[0]&0x20 {
		i.remark("the BMC dropped the choice of a UEFI boot")
	}
	if got[0]&0x40 != 0 {
		return errors.New("the BMC made the boot device permanent, and was told once")
	}
	return nil
}

// unlessKnown words that a BMC does not know a command.
func unlessKnown(err error) error {
	if errors.Is(err, unknownCommand) || errors.Is(err, disabledCommand) {
		return fmt.Errorf("%w: %w", power.ErrUnsupported, err)
	}
	return err
}

// Light names what Identify lights.
func (i *ipmi) Light() string { return "chassis LED" }

// Identify lights the chassis LED until it is told off; on a BMC that cannot,
// for 255 s.
func (i *ipmi) Identify(ctx context.Context, on bool) error {
	return i.session(ctx, func(s *shell) error {
		var err error
		if on {
			if _, err = s.raw(chassisIdentify, 0, 1); err != nil && !errors.Is(err, errSilent) {
				_, err = s.raw(chassisIdentify, 255)
			}
		} else {
			_, err = s.raw(chassisIdentify, 0)
		}
		if err != nil {
			return unlessKnown(err)
		}
		if c, err := s.chassis(); err == nil && c.lightSet && c.light != on {
			return fmt.Errorf("the BMC accepted it, and says that the light is %s", onOff(c.light))
		}
		return nil
	})
}

func onOff(on bool) power.State {
	if on {
		return power.On
	}
	return power.Off
}

const maxRemarks = 16

// remark keeps what is odd and no error, for Remarks.
func (i *ipmi) remark(format string, a ...any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.remarks) == maxRemarks { // nobody asks
		i.remarks = i.remarks[1:]
	}
	i.remarks = append(i.remarks, fmt.Sprintf(format, a...))
}

// Remarks returns what was odd about the calls since it was asked last.
func (i *ipmi) Remarks() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.remarks
	i.remarks = nil
	return r
}
