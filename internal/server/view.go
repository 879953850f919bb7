package server

import (
	"context"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

// view keeps the nodes as last read, so that a page over 24,000 nodes does not
// read and decode them all for each request. The sequence number of the newest
// event says what changed.
type view struct {
	mu    sync.Mutex
	seq   uint64
	nodes []inventory.Node // by ID; never changed in place
}

// reread is how many news make reading everything cheaper.
const reread = 500

// nodes returns all nodes by ID, and a sequence number: events after it are
// news to whoever shows them.
func (s *Server) nodes(ctx context.Context) ([]inventory.Node, uint64, error) {
	v := &s.view
	v.mu.Lock()
	defer v.mu.Unlock()
	last, err := s.Store.LastSeq(ctx)
	if err != nil {
		return nil, 0, err
	}
	if last == v.seq {
		return v.nodes, last, nil
	}
	if v.seq == 0 || last < v.seq || last-v.seq > reread {
		nodes, err := s.Store.Nodes(ctx)
		if err != nil {
			return nil, 0, err
		}
		v.nodes, v.seq = nodes, last
		return nodes, last, nil
	}
	events, err := s.Store.EventsAfter(ctx, v.seq, reread)
	if err != nil {
		return nil, 0, err
	}
	nodes, seen := slices.Clone(v.nodes), map[inventory.NodeID]bool{}
	for _, e := range events {
		if seen[e.Node] || e.Node == "" {
			continue
		}
		seen[e.Node] = true
		n, err := s.Store.Node(ctx, e.Node)
		if err != nil {
			return nil, 0, err
		}
		i, ok := slices.BinarySearchFunc(nodes, n.ID, func(a inventory.Node, id inventory.NodeID) int {
			return strings.Compare(string(a.ID), string(id))
		})
		if ok {
			nodes[i] = n
		} else {
			nodes = slices.Insert(nodes, i, n)
		}
	}
	v.nodes, v.seq = nodes, last
	return nodes, last, nil
}

// nodeView puts beside a node what people need: what it waits for, since when,
// on whom, and what to try once it is stuck.
func (s *Server) nodeView(n inventory.Node, now time.Time) api.NodeView {
	waits := n.Waits()
	v := api.NodeView{APIVersion: api.Version, Kind: "Node", Node: n, WaitsFor: waits.For, WaitsOn: waits.Actor, Stuck: n.Stuck(now), Simulated: simulated(n)}
	if n.Note != "" {
		v.WaitsFor = strings.TrimPrefix(n.Note, "waits for ")
	}
	if n.Hold != nil {
		v.WaitsFor, v.WaitsOn = "the hold to be lifted: "+n.Hold.Reason, n.Hold.Owner
	}
	if v.Stuck || n.State == inventory.NeedsWork {
		v.Try = strings.ReplaceAll(waits.Try, "NODE", string(n.ID))
	}
	live := s.Conductor.Live(n.ID)
	v.LastSeen, v.Addr = live.LastSeen, live.Addr
	if live.Order != "" && !waits.Terminal() && n.State != inventory.InService {
		v.Progress = &api.Progress{Order: live.Order, Done: live.Done, Doing: live.Doing, Rate: live.Rate}
	}
	return v
}

// simulated tells whether anything shown of n comes from a card that is not there.
func simulated(n inventory.Node) bool {
	if n.Passed != nil && n.Passed.Simulated || n.Verdict != nil && n.Verdict.Simulated {
		return true
	}
	return n.Hardware != nil && slices.ContainsFunc(n.Hardware.GPUs, func(g inventory.GPU) bool { return g.Simulated })
}

// nodeViews is all nodes with their open tasks, the longest stuck first, then
// by position.
func (s *Server) nodeViews(ctx context.Context) ([]api.NodeView, []inventory.Task, uint64, error) {
	nodes, seq, err := s.nodes(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	tasks, err := s.Store.Tasks(ctx, "")
	if err != nil {
		return nil, nil, 0, err
	}
	open := map[inventory.NodeID][]inventory.Task{}
	for _, t := range tasks {
		if t.Open() {
			open[t.Node] = append(open[t.Node], t)
		}
	}
	now := s.Now()
	out := make([]api.NodeView, len(nodes))
	for i, n := range nodes {
		out[i] = s.nodeView(n, now)
		out[i].Tasks = open[n.ID]
	}
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.Stuck != b.Stuck {
			return a.Stuck
		}
		if a.Stuck {
			return a.Node.Since.Before(b.Node.Since)
		}
		return a.Node.Spec.Position < b.Node.Spec.Position
	})
	return out, tasks, seq, nil
}

// oneNode is a node with its history.
func (s *Server) oneNode(ctx context.Context, id inventory.NodeID) (api.NodeView, error) {
	n, err := s.Store.Node(ctx, id)
	if err != nil {
		return api.NodeView{}, err
	}
	now := s.Now()
	v := s.nodeView(n, now)
	if v.Tasks, err = s.Store.Tasks(ctx, id); err != nil {
		return v, err
	}
	if v.Events, err = s.Store.NodeEvents(ctx, id); err != nil {
		return v, err
	}
	v.Spent = spent(v.Events, now)
	codes, err := s.codes(ctx)
	if err != nil {
		return v, err
	}
	v.Code = codes.Of(id)
	if s.Boot.Trace != nil {
		v.Boot = s.Boot.Trace(n.MACs)
	}
	v.Keys = s.keys(id)
	if s.Console != nil {
		if st := s.consoleState(id); st.Is != "none" {
			v.Console = &st
		}
	}
	if s.Locate != nil {
		if l := s.Locate.Now(id); l != nil {
			x := locating(n, l)
			v.Locating = &x
		}
	}
	if v.Reports, err = s.reports(ctx, v); err != nil {
		return v, err
	}
	v.Wipes, err = s.certificates(ctx, n.ID)
	return v, err
}

// spent adds up the time in each state.
func spent(events []inventory.Event, now time.Time) map[string]string {
	sum := map[inventory.State]time.Duration{}
	var state inventory.State
	var since time.Time
	for _, e := range events {
		if e.Kind != inventory.KindMoved && e.Kind != inventory.KindCreated {
			continue
		}
		if state != 0 {
			sum[state] += e.At.Sub(since)
		}
		state, since = e.To, e.At
	}
	if state != 0 {
		sum[state] += now.Sub(since)
	}
	out := map[string]string{}
	for st, d := range sum {
		out[st.String()] = d.Round(time.Second).String()
	}
	return out
}

// reports lists the reports of a node, newest first. The answer of each comes
// from the events, so that no report is decoded for a list.
func (s *Server) reports(ctx context.Context, v api.NodeView) ([]api.ReportRef, error) {
	blobs, err := s.Store.Blobs(ctx, v.Node.ID, "reports/")
	if err != nil {
		return nil, err
	}
	answers := map[string]string{}
	for _, e := range v.Events {
		if e.Kind == inventory.KindReport {
			answers[e.Report] = e.Evidence["answer"]
			if e.Passed != nil {
				answers[e.Report] = "PASS"
			}
		}
	}
	var out []api.ReportRef
	for _, b := range blobs {
		id, ok := strings.CutSuffix(strings.TrimPrefix(b.Name, "reports/"), ".json")
		if !ok {
			continue
		}
		base := api.PathReports + "/" + string(v.Node.ID) + "/" + id
		out = append(out, api.ReportRef{ID: id, Answer: answers[id], At: b.At, HTML: base + ".html", JSON: base + ".json"})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].At.After(out[j].At) })
	return out, nil
}

// certificates lists the wipe certificates of a node, newest first.
func (s *Server) certificates(ctx context.Context, id inventory.NodeID) ([]api.CertificateRef, error) {
	blobs, err := s.Store.Blobs(ctx, id, certificateBlobs)
	if err != nil {
		return nil, err
	}
	var out []api.CertificateRef
	for _, b := range blobs {
		name, ok := strings.CutSuffix(strings.TrimPrefix(b.Name, certificateBlobs), ".json")
		if !ok {
			continue
		}
		base := api.PathCertificates + "/" + string(id) + "/" + name
		out = append(out, api.CertificateRef{ID: name, At: b.At, HTML: base + ".html", JSON: base + ".json"})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].At.After(out[j].At) })
	return out, nil
}

// siteView is what the head of every page shows.
func (s *Server) siteView(ctx context.Context) (api.SiteView, error) {
	nodes, seq, err := s.nodes(ctx)
	if err != nil {
		return api.SiteView{}, err
	}
	tasks, err := s.Store.Tasks(ctx, "")
	if err != nil {
		return api.SiteView{}, err
	}
	v := api.SiteView{
		APIVersion: api.Version, Kind: "Site", Name: s.Site, Lab: s.Lab, Version: s.Version,
		Counts: map[string]int{}, Stop: s.Conductor.Stopped(), Seq: seq,
	}
	for _, n := range nodes {
		v.Counts[n.State.String()]++
	}
	for _, t := range tasks {
		if t.Open() {
			v.OpenTasks++
		}
	}
	v.Alarms = alarms(s.networks())
	for _, l := range s.Conductor.Levels() {
		v.Levels = append(v.Levels, level(l))
	}
	v.Power = s.Conductor.SitePower()
	v.PowerAlarm = powerAlarm(v.Power)
	return v, nil
}
