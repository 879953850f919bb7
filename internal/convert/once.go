package convert

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/pxe"
)

// Boots that an operator asks for, beside the life of a node: the next start of
// the machine is one of them, and the one after that is an ordinary one.

const (
	modeMemtest = "memtest"
	orderRescue = "rescue" // let an operator in, by ssh
)

// How long they last when nobody says.
const (
	rescueFor  = 4 * time.Hour
	memtestFor = 24 * time.Hour
)

// onceAgain is how long a loader that did not get its files may ask for the
// memory test again before that counts as another start.
const onceAgain = 3 * time.Minute

// Memtest names the memory test in the boot server's file map, for each kind of
// firmware; both are empty where this server has none.
type Memtest struct{ BIOS, EFI string }

// bootOnce takes in that an operator wants a machine to boot something once, or
// that this is to end.
func (t *turn) bootOnce(i store.Intent) (bool, error) {
	if i.Params["end"] == "yes" {
		if t.n.Once == nil || t.n.Once.Boot != i.Verb {
			return false, fmt.Errorf("nobody asked for %s on it", i.Verb)
		}
		return true, t.endOnce(i.Actor, i.Verb+" ended by "+i.Actor)
	}
	if i.Verb == inventory.BootMemtest && t.Config.Boot.Memtest == (Memtest{}) {
		return false, errors.New("this server has no memory test to serve: run smelt image kernel where Debian's mirror can be reached, and start it again")
	}
	if i.Verb == inventory.BootRescue && !t.Site.Rescue {
		return false, errors.New("nobody could log in: site.yaml names no ssh key (rescue: {keys: [...]}), or this server has no tools for it (smelt image kernel)")
	}
	life := rescueFor
	if i.Verb == inventory.BootMemtest {
		life = memtestFor
	}
	if s := i.Params["for"]; s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < time.Minute {
			return false, fmt.Errorf("for %q: want a duration of a minute or more, such as 2h", s)
		}
		life = d
	}
	if o := t.n.Once; o.Active(t.at) {
		return false, fmt.Errorf("%s asked for %s on it until %s: end that first (--end)", o.By, o.Boot, o.Until.Format(time.RFC3339))
	}
	// Without power control its agent restarts it, or a person.
	restart := i.Params["restart"] == "yes" && t.Power[t.n.ID] != nil
	if restart {
		if err := t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
			return false, err
		}
	}
	t.add(inventory.Event{Kind: inventory.KindOnce, Actor: i.Actor, Reason: "next start: " + i.Verb, Once: &inventory.Once{
		Boot: i.Verb, By: i.Actor, Reason: i.Params["reason"], Write: i.Params["write"] == "yes", Restart: restart, Asked: t.at, Until: t.at.Add(life),
	}})
	return true, nil
}

// cycle restarts the machine outside of what its state asks for, until done
// makes durable that it was. A process that is killed meanwhile leaves it off
// perhaps: the next one does it again.
func (t *turn) cycle(dev power.Device, why string, done func(*turn, error)) {
	if t.busy() {
		return
	}
	if err := t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.at); err != nil {
		t.note("waits for power: %v", err)
		t.again(max(t.Site.SlotWindow, time.Second))
		return
	}
	v := t.Power[t.n.ID]
	t.start("cycle", func(ctx context.Context) func(*turn) error {
		t.boundary(t.n.ID, "before cycle: "+why)
		ev, err := v.Cycle(ctx, dev)
		t.boundary(t.n.ID, "after cycle: "+why)
		return func(t *turn) error {
			if err != nil {
				t.alarm("it could not be restarted ("+why+"): "+err.Error(), ev.Map())
			} else {
				t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: "restarted: " + why, Evidence: ev.Map(),
					Power: &inventory.PowerFact{On: power.On.String(), Via: ev.Controller, At: t.at}})
			}
			done(t, err)
			return nil
		}
	})
}

// endOnce takes back what an operator asked for. A machine in the memory test
// hears nobody: it is restarted.
func (t *turn) endOnce(actor, reason string) error {
	o := *t.n.Once
	switch inTest := o.Boot == inventory.BootMemtest && !o.Began.IsZero(); {
	case inTest && t.Power[t.n.ID] == nil:
		t.add(inventory.Event{Kind: inventory.KindOnce, Actor: actor, Reason: reason})
		t.pressOut("nothing here can switch it")
	case inTest && o.Ended.IsZero():
		o.Ended = t.at
		t.add(inventory.Event{Kind: inventory.KindOnce, Actor: actor, Reason: reason, Once: &o})
	case inTest:
		t.cycle(t.device(), reason, func(t *turn, err error) {
			if o := t.n.Once; o == nil || o.Ended.IsZero() {
				return
			}
			t.add(inventory.Event{Kind: inventory.KindOnce, Actor: system, Reason: "it was restarted"})
			if err != nil {
				t.pressOut(err.Error())
			}
		})
	default: // the agent of a rescue restarts the machine
		t.add(inventory.Event{Kind: inventory.KindOnce, Actor: actor, Reason: reason})
	}
	return nil
}

// pressOut asks a person to restart a machine in the memory test.
func (t *turn) pressOut(why string) {
	t.open(inventory.Task{Verb: "press", What: "the power button", Why: "its memory test is over: " + why,
		How: "note what the test shows, then switch it off, wait five seconds, switch it on", Proof: "dhcp"})
}

// once looks after what an operator asked for, and tells whether the node is
// left alone because of it.
func (t *turn) once() (busy bool, err error) {
	o := t.n.Once
	if o == nil {
		return false, nil
	}
	if !o.Active(t.at) {
		return true, t.endOnce(system, o.Boot+" is over")
	}
	if err := t.n.MayBootOnce(t.at); err != nil {
		return true, t.endOnce(system, o.Boot+" is over: "+err.Error())
	}
	t.again(o.Until.Sub(t.at))
	if o.Began.IsZero() && o.Restart && t.Power[t.n.ID] != nil {
		t.cycle(power.Network, o.Boot, func(t *turn, _ error) {
			if o := t.n.Once; o.Active(t.at) && o.Restart && t.n.MayBootOnce(t.at) == nil {
				done := *o
				done.Restart = false
				t.add(inventory.Event{Kind: inventory.KindOnce, Actor: system, Reason: "it was restarted for " + o.Boot, Once: &done})
			}
		})
		return true, nil
	}
	if o.Began.IsZero() {
		return false, nil
	}
	t.note("%s for %s until %s", o.Boot, o.By, o.Until.Format(time.RFC3339))
	return true, nil
}

// wanted is what n is to boot once, and "" when nothing.
func (c *Conductor) wanted(n inventory.Node) (mode, why string) {
	o := n.Once
	if !o.Active(c.Now()) || n.MayBootOnce(c.Now()) != nil {
		return "", ""
	}
	why = fmt.Sprintf("node %s is wanted for %s by %s until %s", n.ID, o.Boot, o.By, o.Until.Format(time.TimeOnly))
	switch {
	case o.Boot == inventory.BootRescue && o.Began.IsZero():
		return modeRescue, why
	case o.Boot == inventory.BootMemtest && (o.Began.IsZero() || c.Now().Sub(o.Began) < onceAgain):
		return modeMemtest, why
	}
	return "", ""
}

// began notes that what was asked for is what the machine boots now.
func (c *Conductor) began(ctx context.Context, id inventory.NodeID) error {
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil || n.Once == nil || !n.Once.Began.IsZero() {
		return err
	}
	t := c.turn(ctx, n)
	t.begin(nil)
	if err := t.close(pressed, "agent", "it started"); err != nil {
		return err
	}
	if err := t.commit(); err != nil {
		return err
	}
	c.poke(id, c.Now())
	return nil
}

func (t *turn) begin(evidence map[string]string) {
	o := *t.n.Once
	o.Began = t.at
	t.add(inventory.Event{Kind: inventory.KindOnce, Actor: system, Reason: o.Boot + " begins", Once: &o, Evidence: evidence})
}

// rescuedBy tells whether the rescue that goes on was begun by this agent.
func (h history) rescuedBy(fp string) bool {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind == inventory.KindOnce {
			return h[i].Once != nil && h[i].Evidence["agent"] == fp
		}
	}
	return false
}

// memtestBoot is the memory test for a machine.
func (c *Conductor) memtestBoot(b pxe.Boot) pxe.Boot {
	b.Action = pxe.Program
	b.BIOS, b.EFI = c.Config.Boot.Memtest.BIOS, c.Config.Boot.Memtest.EFI
	for _, a := range c.Config.Boot.Args {
		if strings.HasPrefix(a, "console=ttyS") {
			b.Args = append(b.Args, a) // the serial line of a BMC
		}
	}
	return b
}

// mayRescue holds an agent that lets an operator in against what is known of
// the node.
func (t *turn) mayRescue(id inventory.Identity) error {
	if err := t.n.MayBootOnce(t.at); err != nil {
		return fmt.Errorf("enrol node %s: %w: %w", t.n.ID, ErrRefused, err)
	}
	if t.n.Once.Write {
		if on, err := t.stopSet(t.ctx); err != nil {
			return err
		} else if on {
			return fmt.Errorf("enrol node %s: %w: its disks could be written, and the global stop is set", t.n.ID, ErrRefused)
		}
		if err := id.Err(); err != nil {
			return fmt.Errorf("enrol node %s: %w: its disks could be written: %w", t.n.ID, ErrRefused, err)
		}
	}
	return nil
}

// rescueID names the order to let an operator in.
func rescueID(n inventory.Node) string { return "rescue/" + strconv.FormatUint(n.Fence, 10) }

// rescueOrder lets the operator in until the time is over.
func (t *turn) rescueOrder(o Order) (Order, error) {
	o.ID = rescueID(t.n)
	want := t.n.Once
	if !want.Active(t.at) || want.Boot != inventory.BootRescue || want.Began.IsZero() || t.n.MayBootOnce(t.at) != nil {
		o.ID += "/reboot"
		o.Kind, o.Why = orderReboot, "the rescue is over"
		return o, nil
	}
	o.Kind, o.Once = orderRescue, want
	return o, nil
}

// restartsFor tells whether the agent in the RAM system is to restart the
// machine for what an operator asked for: where nothing else can.
func (t *turn) restartsFor() bool {
	return t.n.Once.Active(t.at) && t.n.Once.Began.IsZero() && t.Power[t.n.ID] == nil
}

// busyWith says what an operator does with the machine now, or "".
func busyWith(n inventory.Node, now time.Time) string {
	if !n.Once.Active(now) {
		return ""
	}
	return fmt.Sprintf("%s wants it for %s until %s: smelt node %s %s --end", n.Once.By, n.Once.Boot, n.Once.Until.Format(time.RFC3339), n.Once.Boot, n.ID)
}
