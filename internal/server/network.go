package server

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"smelt/internal/api"
	"smelt/inventory"
)

func (s *Server) networks() []api.NetworkView {
	if s.Boot.Networks == nil {
		return nil
	}
	return s.Boot.Networks()
}

// alarms are the rivals that do harm now, for everybody who looks at the floor.
func alarms(networks []api.NetworkView) []string {
	var out []string
	for _, n := range networks {
		for _, r := range n.Rivals {
			if r.Alarm != "" && !r.Gone {
				out = append(out, fmt.Sprintf("%s on network %s: %s", r.Name, n.Name, r.Alarm))
			}
		}
	}
	return out
}

// seen is who was heard, each with its verdict.
func (s *Server) seen(ctx context.Context) ([]api.Sighting, error) {
	if s.Boot.Sightings == nil {
		return nil, nil
	}
	nodes, _, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	byMAC := map[inventory.MAC]*inventory.Node{}
	for i, n := range nodes {
		for _, m := range n.MACs {
			if byMAC[m] == nil || n.Spec.Name != "" { // site.yaml outweighs what was only met
				byMAC[m] = &nodes[i]
			}
		}
	}
	list := s.Boot.Sightings()
	for i := range list {
		v, n := &list[i], byMAC[list[i].MAC]
		switch {
		// An agent of ours that ran on it proves more than what it is called.
		case v.Verdict == api.SeenASIC && (n == nil || n.Hardware == nil):
		case n != nil:
			v.Verdict, v.Node, v.Reason = api.SeenNode, n.ID, "node "+string(n.ID)+" is "+n.State.String()
		case v.Boots:
			v.Verdict, v.Reason = api.SeenCandidate, "its firmware boots from the network, and it is no node: inspection would say what it is worth"
		default:
			v.Verdict, v.Reason = api.SeenUnknown, "it asks for an address and never to boot: perhaps another device, or a system on its own disk"
		}
	}
	return list, nil
}

func (s *Server) getNetworks(w http.ResponseWriter, r *http.Request, _ who) {
	s.json(w, http.StatusOK, api.NetworkList{APIVersion: api.Version, Kind: "NetworkList", Items: s.networks()})
}

func (s *Server) getSeen(w http.ResponseWriter, r *http.Request, _ who) {
	list, err := s.seen(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, api.SightingList{APIVersion: api.Version, Kind: "SightingList", Items: list})
}

func (s *Server) networkPage(w http.ResponseWriter, r *http.Request, by who) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	list, err := s.seen(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.html(w, r, http.StatusOK, func(b io.Writer) error {
		return s.pages.Network(b, h, s.networks(), list, r.URL.Query().Get("show"))
	})
}
