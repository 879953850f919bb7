package bmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"smelt/power"
)

var (
	getChannelInfo = command{"get channel info", 0x06, 0x42}
	getUserAccess  = command{"get user access", 0x06, 0x44}
	getUserName    = command{"get user name", 0x06, 0x46}
	setPassword    = command{"set user password", 0x06, 0x47}
)

// thisChannel is the channel that a request came in on (section 6.3).
const thisChannel = 0x0e

// user is an account on one channel (sections 22.27 and 22.29).
type user struct {
	id        byte
	name      string
	privilege byte
	enabled   bool // may log in over the LAN
}

var privileges = map[byte]string{1: "Callback", 2: "User", 3: "Operator", 4: "Administrator", 5: "OEM", 0x0f: "NoAccess"}

// users lists the accounts, up to the last one that has a name or may log in.
func (s *shell) users(channel byte) ([]user, error) {
	var all []user
	used := 0
	for id, most := byte(1), byte(1); id <= most; id++ {
		b, err := s.raw(getUserAccess, channel, id)
		if err != nil {
			var refused completion
			if errors.As(err, &refused) && id > 1 {
				continue // this one is not there
			}
			return nil, err
		}
		if len(b) < 4 {
			return nil, fmt.Errorf("%s: %d bytes", getUserAccess.name, len(b))
		}
		most = b[0] & 0x3f
		u := parseAccess(id, b)
		// A user that was never set has no name, which some BMCs refuse to tell.
		if b, err = s.raw(getUserName, id); err == nil {
			u.name = parseName(b)
		} else if errors.Is(err, errSilent) {
			return nil, err
		}
		all = append(all, u)
		if u.name != "" || u.enabled {
			used = len(all)
		}
	}
	return all[:used], nil
}

func parseAccess(id byte, b []byte) user {
	u := user{id: id, privilege: b[3] & 0x0f}
	const enabled, disabled = 1, 2 // 0: the BMC does not say
	switch b[1] >> 6 {
	case enabled, 0:
		u.enabled = b[3]&0x10 != 0 && u.privilege != 0x0f && u.privilege != 0
	}
	return u
}

func parseName(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.Map(func(r rune) rune {
		if unprintable(r) {
			return '?'
		}
		return r
	}, strings.TrimRight(string(b), " "))
}

// Audit reads accounts, versions and settings in one session, and then tries
// cipher suite 0, with which a BMC lets in whoever knows a user's name, without
// a password. The boot order cannot be read by IPMI, so Boot stays empty.
func (i *ipmi) Audit(ctx context.Context) (power.Audit, error) {
	a := power.Audit{Firmware: map[string]string{}}
	found := func(code, what, fix string) {
		a.Findings = append(a.Findings, power.Finding{Code: code, What: what, Fix: fix})
	}
	var channel byte
	err := i.session(ctx, func(s *shell) error {
		if err := s.identity(&a); err != nil {
			return err
		}
		c, err := s.chassis()
		if err != nil {
			return err
		}
		a.Restore = c.restore
		if b, err := s.raw(getChannelInfo, thisChannel); err == nil && len(b) > 0 {
			channel = b[0] & 0x0f
		}
		users, err := s.users(thisChannel)
		if err != nil {
			return err
		}
		for _, u := range users {
			role := privileges[u.privilege]
			a.Accounts = append(a.Accounts, power.Account{ID: fmt.Sprint(u.id), Name: u.name, Role: role, Enabled: u.enabled})
			if u.enabled && u.name == "" {
				found("anonymous-user", fmt.Sprintf("user %d has no name and may log in as %s", u.id, role), fmt.Sprintf("ipmitool user disable %d", u.id))
			}
		}
		return nil
	})
	if err != nil {
		return power.Audit{}, err
	}
	if c, err := i.capabilities(ctx); err == nil && (c.anonymous || c.nullNames) && !has(a.Findings, "anonymous-user") {
		found("anonymous-user", "the BMC says, to whoever asks, that users without a name may log in", "give every user a name or disable it (ipmitool user list)")
	}
	switch a.Restore {
	case power.AlwaysOff:
	case "":
		found("restore-policy", "the BMC does not say what the machine does when power comes back", "set it in the setup of the firmware to stay off")
	default:
		found("restore-policy", fmt.Sprintf("when power comes back the machine does %s, past every power budget", a.Restore), "set it to AlwaysOff")
	}
	if i.cfg.CipherSuite != 17 {
		found("old-cipher", fmt.Sprintf("it is driven with cipher suite %d (HMAC-SHA1)", i.cfg.CipherSuite), "update the BMC's firmware, then use cipher suite 17")
	}
	fix := fmt.Sprintf("ipmitool lan set %d cipher_privs XXXaXXXXXXXXXXX (suite 3 alone; suites in the order of ipmitool lan print)", channel)
	switch open, err := i.cipherZero(ctx); {
	case open:
		found("cipher-zero", fmt.Sprintf("cipher suite 0 lets %s in without a password", i.cfg.User), fix)
	case err != nil:
		found("cipher-zero-unknown", fmt.Sprintf("whether cipher suite 0 lets anybody in could not be found out: %v", err), "try again; "+fix)
	}
	a.At = time.Now()
	return a, nil
}

func has(findings []power.Finding, code string) bool {
	for _, f := range findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

// zeroLimit is how long a BMC has to let somebody in with cipher suite 0. Some
// refuse it by silence.
const zeroLimit = 5 * time.Second

// cipherZero tries to log in with cipher suite 0 and an empty password, and
// asks for nothing. An error means that it remains unknown.
func (i *ipmi) cipherZero(ctx context.Context) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, zeroLimit)
	defer cancel()
	err := i.login(limited, 0, "", func(*shell) error { return nil })
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	}
	return false, nil
}

// identity reads what the BMC and the machine are, in ipmitool's words for
// vendors and products.
func (s *shell) identity(a *power.Audit) error {
	text, err := s.ask("mc info")
	if err != nil {
		return err
	}
	mc := fields(text)
	if mc["Firmware Revision"] == "" {
		return fmt.Errorf("mc info: ipmitool said: %s", clip(text))
	}
	a.Firmware["bmc"] = mc["Firmware Revision"]
	if text, err = s.ask("fru print 0"); err != nil {
		return err
	}
	fru := fields(text) // a machine whose maker left it empty has none
	first := func(names ...string) string {
		for _, n := range names {
			if v := fru[n]; v != "" {
				return v
			}
		}
		return ""
	}
	if a.Vendor = first("Product Manufacturer", "Board Mfg"); a.Vendor == "" && !strings.HasPrefix(mc["Manufacturer Name"], "Unknown") {
		a.Vendor = mc["Manufacturer Name"]
	}
	a.Model = first("Product Name", "Board Product")
	a.Serial = first("Product Serial", "Chassis Serial", "Board Serial")
	return nil
}

// fields reads lines of "Name : value".
func fields(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(strings.ToValidUTF8(text, "?")) {
		name, value, ok := strings.Cut(line, ":")
		if name, value = legible(name), legible(value); ok && name != "" && out[name] == "" {
			out[name] = value
		}
	}
	return out
}

// SetPassword gives the user that it logs in with a new password. The BMC is
// asked whether it took it; that it does is proven by a login with it.
func (i *ipmi) SetPassword(ctx context.Context, password string) error {
	if password == "" {
		return errors.New("an empty password")
	}
	if err := fits(password); err != nil {
		return err
	}
	return i.session(ctx, func(s *shell) error {
		users, err := s.users(thisChannel)
		if err != nil {
			return err
		}
		var id byte
		for _, u := range users {
			if u.name == i.cfg.User && id == 0 {
				id = u.id
			}
		}
		if id == 0 {
			return fmt.Errorf("the BMC lists no user %s", i.cfg.User)
		}
		// 16 bytes, which every BMC stores, where they are enough.
		size, long := 16, byte(0)
		if len(password) > size {
			size, long = 20, 0x80
		}
		bytes := make([]byte, size)
		copy(bytes, password)
		const set, test = 2, 3 // section 22.30
		if _, err := s.raw(setPassword, append([]byte{id | long, set}, bytes...)...); err != nil {
			if size == 20 && (errors.Is(err, badLength) || errors.Is(err, tooLong) || errors.Is(err, badField)) {
				return fmt.Errorf("the BMC stores no more than 16 bytes of a password: %w", err)
			}
			return err
		}
		_, err = s.raw(setPassword, append([]byte{id | long, test}, bytes...)...)
		var code completion
		if errors.As(err, &code) && (code == 0x80 || code == 0x81) { // wrong password, wrong size
			return fmt.Errorf("the BMC took the new password and does not know it: %w", err)
		}
		return nil // some cannot be asked
	})
}

// SetRestorePolicy chooses what the machine does when power comes back, and
// reads it back.
func (i *ipmi) SetRestorePolicy(ctx context.Context, p power.RestorePolicy) error {
	policy, ok := map[power.RestorePolicy]byte{power.AlwaysOff: 0, power.LastState: 1, power.AlwaysOn: 2}[p] // section 28.8
	if !ok {
		return fmt.Errorf("restore policy %q: %w", p, power.ErrUnsupported)
	}
	return i.session(ctx, func(s *shell) error {
		if _, err := s.raw(setRestorePolicy, policy); err != nil {
			return unlessKnown(err)
		}
		c, err := s.chassis()
		if err != nil {
			return err
		}
		if c.restore != p {
			return fmt.Errorf("the BMC accepted restore policy %s and reads back %q", p, c.restore)
		}
		return nil
	})
}
