package server

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"smelt/internal/api"
	"smelt/internal/locate"
	"smelt/internal/store"
	"smelt/inventory"
)

// agentHeard is how old the last word of an agent may be that is asked to blink.
const agentHeard = 90 * time.Second

func locating(n inventory.Node, l *locate.Locating) api.Locating {
	v := api.Locating{APIVersion: api.Version, Kind: "Locating", Node: n.ID, Place: locate.Place(n), Otherwise: locate.Otherwise(n)}
	if l != nil {
		v.By, v.Until = l.By, l.Until
		for _, w := range l.Ways {
			v.Ways = append(v.Ways, api.LocateWay(w))
		}
	}
	return v
}

func (s *Server) getLocate(w http.ResponseWriter, r *http.Request, _ who) {
	n, err := s.Store.Node(r.Context(), nodeID(r))
	if err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	var now *locate.Locating
	if s.Locate != nil {
		now = s.Locate.Now(n.ID)
	}
	s.json(w, http.StatusOK, locating(n, now))
}

func (s *Server) postLocate(w http.ResponseWriter, r *http.Request, by who) {
	var a api.Action
	if !s.read(w, r, maxAction, &a) {
		return
	}
	v, p, err := s.locate(r.Context(), by, nodeID(r), a)
	switch {
	case err != nil:
		s.nodeFailure(w, r, err)
	case p != nil:
		s.fail(w, p.Status, p.Detail, p.Next)
	default:
		s.json(w, http.StatusOK, v)
	}
}

func (s *Server) locateForm(w http.ResponseWriter, r *http.Request, by who) {
	a, ok := s.form(w, r)
	if !ok {
		return
	}
	_, p, err := s.locate(r.Context(), by, nodeID(r), a)
	switch {
	case err != nil:
		s.nodeFailure(w, r, err)
	case p != nil:
		s.drawNode(w, r, by, p.Status, p)
	default:
		did := "locate"
		if a.Params["on"] == "false" {
			did = "unlocate"
		}
		s.back(w, r, "/nodes/"+r.PathValue("id"), did, api.ActionResult{Done: true})
	}
}

// locate makes a node findable, or ends that.
func (s *Server) locate(ctx context.Context, by who, id inventory.NodeID, a api.Action) (api.Locating, *api.Problem, error) {
	n, err := s.Store.Node(ctx, id)
	if err != nil {
		return api.Locating{}, nil, err
	}
	if s.Locate == nil {
		return api.Locating{}, &api.Problem{Status: http.StatusNotFound, Detail: "this server lights nothing", Next: locate.Otherwise(n)}, nil
	}
	on, err := strconv.ParseBool(a.Params["on"])
	if err != nil {
		return api.Locating{}, bad("locate needs on: true or false", ""), nil
	}
	if !on {
		s.Locate.Stop(id, by.actor())
		return locating(n, nil), nil, nil
	}
	var span time.Duration
	if v := a.Params["for"]; v != "" {
		if span, err = time.ParseDuration(v); err != nil || span < time.Second || span > 4*time.Hour {
			return api.Locating{}, bad(fmt.Sprintf("for %q: want a duration from 1s to 4h, such as 10m", v), ""), nil
		}
	}
	live := s.Conductor.Live(id)
	l, err := s.Locate.Start(ctx, locate.Request{Node: n, For: span, By: by.actor(), Agent: live.Mode != "" && s.Now().Sub(live.LastSeen) < agentHeard})
	if err != nil {
		return api.Locating{}, s.internal(err), nil
	}
	return locating(n, &l), nil, nil
}

// locateOrder is what an agent is to do beside its order; done is the last that
// it took.
func (s *Server) locateOrder(id inventory.NodeID, done string) *api.LocateOrder {
	if s.Locate == nil {
		return nil
	}
	o := s.Locate.Order(id, done)
	if o == nil {
		return nil
	}
	return &api.LocateOrder{ID: o.ID, For: o.For, Quiet: o.Quiet, Lines: []string{"node " + string(id), "an operator or technician looks for this machine"}}
}

// located takes in what an agent does to be found. Its words are shown to
// people, so they are few.
func (s *Server) located(w http.ResponseWriter, r *http.Request, a store.Agent) {
	var p api.Located
	if !s.read(w, r, maxProgress, &p) {
		return
	}
	if s.Locate == nil || len(p.Ways) > 4 {
		s.fail(w, http.StatusUnprocessableEntity, "nothing was asked that has so many ways", "")
		return
	}
	var ways []locate.Way
	for _, x := range p.Ways {
		if x.Way == locate.Light || len(x.Look) > 200 || len(x.Error) > 200 {
			s.fail(w, http.StatusUnprocessableEntity, "a way to be found has at most 200 bytes of text", "")
			return
		}
		ways = append(ways, locate.Way(x))
	}
	s.Locate.Shown(a.Node, p.ID, ways)
	w.WriteHeader(http.StatusNoContent)
}
