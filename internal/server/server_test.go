package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/store"
	"smelt/inventory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a conductor that remembers what it was asked.
type fake struct {
	mu       sync.Mutex
	changed  chan struct{}
	order    convert.Order
	enrolErr error
	useErr   error
	intents  []store.Intent
	refuse   string
	pending  bool
	stopped  bool
	results  []convert.Result

	records   []string
	recordErr error
	power     inventory.SitePower
	can       convert.CanGive
}

func (f *fake) Enrol(_ context.Context, e convert.Enrolment) (convert.Session, error) {
	return convert.Session{Token: "agent-token", Agent: store.Agent{Node: "rig-01", Mode: "convert", Fence: 7}}, f.enrolErr
}
func (f *fake) Renew(_ context.Context, a store.Agent) (convert.Session, error) {
	return convert.Session{Token: "next", Agent: a}, nil
}
func (f *fake) Order(context.Context, store.Agent) (convert.Order, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.order, nil
}
func (f *fake) Changed(inventory.NodeID) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}
func (f *fake) setOrder(o convert.Order) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.order = o
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}
func (f *fake) Inspected(context.Context, store.Agent, convert.Inspection) error { return nil }
func (f *fake) Finished(_ context.Context, _ store.Agent, r convert.Result) error {
	f.results = append(f.results, r)
	return nil
}
func (f *fake) UsePermit(context.Context, store.Agent, string) error { return f.useErr }
func (f *fake) Progress(store.Agent, string, float64, string, float64) {
}
func (f *fake) Live(inventory.NodeID) convert.Live { return convert.Live{} }
func (f *fake) Submit(ctx context.Context, i store.Intent) (store.IntentResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intents = append(f.intents, i)
	if f.pending {
		return store.IntentResult{}, store.ErrNotFound
	}
	return store.IntentResult{ID: i.ID, OK: f.refuse == "", Error: f.refuse}, nil
}
func (f *fake) Stop(_ context.Context, on bool, _, _ string) error { f.stopped = on; return nil }
func (f *fake) BMCs(context.Context) ([]convert.BMC, error) {
	return []convert.BMC{{Node: "rig-01", Via: "ipmi 10.0.0.1"}}, nil
}
func (f *fake) Learned(context.Context) ([]convert.Learned, error) { return nil, nil }
func (f *fake) Record(_ context.Context, node inventory.NodeID, actor, reason string, evidence map[string]string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = append(f.records, fmt.Sprintf("%s %s: %s %v", node, actor, reason, evidence))
	return f.recordErr
}
func (f *fake) Stopped() bool                                  { return f.stopped }
func (f *fake) SitePower() inventory.SitePower                 { return f.power }
func (f *fake) HallPower() convert.HallPower                   { return convert.HallPower{SitePower: f.power} }
func (f *fake) CanGive(float64, time.Duration) convert.CanGive { return f.can }
func (f *fake) Levels() []convert.Level {
	return []convert.Level{{Circuit: inventory.Circuit{Name: "feed-a", Kind: "feed"}, Granted: 1200, Limit: 5888}}
}

// site is a server with a store, a fake conductor and a token for each role.
type site struct {
	*Server
	fake   *fake
	ui     *httptest.Server
	agent  *httptest.Server
	tokens map[Role]string
}

const canary = "CANARY-POSITION-42"

func newSite(t *testing.T) *site {
	t.Helper()
	ctx := t.Context()
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "smelt.db"))
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _ := ed25519.GenerateKey(nil)
	f := &fake{}
	s, err := New(Config{
		Conductor: f, Store: st, Log: slog.New(slog.DiscardHandler), Version: "test", Site: "hall-a",
		AgentURL: "https://10.0.0.1:8443", ImageURL: "http://10.0.0.1/images", Pin: "ab12", SiteKey: pub,
		Images: func() ([]api.Image, error) { return []api.Image{{Name: "debian-12-ai"}}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	x := &site{Server: s, fake: f, tokens: map[Role]string{}}
	for _, r := range []Role{Viewer, Technician, Operator} {
		if x.tokens[r], err = AddToken(ctx, st, "t-"+r.String(), r); err != nil {
			t.Fatal(err)
		}
	}
	hw := inventory.Hardware{
		Board: inventory.Board{Serial: "S1"},
		Disks: []inventory.Disk{{Name: "sda", DiskID: inventory.DiskID{Serial: "S3YJNX0K412", Size: 1 << 38}}, {Name: "sdb", Removable: true, DiskID: inventory.DiskID{Serial: "USB", Size: 1 << 33}}},
	}
	n := inventory.Node{}
	events := []inventory.Event{
		{Node: "rig-01", Kind: inventory.KindCreated, To: inventory.Discovered, Spec: &inventory.Spec{Name: "rig-01", Position: canary}},
		{Node: "rig-01", Kind: inventory.KindInspected, Hardware: &hw},
		{Node: "rig-01", Kind: inventory.KindMoved, To: inventory.Inspected, Reason: "the agent reported"},
	}
	for i := range events {
		e := &events[i]
		e.Version, e.At, e.Actor = uint64(i+1), time.Now().Add(time.Duration(i-60)*time.Minute), "agent"
		if n, err = n.Apply(*e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Commit(ctx, store.Change{Node: n, Events: events, Tasks: []inventory.Task{{ID: "t1", Node: "rig-01", Verb: "reseat", What: "GPU 3", Where: canary, Why: "lost", Opened: time.Now()}}}); err != nil {
		t.Fatal(err)
	}
	x.ui, x.agent = httptest.NewServer(s.UI()), httptest.NewServer(s.Agent())
	t.Cleanup(func() {
		s.Close()
		x.ui.Close()
		x.agent.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *site) ask(t *testing.T, method, target, token, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if strings.Contains(target, "/api/") {
		req.Header.Set("Content-Type", "application/json")
	} else if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer c.CloseIdleConnections()
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return resp, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// fill puts real names into the pattern of a route.
func fill(path string) string {
	return strings.NewReplacer("{$}", "", "/tasks/{id}", "/tasks/t1", "{id}", "rig-01", "{node}", "rig-01", "/{file}", "/r1.json").Replace(path)
}

// Every route for every role: who has too little gets 403, who is unknown 401,
// and neither learns anything.
func TestRoles(t *testing.T) {
	x := newSite(t)
	for _, rt := range x.routes() {
		for _, as := range []struct {
			role  Role
			token string
		}{{nobody, ""}, {nobody, "smelt_wrong"}, {nobody, strings.Repeat("x", 5000)}, {Viewer, x.tokens[Viewer]}, {Technician, x.tokens[Technician]}, {Operator, x.tokens[Operator]}} {
			resp, body := x.ask(t, rt.method, x.ui.URL+fill(rt.path), as.token, "")
			name := fmt.Sprintf("%s %s as %s", rt.method, rt.path, as.role)
			switch {
			case rt.role == nobody:
				if resp.StatusCode == http.StatusForbidden {
					t.Errorf("%s: %d", name, resp.StatusCode)
				}
			case as.role == nobody:
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s: %d, want 401", name, resp.StatusCode)
				}
				body = strings.Replace(body, `name="next" value="`+fill(rt.path)+`"`, "", 1) // what was asked for, no more
				if !rt.page && body != "" || strings.Contains(body, canary) || strings.Contains(body, "rig-01") || strings.Contains(body, "hall-a") {
					t.Errorf("%s: the body says %q", name, body)
				}
			case as.role < rt.role:
				if resp.StatusCode != http.StatusForbidden || strings.Contains(body, canary) {
					t.Errorf("%s: %d %s, want 403", name, resp.StatusCode, body)
				}
			default:
				if resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode >= 500 {
					t.Errorf("%s: %d %s", name, resp.StatusCode, body)
				}
			}
		}
	}
	if resp, body := x.ask(t, "GET", x.ui.URL+"/api/v1/secret-things", "", ""); resp.StatusCode != http.StatusUnauthorized || body != "" {
		t.Errorf("an unknown path says %d %q to a stranger", resp.StatusCode, body)
	}
}

// The document and the table hold the same routes, and every $ref exists.
func TestOpenAPI(t *testing.T) {
	x := newSite(t)
	_, body := x.ask(t, "GET", x.ui.URL+api.PathOpenAPI, x.tokens[Viewer], "")
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID, Summary string }
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	n, ids := 0, map[string]bool{}
	for _, rt := range x.routes() {
		op, ok := doc.Paths[rt.path][strings.ToLower(rt.method)]
		if ok == rt.page {
			t.Errorf("%s %s: in the document: %v", rt.method, rt.path, ok)
		}
		if rt.page {
			if strings.HasPrefix(rt.path, "/api/") {
				t.Errorf("%s is a page below /api/", rt.path)
			}
			continue
		}
		n++
		if op.OperationID != rt.id || op.Summary == "" || ids[op.OperationID] {
			t.Errorf("%s %s: id %q, summary %q", rt.method, rt.path, op.OperationID, op.Summary)
		}
		ids[op.OperationID] = true
	}
	for _, ops := range doc.Paths {
		n -= len(ops)
	}
	if n != 0 {
		t.Errorf("the document has %d operations more than the table", -n)
	}
	for _, ref := range strings.Split(body, `"$ref":"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(ref, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is not in the document", name)
		}
	}
}

func TestActions(t *testing.T) {
	x := newSite(t)
	op := x.tokens[Operator]
	post := func(path, token, body string) (*http.Response, string) {
		return x.ask(t, "POST", x.ui.URL+path, token, body)
	}
	n, err := x.Store.Node(t.Context(), "rig-01")
	if err != nil {
		t.Fatal(err)
	}
	digest := n.Hardware.Digest()
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/api/v1/nodes/rig-99/approve", `{"params":{"confirm":"rig-99"}}`, 404, "smelt node list"},
		{"/api/v1/nodes/rig-01/approve", `{}`, 422, "confirm rig-01"},
		{"/api/v1/nodes/rig-01/approve", `{"params":{"confirm":"rig-02"}}`, 422, "confirm rig-01"},
		{"/api/v1/nodes/rig-01/approve", `{"params":{"confirm":"rig-01","sudo":"yes"}}`, 422, `takes no parameter \"sudo\"`},
		{"/api/v1/nodes/rig-01/approve", `{"params":{"confirm":"rig-01","hardware":"stale"}}`, 409, "no longer what you were shown"},
		{"/api/v1/nodes/rig-01/approve", `{"id":"a1","params":{"confirm":"rig-01","hardware":"` + digest + `"}}`, 200, `"done":true`},
		{"/api/v1/nodes/rig-01/approve", `{"id":"../x","params":{"confirm":"rig-01"}}`, 422, "the id of an action"},
		{"/api/v1/nodes/rig-01/hold", `{"params":{"reason":" "}}`, 422, "needs a reason"},
		{"/api/v1/nodes/rig-01/power", `{"params":{"verb":"off"}}`, 422, "confirm rig-01"},
		{"/api/v1/nodes/rig-01/power", `{"params":{"verb":"explode"}}`, 422, "power needs verb"},
		{"/api/v1/nodes/rig-01/power", `{"params":{"verb":"on"}}`, 200, `"done":true`},
		{"/api/v1/tasks/t9/done", `{}`, 404, "smelt task list"},
		{"/api/v1/tasks/t1/done", `{}`, 200, `"done":true`},
		{"/api/v1/stop", `{"params":{"on":"true"}}`, 422, "a reason"},
		{"/api/v1/stop", `{"params":{"on":"true","reason":"smoke"}}`, 200, `"done":true`},
		{"/api/v1/nodes/rig-01/hold", `{"params"`, 400, api.PathOpenAPI},
		{"/api/v1/nodes/rig-01/hold", `{} {}`, 400, "more than one"},
		{"/api/v1/nodes/rig-01/hold", `{"params":{"reason":"` + strings.Repeat("x", maxAction) + `"}}`, 413, "at most"},
	} {
		resp, body := post(c.path, op, c.body)
		if resp.StatusCode != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %.80s: %d %s, want %d %s", c.path, c.body, resp.StatusCode, body, c.status, c.want)
		}
	}
	if len(x.fake.intents) != 3 || x.fake.intents[0].ID != "a1" || x.fake.intents[0].Actor != "operator:t-operator" || x.fake.intents[2].Params["task"] != "t1" {
		t.Errorf("the conductor got %+v", x.fake.intents)
	}
	if !x.fake.stopped {
		t.Error("the global stop is not set")
	}
	x.fake.refuse = "held by cluster: maintenance"
	resp, body := post("/api/v1/nodes/rig-01/release", x.tokens[Technician], `{}`)
	var p api.Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != 409 || p.Detail != x.fake.refuse || p.Next == "" || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("refusal: %d %s", resp.StatusCode, body)
	}
	x.fake.pending = true
	if resp, body := post("/api/v1/nodes/rig-01/release", op, `{"id":"w"}`); resp.StatusCode != 202 || !strings.Contains(body, `"done":false`) {
		t.Errorf("pending: %d %s", resp.StatusCode, body)
	}
}

// A browser: token to cookie, foreign origins refused, log out ends it.
func TestBrowser(t *testing.T) {
	x := newSite(t)
	resp, body := x.ask(t, "GET", x.ui.URL+"/nodes/rig-01", "", "")
	if resp.StatusCode != 401 || !strings.Contains(body, `name="next" value="/nodes/rig-01"`) {
		t.Errorf("a stranger gets %d %.200s", resp.StatusCode, body)
	}
	login := func(token, next string) *http.Response {
		resp, _ := x.ask(t, "POST", x.ui.URL+"/login", "", url.Values{"token": {token}, "next": {next}}.Encode())
		return resp
	}
	if resp := login("smelt_wrong", "/"); resp.StatusCode != 401 || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("a wrong token gets %d", resp.StatusCode)
	}
	for next, want := range map[string]string{"/tasks": "/tasks", "//evil.example/": "/", "https://evil.example/": "/", `/\evil`: "/", "/login": "/"} {
		if resp := login(x.tokens[Technician], next); resp.StatusCode != 303 || resp.Header.Get("Location") != want {
			t.Errorf("next %s leads to %d %s", next, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	resp = login(x.tokens[Technician], "/")
	c := resp.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || strings.Contains(c.Value, x.tokens[Technician]) {
		t.Errorf("cookie %+v", c)
	}
	send := func(method, path, body, origin string) int {
		req, _ := http.NewRequest(method, x.ui.URL+path, strings.NewReader(body))
		req.AddCookie(c)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	if got := send("GET", "/tasks", "", ""); got != 200 {
		t.Errorf("tasks: %d", got)
	}
	if got := send("POST", "/tasks/t1/done", "id=f1", "http://evil.example"); got != 403 {
		t.Errorf("a foreign page may act: %d", got)
	}
	if got := send("POST", "/tasks/t1/done", "id=f1", x.ui.URL); got != 303 {
		t.Errorf("our own page may not act: %d", got)
	}
	if len(x.fake.intents) != 1 || x.fake.intents[0].ID != "f1" {
		t.Errorf("intents %+v", x.fake.intents)
	}
	if got := send("POST", "/nodes/rig-01/approve", "confirm=rig-01", x.ui.URL); got != 403 {
		t.Errorf("a technician approves: %d", got)
	}
	if got := send("POST", "/logout", "", x.ui.URL); got != 303 {
		t.Errorf("logout: %d", got)
	}
	if got := send("GET", "/tasks", "", ""); got != 401 {
		t.Errorf("after logout: %d", got)
	}
}

// Pages escape what machines say.
func TestHostileWords(t *testing.T) {
	x := newSite(t)
	evil := `<script>alert(1)</script>"onmouseover="x`
	hw := inventory.Hardware{Board: inventory.Board{Vendor: evil}, GPUs: []inventory.GPU{{Model: evil}}, Disks: []inventory.Disk{{Name: evil, Model: evil, Signatures: []string{evil}}}}
	n, _ := x.Store.Node(t.Context(), "rig-01")
	e := inventory.Event{Node: "rig-01", Version: n.Version + 1, At: time.Now(), Actor: "agent", Kind: inventory.KindInspected, Hardware: &hw, Salvage: &inventory.Salvage{MinerOS: evil, Files: map[string]string{evil: evil}}}
	n, err := n.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Store.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"/", "/nodes/rig-01", "/queue", "/tasks", "/?find=" + url.QueryEscape(evil), "/?did=" + url.QueryEscape(evil), "/login?next=" + url.QueryEscape(evil)} {
		resp, body := x.ask(t, "GET", x.ui.URL+page, x.tokens[Operator], "")
		if resp.StatusCode != 200 || strings.Contains(body, "<script>alert") || strings.Contains(body, `"onmouseover="x`) {
			t.Errorf("%s: %d holds it unescaped", page, resp.StatusCode)
		}
		if len(body) > 60<<10 {
			t.Errorf("%s has %d bytes", page, len(body))
		}
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("%s: policy %q", page, csp)
		}
	}
}

func TestEvents(t *testing.T) {
	x := newSite(t)
	c, err := api.NewClient(x.ui.URL, x.tokens[Viewer], nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// Resume after the first event: exactly the two others come.
	errEnough := errors.New("enough")
	var seqs []uint64
	var prog *api.NodeProgress
	err = c.Events(ctx, 1, func(n api.Notice) error {
		switch {
		case n.Event != nil:
			seqs = append(seqs, n.Event.Seq)
			if n.Event.Seq == 3 {
				for _, d := range []float64{0.1, 0.2, 0.3} { // coalesced: only the last is sent
					x.progress.put(api.NodeProgress{Node: "rig-01", Progress: api.Progress{Done: d}})
				}
			}
		case n.Progress != nil:
			prog = n.Progress
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || fmt.Sprint(seqs) != "[2 3]" || prog.Done != 0.3 {
		t.Errorf("got %v, events %v, progress %+v", err, seqs, prog)
	}
	wrong, _ := api.NewClient(x.ui.URL, "smelt_wrong", nil)
	if err := wrong.Events(ctx, 0, func(api.Notice) error { return nil }); !errors.Is(err, api.ErrDenied) {
		t.Errorf("a wrong token: %v", err)
	}
}

func TestClient(t *testing.T) {
	x := newSite(t)
	c, err := api.NewClient(x.ui.URL, x.tokens[Operator], nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	list, err := c.Nodes(ctx)
	if err != nil || len(list.Items) != 1 || list.Items[0].WaitsOn != "operator" || list.Seq != 3 || len(list.Items[0].Tasks) != 1 {
		t.Fatalf("nodes: %+v, %v", list, err)
	}
	v, err := c.Node(ctx, "rig-01")
	if err != nil || len(v.Events) != 3 || v.Spent["discovered"] == "" {
		t.Errorf("node: %+v, %v", v, err)
	}
	if _, err := c.Node(ctx, "rig-99"); !errors.Is(err, api.ErrNotFound) || !strings.Contains(err.Error(), "smelt node list") {
		t.Errorf("unknown node: %v", err)
	}
	site, err := c.Site(ctx)
	if err != nil || site.Counts["inspected"] != 1 || site.OpenTasks != 1 || site.Levels[0].Granted != 1200 {
		t.Errorf("site: %+v, %v", site, err)
	}
	if r, err := c.Do(ctx, "rig-01", "hold", map[string]string{"reason": "mine"}); err != nil || !r.Done {
		t.Errorf("hold: %+v, %v", r, err)
	}
	x.fake.refuse = "no"
	if _, err := c.TaskDone(ctx, "t1", nil); !errors.Is(err, api.ErrConflict) {
		t.Errorf("refused: %v", err)
	}
	x.fake.pending = true
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := c.Do(short, "rig-01", "release", nil); !errors.Is(err, api.ErrPending) {
		t.Errorf("pending: %v", err)
	}
	ids := map[string]bool{}
	for _, i := range x.fake.intents[2:] {
		ids[i.ID] = true
	}
	if len(ids) != 1 {
		t.Errorf("one action was asked for under %d ids", len(ids))
	}
	if im, err := c.Images(ctx); err != nil || im.Items[0].Name != "debian-12-ai" {
		t.Errorf("images: %+v, %v", im, err)
	}
	if _, err := c.Report(ctx, "rig-01", "none"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("report: %v", err)
	}
	if _, err := api.NewClient("http://10.0.0.1:8480", "t", nil); err == nil {
		t.Error("a token may cross the network in clear")
	}
}

func TestMetrics(t *testing.T) {
	x := newSite(t)
	resp, body := x.ask(t, "GET", x.ui.URL+"/metrics", x.tokens[Viewer], "")
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for _, want := range []string{
		`smelt_nodes{state="inspected"} 1`, `smelt_nodes{state="in-service"} 0`, `smelt_tasks_open{verb="reseat"} 1`,
		`smelt_power_granted_watts{circuit="feed-a",kind="feed"} 1200`, "smelt_stop 0", "smelt_events_total 3", `smelt_build_info{site="hall-a",version="test"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// The list follows the store, whether one node changed or many.
func TestViewFollows(t *testing.T) {
	x := newSite(t)
	add := func(name string) {
		e := inventory.Event{Node: inventory.NodeID(name), Version: 1, At: time.Now(), Actor: "system", Kind: inventory.KindCreated, To: inventory.Expected, Spec: &inventory.Spec{Name: inventory.NodeID(name)}}
		n, err := inventory.Node{}.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Store.Commit(t.Context(), store.Change{Node: n, Events: []inventory.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		nodes, _, err := x.nodes(t.Context())
		var got []string
		for _, n := range nodes {
			got = append(got, string(n.ID))
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("nodes are %v, %v; want %s", got, err, want)
		}
	}
	check("rig-01")
	add("aaa")
	add("zzz")
	check("aaa rig-01 zzz")
	before, _, _ := x.nodes(t.Context())
	add("mmm")
	check("aaa mmm rig-01 zzz")
	if len(before) != 3 {
		t.Error("a list that was handed out changed")
	}
}

func TestFirstToken(t *testing.T) {
	ctx := t.Context()
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	path := filepath.Join(t.TempDir(), "operator.token")
	token, err := FirstToken(ctx, st, path)
	if err != nil || token == "" {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	fi, _ := os.Stat(path)
	if strings.TrimSpace(string(b)) != token || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %o", fi.Mode().Perm())
	}
	if tk, err := st.TokenByHash(ctx, hash(token)); err != nil || tk.Role != "operator" {
		t.Errorf("stored %+v, %v", tk, err)
	}
	if again, err := FirstToken(ctx, st, path); err != nil || again != "" {
		t.Errorf("the second time: %q, %v", again, err)
	}

	// Killed after the file and before the store: the next start takes the file's.
	st2, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st2.Close()
	if again, err := FirstToken(ctx, st2, path); err != nil || again != token {
		t.Errorf("after a crash: %q, %v", again, err)
	}
	// A file that others could read, or that is no token, is not believed.
	st3, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st3.Close()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if again, err := FirstToken(ctx, st3, path); err == nil {
		t.Errorf("a public token file gave %q", again)
	}
}

func TestAgent(t *testing.T) {
	x := newSite(t)
	ctx := t.Context()
	for _, p := range []string{"GET " + api.PathOrder, "POST " + api.PathInventory, "POST " + api.PathProgress, "POST " + api.PathResult, "POST " + api.PathPermit, "GET " + api.PathChunks, "PUT " + api.PathChunks, "POST " + api.PathRenew, "GET /agent/v1/other", "GET /"} {
		method, path, _ := strings.Cut(p, " ")
		for _, token := range []string{"", "wrong", x.tokens[Operator]} {
			if resp, body := x.ask(t, method, x.agent.URL+path, token, "{}"); resp.StatusCode != 401 || body != "" {
				t.Errorf("%s without a session: %d %q", p, resp.StatusCode, body)
			}
		}
	}
	key := bytes.Repeat([]byte{1}, 32)
	enrol := func(e api.Enrol) (int, string) {
		b, _ := json.Marshal(e)
		resp, body := x.ask(t, "POST", x.agent.URL+api.PathEnrol, "", string(b))
		return resp.StatusCode, body
	}
	if st, body := enrol(api.Enrol{Nonce: "n", Key: key}); st != 200 || !strings.Contains(body, `"session":"agent-token"`) || !strings.Contains(body, `"fence":7`) {
		t.Errorf("enrol: %d %s", st, body)
	}
	if st, _ := enrol(api.Enrol{Nonce: "n", Key: key[:5]}); st != 400 {
		t.Errorf("short key: %d", st)
	}
	x.fake.enrolErr = fmt.Errorf("%w: chassis serial contradicts ABC123", convert.ErrRefused)
	if st, body := enrol(api.Enrol{Nonce: "n", Key: key}); st != 401 || body != "" {
		t.Errorf("a refused enrolment says %d %q", st, body)
	}
	x.fake.enrolErr = errors.New("disk full")
	if st, body := enrol(api.Enrol{Nonce: "n", Key: key}); st != 503 || body != "" {
		t.Errorf("an enrolment that failed here says %d %q: the agent must ask again", st, body)
	}
	if err := x.Store.PutAgent(ctx, store.Agent{Session: hash("tok"), Node: "rig-01", Mode: "convert", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	plan := inventory.Plan{Run: "run1", Image: "d1ge57", Wipe: "discard", Disks: []inventory.DiskID{{Serial: "S3YJNX0K412", Size: 5}}, Target: inventory.DiskID{Serial: "S3YJNX0K412", Size: 5}, Allow: []string{"zfs_member"}}
	x.fake.setOrder(convert.Order{ID: "o1", Kind: "wipe", Fence: 7, Plan: &plan})
	if resp, body := x.ask(t, "GET", x.agent.URL+api.PathOrder, "tok", ""); resp.StatusCode != 200 || !strings.Contains(body, `"wipe":{"level":"discard","disks":[{"serial":"S3YJNX0K412","size":5}],"allow":["zfs_member"]}`) || strings.Contains(body, `"image":`) {
		t.Errorf("wipe order: %s", body)
	}
	if resp, _ := x.ask(t, "PUT", x.agent.URL+api.PathChunks, "tok", "x"); resp.StatusCode != 409 {
		t.Errorf("chunk map outside of imaging: %d", resp.StatusCode)
	}
	// The long poll answers when the order changes.
	got := make(chan string, 1)
	go func() {
		_, body := x.ask(t, "GET", x.agent.URL+api.PathOrder+"?after=o1", "tok", "")
		got <- body
	}()
	for waiting := false; !waiting; { // until the poll has asked for the channel
		x.fake.mu.Lock()
		waiting = x.fake.changed != nil
		x.fake.mu.Unlock()
	}
	x.fake.setOrder(convert.Order{ID: "o2", Kind: "image", Fence: 7, Plan: &plan, Handoff: &convert.Handoff{Session: "sess", Fence: 8}})
	body := <-got
	var o api.Order
	if err := json.Unmarshal([]byte(body), &o); err != nil || o.ID != "o2" || o.Image == nil {
		t.Fatalf("long poll: %s", body)
	}
	if h := o.Image.Handoff; h.Server != "https://10.0.0.1:8443" || h.Pin != "ab12" || h.Node != "rig-01" || h.Image != "d1ge57" || h.Fence != 8 || len(h.SiteKey) != 32 || o.Image.Base != "http://10.0.0.1/images" {
		t.Errorf("handoff %+v", h)
	}
	if _, body := x.ask(t, "GET", x.agent.URL+api.PathChunks, "tok", ""); body != "" {
		t.Errorf("a first chunk map has %q", body)
	}
	if resp, _ := x.ask(t, "PUT", x.agent.URL+api.PathChunks, "tok", "\x01\x02"); resp.StatusCode != 204 {
		t.Errorf("put chunks: %d", resp.StatusCode)
	}
	if _, body := x.ask(t, "GET", x.agent.URL+api.PathChunks, "tok", ""); body != "\x01\x02" {
		t.Errorf("chunks: %q", body)
	}
	for body, want := range map[string]int{`{"done":0.5}`: 204, `{"done":2}`: 422, `{"done":-1}`: 422, `{"doing":"` + strings.Repeat("x", 8000) + `"}`: 413, `nonsense`: 400} {
		if resp, _ := x.ask(t, "POST", x.agent.URL+api.PathProgress, "tok", body); resp.StatusCode != want {
			t.Errorf("progress %.40s: %d, want %d", body, resp.StatusCode, want)
		}
	}
	if resp, _ := x.ask(t, "POST", x.agent.URL+api.PathResult, "tok", `{"order":"o2","ok":true,"wiped":[{"disk":{"serial":"S3YJNX0K412","size":5},"level":"discard","took":1000000000}]}`); resp.StatusCode != 204 || x.fake.results[0].Evidence["wiped disk with serial S3YJNX0K412"] != "discard in 1s" {
		t.Errorf("result: %d %+v", resp.StatusCode, x.fake.results)
	}
	if resp, _ := x.ask(t, "POST", x.agent.URL+api.PathPermit, "tok", `{"id":"p1"}`); resp.StatusCode != 200 {
		t.Errorf("permit: %d", resp.StatusCode)
	}
	x.fake.useErr = store.ErrUsed
	if resp, _ := x.ask(t, "POST", x.agent.URL+api.PathPermit, "tok", `{"id":"p1"}`); resp.StatusCode != 409 {
		t.Errorf("permit used twice: %d", resp.StatusCode)
	}
}

// The code on a machine's screen leads to its page, in either case, and in the
// CLI; one that is nobody's leads nowhere.
func TestCode(t *testing.T) {
	x := newSite(t)
	_, body := x.ask(t, "GET", x.ui.URL+api.PathNodes+"/rig-01", x.tokens[Viewer], "")
	var v api.NodeView
	if err := json.Unmarshal([]byte(body), &v); err != nil || len(v.Code) != 4 {
		t.Fatalf("code %q, %v", v.Code, err)
	}
	for _, path := range []string{"/n/" + v.Code, "/N/" + v.Code, "/n/" + strings.ToLower(v.Code)} {
		if resp, _ := x.ask(t, "GET", x.ui.URL+path, x.tokens[Viewer], ""); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/nodes/rig-01" {
			t.Errorf("%s: %d to %q", path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	if resp, body := x.ask(t, "GET", x.ui.URL+api.PathNodes+"/"+strings.ToLower(v.Code), x.tokens[Viewer], ""); resp.StatusCode != 200 || !strings.Contains(body, `"id":"rig-01"`) {
		t.Errorf("the API by code: %d", resp.StatusCode)
	}
	if resp, _ := x.ask(t, "GET", x.ui.URL+"/N/ZZZZ", x.tokens[Viewer], ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("nobody's code: %d", resp.StatusCode)
	}
	resp, body := x.ask(t, "GET", x.ui.URL+"/N/"+v.Code, "", "")
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, `name="next" value="/N/`+v.Code+`"`) {
		t.Errorf("a stranger's phone: %d, and no way back after the login", resp.StatusCode)
	}
}

// A certificate is a document of a node like its reports.
func TestCertificates(t *testing.T) {
	x := newSite(t)
	for _, b := range []store.Blob{
		{Name: "certificates/c1.json", Data: []byte(`{"signed":1}`)},
		{Name: "certificates/c1.html", Data: []byte("<p>purge")},
		{Name: "reports/c2.json", Data: []byte("{}")},
	} {
		b.Node, b.At = "rig-01", time.Now()
		if err := x.Store.PutBlob(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	at := x.ui.URL + api.PathCertificates + "/rig-01"
	resp, body := x.ask(t, "GET", at, x.tokens[Viewer], "")
	if resp.StatusCode != 200 || !strings.Contains(body, `"id":"c1"`) || strings.Contains(body, "c2") || !strings.Contains(body, `"html":"/api/v1/certificates/rig-01/c1.html"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := x.ask(t, "GET", at+"/c1.json", x.tokens[Viewer], ""); resp.StatusCode != 200 || body != `{"signed":1}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, body = x.ask(t, "GET", at+"/c1.html", x.tokens[Viewer], "")
	if resp.StatusCode != 200 || body != "<p>purge" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("%d %s %v", resp.StatusCode, body, resp.Header)
	}
	for _, name := range []string{"/c2.json", "/nothing.json", "/c1.txt", "/..%2freports%2fc2.json"} {
		if resp, _ := x.ask(t, "GET", at+name, x.tokens[Viewer], ""); resp.StatusCode != 404 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	if resp, _ := x.ask(t, "GET", at+"/c1.json", "", ""); resp.StatusCode != 401 {
		t.Errorf("a stranger: %d", resp.StatusCode)
	}
	if _, body := x.ask(t, "GET", x.ui.URL+"/nodes/rig-01", x.tokens[Viewer], ""); !strings.Contains(body, "/api/v1/certificates/rig-01/c1.html") {
		t.Error("the node's page does not link it")
	}
}
