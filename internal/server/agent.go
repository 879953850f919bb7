package server

import (
	"crypto/ed25519"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"time"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
)

// Agent answers the agents. Every route but enrolment and the time needs a
// session; who has none learns nothing.
func (s *Server) Agent() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathEnrol, s.enrol)
	mux.HandleFunc("GET "+api.PathTime, s.time)
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request, store.Agent){
		"GET " + api.PathOrder:      s.order,
		"POST " + api.PathInventory: s.inventory,
		"POST " + api.PathProgress:  s.report,
		"POST " + api.PathResult:    s.result,
		"POST " + api.PathPermit:    s.permit,
		"GET " + api.PathChunks:     s.chunks,
		"PUT " + api.PathChunks:     s.putChunks,
		"POST " + api.PathSwarm:     s.swarm,
		"POST " + api.PathLocated:   s.located,
		"POST " + api.PathRenew:     s.renew,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			a, err := s.session(r)
			if errors.Is(err, store.ErrNotFound) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if err != nil {
				s.failure(w, r, err)
				return
			}
			h(w, r, a)
		})
	}
	// Unknown paths say no more than known ones.
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	return mux
}

func (s *Server) session(r *http.Request) (store.Agent, error) {
	token := bearer(r)
	if token == "" {
		return store.Agent{}, store.ErrNotFound
	}
	a, err := s.Store.Agent(r.Context(), hash(token), s.Now())
	if errors.Is(err, store.ErrNotFound) {
		// One that was good once is a machine that locked itself out, not a guess.
		if old, oerr := s.Store.Agent(r.Context(), hash(token), time.Unix(0, 0)); oerr == nil {
			s.Log.Warn("an agent's session is over: inspect or re-image the node", "node", old.Node, "mode", old.Mode, "expired", old.Expires)
		}
	}
	return a, err
}

func (s *Server) time(w http.ResponseWriter, r *http.Request) {
	s.json(w, http.StatusOK, s.Now().UTC())
}

// enrol is open to everybody on the network: bounded in size and in number,
// and silent about why it refuses. The reason is in the log and on the node.
func (s *Server) enrol(w http.ResponseWriter, r *http.Request) {
	select {
	case s.enrols <- struct{}{}:
		defer func() { <-s.enrols }()
	default:
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var e api.Enrol
	if !s.read(w, r, maxInventory, &e) {
		return
	}
	if len(e.Key) != ed25519.PublicKeySize || e.Nonce == "" || len(e.Nonce) > 256 {
		s.fail(w, http.StatusBadRequest, "an enrolment needs a nonce and an ed25519 key", "")
		return
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	sess, err := s.Conductor.Enrol(r.Context(), convert.Enrolment{Nonce: e.Nonce, Key: e.Key, Hardware: e.Hardware, Addr: host})
	switch {
	case errors.Is(err, convert.ErrRefused):
		s.Log.Warn("enrolment refused", "addr", host, "serial", e.Hardware.Board.Serial, "err", err)
		w.WriteHeader(http.StatusUnauthorized)
	case err != nil: // too early, or a failure of ours: the agent asks again
		s.Log.Warn("enrolment must wait", "addr", host, "err", err)
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		s.enrolled(w, sess)
	}
}

func (s *Server) enrolled(w http.ResponseWriter, sess convert.Session) {
	s.json(w, http.StatusOK, api.Enrolled{
		Node: sess.Node, Mode: sess.Mode, Session: sess.Token, Expires: sess.Expires, Fence: sess.Fence, Now: s.Now(),
	})
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, a store.Agent) {
	sess, err := s.Conductor.Renew(r.Context(), a)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.enrolled(w, sess)
}

// order answers at once unless the agent already has the current order: then
// it waits for a change.
func (s *Server) order(w http.ResponseWriter, r *http.Request, a store.Agent) {
	query := r.URL.Query()
	after := query.Get("after")
	taken, knows := query["locate"]
	// Longer than a listener's own limit may be: waiting is the point.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pollTime + bodyTime))
	timeout := time.NewTimer(pollTime)
	defer timeout.Stop()
	for {
		changed := s.Conductor.Changed(a.Node) // before the order: no change is missed
		o, err := s.Conductor.Order(r.Context(), a)
		if err != nil {
			s.failure(w, r, err)
			return
		}
		var locate *api.LocateOrder
		if knows {
			locate = s.locateOrder(a.Node, taken[0])
		}
		answer := func() {
			out := s.wire(a, o)
			out.Locate = locate
			s.json(w, http.StatusOK, out)
		}
		// An agent that knows of loads says which one it obeys.
		if o.ID != after || locate != nil || query.Has("load") && o.Load.String() != query.Get("load") {
			answer()
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			answer()
			return
		case <-s.done:
			answer()
			return
		case <-r.Context().Done():
			return
		}
	}
}

// wire translates an order: the conductor knows the node, the server the site.
func (s *Server) wire(a store.Agent, o convert.Order) api.Order {
	out := api.Order{ID: o.ID, Kind: o.Kind, Fence: o.Fence, Why: o.Why, Permit: o.Permit, Join: o.Join, Load: o.Load}
	switch {
	case o.Kind == api.OrderWipe && o.Plan != nil:
		out.Wipe = &api.WipeOrder{Level: o.Plan.Wipe, Disks: o.Plan.Disks, Allow: o.Plan.Allow}
	case o.Kind == api.OrderImage && o.Plan != nil:
		out.Image = &api.ImageOrder{Manifest: o.Plan.Image, Base: s.ImageURL, Target: o.Plan.Target, ReadBack: o.Plan.ReadBack, Mirrors: s.mirrors(a.Node), Swarm: s.Swarm.Tracker != nil}
		out.Image.Handoff = s.handoff(a, o, o.Plan.Image)
	case o.Kind == api.OrderKexec && o.Plan != nil:
		out.Kexec = &api.KexecOrder{Target: o.Plan.Target}
	case o.Kind == api.OrderRescue && o.Once != nil:
		out.Rescue = &api.RescueOrder{Keys: s.Rescue.Keys, Until: o.Once.Until, Write: o.Once.Write, Tools: s.Rescue.Tools, Digest: s.Rescue.Digest}
	case o.Kind == api.OrderRAM:
		out.RAM = &api.RAMOrder{Manifest: o.Image, Base: s.ImageURL, Mirrors: s.mirrors(a.Node), Handoff: s.handoff(a, o, o.Image)}
	case o.Kind == api.OrderBurnin && o.Profile != nil:
		out.Burnin = &api.BurninOrder{Report: o.Report, Profile: *o.Profile, Lab: s.Lab}
		if o.Subject != nil {
			out.Burnin.Subject = *o.Subject
		}
	}
	return out
}

// handoff is what the system made of an image starts with.
func (s *Server) handoff(a store.Agent, o convert.Order, image string) api.Handoff {
	if o.Handoff == nil {
		return api.Handoff{}
	}
	return api.Handoff{
		Node: a.Node, Server: s.AgentURL, Pin: s.Pin, SiteKey: s.SiteKey,
		Session: o.Handoff.Session, Expires: o.Handoff.Expires, Image: image, Fence: o.Handoff.Fence,
	}
}

func (s *Server) inventory(w http.ResponseWriter, r *http.Request, a store.Agent) {
	var i api.Inventory
	if !s.read(w, r, maxInventory, &i) {
		return
	}
	if err := s.Conductor.Inspected(r.Context(), a, convert.Inspection(i)); err != nil {
		s.failure(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) report(w http.ResponseWriter, r *http.Request, a store.Agent) {
	var p api.Progress
	if !s.read(w, r, maxProgress, &p) {
		return
	}
	if math.IsNaN(p.Done) || p.Done < 0 || p.Done > 1 || len(p.Doing) > 200 || len(p.Order) > 200 {
		s.fail(w, http.StatusUnprocessableEntity, "progress is 0 to 1 with at most 200 bytes of text", "")
		return
	}
	s.Conductor.Progress(a, p.Order, p.Done, p.Doing, p.Rate)
	s.progress.put(api.NodeProgress{Node: a.Node, Progress: p})
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) result(w http.ResponseWriter, r *http.Request, a store.Agent) {
	var p api.Result
	if !s.read(w, r, maxResult, &p) {
		return
	}
	if p.Order == "" || len(p.Order) > 200 {
		s.fail(w, http.StatusUnprocessableEntity, "a result names its order", "")
		return
	}
	res := convert.Result{Order: p.Order, Kind: p.Kind, OK: p.OK, Error: p.Error, Cause: p.Cause, Evidence: p.Evidence, Wiped: p.Wiped, Report: p.Report}
	for _, d := range p.Wiped {
		if res.Evidence == nil {
			res.Evidence = map[string]string{}
		}
		how := ""
		if d.Method != "" {
			how = " by " + d.Method
		}
		res.Evidence["wiped "+d.Disk.String()] = d.Level + how + " in " + d.Took.Round(time.Millisecond).String()
	}
	if err := s.Conductor.Finished(r.Context(), a, res); err != nil {
		s.failure(w, r, err)
		return
	}
	s.progress.drop(a.Node)
	w.WriteHeader(http.StatusNoContent)
}

// permit answers 200 once for each permit. A refusal is 409: the agent fails
// the step or asks for the order again. Anything else is a trouble of ours, and
// 503: the agent does not write, and asks again.
func (s *Server) permit(w http.ResponseWriter, r *http.Request, a store.Agent) {
	var p api.PermitUse
	if !s.read(w, r, maxProgress, &p) {
		return
	}
	if err := s.Conductor.UsePermit(r.Context(), a, p.ID); err != nil {
		if errors.Is(err, convert.ErrRefused) || errors.Is(err, store.ErrUsed) {
			s.Log.Warn("permit refused", "node", a.Node, "permit", p.ID, "err", err)
			s.fail(w, http.StatusConflict, err.Error(), "ask for the order again")
			return
		}
		s.Log.Error("permit not answered", "node", a.Node, "permit", p.ID, "err", err)
		w.Header().Set("Retry-After", "2")
		s.fail(w, http.StatusServiceUnavailable, "whether the permit may be used is not known now", "ask for the order again")
		return
	}
	s.json(w, http.StatusOK, p)
}

// chunkMap names the map of what is written of the current image order: it
// belongs to the run, so that a machine that lost power resumes.
func (s *Server) chunkMap(w http.ResponseWriter, r *http.Request, a store.Agent) (string, bool) {
	o, err := s.Conductor.Order(r.Context(), a)
	if err != nil {
		s.failure(w, r, err)
		return "", false
	}
	if o.Kind != api.OrderImage || o.Plan == nil {
		s.fail(w, http.StatusConflict, "the current order writes no image", "ask for the order again")
		return "", false
	}
	return "chunks/" + o.Plan.Run, true
}

func (s *Server) chunks(w http.ResponseWriter, r *http.Request, a store.Agent) {
	name, ok := s.chunkMap(w, r, a)
	if !ok {
		return
	}
	b, err := s.Store.Blob(r.Context(), a.Node, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		s.failure(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(b.Data) // nothing written yet: an empty map
}

func (s *Server) putChunks(w http.ResponseWriter, r *http.Request, a store.Agent) {
	name, ok := s.chunkMap(w, r, a)
	if !ok {
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxChunkMap))
	if err != nil {
		s.fail(w, http.StatusRequestEntityTooLarge, "a chunk map has at most 1 MiB", "")
		return
	}
	if err := s.Store.PutBlob(r.Context(), store.Blob{Node: a.Node, Name: name, Type: "application/octet-stream", Data: data, At: s.Now()}); err != nil {
		s.failure(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
