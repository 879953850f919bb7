package plug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"smelt/power"
)

// tasmota speaks the web commands of Tasmota (docs: Commands). Account and
// password stand in the URL because it knows no other way: over http, whoever
// is on the wire reads them.
type tasmota struct {
	wire
	relay    int
	user     string
	password Secret
}

// command sends one. A wrong password is one attempt.
func (t *tasmota) command(ctx context.Context, text string) (map[string]json.RawMessage, error) {
	v := url.Values{"cmnd": {text}}
	if t.password != nil {
		p, err := t.password(ctx)
		if err != nil {
			return nil, fmt.Errorf("password of the plug: %w", err)
		}
		v.Set("user", t.user)
		v.Set("password", p)
	}
	// Tasmota reads + as a plus sign: a space is %20.
	a, err := t.send(ctx, http.MethodGet, "/cm?"+strings.ReplaceAll(v.Encode(), "+", "%20"), nil, nil)
	if err != nil {
		return nil, err
	}
	var out map[string]json.RawMessage
	if a.status == http.StatusUnauthorized || json.Unmarshal(a.body, &out) == nil && out["WARNING"] != nil {
		// Some versions refuse with 200: {"WARNING":"Need user=<username>&password=<password>"}
		return nil, fmt.Errorf("%w: it wants another user or password", power.ErrAuth)
	}
	if err := a.read(&out); err != nil {
		return nil, err
	}
	if c, ok := out["Command"]; ok { // {"Command":"Unknown"} and {"Command":"Error"}
		return nil, fmt.Errorf("it does not know %s: %s", verb(text), verb(string(c)))
	}
	return out, nil
}

// verb is the first word of a command, for an error.
func verb(s string) string {
	s, _, _ = strings.Cut(s, " ")
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, s[:min(len(s), 20)])
}

func (t *tasmota) name() string { return "Power" + strconv.Itoa(t.relay) }

// state finds the relay in an answer: {"POWER2":"ON"}, and {"POWER":"ON"} where
// there is one relay. The value is a word, or 0 and 1 as a number or a text:
// which, depends on version and settings.
func (t *tasmota) state(out map[string]json.RawMessage) (power.State, error) {
	raw, ok := out[strings.ToUpper(t.name())]
	if !ok && t.relay == 1 {
		raw, ok = out["POWER"]
	}
	if !ok {
		return power.Unknown, fmt.Errorf("it says nothing of relay %d", t.relay)
	}
	if f, ok := number(raw); ok {
		switch f {
		case 1:
			return power.On, nil
		case 0:
			return power.Off, nil
		}
		return power.Unknown, nil
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		switch strings.ToUpper(s) {
		case "ON":
			return power.On, nil
		case "OFF":
			return power.Off, nil
		}
	}
	return power.Unknown, nil // StateText of its settings may say anything
}

func (t *tasmota) State(ctx context.Context) (power.State, error) {
	out, err := t.command(ctx, t.name())
	if err != nil {
		return power.Unknown, err
	}
	return t.state(out)
}

func (t *tasmota) turn(ctx context.Context, on bool) error {
	word := "Off"
	if on {
		word = "On"
	}
	// A relay that is not there: Power9 of a plug with one switches nothing and
	// says so, but some versions switch the first one. Its answer must name it.
	if _, err := t.State(ctx); err != nil {
		return err
	}
	out, err := t.command(ctx, t.name()+" "+word)
	if err != nil {
		return err
	}
	_, err = t.state(out)
	return err
}

func (t *tasmota) watts(ctx context.Context) (float64, error) {
	out, err := t.command(ctx, "Status 8")
	if err != nil {
		return 0, err
	}
	var sns struct {
		Energy *struct {
			Power json.RawMessage
		} `json:"ENERGY"`
	}
	if json.Unmarshal(out["StatusSNS"], &sns) != nil || sns.Energy == nil {
		return 0, fmt.Errorf("it has no meter: %w", power.ErrUnsupported)
	}
	raw := sns.Energy.Power
	var each []json.RawMessage
	if json.Unmarshal(raw, &each) == nil { // one for each relay
		if t.relay > len(each) {
			return 0, fmt.Errorf("its meter does not measure relay %d: %w", t.relay, power.ErrUnsupported)
		}
		raw = each[t.relay-1]
	}
	f, ok := number(raw)
	if !ok {
		return 0, errors.New("its meter says no number")
	}
	return sensible(f)
}
