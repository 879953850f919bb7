// Package web draws the pages for operators and technicians: the floor, a
// node, the discovery queue, tasks. Pages are made on the server and work
// without scripts as plain links and forms; a little script refreshes them
// from the stream of events. Nothing is fetched from elsewhere.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

//go:embed pages/*.html
var pageFiles embed.FS

//go:embed assets/*
var assetFiles embed.FS

// Pages holds the parsed pages. Its methods may be called from any goroutine.
type Pages struct {
	byName map[string]*template.Template
	assets map[string]Asset
}

// An Asset is a file that pages refer to by a name that changes with its
// content, so that browsers may keep it for ever.
type Asset struct {
	Type string
	Data []byte
}

// New parses the pages.
func New() (*Pages, error) {
	p := &Pages{byName: map[string]*template.Template{}, assets: map[string]Asset{}}
	names := map[string]string{}
	for file, typ := range map[string]string{"smelt.css": "text/css; charset=utf-8", "smelt.js": "text/javascript; charset=utf-8"} {
		b, err := fs.ReadFile(assetFiles, "assets/"+file)
		if err != nil {
			return nil, fmt.Errorf("web: %w", err)
		}
		sum := sha256.Sum256(b)
		names[file] = hex.EncodeToString(sum[:6]) + "-" + file
		p.assets[names[file]] = Asset{typ, b}
	}
	asset := template.FuncMap{"asset": func(file string) string { return "/assets/" + names[file] }}
	frame, err := template.New("frame.html").Funcs(funcs).Funcs(asset).ParseFS(pageFiles, "pages/frame.html", "pages/parts.html")
	if err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	for _, name := range []string{"floor", "node", "queue", "tasks", "network", "power", "login"} {
		t, err := frame.Clone()
		if err == nil {
			t, err = t.ParseFS(pageFiles, "pages/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("web: %w", err)
		}
		p.byName[name] = t
	}
	return p, nil
}

// Asset returns a file by the name that pages use.
func (p *Pages) Asset(name string) (Asset, bool) {
	a, ok := p.assets[name]
	return a, ok
}

// Head is what every page shows.
type Head struct {
	Title   string
	Active  string // floor, queue, tasks, network, power
	Site    api.SiteView
	User    string
	Role    string
	MayWork bool // technician or operator
	MayRule bool // operator
	Now     time.Time
	Done    string       // what was just done
	Problem *api.Problem // what was just refused
}

// Waiting is how many nodes are in the discovery queue.
func (h Head) Waiting() int {
	return h.Site.Counts[inventory.Discovered.String()] + h.Site.Counts[inventory.Inspected.String()]
}

// draw renders into memory first: a page that fails half-way is never sent.
func (p *Pages) draw(w io.Writer, name string, data any) error {
	var buf bytes.Buffer
	if err := p.byName[name].ExecuteTemplate(&buf, "frame.html", data); err != nil {
		return fmt.Errorf("web: page %s: %w", name, err)
	}
	_, err := buf.WriteTo(w)
	return err
}

// A Login asks for a token.
type Login struct {
	Head
	Next  string // where to go afterwards
	Wrong bool
}

// Login draws the login page.
func (p *Pages) Login(w io.Writer, l Login) error {
	l.Title = "Log in"
	return p.draw(w, "login", l)
}

// A Candidate is a node with what its approval would do to its disks.
type Candidate struct {
	Head
	View   api.NodeView
	Wipe   []api.Target // one of these
	Spared []inventory.Disk
}

func candidate(h Head, v api.NodeView) Candidate {
	c := Candidate{Head: h, View: v}
	c.Wipe, c.Spared = api.Targets(v.Node.Hardware)
	return c
}

// Memory tells whether the node would run from memory: no disk is written.
func (c Candidate) Memory() bool { return c.View.Node.Spec.Root == inventory.RootRAM }

// MayApprove tells whether the node is where a person can approve it.
func (c Candidate) MayApprove() bool {
	n := c.View.Node
	return c.MayRule && n.Hardware != nil && n.Verdict != nil && n.Hold == nil && !n.Spec.Protect &&
		(n.State == inventory.Inspected || n.State == inventory.NeedsWork)
}

// MayWipe tells whether the node can be wiped and retired from here, which
// needs no verdict.
func (c Candidate) MayWipe() bool {
	n := c.View.Node
	return c.MayRule && len(c.Wipe) > 0 && n.Hold == nil && !n.Spec.Protect && (n.State == inventory.Inspected || n.State == inventory.NeedsWork)
}

// Against tells whether approval goes against the verdict and needs a reason.
func (c Candidate) Against() bool {
	return c.View.Node.Verdict != nil && c.View.Node.Verdict.Answer != "convert"
}

// MayReject and MayRetire tell what can become of the node from here. Rejecting
// an approved node takes the approval back.
func (c Candidate) MayReject() bool {
	return c.View.Node.State == inventory.Approved || inventory.MayMove(c.View.Node.State, inventory.Rejected) == nil
}

func (c Candidate) MayRetire() bool {
	// From wiping the end of the wipe alone leads there.
	return c.View.Node.State != inventory.Wiping && inventory.MayMove(c.View.Node.State, inventory.Retired) == nil
}

// MayInspect tells whether another inspection makes sense.
func (c Candidate) MayInspect() bool {
	switch c.View.Node.State {
	case inventory.Discovered, inventory.Inspected, inventory.NeedsWork, inventory.Retired, inventory.Rejected:
		return true
	}
	return false
}

// A Console is what an operator sees of a machine from afar.
type Console struct {
	Lines []string // the last screenful, harmless text
	Seq   uint64   // the recording's last entry that Lines holds
	Shot  bool     // its controller may take a picture of the screen
}

// A Node is the page of one node. Console is nil for who may not see it, and
// where there is none.
type Node struct {
	Candidate
	Console *Console
}

// Node draws the page of one node.
func (p *Pages) Node(w io.Writer, h Head, v api.NodeView, c *Console) error {
	h.Title = string(v.Node.ID)
	return p.draw(w, "node", Node{candidate(h, v), c})
}

// A Queue is the nodes that wait for approval.
type Queue struct {
	Head
	Items []Candidate
	More  int // not shown
}

// Queue draws the discovery queue.
func (p *Pages) Queue(w io.Writer, h Head, waiting []api.NodeView) error {
	h.Title, h.Active = "Queue", "queue"
	q := Queue{Head: h}
	for i, v := range waiting {
		if i == queueShown {
			q.More = len(waiting) - queueShown
			break
		}
		q.Items = append(q.Items, candidate(h, v))
	}
	return p.draw(w, "queue", q)
}

// Tasks is the technician's list.
type Tasks struct {
	Head
	Open   []inventory.Task
	Lately []inventory.Task // the last few that were done
	More   int
}

// Tasks draws the tasks.
func (p *Pages) Tasks(w io.Writer, h Head, all []inventory.Task) error {
	h.Title, h.Active = "Tasks", "tasks"
	t := Tasks{Head: h}
	for _, x := range all {
		switch {
		case x.Open() && len(t.Open) < tasksShown:
			t.Open = append(t.Open, x)
		case x.Open():
			t.More++
		case len(t.Lately) < 5:
			t.Lately = append(t.Lately, x)
		}
	}
	return p.draw(w, "tasks", t)
}

// What a page shows at most, to stay under 60 KB on a phone.
const (
	queueShown = 20
	tasksShown = 30
	cellsShown = 120
	seenShown  = 50
)
