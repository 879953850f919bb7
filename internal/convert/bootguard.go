package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

// A machine that boots from the network again and again, while no agent on it
// reports and its state does not change, is not served the same once more.
const (
	loopBoots  = 5
	loopWindow = 30 * time.Minute
	loopStarts = 8 // of firmware that never got beyond a first loader: it was sent each kind by then

	// What asks again sooner is the same boot: a loader that tries again after
	// ten seconds, an attacker. No server comes through its firmware, our
	// kernel and back as fast.
	sameBoot = 30 * time.Second

	loopWait = 5 * time.Minute // until a machine in quarantine asks again

	bootLoop  = "boot-loop" // cause of the failure
	bootsBlob = "boots"
)

// bootLog is the boots of a node since it entered its state, as far as they
// led to nothing. It is stored with every boot, beside the node and not as
// events: a boot that leads somewhere is not worth one.
type bootLog struct {
	Entry string    `json:"entry"`
	Boots []netboot `json:"boots"`
	Told  time.Time `json:"told,omitzero"` // the last alarm
}

type netboot struct {
	At     time.Time `json:"at"`
	Served string    `json:"served"`
	Addr   string    `json:"addr,omitempty"`
	Menu   bool      `json:"menu,omitempty"` // GRUB asked; the RAM system that it starts will ask too
}

func (b netboot) String() string {
	s := b.At.UTC().Format(time.RFC3339) + " " + b.Served
	if b.Addr != "" {
		s += " to " + b.Addr
	}
	return s
}

// guardScript notes that a script or orders are about to be served to n, and
// reports whether the node went into quarantine instead.
func (c *Conductor) guardScript(ctx context.Context, n inventory.Node, m pxe.Machine, served string) (quarantined bool, err error) {
	switch n.State {
	case inventory.Expected, inventory.Retired, inventory.Rejected:
		return false, nil // nothing is expected of it
	}
	if !m.Leased {
		return false, nil // somebody said its MAC: that takes no machine out of service
	}
	unlock := c.lock(n.ID)
	defer unlock()
	fresh, err := c.Store.Node(ctx, n.ID)
	if err != nil || entry(fresh) != entry(n) {
		return false, err // what is served was decided for a state that is over: it will not come far
	}
	n = fresh
	log, err := c.bootLog(ctx, n)
	if err != nil {
		return false, err
	}
	now := c.Now().UTC()
	if k := len(log.Boots); k > 0 {
		last := &log.Boots[k-1]
		if now.Sub(last.At) < sameBoot {
			return false, nil
		}
		if last.Menu && m.Stage == pxe.AskScript { // the kernel took long to load
			last.Menu = false
			return false, c.putBootLog(ctx, n.ID, log)
		}
	}
	log.after(now.Add(-loopWindow))
	log.after(c.Live(n.ID).LastSeen)
	if len(log.Boots) >= loopBoots {
		// What an agent did before this process began is only in the events.
		at, err := c.reported(ctx, n.ID)
		if err != nil {
			return false, err
		}
		log.after(at)
	}
	if len(log.Boots) >= loopBoots {
		if quarantined, err = c.looped(ctx, n, &log); quarantined || err != nil {
			return quarantined, err
		}
		log.Boots = log.Boots[1:]
	}
	log.Boots = append(log.Boots, netboot{now, served, addrText(m), m.Stage == pxe.AskMenu})
	return false, c.putBootLog(ctx, n.ID, log)
}

// after drops the boots that are not after t.
func (l *bootLog) after(t time.Time) {
	l.Boots = slices.DeleteFunc(l.Boots, func(b netboot) bool { return !b.At.After(t) })
}

func (c *Conductor) bootLog(ctx context.Context, n inventory.Node) (bootLog, error) {
	var log bootLog
	b, err := c.Store.Blob(ctx, n.ID, bootsBlob)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return log, err
	}
	if err == nil {
		if err := json.Unmarshal(b.Data, &log); err != nil {
			c.Log.Error("unreadable boots dropped", "node", n.ID, "err", err)
		}
	}
	if log.Entry != entry(n) {
		log = bootLog{Entry: entry(n)}
	}
	return log, nil
}

func (c *Conductor) putBootLog(ctx context.Context, id inventory.NodeID, log bootLog) error {
	data, err := json.Marshal(log)
	if err != nil {
		return err
	}
	return c.Store.PutBlob(ctx, store.Blob{Node: id, Name: bootsBlob, Type: "application/json", Data: data, At: c.Now().UTC()})
}

// reported is when an agent last did something on the node that was stored.
func (c *Conductor) reported(ctx context.Context, id inventory.NodeID) (time.Time, error) {
	events, err := c.Store.NodeEvents(ctx, id)
	if err != nil {
		return time.Time{}, err
	}
	for i := len(events) - 1; i >= 0; i-- {
		switch events[i].Kind {
		case inventory.KindFence, inventory.KindInspected, inventory.KindReport:
			return events[i].At, nil
		}
	}
	return time.Time{}, nil
}

// looped takes the node out of its loop. One that a cluster may send jobs to
// goes on booting its own disk, one that a person holds or works on is theirs:
// there it is an alarm, once in a while.
func (c *Conductor) looped(ctx context.Context, n inventory.Node, log *bootLog) (quarantined bool, err error) {
	now := c.Now().UTC()
	first := log.Boots[0].At
	detail := fmt.Sprintf("it booted from the network %d times within %s while it is %s, and no agent on it reported", len(log.Boots),
		max(now.Sub(first).Round(time.Minute), time.Minute), n.State)
	evidence := map[string]string{}
	for i, b := range log.Boots {
		evidence[fmt.Sprintf("boot %d", i+1)] = b.String()
	}
	quarantine := !n.Joined && n.Hold == nil && n.State != inventory.InService && n.State != inventory.NeedsWork
	if !quarantine && now.Sub(log.Told) < loopWindow {
		return false, nil
	}
	log.Told = now
	t := c.turn(ctx, n)
	t.alarm("boot loop: "+detail, evidence)
	if quarantine {
		proof := "none" // the step that failed is done again
		if n.Plan == nil {
			proof = "reinspect"
		}
		if err := t.fail(bootLoop, detail, inventory.Task{
			Verb: "check", What: "the screen of " + string(n.ID) + " while it boots", Why: detail,
			How:   "Note the last lines on its screen. Then look at its memory modules, its disk controller and its firmware settings (boot order, boot mode). Until this is done it waits and is served nothing.",
			Proof: proof,
		}); err != nil {
			return false, err
		}
	}
	return quarantine, t.commit()
}

func quarantineWhy(id inventory.NodeID) string {
	return "node " + string(id) + " booted again and again and came to nothing: it waits for a technician (smelt task list " + string(id) + ")"
}

// guardStarts tells people of a machine whose firmware starts again and again
// and never gets beyond its first loader: it never asks for a script, so there
// is nothing to withhold from it. Anybody on its network can make up such
// starts: no state changes.
func (c *Conductor) guardStarts(ctx context.Context, n inventory.Node, m pxe.Machine) error {
	if m.Starts < loopStarts || n.Hold != nil || c.Now().Sub(c.Live(n.ID).LastSeen) < agentSilence {
		return nil
	}
	switch n.State {
	case inventory.Expected, inventory.Retired, inventory.Rejected:
		return nil
	}
	unlock := c.lock(n.ID)
	defer unlock()
	n, err := c.Store.Node(ctx, n.ID)
	if err != nil {
		return err
	}
	log, err := c.bootLog(ctx, n)
	if err != nil || c.Now().Sub(log.Told) < loopWindow {
		return err
	}
	t := c.turn(ctx, n)
	detail := fmt.Sprintf("its firmware started %d times and never got beyond the first program it was sent", m.Starts)
	t.alarm("boot loop: "+detail, map[string]string{"firmware": m.Vendor, "arch": fmt.Sprint(uint16(m.Arch)), "network": m.Network})
	if n.State != inventory.InService && !n.Joined {
		t.open(inventory.Task{
			Verb: "check", What: "the screen of " + string(n.ID) + " while it boots", Why: detail,
			How:   "Then look at its firmware settings: Secure Boot, boot mode (UEFI or legacy), network boot. What it was sent: smelt node show " + string(n.ID) + " --boot",
			Proof: "dhcp", // an agent that starts closes it
		})
	}
	if err := t.commit(); err != nil {
		return err
	}
	log.Told = c.Now().UTC()
	return c.putBootLog(ctx, n.ID, log)
}
