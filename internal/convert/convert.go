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
	"crypto/ed25519"
	"errors"
	"log/slog"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/join"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/care"
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
	MaxActive  int                            // blast radius: conversions at once; 25 if 0
	AutoOK     []string                       // classes approved by rule
	Server     string                         // https URL of the agent listener
	ImageURL   string                         // http URL of the image store
	Public     string                         // URL by which people reach the pages; may be empty
	Pin        string                         // SHA-256 of the server's SPKI, hexadecimal
	Curtail    []CurtailWindow                // when power is given back
	Rescue     bool                           // an operator can log in to the RAM system
	BootWait   time.Duration                  // a machine that was started asks for its boot within it; 15 min if 0
	SlotWindow time.Duration                  // start slots: one machine a lowest circuit a window
}

// Class is what is expected of a group of nodes.
type Class struct {
	Name         string
	Image        string // name in the image store
	Profile      string
	Target       string // triage target
	Wipe         string
	Disk         inventory.DiskRule // which disk the image goes to
	ReadBack     bool               // the whole disk is read again after writing
	MinLinkWidth int
	GPUs         int
	GPUModel     string
	Slots        map[string]string // PCI address of a port or GPU -> label a technician can find
	Watts        float64
	MayFail      []string // units of the image whose failure burn-in accepts
	Root         string   // inventory.RootRAM, or empty for a disk
	Start        string   // inventory.StartKexec, or empty for a restart
	Boot         pxe.Path // how its firmware is to boot; empty: as it can
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
	Care    map[inventory.NodeID]care.Device     // BMCs whose password is ours to change
	Budget  *power.Budget
	PDUs    []PDU       // that measure; may be empty
	Join    join.Driver // nil: nodes go in service without a cluster
	SiteKey ed25519.PrivateKey
	Owner   string // this process, for the lease
	Boot    BootFiles
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: nothing is logged
}

// BootFiles names the RAM system in the boot server's file map.
type BootFiles struct {
	Kernel string
	Initrd []string
	Args   []string // always on its command line: console=...
	Memtest
}

// Errors that callers tell apart.
var (
	// ErrRefused: the agent or the person must not do this. The text says why.
	ErrRefused = errors.New("refused")
	// ErrNotYet: it will be allowed soon; ask again.
	ErrNotYet = errors.New("not yet")
)

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

// Order is what an agent should do now: see api.Order, into which the server
// translates it.
//
// The ID stands for one entry into a state: it stays the same however often it
// is asked for and through every restart of server and agent. The permit of an
// order does not: once it was used or is over, the next answer carries a new
// one. An agent whose permit was refused (its answer was lost, or it waited too
// long) therefore asks for the order again instead of reporting a failure.
type Order struct {
	ID      string
	Kind    string // wait inspect wipe image ram kexec rescue reboot off burnin join
	Fence   uint64
	Why     string
	Permit  *inventory.SignedPermit
	Plan    *inventory.Plan // wipe, image
	Image   string          // ram: manifest digest
	Once    *inventory.Once // rescue
	Handoff *Handoff        // image, ram
	Report  string          // burnin
	Profile *burnin.Profile // burnin
	Subject *burnin.Subject // burnin
	Join    *join.Grant     // join
	Load    inventory.Load  // how much may be drawn meanwhile
}

// Handoff is what the installed agent starts with.
type Handoff struct {
	Session string
	Expires time.Time
	Fence   uint64
}

// Inspection is what an agent found.
type Inspection struct {
	Order    string             `json:"order,omitempty"`
	Hardware inventory.Hardware `json:"hardware"`
	Salvage  *inventory.Salvage `json:"salvage,omitempty"`
	Image    string             `json:"image,omitempty"`
	Start    string             `json:"start,omitempty"`
	Addr     string             `json:"addr,omitempty"`
}

// Result ends an order.
type Result struct {
	Order    string            `json:"order"`
	Kind     string            `json:"kind"`
	OK       bool              `json:"ok"`
	Error    string            `json:"error,omitempty"`
	Cause    string            `json:"cause,omitempty"`
	Evidence map[string]string `json:"evidence,omitempty"`
	Wiped    []inventory.Wiped `json:"wiped,omitempty"`
	Report   *burnin.Report    `json:"report,omitempty"`
}

// Live is what is known of a node only while this process runs.
type Live struct {
	Order    string
	Done     float64
	Doing    string
	Rate     float64
	LastSeen time.Time
	Mode     string // of the agent: inspect, convert, installed
	Addr     string

	finished string    // the last order that ended
	disk     time.Time // when an agent of an installed system last spoke, of whatever fence
}
