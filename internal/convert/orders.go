package convert

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/join"
	"smelt/internal/store"
	"smelt/inventory"
)

// Kinds of Order.
const (
	orderWait    = "wait"
	orderInspect = "inspect"
	orderWipe    = "wipe"
	orderImage   = "image"
	orderReboot  = "reboot"
	orderOff     = "off"
	orderBurnin  = "burnin"
	orderJoin    = "join"
)

const (
	permitLife  = inventory.MaxPermit
	permitSpare = 2 * time.Minute // a permit with less left is not handed out
)

// Order returns the current order for an agent. It is computed from the stored
// state, so that asking twice gives the same order.
func (c *Conductor) Order(ctx context.Context, a store.Agent) (Order, error) {
	if err := c.serving(); err != nil {
		return Order{}, err
	}
	unlock := c.lock(a.Node)
	defer unlock()
	n, err := c.Store.Node(ctx, a.Node)
	if err != nil {
		return Order{}, err
	}
	c.seen(a.Node, func(l *Live) {
		if a.Fence == n.Fence {
			l.Mode = mode(a)
		}
		if mode(a) == modeInstalled {
			l.disk = l.LastSeen
		}
	})
	t := c.turn(ctx, n)
	o, err := t.order(a)
	if err != nil {
		return Order{}, err
	}
	if mode(a) == modeInstalled {
		o.Load = t.load()
	}
	if t.dirty() {
		if err := t.commit(); err != nil {
			return Order{}, err
		}
	}
	return o, nil
}

// orderID names the order that belongs to one entry into a state.
func orderID(n inventory.Node) string {
	run := "node"
	if n.Plan != nil {
		run = n.Plan.Run
	}
	return run + "/" + n.State.String() + "/" + stamp(n.Since)
}

func (t *turn) order(a store.Agent) (Order, error) {
	n := t.n
	o := Order{ID: orderID(n), Fence: n.Fence}
	wait := func(why string) (Order, error) {
		o.Kind, o.ID, o.Why = orderWait, o.ID+"/wait", why
		return o, nil
	}
	if a.Fence != n.Fence {
		return wait("a later boot of this machine is responsible now")
	}
	if order, ok := t.toldOrder(o); ok {
		return order, nil
	}
	if mode(a) == modeRescue {
		return t.rescueOrder(o)
	}
	if reads := n.State == inventory.Discovered || n.State == inventory.Inspected; n.Hold != nil && acting(n.State) && !reads {
		return wait("held by " + n.Hold.Owner)
	}
	switch mode(a) {
	case modeInspect:
		return t.inspectOrder(o, wait)
	case modeConvert:
		switch n.State {
		case inventory.Wiping, inventory.Imaging:
			return t.writeOrder(a, o, wait)
		case inventory.Starting, inventory.Approved, inventory.Discovered, inventory.Inspected:
			return t.rebootOrder(o, wait)
		}
	case modeRAM:
		return t.ramOrder(o, wait)
	case modeInstalled:
		return t.installedOrder(o, wait)
	}
	return wait(n.State.String())
}

func (t *turn) inspectOrder(o Order, wait func(string) (Order, error)) (Order, error) {
	if t.restartsFor() {
		o.ID = "once/" + stamp(t.n.Once.Asked) + "/reboot"
		o.Kind, o.Why = orderReboot, "for "+t.n.Once.Boot
		return o, nil
	}
	switch t.n.State {
	case inventory.Discovered:
		o.Kind = orderInspect
		return o, nil
	case inventory.Inspected, inventory.NeedsWork:
		h, err := t.here()
		if err != nil {
			return Order{}, err
		}
		if m := h.mark(markReinspect); m != nil && inspectedAfter(h, m) == nil {
			o.ID += fmt.Sprintf("/%d", m.Version)
			o.Kind = orderInspect
			return o, nil
		}
	case inventory.Approved:
		h, err := t.here()
		if err != nil {
			return Order{}, err
		}
		if h.mark(markRestarted) != nil {
			return t.missedInstaller(o, wait)
		}
	case inventory.Wiping, inventory.Imaging:
		return t.missedInstaller(o, wait)
	}
	return wait(t.n.State.String())
}

// missedInstaller is for an agent that may only inspect, on a node whose
// conversion goes on: it started while the node was held or the stop was set.
// The next start gets the installer.
func (t *turn) missedInstaller(o Order, wait func(string) (Order, error)) (Order, error) {
	if err := t.n.Convertible(); err != nil {
		return wait(err.Error())
	}
	if on, err := t.stopSet(t.ctx); err != nil {
		return Order{}, err
	} else if on {
		return wait("the global stop is set")
	}
	o.ID += "/reboot"
	o.Kind = orderReboot
	return o, nil
}

// rebootOrder tells the agent to restart the machine where nothing else can.
func (t *turn) rebootOrder(o Order, wait func(string) (Order, error)) (Order, error) {
	h, err := t.here()
	if err != nil {
		return Order{}, err
	}
	if t.n.State == inventory.Starting && h.kexecs() && h.mark(markKexecFailed) == nil {
		o.ID, o.Kind, o.Plan = kexecID(t.n), orderKexec, t.n.Plan
		return o, nil
	}
	if m := h.mark(markRestarted); m != nil && m.Evidence["via"] == "agent" {
		o.Kind = orderReboot
		return o, nil
	}
	return wait("waits to be restarted")
}

// writeOrder is the order to destroy: every guard of rule 2 that the server
// knows is asked again, and the agent gets a permit for its own key.
func (t *turn) writeOrder(a store.Agent, o Order, wait func(string) (Order, error)) (Order, error) {
	n := t.n
	if err := n.Convertible(); err != nil {
		return wait(err.Error())
	}
	if on, err := t.stopSet(t.ctx); err != nil {
		return Order{}, err
	} else if on {
		return wait("the global stop is set")
	}
	o.Kind = orderWipe
	if n.State == inventory.Imaging {
		o.Kind = orderImage
	}
	o.Plan = n.Plan
	p, err := t.permit(a, o.Kind)
	if err != nil {
		return Order{}, err
	}
	signed, err := p.Sign(t.SiteKey)
	if err != nil {
		return Order{}, err
	}
	o.Permit = &signed
	if o.Kind == orderImage {
		if o.Handoff, err = t.handoff(t.ctx, n); err != nil {
			return Order{}, err
		}
	}
	return o, nil
}

// permit returns the node's one open permit if it fits this agent and step, or
// issues a new one. An open permit for another agent is dead already: its
// fence is lower and UsePermit refuses it.
func (t *turn) permit(a store.Agent, action string) (inventory.Permit, error) {
	n := t.n
	list, err := t.Store.Permits(t.ctx, n.ID)
	if err != nil {
		return inventory.Permit{}, err
	}
	for _, p := range list {
		if p.Used.IsZero() && p.Agent == a.Fingerprint && p.Action == action && p.Plan == n.Plan.Digest &&
			p.Fence == n.Fence && t.at.Before(p.NotAfter.Add(-permitSpare)) {
			return p.Permit, nil
		}
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails
	p := inventory.Permit{
		ID: hex.EncodeToString(raw), Node: n.ID, Agent: a.Fingerprint, Action: action, Disks: n.Plan.Disks,
		Plan: n.Plan.Digest, Fence: n.Fence, Issued: t.at, NotAfter: t.at.Add(permitLife),
	}
	if action == orderImage {
		p.Disks, p.Image = []inventory.DiskID{n.Plan.Target}, n.Plan.Image
	}
	t.change.Permit = &p
	t.add(inventory.Event{Kind: inventory.KindStep, Actor: system, Reason: "permit issued: " + action,
		Evidence: map[string]string{"permit": p.ID, "agent": a.Fingerprint}})
	return p, t.err
}

// UsePermit is asked by the agent right before the first destructive byte. It
// fails when the permit was used, the fence moved, the node is held or the
// global stop is set.
func (c *Conductor) UsePermit(ctx context.Context, a store.Agent, id string) error {
	if err := c.serving(); err != nil {
		return err
	}
	unlock := c.lock(a.Node)
	defer unlock()
	n, err := c.Store.Node(ctx, a.Node)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("permit for node %s: %w: %s", a.Node, ErrRefused, fmt.Sprintf(format, args...))
	}
	list, err := c.Store.Permits(ctx, a.Node)
	if err != nil {
		return err
	}
	var p *store.PermitUse
	for i := range list {
		if list[i].ID == id {
			p = &list[i]
		}
	}
	if p == nil {
		return refuse("no such permit was issued for it")
	}
	if err := n.Convertible(); err != nil {
		return refuse("%v", err)
	}
	on, err := c.stopSet(ctx)
	if err != nil {
		return err
	}
	switch {
	case on:
		return refuse("the global stop is set")
	case mode(a) != modeConvert || p.Agent != a.Fingerprint:
		return refuse("it was issued to another agent")
	case a.Fence != n.Fence || p.Fence != n.Fence:
		return refuse("a later boot of this machine is responsible now")
	case p.Plan != n.Plan.Digest:
		return refuse("it is for another plan")
	case p.Action == orderWipe && n.State != inventory.Wiping, p.Action == orderImage && n.State != inventory.Imaging:
		return refuse("it is to %s, and the node is %s", p.Action, n.State)
	}
	c.boundary(n.ID, "before use of permit: "+p.Action)
	if _, err := c.Store.UsePermit(ctx, id, c.Now()); err != nil {
		return err
	}
	c.boundary(n.ID, "after use of permit: "+p.Action)
	// The ledger of permits is the proof; the event puts it into the node's story.
	t := c.turn(ctx, n)
	t.add(inventory.Event{Kind: inventory.KindStep, Actor: "agent", Reason: "permit used: " + p.Action,
		Evidence: map[string]string{"permit": id, "agent": a.Fingerprint}})
	return t.commit()
}

func (t *turn) installedOrder(o Order, wait func(string) (Order, error)) (Order, error) {
	n := t.n
	if again, err := t.rejoinOrder(&o); again || err != nil {
		return o, err
	}
	switch n.State {
	case inventory.Starting:
		o.Kind = orderInspect
		return o, nil
	case inventory.BurningIn, inventory.ReVerifying:
		if n.Hardware == nil {
			return wait("no inspection of it is stored")
		}
		h, err := t.here()
		if err != nil {
			return Order{}, err
		}
		if n.State == inventory.BurningIn && h.mark(markPassed) != nil {
			if m := h.mark(markRestarted); m != nil && m.Evidence["via"] == "agent" {
				o.ID += "/cold"
				o.Kind, o.Why = orderReboot, "to start from its disk through the firmware"
				return o, nil
			}
			return wait("it is restarted from its own disk")
		}
		if n.State == inventory.ReVerifying && (t.Join != nil && h.mark(markPrepared) == nil || h.mark(markPassed) != nil) {
			return wait("the cluster is being told")
		}
		p, ok := t.profile()
		if !ok {
			return wait("there is no burn-in profile " + p.Name)
		}
		o.Kind, o.Report, o.Profile, o.Subject = orderBurnin, reportID(n), &p, t.subject()
		return o, nil
	case inventory.Joining:
		h, err := t.here()
		if err != nil {
			return Order{}, err
		}
		if t.Join == nil || h.mark(markPrepared) == nil || h.daemon() {
			return wait("the cluster is being told")
		}
		if why := t.unproven(h); why != "" {
			return wait(why)
		}
		m, err := t.member()
		if err != nil {
			return Order{}, err
		}
		g, err := t.Join.Grant(t.ctx, m)
		if err != nil {
			return Order{}, err
		}
		o.Kind, o.Join = orderJoin, &g
		return o, nil
	}
	return wait(n.State.String())
}

// subject is the node as the checks need to know it.
func (t *turn) subject() *burnin.Subject {
	class := t.Site.Classes[t.n.Spec.Class]
	s := &burnin.Subject{
		Node: t.n.ID, Hardware: *t.n.Hardware, Server: t.Site.Server, Scratch: "/var/lib/smelt/scratch",
		Class: burnin.ClassLimits{MinLinkWidth: class.MinLinkWidth}, Installed: t.installed(),
	}
	if stand := t.Site.StandsFor[t.n.ID]; t.Site.Lab && len(stand) > 0 {
		s.Sim = &burnin.Simulation{}
		for _, g := range stand {
			s.Sim.GPUs = append(s.Sim.GPUs, burnin.SimGPU{PCI: g.PCI, Model: g.Model, UUID: g.UUID, VRAM: g.VRAM, Fault: g.Fault})
		}
	}
	return s
}

// installed is what the image of the node promises. An image that the store
// has no more promises nothing, and what is asked of every system remains.
func (t *turn) installed() *burnin.Installed {
	out := &burnin.Installed{MayFail: t.Site.Classes[t.n.Spec.Class].MayFail}
	d, err := images.ParseDigest(t.n.Image)
	if err != nil {
		return out
	}
	m, err := t.Images.Manifest(d)
	if err != nil {
		t.Log.Warn("what its image promises is not known", "node", t.n.ID, "err", err)
		return out
	}
	out.Kernel = m.Kernel
	if m.Driver != nil {
		out.Driver = m.Driver.Version
	}
	return out
}

// member is the node as the cluster needs it. Simulated cards are not offered:
// no job could use them.
func (t *turn) member() (join.Member, error) {
	h, err := t.all()
	if err != nil {
		return join.Member{}, err
	}
	m := join.Member{Node: t.n.ID, Addr: h.evidence("addr"), GPUs: map[string]int{}}
	if hw := t.n.Hardware; hw != nil {
		m.CPUs, m.MemoryMB = hw.CPU.Threads, hw.Memory.Total>>20
		for _, g := range hw.GPUs {
			if !g.Simulated && g.Model != "" {
				m.GPUs[g.Model]++
			}
		}
	}
	return m, nil
}

// reported is the data of a result observation. The report itself, which may
// be large, is beside it as a blob.
type reported struct {
	Result
	Fence  uint64 `json:"fence"`
	Mode   string `json:"mode"`
	Report string `json:"reportBlob,omitempty"`
}

// found is the data of an inspection observation.
type found struct {
	Inspection
	Fence uint64 `json:"fence"`
	Mode  string `json:"mode"`
}

// What an agent may add to the story of its node, which is kept for ever and
// shown to people.
const (
	maxWords    = 4 << 10 // bytes of one text
	maxKey      = 200
	maxEvidence = 32 // entries
	maxWiped    = 64 // disks
)

// bounded is r with no more words than an event should carry.
func (r Result) bounded() Result {
	r.Error, r.Cause = cutText(r.Error, maxWords), cutText(r.Cause, maxKey)
	keys := slices.Sorted(maps.Keys(r.Evidence))
	evidence := r.Evidence
	r.Evidence = nil
	for _, k := range keys[:min(len(keys), maxEvidence)] {
		if k == "mark" || k == "start" {
			continue // words of the conductor: no agent says how far its node is
		}
		if r.Evidence == nil {
			r.Evidence = map[string]string{}
		}
		r.Evidence[cutText(k, maxKey)] = cutText(evidence[k], maxWords)
	}
	wiped := r.Wiped
	r.Wiped = nil
	for _, w := range wiped[:min(len(wiped), maxWiped)] {
		w.Model, w.Bus, w.Level, w.NIST, w.Method = cutText(w.Model, maxKey), cutText(w.Bus, maxKey), cutText(w.Level, maxKey), cutText(w.NIST, maxKey), cutText(w.Method, maxKey)
		notes := w.Notes
		w.Notes = nil
		for _, n := range notes[:min(len(notes), maxEvidence)] {
			w.Notes = append(w.Notes, cutText(n, maxWords))
		}
		r.Wiped = append(r.Wiped, w)
	}
	return r
}

// cutText is s as valid UTF-8 of at most n bytes.
func cutText(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}

// Inspected stores what an agent found; the conductor acts on it.
func (c *Conductor) Inspected(ctx context.Context, a store.Agent, i Inspection) error {
	c.seen(a.Node, func(l *Live) {
		if i.Addr != "" {
			l.Addr = i.Addr
		}
	})
	data, err := json.Marshal(found{Inspection: i, Fence: a.Fence, Mode: mode(a)})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return c.Store.Observe(ctx, store.Observation{
		Node: a.Node, Kind: sawInspection, Key: a.Session[:min(16, len(a.Session))] + " " + hex.EncodeToString(sum[:8]),
		Data: data, At: c.Now().UTC(),
	})
}

// Finished stores the result of an order; repeating it changes nothing.
func (c *Conductor) Finished(ctx context.Context, a store.Agent, r Result) error {
	c.seen(a.Node, func(l *Live) { l.Order, l.Done, l.Doing, l.Rate, l.finished = "", 0, "", 0, r.Order })
	if c.obeyed(a.Node, r) {
		return nil // it was told by a controller, not by a state
	}
	rep := reported{Result: r.bounded(), Fence: a.Fence, Mode: mode(a)}
	if r.Report != nil {
		rep.Result.Report = nil
		var b bytes.Buffer
		if err := burnin.WriteJSON(&b, *r.Report); err != nil {
			// Refused it would come again for ever: it counts as none.
			rep.OK, rep.Error = false, cutText("its report cannot be taken: "+err.Error(), maxWords)
		} else {
			rep.Report = "incoming/" + r.Order
			err := c.Store.PutBlob(ctx, store.Blob{Node: a.Node, Name: rep.Report, Type: "application/json", Data: b.Bytes(), At: c.Now().UTC()})
			if err != nil {
				return err
			}
		}
	}
	data, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	c.boundary(a.Node, "before result: "+r.Kind)
	return c.Store.Observe(ctx, store.Observation{
		Node: a.Node, Kind: sawResult, Key: fmt.Sprintf("%s %d", r.Order, a.Fence), Data: data, At: c.Now().UTC(),
	})
}
