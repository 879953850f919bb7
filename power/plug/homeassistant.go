package plug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"smelt/power"
)

// homeassistant speaks Home Assistant's REST API (developers.home-assistant.io,
// REST API), not by way of bmclib: see docs/decisions/0021-plugs-and-amt.md.
type homeassistant struct {
	wire
	token  Secret
	entity string
	meter  string
}

func (h *homeassistant) call(ctx context.Context, method, path string, in any) (answer, error) {
	token, err := h.token(ctx)
	if err != nil {
		return answer{}, fmt.Errorf("token of Home Assistant: %w", err)
	}
	token = strings.TrimSpace(token)
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return answer{}, errors.New("the token of Home Assistant holds characters that no token has")
	}
	header := http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return answer{}, err
		}
	}
	return h.send(ctx, method, path, header, &body)
}

// An entity is what Home Assistant says of one. Attributes are of any type.
type entity struct {
	ID         string `json:"entity_id"`
	State      string `json:"state"`
	Attributes struct {
		Assumed bool   `json:"assumed_state"`
		Unit    string `json:"unit_of_measurement"`
	} `json:"attributes"`
}

func (h *homeassistant) read(ctx context.Context, id string) (entity, error) {
	var e entity
	a, err := h.call(ctx, http.MethodGet, "/api/states/"+id, nil)
	if err != nil {
		return e, err
	}
	if a.status == http.StatusNotFound {
		return e, fmt.Errorf("no %s is known to Home Assistant", id)
	}
	if err := a.read(&e); err != nil {
		return e, err
	}
	if e.ID != id {
		return e, errors.New("the answer of Home Assistant is about another entity")
	}
	return e, nil
}

// State is Unknown while the switch is unavailable, and where Home Assistant
// only assumes that its command worked.
func (h *homeassistant) State(ctx context.Context) (power.State, error) {
	e, err := h.read(ctx, h.entity)
	switch {
	case err != nil:
		return power.Unknown, err
	case e.Attributes.Assumed:
		return power.Unknown, fmt.Errorf("%s cannot be read: Home Assistant assumes its state", h.entity)
	case e.State == "on":
		return power.On, nil
	case e.State == "off":
		return power.Off, nil
	}
	return power.Unknown, nil // unavailable, unknown
}

// turn reads first: a service call for an entity that is not there, or not
// available, is answered with 200.
func (h *homeassistant) turn(ctx context.Context, on bool) error {
	e, err := h.read(ctx, h.entity)
	if err != nil {
		return err
	}
	if e.State == "unavailable" {
		return fmt.Errorf("%s is not available: Home Assistant does not reach it", h.entity)
	}
	service := "turn_off"
	if on {
		service = "turn_on"
	}
	a, err := h.call(ctx, http.MethodPost, "/api/services/switch/"+service, map[string]string{"entity_id": h.entity})
	if err != nil {
		return err
	}
	return a.refusal()
}

func (h *homeassistant) watts(ctx context.Context) (float64, error) {
	if h.meter == "" {
		return 0, fmt.Errorf("site.yaml names no meter: %w", power.ErrUnsupported)
	}
	e, err := h.read(ctx, h.meter)
	if err != nil {
		return 0, err
	}
	text, _ := json.Marshal(e.State)
	f, ok := number(text)
	if !ok {
		return 0, fmt.Errorf("%s says no number", h.meter)
	}
	switch e.Attributes.Unit {
	case "W":
	case "kW":
		f *= 1000
	default:
		return 0, fmt.Errorf("%s measures in %.20q, not in W", h.meter, e.Attributes.Unit)
	}
	return sensible(f)
}
