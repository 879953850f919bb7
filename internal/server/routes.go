package server

import (
	"errors"
	"net/http"
	"reflect"
	"strings"

	"smelt/internal/api"
	"smelt/internal/store"
	"smelt/inventory"
)

// A route is one thing that can be asked of the UI listener. The table of
// them is the mux, the check of roles and the OpenAPI document.
type route struct {
	method, path string
	role         Role // the least that may; nobody: open to all
	page         bool // for a browser: HTML, not in the OpenAPI document
	id, summary  string
	query        []string     // names of query parameters
	in, out      reflect.Type // JSON bodies; nil: none
	handle       func(http.ResponseWriter, *http.Request, who)
}

// A verb is an action on a node.
type verb struct {
	name    string
	role    Role
	summary string
	params  []string // allowed
	confirm bool     // params["confirm"] must be the node's name
}

// verbs are the actions on nodes, in the order pages and documents show them.
var verbs = []verb{
	{"approve", Operator, "Approve the conversion of a node: its disks will be wiped", []string{"image", "profile", "wipe", "target", "disks", "allow", "force", "reason", "hardware", "confirm"}, true},
	{"wipe", Operator, "Wipe all internal disks of a node, or the one that target names, file the certificate, and retire the node", []string{"wipe", "target", "allow", "reason", "hardware", "confirm"}, true},
	{"reject", Operator, "Reject a node: it is never offered anything but its own disk", []string{"reason"}, false},
	{"retire", Operator, "Retire a node", []string{"reason", "confirm"}, true},
	{"hold", Technician, "Hold a node: nothing touches it until the same kind of owner lifts it", []string{"reason"}, false},
	{"release", Technician, "Lift a hold", []string{"reason"}, false},
	{"reverify", Operator, "Burn in a node in service again: the cluster gives it no work meanwhile", []string{"reason"}, false},
	{"leave", Operator, "Take a node out of the cluster once its jobs have ended; then is inspected or retired", []string{"then", "reason", "confirm"}, true},
	{"reinspect", Technician, "Inspect a node again", []string{"reason"}, false},
	{"rescue", Operator, "Boot a node once into the RAM system, to log in by ssh; write=yes lets its disks be written, restart=yes restarts it, end=yes ends it", []string{"for", "write", "restart", "end", "reason", "confirm"}, true},
	{"memtest", Technician, "Boot a node once into a memory test; restart=yes restarts it, end=yes ends it", []string{"for", "restart", "end", "reason", "confirm"}, true},
	{"power", Technician, "Switch a node: verb is on, off, softoff or cycle; all but on need confirm, and force=yes where that cuts work short", []string{"verb", "force", "confirm"}, false},
	{"bmc-audit", Technician, "Look at the BMC of a node: firmware, accounts, what is wrong with it", nil, false},
	{"bmc-adopt", Operator, "Give the BMC of a node a password of its own; vendor begins with the credential that vendor ships, once a day", []string{"vendor", "confirm"}, true},
	{"bmc-order", Operator, "Put what first names, network or disk, first in the machine's own boot order, as its BMC reads it back", []string{"first"}, false},
	{"shed", Operator, "Take power from a node, or give it back: do is cap (its cards draw less), pause (its burn-in waits), softoff (it is asked to shut down) or undo", []string{"do", "reason"}, false},
	{"prove", Technician, "Prove which outlets feed a node: its burn-in is paused for a moment, or it is switched on when it is off; an outlet is never switched", nil, false},
}

func (s *Server) routes() []route {
	in, out := reflect.TypeFor[api.Action](), reflect.TypeFor[api.ActionResult]()
	rs := []route{
		{method: "GET", path: api.PathSite, role: Viewer, id: "site", summary: "The site: counts by state, power levels, global stop", out: reflect.TypeFor[api.SiteView](), handle: s.getSite},
		{method: "GET", path: api.PathNodes, role: Viewer, id: "nodes", summary: "All nodes", query: []string{"state"}, out: reflect.TypeFor[api.NodeList](), handle: s.getNodes},
		{method: "GET", path: api.PathNodes + "/{id}", role: Viewer, id: "node", summary: "One node, by its name or the code on its screen, with its events, tasks and reports", out: reflect.TypeFor[api.NodeView](), handle: s.getNode},
		{method: "GET", path: api.PathNodes + "/{id}" + api.SubConsole, role: Operator, id: "console", summary: "What was recorded of its serial console; with Accept: text/event-stream also what comes (id is the entry's number; Last-Event-ID resumes). raw=yes adds the bytes as they came", query: []string{"after", "since", "raw"}, out: reflect.TypeFor[api.ConsoleLog](), handle: s.getConsole},
		{method: "POST", path: api.PathNodes + "/{id}" + api.SubConsole, role: Operator, id: "typeConsole", summary: "Type into its serial console, one session at a time; that a session began and ended is an event", in: reflect.TypeFor[api.ConsoleInput](), handle: s.postConsole},
		{method: "GET", path: api.PathNodes + "/{id}" + api.SubScreen, role: Operator, id: "screen", summary: "A picture of its screen, where its controller can", handle: s.getScreen},
		{method: "GET", path: api.PathNodes + "/{id}" + api.SubSensors, role: Viewer, id: "sensors", summary: "What its controller measures: watts, degrees, fans", out: reflect.TypeFor[api.SensorList](), handle: s.getSensors},
		{method: "GET", path: api.PathNodes + "/{id}" + api.SubEventLog, role: Viewer, id: "eventLog", summary: "The event log of its controller (IPMI SEL, Redfish LogService)", out: reflect.TypeFor[api.EventLog](), handle: s.getEventLog},
		{method: "GET", path: api.PathNodes + "/{id}" + api.SubLocate, role: Viewer, id: "locating", summary: "What makes it findable now", out: reflect.TypeFor[api.Locating](), handle: s.getLocate},
		{method: "POST", path: api.PathNodes + "/{id}" + api.SubLocate, role: Technician, id: "locate", summary: "Make it findable at the rack, and say what to look for; on: true or false, for: a duration. It ends by itself", in: in, out: reflect.TypeFor[api.Locating](), handle: s.postLocate},
		{method: "POST", path: "/nodes/{id}/locate", role: Technician, page: true, id: "locateForm", handle: s.locateForm},
		{method: "GET", path: api.PathTasks, role: Viewer, id: "tasks", summary: "All tasks, open ones first", query: []string{"node"}, out: reflect.TypeFor[api.TaskList](), handle: s.getTasks},
		{method: "POST", path: api.PathTasks + "/{id}/done", role: Technician, id: "taskDone", summary: "Say that the work of a task is done; its proof test follows", in: in, out: out, handle: s.postTaskDone},
		{method: "GET", path: api.PathEvents, role: Viewer, id: "events", summary: "Server-sent events: event (id is its sequence number; Last-Event-ID resumes) and progress", query: []string{"after"}, handle: s.getEvents},
		{method: "GET", path: api.PathNetworks, role: Viewer, id: "networks", summary: "Networks that machines boot on: mode, pool, rivals, warnings", out: reflect.TypeFor[api.NetworkList](), handle: s.getNetworks},
		{method: "GET", path: api.PathNetworks + "/seen", role: Viewer, id: "seen", summary: "Machines that asked for an address or a boot, answered or not, and what each could become", out: reflect.TypeFor[api.SightingList](), handle: s.getSeen},
		{method: "GET", path: api.PathImages, role: Viewer, id: "images", summary: "The image store", out: reflect.TypeFor[api.ImageList](), handle: s.getImages},
		{method: "GET", path: api.PathBMCs, role: Viewer, id: "bmcs", summary: "The BMC of each node as it was last looked at, and the lies that controllers were caught at", out: reflect.TypeFor[api.BMCList](), handle: s.getBMCs},
		{method: "GET", path: api.PathReports + "/{node}", role: Viewer, id: "reports", summary: "Burn-in reports of a node, newest first", out: reflect.TypeFor[api.ReportList](), handle: s.getReports},
		{method: "GET", path: api.PathReports + "/{node}/{file}", role: Viewer, id: "report", summary: "One report: ID.json or ID.html", handle: s.getReport},
		{method: "GET", path: api.PathCertificates + "/{node}", role: Viewer, id: "certificates", summary: "Wipe certificates of a node, newest first", out: reflect.TypeFor[api.CertificateList](), handle: s.getCertificates},
		{method: "GET", path: api.PathCertificates + "/{node}/{file}", role: Viewer, id: "certificate", summary: "One wipe certificate: ID.json, signed with the site's key (DSSE), or ID.html to print", handle: s.getCertificate},
		{method: "POST", path: api.PathStop, role: Operator, id: "stop", summary: "Set or clear the global stop (on: true or false, reason): no permit is issued or used while it is set", in: in, out: out, handle: s.postStop},
		{method: "GET", path: api.PathPower, role: Viewer, id: "hallPower", summary: "The power of the site: hold, blackout, curtailment, circuits, machines", out: reflect.TypeFor[api.PowerView](), handle: s.getPower},
		{method: "GET", path: api.PathPower + "/curtail", role: Viewer, id: "canGive", summary: "What the site could give back within a time, and by what", query: []string{"watts", "within"}, out: reflect.TypeFor[api.CanGive](), handle: s.getCanGive},
		{method: "GET", path: api.PathTokens, role: Operator, id: "tokens", summary: "Who has a token", out: reflect.TypeFor[api.TokenList](), handle: s.getTokens},
		{method: "POST", path: api.PathTokens, role: Operator, id: "addToken", summary: "Make a token; it is shown this once", in: reflect.TypeFor[api.TokenRequest](), out: reflect.TypeFor[api.TokenGrant](), handle: s.postToken},
		{method: "POST", path: api.PathTokens + "/{name}/revoke", role: Operator, id: "revokeToken", summary: "Take the tokens of a name away", handle: s.postRevoke},
		{method: "GET", path: api.PathOpenAPI, role: Viewer, id: "openapi", summary: "This document", handle: s.getOpenAPI},
		{method: "GET", path: "/metrics", role: Viewer, id: "metrics", summary: "Prometheus metrics", handle: s.serveMetrics()},
		{method: "GET", path: "/healthz", id: "healthz", summary: "200 while the store answers", handle: s.getHealth},

		{method: "GET", path: "/{$}", role: Viewer, page: true, id: "floorPage", handle: s.floorPage},
		{method: "GET", path: "/nodes/{id}", role: Viewer, page: true, id: "nodePage", handle: s.nodePage},
		{method: "GET", path: "/n/{code}", role: Viewer, page: true, id: "codePage", handle: s.codePage},
		{method: "GET", path: "/N/{code}", role: Viewer, page: true, id: "codePageUpper", handle: s.codePage}, // a QR code is smaller in upper case
		{method: "GET", path: "/queue", role: Viewer, page: true, id: "queuePage", handle: s.queuePage},
		{method: "GET", path: "/tasks", role: Viewer, page: true, id: "tasksPage", handle: s.tasksPage},
		{method: "GET", path: "/network", role: Viewer, page: true, id: "networkPage", handle: s.networkPage},
		{method: "GET", path: "/power", role: Viewer, page: true, id: "powerPage", handle: s.powerPage},
		{method: "POST", path: "/tasks/{id}/done", role: Technician, page: true, id: "taskDoneForm", handle: s.taskDoneForm},
		{method: "POST", path: "/stop", role: Operator, page: true, id: "stopForm", handle: s.stopForm},
		{method: "GET", path: "/login", page: true, id: "loginPage", handle: s.loginPage},
		{method: "POST", path: "/login", page: true, id: "loginForm", handle: s.loginForm},
		{method: "POST", path: "/logout", role: Viewer, page: true, id: "logoutForm", handle: s.logoutForm},
		{method: "GET", path: "/assets/{file}", page: true, id: "assets", handle: s.assets},
	}
	for _, o := range powerOrders {
		rs = append(rs,
			route{method: "POST", path: api.PathPower + "/" + o.name, role: o.role, id: "power-" + o.name, summary: o.summary, in: in, out: out,
				handle: func(w http.ResponseWriter, r *http.Request, by who) { s.postPower(w, r, by, o) }},
			route{method: "POST", path: "/power/" + o.name, role: o.role, page: true, id: "power-" + o.name + "Form",
				handle: func(w http.ResponseWriter, r *http.Request, by who) { s.powerForm(w, r, by, o) }},
		)
	}
	for _, v := range verbs {
		rs = append(rs,
			route{method: "POST", path: api.PathNodes + "/{id}/" + v.name, role: v.role, id: v.name, summary: v.summary, in: in, out: out,
				handle: func(w http.ResponseWriter, r *http.Request, by who) { s.postVerb(w, r, by, v) }},
			route{method: "POST", path: "/nodes/{id}/" + v.name, role: v.role, page: true, id: v.name + "Form",
				handle: func(w http.ResponseWriter, r *http.Request, by who) { s.verbForm(w, r, by, v) }},
		)
	}
	return rs
}

// UI answers people and programs: API, pages, metrics.
func (s *Server) UI() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range s.routes() {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, rt) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// Who is not known here does not learn which paths exist.
		s.serve(w, r, route{role: Viewer, page: !strings.HasPrefix(r.URL.Path, "/api/"), handle: func(w http.ResponseWriter, r *http.Request, by who) {
			s.fail(w, http.StatusNotFound, "there is no "+r.Method+" "+r.URL.Path, "see "+api.PathOpenAPI)
		}})
	})
	// A page of another site must not act with the cookie of this one: the
	// cookie is SameSite=Strict, and this refuses what Origin or
	// Sec-Fetch-Site call foreign. Programs send neither and a bearer token.
	return http.NewCrossOriginProtection().Handler(mux)
}

// serve checks the role and calls the handler.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, rt route) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	if rt.role == nobody {
		rt.handle(w, r, who{})
		return
	}
	by, err := s.asks(r)
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && by.role == nobody:
		s.denied(w, r, rt.page)
	case err != nil:
		s.failure(w, r, err)
	case by.role < rt.role:
		s.fail(w, http.StatusForbidden, "this needs the role "+rt.role.String()+"; "+by.name+" has "+by.role.String(), "ask an operator of "+s.Site)
	default:
		rt.handle(w, r, by)
	}
}

// denied is the answer to an unknown asker: no data, and for a browser the
// login page.
func (s *Server) denied(w http.ResponseWriter, r *http.Request, page bool) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="smelt"`)
	if page && r.Method == http.MethodGet {
		s.login(w, http.StatusUnauthorized, r.URL.Path, "")
		return
	}
	w.WriteHeader(http.StatusUnauthorized)
}

func nodeID(r *http.Request) inventory.NodeID { return inventory.NodeID(r.PathValue("id")) }
