package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

// A powerOrder is an order about the power of the whole site.
type powerOrder struct {
	name    string
	role    Role
	summary string
	params  []string // allowed
	why     bool     // reason is needed
}

// Anybody at the rack may hold; what starts machines or takes power from them
// is for an operator.
var powerOrders = []powerOrder{
	{api.PowerHold, Technician, "Hold the power of the site: nothing starts and no burn-in begins another check, until it is resumed", []string{"reason"}, true},
	{api.PowerResume, Operator, "Lift the power hold", []string{"reason"}, false},
	{api.PowerBlackout, Technician, "Say that power was lost, or that the emergency stop was pressed: nothing starts until it is released", []string{"reason"}, true},
	{api.PowerRelease, Operator, "Release a blackout: machines that had work start again, in order", []string{"reason"}, false},
	{api.PowerCurtail, Operator, "Give back watts within a duration, until a time (RFC 3339) or until it is ended; refused when the site cannot", []string{"watts", "within", "until", "reason"}, false},
	{api.PowerCurtailEnd, Operator, "End a curtailment: everything may come back", []string{"reason"}, false},
}

func (s *Server) powerView() api.PowerView {
	p := s.Conductor.HallPower()
	v := api.PowerView{APIVersion: api.Version, Kind: "Power", SitePower: p.SitePower, Draw: p.Draw, Machines: []api.MachinePower{}, Levels: []api.Level{}}
	for _, m := range p.Machines {
		v.Machines = append(v.Machines, api.MachinePower(m))
	}
	for _, l := range s.Conductor.Levels() {
		v.Levels = append(v.Levels, level(l))
		if l.Parent == "" {
			v.Measured += l.Measured
		}
	}
	return v
}

func level(l convert.Level) api.Level {
	return api.Level{Circuit: l.Circuit, Granted: l.Granted, Limit: l.Limit, Free: l.Free, Measured: l.Measured, Unknown: l.Unknown,
		State: l.State, Why: l.Why, Holders: l.Holders}
}

func (s *Server) getPower(w http.ResponseWriter, _ *http.Request, _ who) {
	s.json(w, http.StatusOK, s.powerView())
}

func (s *Server) getCanGive(w http.ResponseWriter, r *http.Request, _ who) {
	g, p := s.canGive(r.URL.Query())
	if p != nil {
		s.fail(w, p.Status, p.Detail, p.Next)
		return
	}
	s.json(w, http.StatusOK, g)
}

func (s *Server) canGive(q url.Values) (api.CanGive, *api.Problem) {
	watts, within := 0.0, 10*time.Minute
	var err error
	if t := q.Get("watts"); t != "" {
		if watts, err = strconv.ParseFloat(t, 64); err != nil || !(watts >= 0 && watts < 1e9) {
			return api.CanGive{}, bad(fmt.Sprintf("watts %.40q: want a number that is not negative", t), "watts=20000")
		}
	}
	if t := q.Get("within"); t != "" {
		if within, err = time.ParseDuration(t); err != nil || within <= 0 || within > 24*time.Hour {
			return api.CanGive{}, bad(fmt.Sprintf("within %.40q: want a duration of at most 24h", t), "within=10m")
		}
	}
	g := s.Conductor.CanGive(watts, within)
	return api.CanGive{APIVersion: api.Version, Kind: "CanGive", Asked: watts, Watts: g.Watts, Draw: g.Draw, Within: within.String(),
		Steps: g.Steps, Unmeasured: g.Unmeasured, Enough: watts > 0 && g.Watts >= watts}, nil
}

func (s *Server) postPower(w http.ResponseWriter, r *http.Request, by who, o powerOrder) {
	var a api.Action
	if !s.read(w, r, maxAction, &a) {
		return
	}
	res, p := s.orderPower(r.Context(), by, o, a)
	s.acted(w, res, p)
}

// orderPower checks an order and submits it as an intent without a node.
func (s *Server) orderPower(ctx context.Context, by who, o powerOrder, a api.Action) (api.ActionResult, *api.Problem) {
	for k, val := range a.Params {
		if !slices.Contains(o.params, k) {
			return api.ActionResult{}, bad(fmt.Sprintf("%s takes no parameter %q; it takes %s", o.name, k, strings.Join(o.params, ", ")), "see "+api.PathOpenAPI)
		}
		if len(val) > 1000 {
			return api.ActionResult{}, bad(fmt.Sprintf("parameter %q has more than 1000 bytes", k), "")
		}
	}
	if o.why && strings.TrimSpace(a.Params["reason"]) == "" {
		return api.ActionResult{}, bad(o.name+" needs a reason: who comes next must know why", "give a reason")
	}
	if o.name == api.PowerCurtail {
		if a.Params["watts"] == "" || a.Params["within"] == "" {
			return api.ActionResult{}, bad("curtail needs watts and within", "watts=20000 within=10m")
		}
		if _, p := s.canGive(url.Values{"watts": {a.Params["watts"]}, "within": {a.Params["within"]}}); p != nil {
			return api.ActionResult{}, p
		}
		if u := a.Params["until"]; u != "" {
			if _, err := time.Parse(time.RFC3339, u); err != nil {
				return api.ActionResult{}, bad(fmt.Sprintf("until %.40q: want a time", u), "until=2026-11-22T16:00:00Z")
			}
		}
	}
	return s.submit(ctx, store.Intent{ID: a.ID, Verb: "power-" + o.name, Params: a.Params}, by, "smelt power status")
}

func (s *Server) powerForm(w http.ResponseWriter, r *http.Request, by who, o powerOrder) {
	a, ok := s.form(w, r)
	if !ok {
		return
	}
	// People think in kilowatts.
	if kw, err := strconv.ParseFloat(a.Params["kw"], 64); err == nil {
		a.Params["watts"] = strconv.FormatFloat(kw*1000, 'f', 0, 64)
	}
	delete(a.Params, "kw")
	res, p := s.orderPower(r.Context(), by, o, a)
	if p != nil {
		s.drawPower(w, r, by, p.Status, p)
		return
	}
	s.back(w, r, "/power", "power-"+o.name, res)
}

// powerAlarm is what a person must know of the site's power, or "".
func powerAlarm(p inventory.SitePower) string {
	switch b := p.Blackout; {
	case b != nil && b.Released.IsZero():
		return fmt.Sprintf("blackout since %s: %s; nothing starts until it is released", b.At.UTC().Format("15:04 UTC"), b.Why)
	case p.Curtail != nil && p.Curtail.Late:
		return fmt.Sprintf("%.1f kW were to be given back by %s, %.1f kW are", p.Curtail.Watts/1000, p.Curtail.Due.UTC().Format("15:04 UTC"), p.Curtail.Given()/1000)
	}
	return ""
}

func (s *Server) powerPage(w http.ResponseWriter, r *http.Request, by who) {
	s.drawPower(w, r, by, http.StatusOK, nil)
}

func (s *Server) drawPower(w http.ResponseWriter, r *http.Request, by who, status int, p *api.Problem) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	h.Problem = p
	can, _ := s.canGive(url.Values{})
	s.html(w, r, status, func(b io.Writer) error { return s.pages.Power(b, h, s.powerView(), can) })
}
