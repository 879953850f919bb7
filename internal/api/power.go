package api

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"smelt/inventory"
)

// PathPower is the power of the site: GET PowerView; POST /{order} Action, one
// of PowerOrders; GET /curtail?watts=W&within=D CanGive.
const PathPower = "/api/v1/power"

// Orders about the power of the whole site.
const (
	PowerHold       = "hold"        // reason: nothing starts, burn-ins begin no other check
	PowerResume     = "resume"      // lifts the hold
	PowerBlackout   = "blackout"    // reason: power was lost, or the emergency stop was pressed; nothing starts
	PowerRelease    = "release"     // after a blackout: machines start again, in order
	PowerCurtail    = "curtail"     // watts, within (10m), until (RFC 3339), reason: give power back
	PowerCurtailEnd = "curtail-end" // everything may come back
)

// PowerView is the power of the site now.
type PowerView struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // Power
	inventory.SitePower
	Draw     float64        `json:"draw"`     // of all machines and circuits, in watts; what is not measured counts as reserved
	Measured float64        `json:"measured"` // by meters that are fresh, in watts
	Levels   []Level        `json:"levels"`   // the power tree, parents first
	Machines []MachinePower `json:"machines"` // by name
}

// Level is one circuit, what is granted on it and what it draws, in watts.
type Level struct {
	inventory.Circuit
	Granted  float64                      `json:"granted"`           // reserved, of machines and else, and unknown
	Limit    float64                      `json:"limit"`             // derated rating
	Free     float64                      `json:"free"`              // for a machine that hangs on it directly
	Measured float64                      `json:"measured"`          // at least, as far as fresh readings tell
	Unknown  float64                      `json:"unknown,omitempty"` // measured, and of nothing known
	State    string                       `json:"state"`             // ok, full, held, shedding
	Why      string                       `json:"why,omitempty"`     // when it is not ok
	Holders  map[inventory.NodeID]float64 `json:"holders,omitempty"`
}

// MachinePower is the power of one machine.
type MachinePower struct {
	Node      inventory.NodeID   `json:"node"`
	Position  inventory.Position `json:"position,omitempty"`
	Circuit   string             `json:"circuit,omitempty"`
	State     inventory.State    `json:"state"`               // of its life
	On        string             `json:"on"`                  // on, off, unknown: as confirmed
	At        time.Time          `json:"at,omitzero"`         // when
	Via       string             `json:"via,omitempty"`       // by whom
	Read      string             `json:"read,omitempty"`      // what its controller said last, not confirmed
	ReadAt    time.Time          `json:"readAt,omitzero"`     //
	ReadError string             `json:"readError,omitempty"` // why its last reading failed
	Watts     float64            `json:"watts"`               // measured last; see WattsAt
	WattsAt   time.Time          `json:"wattsAt,omitzero"`
	Nameplate float64            `json:"nameplate"`
	Learned   float64            `json:"learned,omitempty"` // peak at burn-in
	Lie       string             `json:"lie,omitempty"`     // why its last reading is not believed
	Shed      []inventory.Shed   `json:"shed,omitempty"`    // what was taken from it for want of power
}

// CanGive is what the site could give back now.
type CanGive struct {
	APIVersion string                  `json:"apiVersion"`
	Kind       string                  `json:"kind"`   // CanGive
	Asked      float64                 `json:"asked"`  // watts; 0 asks for everything
	Watts      float64                 `json:"watts"`  // expected
	Draw       float64                 `json:"draw"`   // now
	Within     string                  `json:"within"` // duration
	Steps      []inventory.CurtailStep `json:"steps"`
	Unmeasured int                     `json:"unmeasured"` // machines that are on and not measured: what they give does not count
	Enough     bool                    `json:"enough"`
}

// Power returns the power of the site.
func (c *Client) Power(ctx context.Context) (PowerView, error) {
	var v PowerView
	_, err := c.do(ctx, "GET", PathPower, nil, &v)
	return v, err
}

// OrderPower asks for something about the power of the whole site.
func (c *Client) OrderPower(ctx context.Context, order string, params map[string]string) (ActionResult, error) {
	return c.act(ctx, PathPower+"/"+url.PathEscape(order), params)
}

// CanGive asks what the site could give back within a time.
func (c *Client) CanGive(ctx context.Context, watts float64, within time.Duration) (CanGive, error) {
	var v CanGive
	q := url.Values{"watts": {strconv.FormatFloat(watts, 'f', -1, 64)}, "within": {within.String()}}
	_, err := c.do(ctx, "GET", PathPower+"/curtail?"+q.Encode(), nil, &v)
	return v, err
}
