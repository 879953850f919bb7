package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"smelt/images"
	"smelt/images/swarm"
	"smelt/internal/api"
	"smelt/internal/store"
	"smelt/inventory"
)

// Swarm is how nodes share the images that they write.
type Swarm struct {
	Tracker  *swarm.Tracker                               // nil: they do not
	Manifest func(images.Digest) (images.Manifest, error) // of the image store
	Rack     func(inventory.NodeID) string                // where a node stands; nil: all in one rack
	Mirrors  func(rack string) (urls []string)            // image stores that its nodes ask first; nil: none
}

// memberFor is how long a node counts as writing an image without its order
// being read again. A report that lasts longer than its order harms nobody: all
// it can do is serve and fetch public, verified chunks.
const memberFor = 30 * time.Second

// maxReport is a report with a map of 64 TiB and 12,000 chunks listed.
const maxReport = 4 << 20

// swarmMembers remembers who writes what.
type swarmMembers struct {
	mu   sync.Mutex
	byID map[inventory.NodeID]member
}

type member struct {
	image images.Digest
	rack  string
	until time.Time
}

// swarm takes what a node says of its chunks and answers what it fetches next.
func (s *Server) swarm(w http.ResponseWriter, r *http.Request, a store.Agent) {
	if s.Swarm.Tracker == nil {
		s.fail(w, http.StatusNotFound, "nodes of this site do not share images", "fetch from the image store")
		return
	}
	var rep swarm.Report
	if !s.read(w, r, maxReport, &rep) {
		return
	}
	m, err := s.member(r.Context(), a)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	if m.image != rep.Image {
		s.fail(w, http.StatusConflict, "the current order does not write image "+rep.Image.Short(), "ask for the order again")
		return
	}
	// The address is the connection's: a node speaks for itself only.
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	p, err := s.Swarm.Tracker.Report(s.Now(), string(a.Node), m.rack, from.Addr(), rep, s.Swarm.Manifest)
	switch {
	case errors.Is(err, swarm.ErrReport):
		s.fail(w, http.StatusUnprocessableEntity, err.Error(), "")
	case errors.Is(err, swarm.ErrBusy):
		s.fail(w, http.StatusTooManyRequests, err.Error(), "")
	case err != nil:
		s.failure(w, r, err)
	default:
		s.json(w, http.StatusOK, p)
	}
}

// member says which image a node writes, and where it stands.
func (s *Server) member(ctx context.Context, a store.Agent) (member, error) {
	now := s.Now()
	s.swarms.mu.Lock()
	m, ok := s.swarms.byID[a.Node]
	s.swarms.mu.Unlock()
	if ok && now.Before(m.until) {
		return m, nil
	}
	o, err := s.Conductor.Order(ctx, a)
	if err != nil {
		return member{}, err
	}
	m = member{rack: s.rack(a.Node), until: now.Add(memberFor)}
	if o.Kind == api.OrderImage && o.Plan != nil {
		if m.image, err = images.ParseDigest(o.Plan.Image); err != nil {
			return member{}, fmt.Errorf("node %s: its order: %w", a.Node, err)
		}
	}
	s.swarms.mu.Lock()
	defer s.swarms.mu.Unlock()
	if s.swarms.byID == nil {
		s.swarms.byID = map[inventory.NodeID]member{}
	}
	for id, old := range s.swarms.byID {
		if len(s.swarms.byID) > 1000 && now.After(old.until.Add(memberFor)) {
			delete(s.swarms.byID, id)
		}
	}
	if m.image.IsZero() {
		delete(s.swarms.byID, a.Node)
	} else {
		s.swarms.byID[a.Node] = m
	}
	return m, nil
}

func (s *Server) rack(id inventory.NodeID) string {
	if s.Swarm.Rack == nil {
		return ""
	}
	return s.Swarm.Rack(id)
}

// mirrors are the caches that a node asks before the image store.
func (s *Server) mirrors(id inventory.NodeID) []string {
	if s.Swarm.Mirrors == nil {
		return nil
	}
	return s.Swarm.Mirrors(s.rack(id))
}
