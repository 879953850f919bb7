// Package amt switches machines through Intel AMT, the management engine of
// vPro boards, by WS-Management over HTTP(S) (DSP0226; Intel AMT SDK, "Remote
// Control"). It can switch on and off and boot once from the network; it cannot
// ask the system to shut down without software of Intel's on it, and resets are
// a cycle here as everywhere.
//
// The client is our own and not bmclib's: see docs/decisions/0021-plugs-and-amt.md.
package amt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smelt/power"
	"smelt/power/digest"
)

// Config is one machine.
type Config struct {
	Address  string // HOST or https://HOST[:PORT], port 16993; http://HOST[:PORT], port 16992, in clear
	User     string // admin, mostly
	Password func(context.Context) (string, error)
	// Pin is the SHA-256 of its public key, base64 (RFC 7469 section 2.4). When
	// empty, the key of the first connection is trusted, and kept in the folder
	// Keys, without which it is forgotten with the Controller.
	Pin  string
	Keys string
}

// Controller is a power.Controller.
type Controller struct {
	cfg   Config
	base  string // scheme://host:port
	trust *power.Trust
}

// New checks c. It does not talk to the machine.
func New(c Config) (*Controller, error) {
	shown := c.Address[strings.LastIndex(c.Address, "@")+1:]
	fail := func(format string, a ...any) (*Controller, error) {
		return nil, fmt.Errorf("AMT %s: %s", shown, fmt.Sprintf(format, a...))
	}
	address := c.Address
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fail("want HOST or https://HOST[:PORT] and nothing more")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "16993", "http": "16992"}[u.Scheme]
	}
	if c.User == "" || c.Password == nil {
		return fail("it needs a user and a password")
	}
	at := net.JoinHostPort(u.Hostname(), port)
	trust, err := power.NewTrust(c.Pin, c.Keys, at)
	if err != nil {
		return fail("%v", err)
	}
	return &Controller{cfg: c, base: u.Scheme + "://" + at, trust: trust}, nil
}

func (c *Controller) String() string { return "amt " + c.base[strings.Index(c.base, "://")+3:] }

// Keys is the key of the machine; in clear there is none.
func (c *Controller) Keys() []power.Key {
	if strings.HasPrefix(c.base, "http:") {
		return nil
	}
	k := c.trust.Key()
	k.Via = c.String()
	return []power.Key{k}
}

// State is On in S0 and Off in S5 (CIM_AssociatedPowerManagementService,
// PowerState). A machine that sleeps or hibernates is neither: its system lives.
func (c *Controller) State(ctx context.Context) (power.State, error) {
	state := power.Unknown
	err := c.with(ctx, func(s *session) error {
		n, _, err := s.state(ctx)
		switch n {
		case stateOn:
			state = power.On
		case stateOffHard, stateOffSoft:
			state = power.Off
		}
		return err
	})
	if err != nil {
		return power.Unknown, err
	}
	return state, nil
}

// The power states of CIM (CIM_PowerManagementService.RequestPowerStateChange).
const (
	stateOn      = 2
	stateOffHard = 6
	stateOffSoft = 8 // S5 by the management engine; nobody asks the system
)

// Set requests the state. What the engine would do depends on the state that it
// is in, so that is read first, and a state that cannot be read is an error.
func (c *Controller) Set(ctx context.Context, want power.State) error {
	if want != power.On && want != power.Off {
		return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
	}
	return c.with(ctx, func(s *session) error {
		now, may, err := s.state(ctx)
		if err != nil {
			return fmt.Errorf("switch %s: which state is it in: %w", want, err)
		}
		ways := []int{stateOn}
		if want == power.Off {
			ways = []int{stateOffSoft, stateOffHard}
		}
		for _, w := range ways {
			if now == w {
				return nil
			}
		}
		for _, w := range ways {
			if len(may) == 0 || may[w] {
				if err := s.request(ctx, w); err != nil {
					return fmt.Errorf("switch %s: %w", want, err)
				}
				return nil
			}
		}
		return fmt.Errorf("switch %s: in power state %d it offers no way to it", want, now)
	})
}

// BootOnce boots from the network once. There is no "disk once".
func (c *Controller) BootOnce(ctx context.Context, d power.Device) error {
	if d != power.Network {
		return fmt.Errorf("boot once from %s by AMT: %w", d, power.ErrUnsupported)
	}
	return c.with(ctx, func(s *session) error {
		if err := s.bootNetwork(ctx); err != nil {
			return fmt.Errorf("boot once from %s: %w", d, err)
		}
		return nil
	})
}

// A session is what one call to the machine shares: a connection, the password,
// a challenge.
type session struct {
	*Controller
	http     http.Client
	password string
	sent     int  // messages
	proven   bool // the password was accepted
}

func (c *Controller) with(ctx context.Context, f func(*session) error) error {
	password, err := c.cfg.Password(ctx)
	if err != nil {
		return fmt.Errorf("password of AMT: %w", err)
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // trust holds the key against the pin
			VerifyConnection:   c.trust.Verify,
			MinVersion:         tls.VersionTLS12,
		},
		TLSHandshakeTimeout: 20 * time.Second,
	}
	defer transport.CloseIdleConnections()
	return f(&session{Controller: c, password: password, http: http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}})
}

// maxBody bounds an answer.
const maxBody = 1 << 20

// post makes one request. With an authorization it is one login.
func (s *session) post(ctx context.Context, body, authorization string) (*http.Response, []byte, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/wsman", strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	q.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
	if authorization != "" {
		q.Header.Set("Authorization", authorization)
	}
	res, err := s.http.Do(q)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, nil, fmt.Errorf("no answer: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("the answer broke off: %w", err)
	case len(b) > maxBody:
		return nil, nil, errors.New("the answer has no end")
	}
	return res, b, nil
}

// send posts a message and returns the answer's body. Every message answers a
// challenge of its own; a refusal before any was accepted is ErrAuth.
func (s *session) send(ctx context.Context, message string) ([]byte, error) {
	res, _, err := s.post(ctx, "", "")
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusUnauthorized {
		return nil, fmt.Errorf("it answers %d to a request without a login: this is no AMT", res.StatusCode)
	}
	c, err := digest.Parse(res.Header.Values("WWW-Authenticate"))
	if err != nil {
		return nil, err
	}
	res, body, err := s.post(ctx, message, c.Authorization(s.cfg.User, s.password, http.MethodPost, "/wsman"))
	if err != nil {
		return nil, err
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized && !s.proven:
		return nil, fmt.Errorf("log in as %s: %w", s.cfg.User, power.ErrAuth)
	case res.StatusCode == http.StatusUnauthorized:
		return nil, errors.New("it refuses a login that it accepted a moment ago")
	case res.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%w: user %s may not do that", power.ErrAuth, s.cfg.User)
	}
	s.proven = true
	if why := fault(body); why != "" || res.StatusCode != http.StatusOK {
		if why == "" {
			why = http.StatusText(res.StatusCode)
		}
		return nil, fmt.Errorf("it answers %d: %s", res.StatusCode, why)
	}
	return body, nil
}

// state reads the power state and the states that may be requested from it;
// none where the engine does not list them.
func (s *session) state(ctx context.Context) (now int, may map[int]bool, err error) {
	items, err := s.enumerate(ctx, cim+"CIM_AssociatedPowerManagementService")
	if err != nil {
		return 0, nil, err
	}
	text := items.first("PowerState")
	if now, err = strconv.Atoi(text); err != nil {
		return 0, nil, errors.New("its answer holds no power state")
	}
	may = map[int]bool{}
	for _, t := range items.all("AvailableRequestedPowerStates") {
		if n, err := strconv.Atoi(t); err == nil {
			may[n] = true
		}
	}
	return now, may, nil
}

// request asks for a power state. The engine says 0 when it goes there.
func (s *session) request(ctx context.Context, state int) error {
	return s.invoke(ctx, cim+"CIM_PowerManagementService", "RequestPowerStateChange",
		fmt.Sprintf("<r:PowerState>%d</r:PowerState>", state)+
			"<r:ManagedElement>"+reference(cim+"CIM_ComputerSystem", "CreationClassName", "CIM_ComputerSystem", "Name", "ManagedSystem")+"</r:ManagedElement>")
}

// bootNetwork is what Intel's SDK calls "Force PXE Boot": the settings that the
// last remote boot left are cleared, the configuration is good for one boot,
// and its source is the network.
func (s *session) bootNetwork(ctx context.Context) error {
	if err := s.clearBootSettings(ctx); err != nil {
		return fmt.Errorf("clear its boot settings: %w", err)
	}
	err := s.invoke(ctx, cim+"CIM_BootService", "SetBootConfigRole",
		"<r:BootConfigSetting>"+reference(cim+"CIM_BootConfigSetting", "InstanceID", "Intel(r) AMT: Boot Configuration 0")+"</r:BootConfigSetting><r:Role>1</r:Role>")
	if err != nil {
		return err
	}
	return s.invoke(ctx, cim+"CIM_BootConfigSetting", "ChangeBootOrder",
		"<r:Source>"+reference(cim+"CIM_BootSourceSetting", "InstanceID", "Intel(r) AMT: Force PXE Boot")+"</r:Source>")
}
