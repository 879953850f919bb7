package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"smelt/internal/api"
	"smelt/internal/store"
	"smelt/inventory"
)

func (s *Server) getSite(w http.ResponseWriter, r *http.Request, _ who) {
	v, err := s.siteView(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, v)
}

func (s *Server) getNodes(w http.ResponseWriter, r *http.Request, _ who) {
	views, _, seq, err := s.nodeViews(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	if word := r.URL.Query().Get("state"); word != "" {
		st, err := inventory.ParseState(word)
		if err != nil {
			s.fail(w, http.StatusBadRequest, err.Error(), "states are "+stateWords())
			return
		}
		views = slices.DeleteFunc(views, func(v api.NodeView) bool { return v.Node.State != st })
	}
	s.json(w, http.StatusOK, api.NodeList{APIVersion: api.Version, Kind: "NodeList", Items: views, Seq: seq})
}

func stateWords() string {
	var out []string
	for _, st := range inventory.States() {
		out = append(out, st.String())
	}
	return strings.Join(out, ", ")
}

func (s *Server) nodeFailure(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, store.ErrNotFound) {
		s.fail(w, http.StatusNotFound, fmt.Sprintf("there is no node %q in %s", nodeID(r), s.Site), "smelt node list")
		return
	}
	s.failure(w, r, err)
}

func (s *Server) getTasks(w http.ResponseWriter, r *http.Request, _ who) {
	tasks, err := s.Store.Tasks(r.Context(), inventory.NodeID(r.URL.Query().Get("node")))
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, api.TaskList{APIVersion: api.Version, Kind: "TaskList", Items: tasks})
}

func (s *Server) getImages(w http.ResponseWriter, r *http.Request, _ who) {
	list := api.ImageList{APIVersion: api.Version, Kind: "ImageList"}
	if s.Images != nil {
		var err error
		if list.Items, err = s.Images(); err != nil {
			s.failure(w, r, err)
			return
		}
	}
	s.json(w, http.StatusOK, list)
}

func (s *Server) getReports(w http.ResponseWriter, r *http.Request, _ who) {
	r.SetPathValue("id", r.PathValue("node"))
	v, err := s.oneNode(r.Context(), nodeID(r))
	if err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, api.ReportList{APIVersion: api.Version, Kind: "ReportList", Items: v.Reports})
}

var reportFile = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}\.(json|html)$`)

func (s *Server) getReport(w http.ResponseWriter, r *http.Request, _ who) {
	file := r.PathValue("file")
	if !reportFile.MatchString(file) {
		s.fail(w, http.StatusNotFound, "reports are named ID.json and ID.html", "smelt burnin report NODE")
		return
	}
	s.document(w, r, "reports/"+file, "report "+file, "smelt burnin report "+r.PathValue("node"))
}

// certificateBlobs is where the conductor files wipe certificates.
const certificateBlobs = "certificates/"

func (s *Server) getCertificates(w http.ResponseWriter, r *http.Request, _ who) {
	r.SetPathValue("id", r.PathValue("node"))
	v, err := s.oneNode(r.Context(), nodeID(r))
	if err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, api.CertificateList{APIVersion: api.Version, Kind: "CertificateList", Items: v.Wipes})
}

func (s *Server) getCertificate(w http.ResponseWriter, r *http.Request, _ who) {
	file := r.PathValue("file")
	if !reportFile.MatchString(file) {
		s.fail(w, http.StatusNotFound, "certificates are named ID.json and ID.html", "smelt certificate list NODE")
		return
	}
	s.document(w, r, certificateBlobs+file, "wipe certificate "+file, "smelt certificate list "+r.PathValue("node"))
}

// document answers with something that was filed beside a node.
func (s *Server) document(w http.ResponseWriter, r *http.Request, name, what, next string) {
	b, err := s.Store.Blob(r.Context(), inventory.NodeID(r.PathValue("node")), name)
	if errors.Is(err, store.ErrNotFound) {
		s.fail(w, http.StatusNotFound, fmt.Sprintf("there is no %s of node %s", what, r.PathValue("node")), next)
		return
	}
	if err != nil {
		s.failure(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(name, ".html") {
		// A document is one file with its own style and no scripts; it holds words
		// that machines chose, so it gets an origin of its own.
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:")
	}
	w.Write(b.Data)
}

func (s *Server) getHealth(w http.ResponseWriter, r *http.Request, _ who) {
	if _, err := s.Store.LastSeq(r.Context()); err != nil {
		s.Log.Error("health", "err", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}

// postVerb, postTaskDone and postStop answer 200 done, 202 still waiting, 409
// refused.
func (s *Server) postVerb(w http.ResponseWriter, r *http.Request, by who, v verb) {
	var a api.Action
	if !s.read(w, r, maxAction, &a) {
		return
	}
	res, p := s.act(r.Context(), by, v, nodeID(r), a)
	s.acted(w, res, p)
}

func (s *Server) postTaskDone(w http.ResponseWriter, r *http.Request, by who) {
	var a api.Action
	if !s.read(w, r, maxAction, &a) {
		return
	}
	res, p := s.taskDone(r.Context(), by, r.PathValue("id"), a)
	s.acted(w, res, p)
}

func (s *Server) postStop(w http.ResponseWriter, r *http.Request, by who) {
	var a api.Action
	if !s.read(w, r, maxAction, &a) {
		return
	}
	res, p := s.stop(r.Context(), by, a)
	s.acted(w, res, p)
}

func (s *Server) acted(w http.ResponseWriter, res api.ActionResult, p *api.Problem) {
	switch {
	case p != nil:
		s.fail(w, p.Status, p.Detail, p.Next)
	case !res.Done:
		s.json(w, http.StatusAccepted, res)
	default:
		s.json(w, http.StatusOK, res)
	}
}

var actionID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func bad(detail, next string) *api.Problem {
	return &api.Problem{Status: http.StatusUnprocessableEntity, Detail: detail, Next: next}
}

// act checks an action on a node and submits it.
func (s *Server) act(ctx context.Context, by who, v verb, id inventory.NodeID, a api.Action) (api.ActionResult, *api.Problem) {
	n, err := s.Store.Node(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return api.ActionResult{}, &api.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no node %q in %s", id, s.Site), Next: "smelt node list"}
	}
	if err != nil {
		return api.ActionResult{}, s.internal(err)
	}
	for k, val := range a.Params {
		if !slices.Contains(v.params, k) {
			return api.ActionResult{}, bad(fmt.Sprintf("%s takes no parameter %q; it takes %s", v.name, k, strings.Join(v.params, ", ")), "see "+api.PathOpenAPI)
		}
		if len(val) > 1000 {
			return api.ActionResult{}, bad(fmt.Sprintf("parameter %q has more than 1000 bytes", k), "")
		}
	}
	confirm := v.confirm
	switch v.name {
	case "power":
		switch a.Params["verb"] {
		case "on":
		case "off", "softoff", "cycle":
			confirm = true
		default:
			return api.ActionResult{}, bad("power needs verb: on, off, softoff or cycle", "smelt node power "+string(id)+" on")
		}
	case "hold", "reject":
		if strings.TrimSpace(a.Params["reason"]) == "" {
			return api.ActionResult{}, bad(v.name+" needs a reason: who comes next must know why", "give a reason")
		}
	}
	if confirm && a.Params["confirm"] != string(id) {
		return api.ActionResult{}, bad(fmt.Sprintf("%s changes or stops what runs on %s: confirm it by the node's name", v.name, id), "confirm "+string(id))
	}
	// Somebody who saw other disks approved another machine.
	if h := a.Params["hardware"]; h != "" && (n.Hardware == nil || n.Hardware.Digest() != h) {
		return api.ActionResult{}, &api.Problem{Status: http.StatusConflict, Detail: fmt.Sprintf("the hardware of %s is no longer what you were shown", id), Next: "look at its disks again, then approve"}
	}
	return s.submit(ctx, store.Intent{ID: a.ID, Node: id, Verb: v.name, Params: a.Params}, by, "smelt node show "+string(id))
}

func (s *Server) taskDone(ctx context.Context, by who, id string, a api.Action) (api.ActionResult, *api.Problem) {
	tasks, err := s.Store.Tasks(ctx, "")
	if err != nil {
		return api.ActionResult{}, s.internal(err)
	}
	i := slices.IndexFunc(tasks, func(t inventory.Task) bool { return t.ID == id })
	if i < 0 {
		return api.ActionResult{}, &api.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no task %q", id), Next: "smelt task list"}
	}
	params := map[string]string{"task": id}
	if o := a.Params["outcome"]; o != "" && len(o) <= 1000 {
		params["outcome"] = o
	}
	return s.submit(ctx, store.Intent{ID: a.ID, Node: tasks[i].Node, Verb: "task-done", Params: params}, by, "smelt task show "+id)
}

func (s *Server) stop(ctx context.Context, by who, a api.Action) (api.ActionResult, *api.Problem) {
	on, err := strconv.ParseBool(a.Params["on"])
	if err != nil || on && strings.TrimSpace(a.Params["reason"]) == "" {
		return api.ActionResult{}, bad("the global stop needs on: true or false, and a reason to set it", "")
	}
	if err := s.Conductor.Stop(ctx, on, by.actor(), a.Params["reason"]); err != nil {
		return api.ActionResult{}, s.internal(err)
	}
	return api.ActionResult{APIVersion: api.Version, Kind: "ActionResult", ID: a.ID, Done: true}, nil
}

// submit hands an intent to the conductor and waits a little for its result.
func (s *Server) submit(ctx context.Context, i store.Intent, by who, next string) (api.ActionResult, *api.Problem) {
	if i.ID == "" {
		i.ID = api.NewID()
	}
	if !actionID.MatchString(i.ID) {
		return api.ActionResult{}, bad("the id of an action has 1 to 64 letters, digits, '-', '_' and '.'", "")
	}
	i.Actor, i.At = by.actor(), s.Now()
	wait, cancel := context.WithTimeout(ctx, submitFor)
	defer cancel()
	res, err := s.Conductor.Submit(wait, i)
	out := api.ActionResult{APIVersion: api.Version, Kind: "ActionResult", ID: i.ID}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return out, nil // still waiting
	case err != nil:
		return out, s.internal(err)
	case !res.OK:
		return out, &api.Problem{Status: http.StatusConflict, Detail: res.Error, Next: next}
	}
	out.Done = true
	return out, nil
}

func (s *Server) internal(err error) *api.Problem {
	switch {
	case errors.Is(err, store.ErrConflict):
		return &api.Problem{Status: http.StatusConflict, Detail: err.Error(), Next: "look at the node and decide anew"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, store.ErrFenced):
		return &api.Problem{Status: http.StatusServiceUnavailable, Detail: "the server is busy or going down", Next: "ask again"}
	}
	s.Log.Error("action failed", "err", err)
	return &api.Problem{Status: http.StatusInternalServerError, Detail: "the server could not do this; its log says why", Next: "journalctl -u smelt"}
}
