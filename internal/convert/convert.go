// Package convert is the conductor: the only package that sees network boot,
// images, power, burn-in and the cluster together, and the only one that
// changes the state of a node.
//
// It is level-triggered: for each node it looks at the stored state and at
// what was observed, does the next idempotent step, and commits state and
// event in one transaction guarded by its lease. Killed at any instruction,
// the next conductor resumes from the last commit.
package convert

import (
	"context"
	"crypto/ed25519"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/join"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/pxe"
)

// Site is what the conductor must know of the site, typed and validated.
type Site struct {
	Name       string
	Lab        bool
	Specs      []inventory.Spec
	Classes    map[string]Class
	Profiles   map[string]burnin.Profile
	Circuits   []inventory.Circuit
	StandsFor  map[inventory.NodeID][]StandIn // lab only
	Cluster    string                         // name of the cluster nodes join; "" joins none
	MaxActive  int                            // blast radius: conversions at once
	AutoOK     []string                       // classes approved by rule
	Server     string                         // https URL of the agent listener
	ImageURL   string                         // http URL of the image store
	Pin        string                         // SHA-256 of the server's SPKI, hexadecimal
	SlotWindow time.Duration                  // start slots: one machine a lowest circuit a window
}

// Class is what is expected of a group of nodes.
type Class struct {
	Name         string
	Image        string // name in the image store
	Profile      string
	Target       string // triage target
	Wipe         string
	MinLinkWidth int
	GPUs         int
	GPUModel     string
	Slots        map[string]string // PCI address of a port or GPU -> label a technician can find
	Watts        float64
}

// StandIn says which card a QEMU device stands for. Everything derived from it
// is labelled simulated.
type StandIn struct {
	PCI   string // address in the guest
	Model string
	UUID  string
	VRAM  int64
	Fault string // see burnin.SimGPU
}

// Config wires a Conductor. Every field is needed unless it says otherwise.
type Config struct {
	Site    Site
	Store   *store.Store
	Images  *images.Store
	Power   map[inventory.NodeID]*power.Verified // nodes without an entry are switched by a human
	Budget  *power.Budget
	Join    join.Driver // nil: nodes go in service without a cluster
	SiteKey ed25519.PrivateKey
	Owner   string // this process, for the lease
	Boot    BootFiles
	Now     func() time.Time // nil: time.Now
}

// BootFiles names the RAM system in the boot server's file map.
type BootFiles struct {
	Kernel string
	Initrd []string
	Args   []string // always on its command line: console=...
}

var _ pxe.Booter = (*Conductor)(nil)

// Conductor is a Task: Run, Ready, String.
type Conductor struct{ contract }

type contract struct{}

const unbuilt = "convert: being built"

// New checks c and returns a conductor that does nothing until Run.
func New(c Config) (*Conductor, error) { panic(unbuilt) }

// Run takes the lease and conducts until ctx ends. It returns
// store.ErrFenced when another conductor took over.
func (c *Conductor) Run(ctx context.Context) error { panic(unbuilt) }

// Ready is closed once the lease is held and every stored node was looked at.
func (c *Conductor) Ready() <-chan struct{} { panic(unbuilt) }

func (c *Conductor) String() string { return "conductor" }

// Boot implements pxe.Booter: an unknown or unapproved machine gets the
// inspection boot at most, one in service its own disk.
func (c *Conductor) Boot(ctx context.Context, m pxe.Machine) (pxe.Boot, error) { panic(unbuilt) }

// Enrolment is what an agent shows at its first word.
type Enrolment struct {
	Nonce    string
	Key      ed25519.PublicKey
	Hardware inventory.Hardware
	Addr     string
}

// Session is an enrolled agent. Token is returned once and stored as a hash.
type Session struct {
	Token string
	store.Agent
}

// Enrol checks nonce and identity quorum and opens a session. A nonce used
// twice and an identity that contradicts the node raise an alarm on the node.
func (c *Conductor) Enrol(ctx context.Context, e Enrolment) (Session, error) { panic(unbuilt) }

// Renew replaces the session of an agent.
func (c *Conductor) Renew(ctx context.Context, a store.Agent) (Session, error) { panic(unbuilt) }

// Order is what an agent should do now: see api.Order, into which the server
// translates it.
type Order struct {
	ID      string
	Kind    string // wait inspect wipe image reboot off burnin join
	Fence   uint64
	Why     string
	Permit  *inventory.SignedPermit
	Plan    *inventory.Plan // wipe, image
	Handoff *Handoff        // image
	Report  string          // burnin
	Profile *burnin.Profile // burnin
	Subject *burnin.Subject // burnin
	Join    *join.Grant     // join
}

// Handoff is what the installed agent starts with.
type Handoff struct {
	Session string
	Expires time.Time
	Fence   uint64
}

// Order returns the current order for an agent. It is computed from the stored
// state, so that asking twice gives the same order.
func (c *Conductor) Order(ctx context.Context, a store.Agent) (Order, error) { panic(unbuilt) }

// Changed is closed when the orders of the node may have changed.
func (c *Conductor) Changed(node inventory.NodeID) <-chan struct{} { panic(unbuilt) }

// Inspected stores what an agent found; the conductor acts on it.
func (c *Conductor) Inspected(ctx context.Context, a store.Agent, i Inspection) error {
	panic(unbuilt)
}

// Inspection is what an agent found.
type Inspection struct {
	Order    string
	Hardware inventory.Hardware
	Salvage  *inventory.Salvage
	Image    string
	Addr     string
}

// Finished stores the result of an order; repeating it changes nothing.
func (c *Conductor) Finished(ctx context.Context, a store.Agent, r Result) error { panic(unbuilt) }

// Result ends an order.
type Result struct {
	Order    string            `json:"order"`
	Kind     string            `json:"kind"`
	OK       bool              `json:"ok"`
	Error    string            `json:"error,omitempty"`
	Cause    string            `json:"cause,omitempty"`
	Evidence map[string]string `json:"evidence,omitempty"`
	Report   *burnin.Report    `json:"report,omitempty"`
}

// UsePermit is asked by the agent right before the first destructive byte. It
// fails when the permit was used, the fence moved, the node is held or the
// global stop is set.
func (c *Conductor) UsePermit(ctx context.Context, a store.Agent, id string) error { panic(unbuilt) }

// Live is what is known of a node only while this process runs.
type Live struct {
	Order    string
	Done     float64
	Doing    string
	Rate     float64
	LastSeen time.Time
	Addr     string
}

// Progress notes how far an order is. It is kept in memory only.
func (c *Conductor) Progress(a store.Agent, order string, done float64, doing string, rate float64) {
	panic(unbuilt)
}

// Live returns what is known of a node now.
func (c *Conductor) Live(node inventory.NodeID) Live { panic(unbuilt) }

// Submit stores an intent, wakes the conductor and waits for its result until
// ctx ends. store.ErrNotFound: still pending.
func (c *Conductor) Submit(ctx context.Context, i store.Intent) (store.IntentResult, error) {
	panic(unbuilt)
}

// Stop sets or clears the global stop: no permit is issued or used while set.
func (c *Conductor) Stop(ctx context.Context, on bool, actor, reason string) error { panic(unbuilt) }

// Stopped tells whether the global stop is set.
func (c *Conductor) Stopped() bool { panic(unbuilt) }

// Levels is the power tree with what is granted.
func (c *Conductor) Levels() []power.Level { panic(unbuilt) }
