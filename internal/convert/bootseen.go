package convert

import (
	"fmt"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// The truth of a boot override is what the machine boots: a BMC says ok to
// "network, once" and forgets it, and so do boards behind an outlet.

// bootWait is how long a machine may take from power-on to its first word to
// the boot service. Servers with terabytes of memory and many cards test
// themselves for ten minutes.
const bootWait = 15 * time.Minute

// bootTries is how often a machine is started before a person looks.
const bootTries = 2

const bootIgnored = "boot-once-ignored" // cause of the failure, and quirk in the evidence

// fromNetwork waits until the machine that was started boots from the network.
// One that does not is started once more, then a person looks at its firmware.
// It returns true: the restart itself was done.
func (t *turn) fromNetwork(h history, done *inventory.Event) (bool, error) {
	if m := h.mark(markNetwork); m != nil && m.Version > done.Version {
		return true, nil
	}
	started := done.At
	if at, err := time.Parse(time.RFC3339Nano, done.Evidence["started"]); err == nil {
		started = at
	}
	t.mu.Lock()
	asked, disk, begun := t.sighted[t.n.ID], t.live[t.n.ID].disk, t.begun
	t.mu.Unlock()
	if e := h.enrolled(); e.After(asked) {
		asked = e // what was asked before this process began
	}
	switch {
	case asked.After(started):
		t.setMark(markNetwork, "it boots from the network", map[string]string{"after": asked.Sub(started).Round(time.Second).String()})
		return true, nil
	case disk.After(done.At):
		return true, t.bootElse(h, done, "the system on its disk started: its agent speaks")
	}
	wait := bootWait
	if t.Site.BootWait > 0 {
		wait = t.Site.BootWait
	}
	// What it said while no process listened, nobody heard.
	from := started
	if begun.After(from) {
		from = begun
	}
	if left := wait - t.at.Sub(from); left > 0 {
		t.again(left)
		return true, nil
	}
	return true, t.bootElse(h, done, fmt.Sprintf("it did not ask for its boot within %v", wait))
}

// enrolled is when an agent that was booted from the network last enrolled.
func (h history) enrolled() (at time.Time) {
	for i := range h {
		if h[i].Kind == inventory.KindFence {
			at = h[i].At
		}
	}
	return at
}

// bootElse is for a machine that was started to boot from the network and did
// something else.
func (t *turn) bootElse(h history, done *inventory.Event, what string) error {
	controller := done.Evidence["controller"]
	t.setMark(markIgnored, bootIgnored+": "+what, map[string]string{"quirks": bootIgnored, "controller": controller, "device": power.Network.String()})
	tries := h.count(markIgnored) + 1
	if tries < bootTries {
		t.note("%s; it is started once more", what)
		return nil
	}
	return t.fail(bootIgnored, fmt.Sprintf("started %d times to boot from the network: %s", tries, what), inventory.Task{
		Verb: "check", What: "the boot settings and the network cable of " + string(t.n.ID), Why: what,
		How: "Look at its screen while it starts. In its firmware's setup: network boot (PXE or HTTP) is on for the card that is cabled, and first in the boot order; " +
			"Secure Boot is off, or its keys are the ones that site.yaml's boot path needs (smelt doctor). Then its cable and switch port: the light of the card, the VLAN. " +
			"Its power controller (" + controller + ") was told to boot it from the network once.",
		Proof: "none",
	})
}
