// Package plug switches machines at smart plugs and relays on the network:
// Shelly (Gen2 and newer), Tasmota, and whatever Home Assistant knows as a
// switch. On means that there is power at the plug, not that the machine runs.
package plug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smelt/power"
)

// Secret fetches a secret for each call.
type Secret = func(context.Context) (string, error)

// Config is one plug.
type Config struct {
	Kind    string // shelly, tasmota, homeassistant
	Address string // http://HOST[:PORT]; of Home Assistant https:// as well
	Channel int    // shelly: id of the switch, from 0; tasmota: number of the relay, from 1

	User     string // tasmota: "admin" when empty
	Password Secret // shelly, tasmota; nil: the plug asks for none

	Token  Secret // homeassistant: a long-lived access token
	Entity string // homeassistant: switch.NAME
	Meter  string // homeassistant: sensor.NAME of its watts; "" without
}

// Controller is a power.Controller and a power.Meter.
type Controller struct {
	driver
	name string
}

// A driver is one kind of plug.
type driver interface {
	State(context.Context) (power.State, error)
	turn(ctx context.Context, on bool) error
	watts(context.Context) (float64, error)
}

// New checks c. It does not talk to the plug.
func New(c Config) (*Controller, error) {
	// An address may carry a password, which New refuses and must not repeat.
	fail := func(format string, a ...any) (*Controller, error) {
		return nil, fmt.Errorf("plug %q %s: %s", c.Kind, c.Address[strings.LastIndex(c.Address, "@")+1:], fmt.Sprintf(format, a...))
	}
	u, err := url.Parse(strings.TrimSuffix(c.Address, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fail("want http://HOST[:PORT], without an account in it")
	}
	w := wire{base: u}
	out := &Controller{name: fmt.Sprintf("plug %s %s channel %d", c.Kind, u.Host, c.Channel)}
	switch c.Kind {
	case "shelly":
		if c.Channel < 0 {
			return fail("a Shelly counts its switches from 0")
		}
		out.driver = &shelly{wire: w, id: c.Channel, password: c.Password}
	case "tasmota":
		if c.Channel < 1 {
			return fail("Tasmota counts its relays from 1")
		}
		if c.User == "" {
			c.User = "admin"
		}
		out.driver = &tasmota{wire: w, relay: c.Channel, user: c.User, password: c.Password}
	case "homeassistant":
		if c.Token == nil || !strings.HasPrefix(c.Entity, "switch.") {
			return fail("it needs a token and the name of a switch")
		}
		out.driver = &homeassistant{wire: w, token: c.Token, entity: c.Entity, meter: c.Meter}
		out.name = fmt.Sprintf("plug %s of homeassistant %s", c.Entity, u.Host)
	default:
		return fail("want shelly, tasmota or homeassistant")
	}
	return out, nil
}

func (c *Controller) String() string { return c.name }

// Set switches the plug.
func (c *Controller) Set(ctx context.Context, s power.State) error {
	if s != power.On && s != power.Off {
		return fmt.Errorf("set %s: %w", s, power.ErrUnsupported)
	}
	if err := c.turn(ctx, s == power.On); err != nil {
		return fmt.Errorf("switch %s: %w", s, err)
	}
	return nil
}

// BootOnce is not supported: a plug knows nothing of boot devices.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s by a plug: %w", d, power.ErrUnsupported)
}

// Readings are the watts at the plug, where it has a meter.
func (c *Controller) Readings(ctx context.Context) (power.Readings, error) {
	w, err := c.watts(ctx)
	if err != nil {
		return power.Readings{Watts: math.NaN()}, fmt.Errorf("watts: %w", err)
	}
	return power.Readings{Watts: w, At: time.Now()}, nil
}

// maxBody bounds an answer; a plug's status has a few KiB.
const maxBody = 256 << 10

// A wire makes requests to one device. Each has a connection of its own: a
// plug has room for a handful and forgets to close them.
type wire struct{ base *url.URL }

type answer struct {
	status int
	header http.Header
	body   []byte
}

// send makes one request. path may have a query, which errors never repeat: it
// may hold a password.
func (w wire) send(ctx context.Context, method, path string, header http.Header, body io.Reader) (answer, error) {
	q, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(w.base.String(), "/")+path, body)
	if err != nil {
		return answer{}, errors.New("the address and the path make no URL")
	}
	for k, v := range header {
		q.Header[k] = v
	}
	transport := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: 20 * time.Second}
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(q)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return answer{}, fmt.Errorf("no answer: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("the answer broke off: %w", err)
	case len(b) > maxBody:
		return answer{}, errors.New("the answer has no end")
	}
	return answer{res.StatusCode, res.Header, b}, nil
}

// refusal is the error for an answer that is not 200. What the device says is
// not repeated: it may echo what it was sent.
func (a answer) refusal() error {
	switch a.status {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: it answers %d", power.ErrAuth, a.status)
	}
	return fmt.Errorf("it answers %d %s", a.status, http.StatusText(a.status))
}

// read takes the answer apart.
func (a answer) read(v any) error {
	if err := a.refusal(); err != nil {
		return err
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return errors.New("its answer is not the JSON that was expected")
	}
	return nil
}

// number is a JSON number, or a text that holds one.
func number(raw json.RawMessage) (float64, bool) {
	var f float64
	if json.Unmarshal(raw, &f) == nil && len(raw) > 0 && string(raw) != "null" {
		return f, true
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return 0, false
	}
	if json.Unmarshal([]byte(strings.TrimSpace(s)), &f) != nil || strings.TrimSpace(s) == "null" {
		return 0, false
	}
	return f, true
}

// watts are a number that a machine can draw.
func sensible(w float64) (float64, error) {
	if math.IsNaN(w) || w < -10 || w > 100_000 { // an idle meter may show a watt below zero
		return math.NaN(), fmt.Errorf("it says %v W, which no machine draws", w)
	}
	return max(w, 0), nil
}
