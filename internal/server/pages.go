package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"smelt/internal/api"
	"smelt/internal/store"
	"smelt/internal/web"
	"smelt/inventory"
)

func (s *Server) html(w http.ResponseWriter, r *http.Request, status int, draw func(io.Writer) error) {
	var buf bytes.Buffer
	if err := draw(&buf); err != nil {
		s.failure(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(buf.Bytes())
}

func (s *Server) head(r *http.Request, by who) (web.Head, error) {
	site, err := s.siteView(r.Context())
	h := web.Head{
		Site: site, User: by.name, Role: by.role.String(), Now: s.Now(),
		MayWork: by.role >= Technician, MayRule: by.role >= Operator,
	}
	// Words for what was just done come from a table: nobody can make a link
	// that puts their own words on the page.
	h.Done = done[r.URL.Query().Get("did")]
	return h, err
}

var done = map[string]string{
	"approve": "Approved.", "reject": "Rejected.", "retire": "Retired.", "hold": "Held.", "release": "Released.",
	"reverify": "It proves itself again.", "leave": "It leaves the cluster once its jobs have ended.",
	"reinspect": "It will be inspected again.", "power": "Switched, and confirmed.", "task": "Noted. The proof test follows.",
	"rescue": "Its next start is a rescue.", "memtest": "Its next start is a memory test.",
	"locate": "It shows itself.", "unlocate": "It is no longer looked for.",
	"shed": "Done. The machine obeys within seconds.", "prove": "Proven, or a task says what to look at.",
	"power-hold": "Held. Nothing starts.", "power-resume": "The hold is lifted.", "power-blackout": "Noted. Nothing starts until it is released.",
	"power-release": "Released. Machines start one after the other.", "power-curtail": "Power is being given back.", "power-curtail-end": "The curtailment is over. What was taken comes back.",
	"stop": "The global stop is set.", "unstop": "The global stop is lifted.",
	"wait": "Taken. It is on its way; this page shows when it is done.",
}

func (s *Server) floorPage(w http.ResponseWriter, r *http.Request, by who) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	views, _, _, err := s.nodeViews(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	find := r.URL.Query().Get("find")
	if len(find) > 100 {
		find = find[:100]
	}
	s.html(w, r, http.StatusOK, func(b io.Writer) error { return s.pages.Floor(b, h, views, r.URL.Query().Get("show"), find) })
}

func (s *Server) nodePage(w http.ResponseWriter, r *http.Request, by who) {
	s.drawNode(w, r, by, http.StatusOK, nil)
}

func (s *Server) drawNode(w http.ResponseWriter, r *http.Request, by who, status int, p *api.Problem) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	h.Problem = p
	v, err := s.oneNode(r.Context(), nodeID(r))
	if err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	s.html(w, r, status, func(b io.Writer) error { return s.pages.Node(b, h, v, s.consolePart(v.Node.ID, by)) })
}

func (s *Server) queuePage(w http.ResponseWriter, r *http.Request, by who) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	views, _, _, err := s.nodeViews(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	var waiting []api.NodeView
	for _, v := range views {
		if st := v.Node.State; st == inventory.Discovered || st == inventory.Inspected {
			waiting = append(waiting, v)
		}
	}
	// What can be decided now comes first, the longest waiting at the top.
	slices.SortStableFunc(waiting, func(a, b api.NodeView) int {
		if x, y := a.Node.State, b.Node.State; x != y {
			return int(y) - int(x)
		}
		return a.Node.Since.Compare(b.Node.Since)
	})
	s.html(w, r, http.StatusOK, func(b io.Writer) error { return s.pages.Queue(b, h, waiting) })
}

func (s *Server) tasksPage(w http.ResponseWriter, r *http.Request, by who) {
	s.drawTasks(w, r, by, http.StatusOK, nil)
}

func (s *Server) drawTasks(w http.ResponseWriter, r *http.Request, by who, status int, p *api.Problem) {
	h, err := s.head(r, by)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	h.Problem = p
	tasks, err := s.Store.Tasks(r.Context(), "")
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.html(w, r, status, func(b io.Writer) error { return s.pages.Tasks(b, h, tasks) })
}

// form reads a posted form of bounded size into an action. The id is the
// form's own, so that a form that a bad network sends twice acts once.
func (s *Server) form(w http.ResponseWriter, r *http.Request) (api.Action, bool) {
	r.Body = http.MaxBytesReader(w, r.Body, maxAction)
	if err := r.ParseForm(); err != nil {
		s.fail(w, http.StatusBadRequest, "the form cannot be read", "go back and send it again")
		return api.Action{}, false
	}
	a := api.Action{ID: r.PostForm.Get("id"), Params: map[string]string{}}
	for k, v := range r.PostForm {
		if k == "id" || k == "back" {
			continue
		}
		if j := strings.TrimSpace(strings.Join(v, ",")); j != "" {
			a.Params[k] = j
		}
	}
	return a, true
}

func (s *Server) verbForm(w http.ResponseWriter, r *http.Request, by who, v verb) {
	a, ok := s.form(w, r)
	if !ok {
		return
	}
	res, p := s.act(r.Context(), by, v, nodeID(r), a)
	if p != nil {
		s.drawNode(w, r, by, p.Status, p)
		return
	}
	s.back(w, r, "/nodes/"+r.PathValue("id"), v.name, res)
}

func (s *Server) taskDoneForm(w http.ResponseWriter, r *http.Request, by who) {
	a, ok := s.form(w, r)
	if !ok {
		return
	}
	res, p := s.taskDone(r.Context(), by, r.PathValue("id"), a)
	if p != nil {
		s.drawTasks(w, r, by, p.Status, p)
		return
	}
	s.back(w, r, "/tasks", "task", res)
}

func (s *Server) stopForm(w http.ResponseWriter, r *http.Request, by who) {
	a, ok := s.form(w, r)
	if !ok {
		return
	}
	did := "unstop"
	if a.Params["on"] == "true" {
		did = "stop"
	}
	res, p := s.stop(r.Context(), by, a)
	if p != nil {
		s.fail(w, p.Status, p.Detail, p.Next)
		return
	}
	s.back(w, r, "/", did, res)
}

// back sends the browser to a page of ours that says what was done.
func (s *Server) back(w http.ResponseWriter, r *http.Request, to, did string, res api.ActionResult) {
	if b := r.PostForm.Get("back"); local(b) {
		to = b
	}
	if !res.Done {
		did = "wait"
	}
	http.Redirect(w, r, to+"?did="+did, http.StatusSeeOther)
}

// local tells whether a path stays on this server: //host and /\host do not.
func local(path string) bool {
	u, err := url.Parse(path)
	return err == nil && u.Scheme == "" && u.Host == "" && u.RawQuery == "" && strings.HasPrefix(path, "/") &&
		!strings.HasPrefix(path, "//") && !strings.ContainsAny(path, "\\\r\n")
}

func (s *Server) login(w http.ResponseWriter, status int, next, wrong string) {
	if !local(next) {
		next = "/"
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	// No site, no counts: who is not logged in learns nothing.
	if err := s.pages.Login(w, web.Login{Next: next, Wrong: wrong != ""}); err != nil {
		s.Log.Error("login page", "err", err)
	}
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request, _ who) {
	s.login(w, http.StatusOK, r.URL.Query().Get("next"), "")
}

func (s *Server) loginForm(w http.ResponseWriter, r *http.Request, _ who) {
	r.Body = http.MaxBytesReader(w, r.Body, maxProgress)
	token := strings.TrimSpace(r.PostFormValue("token"))
	next := r.PostFormValue("next")
	by, err := s.byToken(r.Context(), token)
	if errors.Is(err, store.ErrNotFound) || err == nil && by.role == nobody {
		s.login(w, http.StatusUnauthorized, next, "unknown")
		return
	}
	if err != nil {
		s.failure(w, r, err)
		return
	}
	http.SetCookie(w, s.cookie(r, s.sessions.open(hash(token), s.Now()), int(sessionTime.Seconds())))
	if !local(next) || next == "/login" {
		next = "/"
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (s *Server) logoutForm(w http.ResponseWriter, r *http.Request, _ who) {
	if c, err := r.Cookie(cookieName); err == nil {
		s.sessions.close(hash(c.Value))
	}
	http.SetCookie(w, s.cookie(r, "", -1))
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// cookie is Secure wherever the browser came over TLS, here or at a proxy.
func (s *Server) cookie(r *http.Request, value string, age int) *http.Cookie {
	return &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: age, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	}
}

func (s *Server) assets(w http.ResponseWriter, r *http.Request, _ who) {
	a, ok := s.pages.Asset(r.PathValue("file"))
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	sum := sha256.Sum256(a.Data)
	w.Header().Set("Content-Type", a.Type)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
	w.Write(a.Data)
}
