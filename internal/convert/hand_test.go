package convert_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"smelt/internal/convert"
	"smelt/internal/sim"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

// hand is an agent that the test moves by hand.
type hand struct {
	*hall
	id    inventory.NodeID
	nonce string
	mode  string
	key   ed25519.PublicKey
	hw    inventory.Hardware
	agent store.Agent
}

// boots asks for the boot script of machine i as its firmware does.
func (h *hall) boots(i int) *hand {
	h.t.Helper()
	b, err := h.c.Boot(h.t.Context(), pxe.Machine{MAC: pxe.MAC(macOf(i)), Stage: pxe.AskScript})
	if err != nil {
		h.t.Fatal(err)
	}
	a := &hand{hall: h, id: nodeID(i), hw: sim.Hardware(i, macOf(i), 1)}
	for _, arg := range b.Args {
		if v, ok := strings.CutPrefix(arg, "smelt.nonce="); ok {
			a.nonce = v
		}
		if v, ok := strings.CutPrefix(arg, "smelt.mode="); ok {
			a.mode = v
		}
	}
	a.key, _, _ = ed25519.GenerateKey(rand.Reader)
	return a
}

func (a *hand) enrol() error {
	s, err := a.c.Enrol(a.t.Context(), convert.Enrolment{Nonce: a.nonce, Key: a.key, Hardware: a.hw, Addr: "10.0.0.9"})
	if err == nil {
		a.agent = s.Agent
	}
	return err
}

func (a *hand) ok(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *hand) order() convert.Order {
	a.t.Helper()
	o, err := a.c.Order(a.t.Context(), a.agent)
	a.ok(err)
	return o
}

// ordered waits until the order is of a kind.
func (a *hand) ordered(kind string) convert.Order {
	a.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		changed := a.c.Changed(a.id)
		o := a.order()
		if o.Kind == kind {
			return o
		}
		select {
		case <-changed:
		case <-deadline:
			a.t.Fatalf("the order is %s (%s), want %s", o.Kind, o.Why, kind)
		}
	}
}

func (a *hand) permit(o convert.Order) inventory.Permit {
	a.t.Helper()
	if o.Permit == nil {
		a.t.Fatalf("order %s carries no permit", o.ID)
	}
	p, err := o.Permit.Open(siteKey().Public().(ed25519.PublicKey), time.Now())
	a.ok(err)
	return p
}

func (a *hand) finish(o convert.Order, r convert.Result) {
	a.t.Helper()
	r.Order, r.Kind = o.ID, o.Kind
	a.ok(a.c.Finished(a.t.Context(), a.agent, r))
}

// inspectedAs brings machine i to inspected.
func (h *hall) inspectedAs(i int) *hand {
	h.t.Helper()
	a := h.boots(i)
	if a.mode != "inspect" {
		h.t.Fatalf("machine %d boots %q before anybody approved it", i, a.mode)
	}
	a.ok(a.enrol())
	a.ok(h.c.Inspected(h.t.Context(), a.agent, convert.Inspection{Hardware: a.hw}))
	h.reach(nodeID(i), inventory.Inspected)
	return a
}

// wiping brings machine i to wiping with a fresh agent in its memory.
func (h *hall) wiping(i int) *hand {
	h.t.Helper()
	h.inspectedAs(i)
	h.must(nodeID(i), "approve", nil)
	return h.installer(i)
}

// installer boots machine i into the installer once its restart is confirmed.
func (h *hall) installer(i int) *hand {
	h.t.Helper()
	return h.installerOf(i, i+1)
}

// installerOf is installer for the first of the machines from..to-1 that gets it.
func (h *hall) installerOf(from, to int) *hand {
	h.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		changed := h.s.Changed()
		for i := from; i < to; i++ {
			a := h.boots(i)
			if a.mode != "convert" {
				continue
			}
			err := a.enrol()
			if err == nil {
				return a
			}
			if !errors.Is(err, convert.ErrNotYet) {
				h.t.Fatal(err)
			}
		}
		select {
		case <-changed:
		case <-deadline:
			h.t.Fatalf("no machine got the installer: %+v", h.node(nodeID(from)))
		}
	}
}

// written does what the order of a says and reports it.
func (a *hand) written(kind string) convert.Order {
	a.t.Helper()
	o := a.ordered(kind)
	a.ok(a.c.UsePermit(a.t.Context(), a.agent, a.permit(o).ID))
	r := convert.Result{OK: true}
	if kind == "wipe" {
		for _, d := range o.Plan.Disks {
			r.Wiped = append(r.Wiped, inventory.Wiped{Disk: d, Level: o.Plan.Wipe})
		}
	}
	a.finish(o, r)
	return o
}

// installed is the agent of the installed system that o left on the disk.
func (a *hand) installed(o convert.Order) *hand {
	a.t.Helper()
	return &hand{hall: a.hall, id: a.id, hw: a.hw, agent: store.Agent{Session: "s", Node: a.id, Mode: "installed", Fence: o.Handoff.Fence}}
}

func (h *hall) alarms(id inventory.NodeID) (out []string) {
	h.t.Helper()
	events, err := h.s.NodeEvents(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range events {
		if e.Kind == inventory.KindAlarm {
			out = append(out, e.Reason)
		}
	}
	return out
}

// until waits for something about a node.
func (h *hall) until(id inventory.NodeID, what string, ok func(inventory.Node) bool) {
	h.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		changed := h.s.Changed()
		n := h.node(id)
		if ok(n) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			h.t.Fatalf("node %s, %s: never; it is %s (%s)", id, what, n.State, n.Note)
		}
	}
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
