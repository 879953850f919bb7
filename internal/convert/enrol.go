package convert

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
)

// An installed agent renews its session at half of its life. It may be off for
// days; that an old one counts for nothing is the fence's work, not the clock's.
const (
	sessionLife   = 24 * time.Hour      // of a RAM system
	installedLife = 30 * 24 * time.Hour // of an installed system, from the image order on
)

// Fingerprint names an agent's key in permits and sessions.
func Fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// Enrol checks nonce and identity quorum and opens a session. A nonce used
// twice and an identity that contradicts the node raise an alarm on the node.
func (c *Conductor) Enrol(ctx context.Context, e Enrolment) (Session, error) {
	if err := c.serving(); err != nil {
		return Session{}, err
	}
	if len(e.Key) != ed25519.PublicKeySize {
		return Session{}, fmt.Errorf("enrol: %w: the key is no ed25519 key", ErrRefused)
	}
	fp := Fingerprint(e.Key)
	nonce, err := c.Store.UseNonce(ctx, e.Nonce, fp, c.Now())
	switch {
	case errors.Is(err, store.ErrUsed) && nonce.Node != "":
		return Session{}, c.refuse(ctx, nonce.Node, "its boot nonce was used a second time, by another agent", e)
	case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrUsed):
		return Session{}, fmt.Errorf("enrol from %s: %w: %w", e.Addr, ErrRefused, err)
	case err != nil:
		return Session{}, err
	}

	c.boundary(nonce.Node, "nonce used: "+nonce.Mode)

	unlock := c.lock(nonce.Node)
	defer unlock()
	n, err := c.Store.Node(ctx, nonce.Node)
	if err != nil {
		return Session{}, err
	}
	hw := c.shape(n, e.Hardware)
	if why := notHere(n, nonce, hw); why != "" {
		return Session{}, c.refuseLocked(ctx, n, why, e)
	}
	id := inventory.Identify(n.Spec, n.Hardware, hw)
	if id.Match == inventory.Contradicted {
		return Session{}, c.refuseLocked(ctx, n, id.Err().Error(), e)
	}

	t := c.turn(ctx, n)
	mine, err := t.fenceIs(nonce.Fence, fp)
	if err != nil {
		return Session{}, err
	}
	if mine == fenceOther {
		return Session{}, fmt.Errorf("enrol node %s: %w: the nonce is from an earlier boot", n.ID, ErrRefused)
	}
	switch nonce.Mode {
	case modeConvert:
		err = c.mayConvert(t, id, hw)
	case modeRAM:
		err = c.mayLoad(t, id, hw)
	case modeRescue:
		err = t.mayRescue(id)
	}
	if err != nil {
		return Session{}, err
	}
	// A rescue is a visit: the agent of the node's own system answers for it
	// before and afterwards, and would not be heard again under another fence.
	visit := nonce.Mode == modeRescue && startsItsSystem(n)
	if visit && !t.n.Once.Began.IsZero() {
		if h, err := t.all(); err != nil {
			return Session{}, err
		} else if !h.rescuedBy(fp) {
			return Session{}, fmt.Errorf("enrol node %s: %w: another agent began its rescue", n.ID, ErrRefused)
		}
	}
	if mine == fenceOld && !visit {
		t.add(inventory.Event{Kind: inventory.KindFence, Actor: "agent", Fence: n.Fence + 1, Reason: nonce.Mode + " boot",
			Evidence: map[string]string{"agent": fp, "addr": e.Addr, "identity": string(id.Match), "agree": factNames(id), "mode": nonce.Mode, "hardware": hw.Digest()}})
	}
	if nonce.Mode == modeRescue && t.n.Once.Began.IsZero() {
		t.begin(map[string]string{"agent": fp, "addr": e.Addr})
	}
	switch {
	case n.State == inventory.Expected:
		t.move(inventory.Discovered, "its agent enrolled", nil)
	case nonce.Mode == modeConvert && n.State == inventory.Approved:
		t.move(inventory.Wiping, "it started the installer; identity "+string(id.Match)+" by "+factNames(id), map[string]string{"agent": fp, "addr": e.Addr})
	case nonce.Mode == modeRAM && n.State == inventory.Approved:
		t.loads("identity "+string(id.Match)+" by "+factNames(id), map[string]string{"agent": fp, "addr": e.Addr})
	}
	if err := t.close(pressed, "agent", "it started"); err != nil {
		return Session{}, err
	}
	if t.err != nil {
		return Session{}, fmt.Errorf("enrol node %s: %w: %w", n.ID, ErrRefused, t.err)
	}
	if t.dirty() {
		if err := t.commit(); err != nil {
			return Session{}, err
		}
		c.poke(n.ID, c.Now()) // its new state may have something to do
	}

	// The responsibility is this agent's now: every other session of the node ends.
	if !visit {
		if err := c.Store.EndAgents(ctx, n.ID); err != nil {
			return Session{}, err
		}
	}
	c.boundary(n.ID, "sessions ended: "+nonce.Mode)
	s, err := c.open(ctx, store.Agent{Node: n.ID, Mode: nonce.Mode, Fingerprint: fp, Fence: t.n.Fence})
	if err != nil {
		return Session{}, err
	}
	c.seen(n.ID, func(l *Live) { *l = Live{LastSeen: l.LastSeen, Addr: e.Addr, Mode: nonce.Mode} })
	c.announce(n.ID)
	c.boundary(n.ID, "session opened: "+nonce.Mode)
	return s, nil
}

// Answers of fenceIs.
const (
	fenceOld   = iota // the node is as it was when the nonce was made: raise
	fenceMine         // this agent raised it, and its answer was lost
	fenceOther        // somebody else is responsible since
)

func (t *turn) fenceIs(at uint64, fp string) (int, error) {
	if t.n.Fence == at {
		return fenceOld, nil
	}
	h, err := t.all()
	if err != nil {
		return 0, err
	}
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind == inventory.KindFence {
			if h[i].Fence == at+1 && h[i].Evidence["agent"] == fp {
				return fenceMine, nil
			}
			break
		}
	}
	return fenceOther, nil
}

// notHere says why the agent cannot be on this node at all, or "".
func notHere(n inventory.Node, nonce store.Nonce, hw inventory.Hardware) string {
	found := false
	for _, nic := range hw.NICs {
		found = found || nic.MAC == nonce.MAC
	}
	if !found {
		return "its boot was asked for by " + nonce.MAC.String() + ", which is no address of this machine"
	}
	if nonce.Mode == modeRAM && loadsInRAM(n) {
		return ""
	}
	if nonce.Mode == modeRescue {
		if o := n.Once; o != nil && o.Boot == inventory.BootRescue {
			return ""
		}
		return "nobody wants it for a rescue any more"
	}
	switch n.State {
	case inventory.Expected, inventory.Discovered, inventory.Inspected, inventory.NeedsWork,
		inventory.Approved, inventory.Wiping, inventory.Imaging:
		return ""
	}
	return "it is " + n.State.String() + ": no RAM system may run on it"
}

// mayConvert holds an agent that wants to convert against rule 2. The hardware
// must be what was approved; when it is not, a person looks first.
func (c *Conductor) mayConvert(t *turn, id inventory.Identity, hw inventory.Hardware) error {
	n := t.n
	if err := n.Convertible(); err != nil {
		return fmt.Errorf("enrol node %s: %w: %w", n.ID, ErrRefused, err)
	}
	if c.Stopped() {
		return fmt.Errorf("enrol node %s: %w: the global stop is set", n.ID, ErrRefused)
	}
	if n.State == inventory.Approved {
		// Until its restart is confirmed another power cycle may follow: this
		// process may have taken over between off and on. An agent that began
		// now would be cut off, and the machine could stay off for good.
		h, err := t.here()
		if err != nil {
			return err
		}
		if h.mark(markRestarted) == nil {
			return fmt.Errorf("enrol node %s: %w: its restart is not confirmed", n.ID, ErrNotYet)
		}
	}
	if err := id.Err(); err != nil {
		return fmt.Errorf("enrol node %s: %w: %w", n.ID, ErrRefused, err)
	}
	if hw.Digest() == n.Plan.Hardware {
		return nil
	}
	err := t.fail("hardware-changed", "it is not the hardware that was approved", inventory.Task{
		Verb: "check", What: "what was changed in the machine since its approval", Why: "the plan was made for other hardware", Proof: "reinspect",
	})
	if err == nil {
		err = t.commit()
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("enrol node %s: %w: its hardware changed since approval", n.ID, ErrRefused)
}

func factNames(id inventory.Identity) string {
	var s []string
	for _, f := range id.Agree {
		s = append(s, f.Name)
	}
	return strings.Join(s, ", ")
}

func (c *Conductor) refuse(ctx context.Context, node inventory.NodeID, why string, e Enrolment) error {
	unlock := c.lock(node)
	defer unlock()
	n, err := c.Store.Node(ctx, node)
	if err != nil {
		return err
	}
	return c.refuseLocked(ctx, n, why, e)
}

// refuseLocked raises an alarm and returns the refusal.
func (c *Conductor) refuseLocked(ctx context.Context, n inventory.Node, why string, e Enrolment) error {
	t := c.turn(ctx, n)
	t.alarm("an agent was refused: "+why, map[string]string{"addr": e.Addr, "agent": Fingerprint(e.Key), "board": e.Hardware.Board.Serial})
	if err := t.commit(); err != nil {
		c.Log.Error("alarm not stored", "node", n.ID, "err", err)
	}
	return fmt.Errorf("enrol node %s: %w: %s", n.ID, ErrRefused, why)
}

// open stores a new session for a and returns it with its token.
func (c *Conductor) open(ctx context.Context, a store.Agent) (Session, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	token := hex.EncodeToString(raw)
	life := sessionLife
	if mode(a) == modeInstalled {
		life = installedLife
	}
	a.Session, a.Expires = hash(token), c.Now().Add(life).UTC()
	if err := c.Store.PutAgent(ctx, a); err != nil {
		return Session{}, err
	}
	a.Mode = mode(a)
	return Session{Token: token, Agent: a}, nil
}

// spare ends the mode of every second session of an agent. The store keeps one
// session for each node and mode: the one that is replaced stays good until
// the next renewal, because the answer with the new one may be lost.
const spare = "+"

// mode is what kind of agent a is.
func mode(a store.Agent) string { return strings.TrimSuffix(a.Mode, spare) }

// Renew replaces the session of an agent.
func (c *Conductor) Renew(ctx context.Context, a store.Agent) (Session, error) {
	n, err := c.Store.Node(ctx, a.Node)
	if err != nil {
		return Session{}, err
	}
	if a.Fence != n.Fence {
		return Session{}, fmt.Errorf("renew node %s: %w: a later boot of it is responsible now", a.Node, store.ErrConflict)
	}
	if strings.HasSuffix(a.Mode, spare) {
		a.Mode = mode(a)
	} else {
		a.Mode += spare
	}
	return c.open(ctx, a)
}

// handoff is the session that an installed agent starts with. It is derived,
// not drawn: the order that carries it gives the same one however often it is
// asked for, and only its hash is stored.
func (c *Conductor) handoff(ctx context.Context, n inventory.Node) (*Handoff, error) {
	mac := hmac.New(sha256.New, c.secret)
	for _, s := range []string{string(n.ID), n.Plan.Digest, strconv.FormatUint(n.Fence, 10), stamp(n.Since)} {
		mac.Write([]byte(s + "\x00"))
	}
	token := hex.EncodeToString(mac.Sum(nil))
	a := store.Agent{Session: hash(token), Node: n.ID, Mode: modeInstalled, Fence: n.Fence, Expires: n.Since.Add(installedLife).UTC()}
	_, err := c.Store.Agent(ctx, a.Session, c.Now())
	if errors.Is(err, store.ErrNotFound) {
		err = c.Store.PutAgent(ctx, a)
		c.boundary(n.ID, "handoff stored")
	}
	if err != nil {
		return nil, err
	}
	return &Handoff{Session: token, Expires: a.Expires, Fence: n.Fence}, nil
}

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// stamp is a time as part of a name.
func stamp(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 36) }
