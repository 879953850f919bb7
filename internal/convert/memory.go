package convert

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"smelt/images"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// A node whose plan says so runs its image from memory: the RAM system loads
// and verifies the image at each start and hands over to it. No disk is
// written, so there is no wipe and no permit; and as nothing of the node's own
// outlives a restart, each start is trusted as the installer is: a nonce used
// once and an identity that is confirmed.

const orderRAM = "ram" // load the image into memory and run it

// markUnloaded: the image could not be loaded at this start.
const markUnloaded = "unloaded"

// ramSpare is the memory that must be left beside the image for the system in
// it to run at all.
const ramSpare = 512 << 20

// runsInRAM tells whether what the node is to start, or has started, is loaded
// into its memory at each start.
func runsInRAM(n inventory.Node) bool { return n.Root == inventory.RootRAM && startsItsSystem(n) }

// startsItsSystem tells whether the machine's own system is what it starts.
func startsItsSystem(n inventory.Node) bool {
	switch n.State {
	case inventory.Starting, inventory.BurningIn, inventory.Joining, inventory.InService, inventory.ReVerifying, inventory.Leaving:
		return true
	case inventory.NeedsWork:
		return n.Failure != nil && n.Failure.Step >= inventory.Starting && n.Failure.Step <= inventory.Leaving
	}
	return false
}

// loadsInRAM tells whether an agent may load the image of n now.
func loadsInRAM(n inventory.Node) bool {
	return runsInRAM(n) || n.State == inventory.Approved && n.Plan != nil && n.Plan.Root == inventory.RootRAM
}

// imageOf is the image that the node runs, or is to run.
func imageOf(n inventory.Node) string {
	if n.Plan != nil {
		return n.Plan.Image
	}
	return n.Image
}

// device is what the node's system starts from.
func (t *turn) device() power.Device {
	if t.n.Root == inventory.RootRAM {
		return power.Network
	}
	return power.Disk
}

// place is device for people.
func (t *turn) place() string {
	if t.n.Root == inventory.RootRAM {
		return "its memory"
	}
	return "its own disk"
}

// planRAM finishes a plan that writes no disk.
func (t *turn) planRAM(p inventory.Plan, image images.Digest) (inventory.Plan, error) {
	m, err := t.Images.Manifest(image)
	if err != nil {
		return inventory.Plan{}, fmt.Errorf("image %q: %w", p.ImageName, err)
	}
	p.Wipe = ""
	have := t.n.Hardware.Memory.Total
	if want := m.Data() + ramSpare; have < want {
		return inventory.Plan{}, fmt.Errorf("image %s needs %d MiB of memory to run from it, the machine has %d MiB: give it more, or a disk (root: disk)",
			p.ImageName, want>>20, have>>20)
	}
	return p.Seal(), nil
}

// mayLoad holds an agent that wants to run the node's image in memory against
// what is known of the node. It will be given what the installed system is
// given, so its identity must be confirmed.
func (c *Conductor) mayLoad(t *turn, id inventory.Identity, hw inventory.Hardware) error {
	n := t.n
	refused := func(err error) error { return fmt.Errorf("enrol node %s: %w: %w", n.ID, ErrRefused, err) }
	if err := id.Err(); err != nil {
		return refused(err)
	}
	if n.State == inventory.Approved {
		return c.mayConvert(t, id, hw)
	}
	return nil // other hardware is seen and acted upon when the system reports
}

// loads moves an approved node on: its agent runs and will load the image.
func (t *turn) loads(why string, evidence map[string]string) {
	t.move(inventory.Starting, "it started to load its system into memory; "+why, evidence)
	// This start is the one that starting would ask for.
	t.setMark(markRestart, "from its memory", nil)
	t.setMark(markRestarted, "it is started already", nil)
}

// ramOrder tells an agent in the RAM system what to run.
func (t *turn) ramOrder(o Order, wait func(string) (Order, error)) (Order, error) {
	n := t.n
	if !runsInRAM(n) {
		if n.State == inventory.Inspected || n.State == inventory.Discovered {
			o.ID += "/reboot"
			o.Kind = orderReboot // it was taken out of service meanwhile
			return o, nil
		}
		return wait(n.State.String())
	}
	h, err := t.all()
	if err != nil {
		return Order{}, err
	}
	if h.sinceFence().mark(markUnloaded) != nil {
		return wait("its system could not be loaded; it is tried again when it starts again")
	}
	o.Kind, o.Image = orderRAM, imageOf(n)
	o.ID += "/ram/" + strconv.FormatUint(n.Fence, 10)
	o.Handoff, err = t.ramHandoff(t.ctx, n)
	return o, err
}

// ramHandoff is the session that the system in memory starts with. As handoff,
// it is derived; but for a start, of which a node in service has many.
func (c *Conductor) ramHandoff(ctx context.Context, n inventory.Node) (*Handoff, error) {
	mac := hmac.New(sha256.New, c.secret)
	for _, s := range []string{orderRAM, string(n.ID), imageOf(n), strconv.FormatUint(n.Fence, 10)} {
		mac.Write([]byte(s + "\x00"))
	}
	token := hex.EncodeToString(mac.Sum(nil))
	a, err := c.Store.Agent(ctx, hash(token), c.Now())
	if errors.Is(err, store.ErrNotFound) {
		a = store.Agent{Session: hash(token), Node: n.ID, Mode: modeInstalled, Fence: n.Fence, Expires: c.Now().Add(installedLife).UTC()}
		err = c.Store.PutAgent(ctx, a)
		c.boundary(n.ID, "handoff stored")
	}
	if err != nil {
		return nil, err
	}
	return &Handoff{Session: token, Expires: a.Expires, Fence: n.Fence}, nil
}

// loaded takes in that the image could not be loaded, or what became of joining
// again after a restart.
func (t *turn) loaded(r reported) error {
	switch {
	case r.Kind == orderRAM && !r.OK:
		detail := "its system could not be loaded into memory: " + r.Error
		t.setMark(markUnloaded, detail, map[string]string{"cause": causeOf(r)})
		if t.n.State != inventory.Starting {
			t.alarm(detail, nil)
			return nil
		}
		task := inventory.Task{Verb: "check", What: "the machine", Why: r.Error, Proof: "none"}
		switch r.Cause {
		case "memory":
			task.Verb, task.What, task.Proof = "plug", "more memory", "reinspect"
		case "verify":
			task.What = "the image (smelt image verify)"
		case "network":
			task.What = "its network cable and switch port"
		}
		return t.fail(causeOf(r), detail, task)
	case r.Kind == orderJoin && r.Mode == modeInstalled && !r.OK:
		t.setMark(markDaemon, "the cluster's daemon did not start again", nil)
		t.alarm("after its restart the cluster's daemon did not start: "+r.Error, nil)
	case r.Kind == orderJoin && r.Mode == modeInstalled:
		t.setMark(markDaemon, "its agent started the cluster's daemon again", nil)
	}
	return nil
}

// rejoinID names the order to start the cluster's daemon again at this start.
func rejoinID(n inventory.Node) string {
	return orderID(n) + "/rejoin/" + strconv.FormatUint(n.Fence, 10)
}

// rejoinOrder is for a member of a cluster that runs from memory and was
// restarted: the daemon that it was given is gone with what it ran on. It gets
// it again as long as its PASS answers for the hardware that just started.
func (t *turn) rejoinOrder(o *Order) (bool, error) {
	n := t.n
	if t.Join == nil || n.Root != inventory.RootRAM || !n.Joined || n.State != inventory.InService && n.State != inventory.ReVerifying {
		return false, nil
	}
	h, err := t.all()
	if err != nil || h.daemon() {
		return false, err
	}
	boot := h.sinceFence()
	if n.State == inventory.InService && !proven(n) || len(boot) == 0 || boot[0].Evidence["hardware"] != n.Hardware.Digest() {
		return false, nil // it will be verified again first
	}
	m, err := t.member()
	if err != nil {
		return false, err
	}
	g, err := t.Join.Grant(t.ctx, m)
	if err != nil {
		return false, err
	}
	o.ID, o.Kind, o.Join = rejoinID(n), orderJoin, &g
	return true, nil
}

// sinceFence is what happened since the last boot of an agent, that boot
// included; nil when there was none.
func (h history) sinceFence() history {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind == inventory.KindFence {
			return h[i:]
		}
	}
	return nil
}

// daemon tells whether the cluster's daemon was started on what runs now.
func (h history) daemon() bool {
	m := h.mark(markDaemon)
	if m == nil {
		return false
	}
	boot := h.sinceFence()
	return len(boot) == 0 || m.Version > boot[0].Version
}
