package convert

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/pxe"
)

const (
	modeInspect   = "inspect"
	modeConvert   = "convert"
	modeInstalled = "installed"
	modeRAM       = "ram"    // loads the image into memory and runs it
	modeRescue    = "rescue" // an operator's, by ssh
	modeHold      = "hold"   // nothing: it waits
)

const (
	nonceLife = 15 * time.Minute // from script to first word: the RAM system over a slow link
	fullFor   = 10 * time.Second // until it is looked again whether there is room for one more
)

// maxUnknown is how many machines there may be that nobody expected: a hall of
// 5,000 and some second cards. Beyond it somebody plays.
var maxUnknown = 8192

// Kinds of observation.
const (
	sawBoot       = "boot"
	sawInspection = "inspection"
	sawResult     = "result"
)

// boot is the data of a boot observation.
type boot struct {
	MAC   inventory.MAC `json:"mac"`
	Stage string        `json:"stage"`
	Addr  string        `json:"addr,omitempty"`
}

// Boot implements pxe.Booter: an unknown or unapproved machine gets the
// inspection boot at most, one in service its own disk.
func (c *Conductor) Boot(ctx context.Context, m pxe.Machine) (pxe.Boot, error) {
	if err := c.serving(); err != nil {
		return pxe.Boot{}, err
	}
	mac := inventory.MAC(m.MAC)
	n, err := c.Store.NodeByMAC(ctx, mac)
	if b, ok := asic(m, n); ok && (err == nil || errors.Is(err, store.ErrNotFound)) {
		return b, nil
	}
	if errors.Is(err, store.ErrAmbiguous) {
		why := err.Error()
		if n, err = c.resolve(ctx, mac); err == nil && n.Version == 0 {
			// Neither of them is booted on the word of this address.
			return pxe.Boot{Action: pxe.Hold, Why: why}, nil
		}
	}
	if errors.Is(err, store.ErrNotFound) {
		n, err = c.meet(ctx, mac)
	}
	if err != nil {
		return pxe.Boot{}, err
	}
	if n.Version == 0 {
		return pxe.Boot{Action: pxe.Ignore, Why: fmt.Sprintf("more than %d machines that nobody expected", maxUnknown)}, nil
	}
	c.sight(n.ID)
	if err := c.observeBoot(ctx, n, mac, m); err != nil {
		return pxe.Boot{}, err
	}
	mode, why, err := c.bootMode(ctx, n)
	if err != nil {
		return pxe.Boot{}, err
	}
	if once, whose := c.wanted(n); once != "" {
		mode, why = once, whose
	}
	path := c.Site.Classes[n.Spec.Class].Boot
	if m.Stage == pxe.AskAddress {
		if err := c.guardStarts(ctx, n, m); err != nil {
			return pxe.Boot{}, err
		}
	}
	wait := loopWait
	if mode != "" && (m.Arch == pxe.ARM64 || m.Arch == pxe.HTTPARM64) {
		mode, why, wait = modeHold, why+", but this release has no RAM system for 64-bit ARM", 0
	}
	if m.Stage != pxe.AskAddress && mode != modeHold {
		served := "its own disk"
		if mode != "" {
			served = servedFor(mode)
		}
		quarantined, err := c.guardScript(ctx, n, m, served)
		if err != nil {
			return pxe.Boot{}, err
		}
		if quarantined {
			mode, why = modeHold, quarantineWhy(n.ID)
		}
	}
	b := pxe.Boot{Action: pxe.Kernel, Path: path, Why: why}
	c.screen(n, &b)
	switch mode {
	case "":
		b.Action = pxe.Local
		return b, nil
	case modeHold:
		b.Action, b.Wait = pxe.Hold, wait
		return b, nil
	case modeMemtest:
		if m.Stage != pxe.AskAddress && m.Leased {
			if err := c.began(ctx, n.ID); err != nil {
				return pxe.Boot{}, err
			}
		}
		return c.memtestBoot(b), nil
	}
	b.Kernel, b.Initrd = c.Config.Boot.Kernel, c.Config.Boot.Initrd
	b.Args = append(append(b.Args, c.Config.Boot.Args...), "smelt.server="+c.Site.Server)
	if m.Stage != pxe.AskScript {
		return b, nil
	}
	nonce := make([]byte, 20)
	_, _ = rand.Read(nonce) // never fails
	secret := hex.EncodeToString(nonce)
	err = c.Store.AddNonce(ctx, store.Nonce{
		Nonce: secret, Node: n.ID, MAC: mac, Mode: mode, Fence: n.Fence, Expires: c.Now().Add(nonceLife),
	})
	if err != nil {
		return pxe.Boot{}, err
	}
	c.boundary(n.ID, "nonce made: "+mode)
	b.Args = append(b.Args, "smelt.nonce="+secret, "smelt.mode="+mode,
		// The form of pxelinux: hardware type 1, then the address.
		"BOOTIF=01-"+strings.ReplaceAll(mac.String(), ":", "-"),
		// For the screen of the RAM system.
		"smelt.node="+string(n.ID), "smelt.code="+b.Code)
	if b.Page != "" {
		b.Args = append(b.Args, "smelt.page="+b.Page)
	}
	return b, nil
}

// servedFor says what a machine gets, for people.
func servedFor(mode string) string {
	switch mode {
	case modeRAM:
		return "its system, to run in memory"
	case modeRescue:
		return "the RAM system for an operator"
	case modeMemtest:
		return "a memory test"
	}
	return "the RAM system to " + mode
}

// bootMode says what a machine may boot now: inspect, convert, ram, "" for its
// own disk, or hold for nothing, and why.
func (c *Conductor) bootMode(ctx context.Context, n inventory.Node) (mode, why string, err error) {
	name := "node " + string(n.ID)
	switch n.State {
	case inventory.Expected, inventory.Discovered, inventory.Inspected:
		return modeInspect, name + " is " + n.State.String() + ": inspection", nil
	case inventory.NeedsWork:
		if f := n.Failure; f != nil && f.Cause == bootLoop {
			return modeHold, quarantineWhy(n.ID), nil
		}
		// What is on its disk is proven or repaired from there.
		if f := n.Failure; f != nil && f.Step >= inventory.Starting && f.Step <= inventory.Leaving {
			if runsInRAM(n) {
				return modeRAM, name + " needs work: " + f.Cause + "; its system, in memory", nil
			}
			return "", name + " needs work: " + f.Cause, nil
		}
		return modeInspect, name + " needs work: inspection", nil
	case inventory.Approved, inventory.Wiping, inventory.Imaging:
		if err := n.Convertible(); err != nil {
			return modeInspect, name + " is not converted now: " + err.Error(), nil
		}
		if c.Stopped() {
			return modeInspect, name + " is not converted now: the global stop is set", nil
		}
		if n.State == inventory.Approved {
			events, err := c.Store.NodeEvents(ctx, n.ID)
			if err != nil {
				return "", "", err
			}
			if sinceMove(events).mark(markRestart) == nil {
				return modeInspect, name + " is approved and waits for its turn: inspection", nil
			}
		}
		if n.Plan.Root == inventory.RootRAM {
			return modeRAM, name + " is " + n.State.String() + ": its system, in memory", nil
		}
		return modeConvert, name + " is " + n.State.String() + ": installer", nil
	}
	if runsInRAM(n) {
		return modeRAM, name + " is " + n.State.String() + ": its system, in memory", nil
	}
	// Starting and everything after it, and what nobody wants touched.
	return "", name + " is " + n.State.String(), nil
}

// resolve decides between nodes that one address labels: site.yaml outweighs
// what was met before it named the machine. The zero Node: it cannot be decided.
func (c *Conductor) resolve(ctx context.Context, mac inventory.MAC) (inventory.Node, error) {
	nodes, err := c.Store.Nodes(ctx)
	if err != nil {
		return inventory.Node{}, err
	}
	var named, met []inventory.Node
	for _, n := range nodes {
		switch {
		case slices.Contains(n.Spec.MACs, mac):
			named = append(named, n)
		case slices.Contains(n.MACs, mac):
			met = append(met, n)
		}
	}
	if len(named) != 1 {
		return inventory.Node{}, nil
	}
	for _, n := range met {
		if n.Spec.Name != "" || n.State != inventory.Discovered && n.State != inventory.Inspected && n.State != inventory.Rejected {
			return inventory.Node{}, nil
		}
	}
	for _, n := range met {
		if n.State == inventory.Rejected {
			continue
		}
		if err := c.supersede(ctx, n.ID, named[0].ID); err != nil {
			return inventory.Node{}, err
		}
	}
	return named[0], nil
}

// supersede ends a node that was met before site.yaml named its machine.
func (c *Conductor) supersede(ctx context.Context, id, by inventory.NodeID) error {
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil {
		return err
	}
	t := c.turn(ctx, n)
	t.move(inventory.Rejected, "site.yaml names this machine "+string(by), nil)
	return t.commit()
}

// meet makes a node of a machine that no site.yaml names. The zero Node: there
// are too many of them.
func (c *Conductor) meet(ctx context.Context, mac inventory.MAC) (inventory.Node, error) {
	id := inventory.UnknownID(mac)
	c.mu.Lock()
	full := c.Now().Before(c.full)
	c.mu.Unlock()
	if full { // a flood of made-up addresses costs neither memory nor a look at every node
		n, err := c.Store.Node(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return inventory.Node{}, nil
		}
		return n, err
	}
	unlock := c.lock(id)
	defer unlock()
	if n, err := c.Store.Node(ctx, id); !errors.Is(err, store.ErrNotFound) {
		return n, err // another request was faster, or it lost this address since
	}
	nodes, err := c.Store.Nodes(ctx)
	if err != nil {
		return inventory.Node{}, err
	}
	unknown := 0
	for _, n := range nodes {
		if n.Spec.Name == "" {
			unknown++
		}
	}
	if unknown >= maxUnknown {
		c.mu.Lock()
		c.full = c.Now().Add(fullFor)
		c.mu.Unlock()
		return inventory.Node{}, nil
	}
	t := c.turn(ctx, inventory.Node{ID: id})
	t.add(inventory.Event{Kind: inventory.KindCreated, Actor: system, To: inventory.Discovered, MACs: []inventory.MAC{mac}, Reason: "asked to boot; nobody expected it"})
	if err := t.commit(); err != nil {
		return inventory.Node{}, err
	}
	return t.n, nil
}

// observeBoot notes a boot request once for each entry into a state and stage.
// A machine may ask every second for hours: what is stored is not stored again.
func (c *Conductor) observeBoot(ctx context.Context, n inventory.Node, mac inventory.MAC, m pxe.Machine) error {
	key := entry(n) + " " + m.Stage.String()
	c.mu.Lock()
	stored := c.booted[n.ID] == key
	c.mu.Unlock()
	if stored {
		return nil
	}
	data, err := json.Marshal(boot{MAC: mac, Stage: m.Stage.String(), Addr: addrText(m)})
	if err != nil {
		return err
	}
	err = c.Store.Observe(ctx, store.Observation{Node: n.ID, Kind: sawBoot, Key: key, Data: data, At: c.Now().UTC()})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.booted[n.ID] = key
	c.mu.Unlock()
	return nil
}

func addrText(m pxe.Machine) string {
	if !m.Addr.IsValid() {
		return ""
	}
	return m.Addr.String()
}

// entry names one entry of a node into its state.
func entry(n inventory.Node) string {
	return n.State.String() + "-" + stamp(n.Since)
}
