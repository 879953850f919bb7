// Package api holds what travels between a Smelt server, its agents and its
// operators: wire types, paths, and the clients for both. Numbers are SI units
// unless a field says otherwise; times are RFC 3339.
package api

import (
	"encoding/json"
	"time"

	"smelt/burnin"
	"smelt/internal/join"
	"smelt/inventory"
)

// Version is the apiVersion of every document.
const Version = "smelt/v1"

// Agent paths, on the agent listener (HTTPS with the site's pinned key).
const (
	PathEnrol     = "/agent/v1/enrol"     // POST Enrol -> Enrolled; no session
	PathOrder     = "/agent/v1/order"     // GET ?after=ORDER&locate=ID&load=LOAD -> Order; waits up to 25 s for a change of any
	PathLocated   = "/agent/v1/located"   // POST Located: what is done about Order.Locate
	PathInventory = "/agent/v1/inventory" // POST Inventory
	PathProgress  = "/agent/v1/progress"  // POST Progress; live only, never stored
	PathResult    = "/agent/v1/result"    // POST Result; idempotent by Order
	PathPermit    = "/agent/v1/permit"    // POST PermitUse -> 200, or 409 when already used
	PathChunks    = "/agent/v1/chunks"    // GET, PUT the chunk map of the current order (bytes)
	PathSwarm     = "/agent/v1/swarm"     // POST swarm.Report -> swarm.Plan: who has which chunk of the current order's image
	PathRenew     = "/agent/v1/renew"     // POST -> Enrolled: a new session before the old one ends
	PathTime      = "/agent/v1/time"      // GET -> the server's time, for machines with a dead clock
)

// Enrol is the first word of an agent. In the RAM system Nonce is the one-time
// value from its kernel command line (smelt.nonce=).
type Enrol struct {
	Nonce    string             `json:"nonce"`
	Key      []byte             `json:"key"` // ed25519 public key made at this boot
	Version  string             `json:"version"`
	Hardware inventory.Hardware `json:"hardware"` // identity quorum is taken from it
}

// Enrolled answers Enrol and Renew.
type Enrolled struct {
	Node    inventory.NodeID `json:"node"`
	Mode    string           `json:"mode"`    // inspect, convert, installed
	Session string           `json:"session"` // bearer token; kept in memory (RAM system) or in a 0600 file (installed)
	Expires time.Time        `json:"expires"`
	Fence   uint64           `json:"fence"`
	Now     time.Time        `json:"now"`
}

// Kinds of Order.
const (
	OrderWait    = "wait"    // nothing to do; ask again
	OrderInspect = "inspect" // look again and post Inventory
	OrderWipe    = "wipe"    // Permit, Wipe
	OrderImage   = "image"   // Permit, Image
	OrderRAM     = "ram"     // RAM: load an image into memory and run it; no disk is touched
	OrderRescue  = "rescue"  // Rescue: let an operator in by ssh
	OrderKexec   = "kexec"   // Kexec: start the system that was written, past the firmware
	OrderReboot  = "reboot"  // in-band: sync and reboot (machines without power control)
	OrderOff     = "off"     // in-band: sync and power off
	OrderBurnin  = "burnin"  // Burnin
	OrderJoin    = "join"    // Join
)

// Order is what the agent should do now. The same ID means the same order: an
// agent that already has its result sends the result again. An order whose
// Fence is lower than one the agent has seen is refused.
type Order struct {
	ID     string                  `json:"id"`
	Kind   string                  `json:"kind"`
	Fence  uint64                  `json:"fence"`
	Why    string                  `json:"why,omitempty"`
	Permit *inventory.SignedPermit `json:"permit,omitempty"`
	Wipe   *WipeOrder              `json:"wipe,omitempty"`
	Image  *ImageOrder             `json:"image,omitempty"`
	RAM    *RAMOrder               `json:"ram,omitempty"`
	Kexec  *KexecOrder             `json:"kexec,omitempty"`
	Rescue *RescueOrder            `json:"rescue,omitempty"`
	Burnin *BurninOrder            `json:"burnin,omitempty"`
	Join   *join.Grant             `json:"join,omitempty"`
	Load   inventory.Load          `json:"load,omitzero"` // how much may be drawn; may change while the order stays the same

	// Locate is beside the order, and no part of it: the work goes on. Only who
	// asks with locate=ID gets one.
	Locate *LocateOrder `json:"locate,omitempty"`
}

// LocateOrder makes the machine findable for a while.
type LocateOrder struct {
	ID    string        `json:"id"`
	For   time.Duration `json:"for"`   // nanoseconds; 0: stop
	Quiet bool          `json:"quiet"` // the screen alone: it works
	Lines []string      `json:"lines"` // who it is, for the screen
}

// Located is what the agent does about a LocateOrder.
type Located struct {
	ID   string      `json:"id"`
	Ways []LocateWay `json:"ways"` // PLACE in Look stands for where it is
}

// WipeOrder names the disks again, and what foreign signatures the plan allows.
type WipeOrder struct {
	Level string             `json:"level"` // one of inventory.WipeLevels
	Disks []inventory.DiskID `json:"disks"`
	Allow []string           `json:"allow,omitempty"` // zfs_member, LVM2_member, ...
}

// ImageOrder says what to write where, and what to leave in the installed system.
type ImageOrder struct {
	Manifest string           `json:"manifest"` // digest; fetched signed from Base + "/manifest/" + digest
	Base     string           `json:"base"`     // URL of the image store: BASE/blob/DIGEST takes ranges
	Target   inventory.DiskID `json:"target"`
	ReadBack bool             `json:"readBack,omitempty"` // all of it; otherwise a sample
	Handoff  Handoff          `json:"handoff"`

	Mirrors []string `json:"mirrors,omitempty"` // image stores that are asked before Base; not trusted either
	Swarm   bool     `json:"swarm,omitempty"`   // other nodes may be asked: PathSwarm says which
}

// KexecOrder says on which disk the system is.
type KexecOrder struct {
	Target inventory.DiskID `json:"target"`
}

// RAMOrder says what to run in memory, and what to leave in it.
type RAMOrder struct {
	Manifest string   `json:"manifest"` // this and the next two as in ImageOrder
	Base     string   `json:"base"`
	Mirrors  []string `json:"mirrors,omitempty"`
	Handoff  Handoff  `json:"handoff"`
}

// RescueOrder says who may log in, until when, and with what.
type RescueOrder struct {
	Keys   []string  `json:"keys"`            // as in authorized_keys
	Until  time.Time `json:"until"`           //
	Write  bool      `json:"write,omitempty"` // disks are not kept read-only
	Tools  string    `json:"tools"`           // URL of a static busybox
	Digest string    `json:"digest"`          // its SHA-256, hexadecimal
}

// Handoff is written into the installed system as /var/lib/smelt/agent.json (0600).
type Handoff struct {
	Node    inventory.NodeID `json:"node"`
	Server  string           `json:"server"` // https URL
	Pin     string           `json:"pin"`    // SHA-256 of the server's SPKI, hexadecimal
	SiteKey []byte           `json:"siteKey"`
	Session string           `json:"session"`
	Expires time.Time        `json:"expires"`
	Image   string           `json:"image"` // manifest digest it was installed from
	Fence   uint64           `json:"fence"`
}

// BurninOrder asks for a run.
type BurninOrder struct {
	Report  string         `json:"report"` // id
	Profile burnin.Profile `json:"profile"`
	Subject burnin.Subject `json:"subject"`
	Lab     bool           `json:"lab"`
}

// Inventory is what inspection found.
type Inventory struct {
	Order    string             `json:"order,omitempty"`
	Hardware inventory.Hardware `json:"hardware"`
	Salvage  *inventory.Salvage `json:"salvage,omitempty"`
	Image    string             `json:"image,omitempty"` // installed system: digest it runs from
	Start    string             `json:"start,omitempty"` // installed system: disk, kexec or ram, by what it was started
	Addr     string             `json:"addr,omitempty"`
}

// Progress is how far an order is; sent at most once a second.
type Progress struct {
	Order string  `json:"order"`
	Done  float64 `json:"done"` // 0 to 1
	Doing string  `json:"doing"`
	Rate  float64 `json:"rate,omitempty"` // bytes/s
}

// Result ends an order.
type Result struct {
	Order    string            `json:"order"`
	Kind     string            `json:"kind"`
	OK       bool              `json:"ok"`
	Error    string            `json:"error,omitempty"`
	Cause    string            `json:"cause,omitempty"` // permit, fence, identity, foreign-data, level, frozen, verify, disk, network, other
	Evidence map[string]string `json:"evidence,omitempty"`
	Wiped    []inventory.Wiped `json:"wiped,omitempty"`
	Report   *burnin.Report    `json:"report,omitempty"` // unjudged: the server judges
}

// PermitUse asks to use a permit right before the first byte.
type PermitUse struct {
	ID string `json:"id"`
}

// Operator paths, on the UI listener. Documents are JSON with apiVersion and kind.
const (
	PathNodes    = "/api/v1/nodes"    // GET NodeList; GET /{id} NodeView; POST /{id}/{verb} Action
	PathTasks    = "/api/v1/tasks"    // GET TaskList; POST /{id}/done Action
	PathEvents   = "/api/v1/events"   // GET, SSE: id is the sequence number; Last-Event-ID resumes
	PathImages   = "/api/v1/images"   // GET ImageList
	PathSite     = "/api/v1/site"     // GET SiteView
	PathStop     = "/api/v1/stop"     // POST Action: sets or clears the global stop
	PathTokens   = "/api/v1/tokens"   // GET TokenList; POST TokenRequest -> TokenGrant; POST /{name}/revoke
	PathNetworks = "/api/v1/networks" // GET NetworkList; GET /seen SightingList
	PathBMCs     = "/api/v1/bmcs"     // GET BMCList
	PathReports  = "/api/v1/reports"  // GET /{node} ReportList; GET /{node}/{id}.json, .html
	PathOpenAPI  = "/api/openapi.json"

	PathCertificates = "/api/v1/certificates" // GET /{node} CertificateList; GET /{node}/{id}.json (signed), .html
)

// NodeView is a node with what people need beside it.
type NodeView struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"` // Node
	Node       inventory.Node    `json:"node"`
	Code       string            `json:"code,omitempty"` // only for one node: its short name, as its screen shows it
	WaitsFor   string            `json:"waitsFor"`
	WaitsOn    string            `json:"waitsOn"` // actor
	Stuck      bool              `json:"stuck"`
	Try        string            `json:"try,omitempty"`
	Progress   *Progress         `json:"progress,omitempty"`
	LastSeen   time.Time         `json:"lastSeen,omitzero"`
	Addr       string            `json:"addr,omitempty"`
	Simulated  bool              `json:"simulated"`
	Spent      map[string]string `json:"spent,omitempty"` // state -> total duration
	Tasks      []inventory.Task  `json:"tasks,omitempty"`
	Events     []inventory.Event `json:"events,omitempty"`   // only for one node
	Reports    []ReportRef       `json:"reports,omitempty"`  // only for one node
	Wipes      []CertificateRef  `json:"wipes,omitempty"`    // only for one node
	Boot       []BootEvent       `json:"boot,omitempty"`     // only for one node: its last network boots, oldest first
	Keys       []DeviceKey       `json:"keys,omitempty"`     // only for one node: of its controllers that speak TLS
	Console    *ConsoleState     `json:"console,omitempty"`  // only for one node, and where its console is recorded
	Locating   *Locating         `json:"locating,omitempty"` // only for one node, while somebody looks for it
}

// ReportRef points at a stored report.
type ReportRef struct {
	ID     string    `json:"id"`
	Answer string    `json:"answer"`
	At     time.Time `json:"at"`
	HTML   string    `json:"html"` // path
	JSON   string    `json:"json"`
}

// CertificateRef points at the certificate of a wipe.
type CertificateRef struct {
	ID   string    `json:"id"`
	At   time.Time `json:"at"`
	HTML string    `json:"html"` // path
	JSON string    `json:"json"` // the signed document
}

// CertificateList is the wipe certificates of one node, newest first.
type CertificateList struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // CertificateList
	Items      []CertificateRef `json:"items"`
}

// NodeList is all nodes.
type NodeList struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"` // NodeList
	Items      []NodeView `json:"items"`
	Seq        uint64     `json:"seq"` // events after this one are news
}

// TaskList is all tasks, open ones first.
type TaskList struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // TaskList
	Items      []inventory.Task `json:"items"`
}

// SiteView is what the header of every page shows.
type SiteView struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"` // Site
	Name       string         `json:"name"`
	Lab        bool           `json:"lab"`
	Version    string         `json:"version"`
	Counts     map[string]int `json:"counts"`           // by state
	Stop       bool           `json:"stop"`             // the global stop is set
	Levels     []Level        `json:"levels,omitempty"` // the power tree, parents first
	OpenTasks  int            `json:"openTasks"`
	Alarms     []string       `json:"alarms,omitempty"` // of its networks: rival DHCP servers

	Power      inventory.SitePower `json:"power"`                // what was decided about the power of the site
	PowerAlarm string              `json:"powerAlarm,omitempty"` // why a person must look at it
	Seq        uint64              `json:"seq"`
}

// TokenRequest asks for a token for somebody.
type TokenRequest struct {
	Name string `json:"name"`
	Role string `json:"role"` // viewer, technician, operator
}

// TokenGrant is a new token. It is shown this once: only its hash is stored.
type TokenGrant struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // TokenGrant
	TokenRequest
	Token string `json:"token"`
}

// TokenList says who has tokens, never which.
type TokenList struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"` // TokenList
	Items      []TokenInfo `json:"items"`
}

// TokenInfo is one token without its value. The role of a revoked one is "revoked".
type TokenInfo struct {
	TokenRequest
	Created time.Time `json:"created"`
}

// ImageList is all images of the store.
type ImageList struct {
	APIVersion string  `json:"apiVersion"`
	Kind       string  `json:"kind"` // ImageList
	Items      []Image `json:"items"`
}

// Image is one name in the image store.
type Image struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"` // of its manifest
	Size    int64     `json:"size"`   // of the disk image, bytes
	Created time.Time `json:"created"`
}

// ReportList is the reports of one node, newest first.
type ReportList struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"` // ReportList
	Items      []ReportRef `json:"items"`
}

// Names of the events of PathEvents.
const (
	StreamEvent    = "event"    // data is an inventory.Event; its id resumes
	StreamProgress = "progress" // data is a NodeProgress; never repeated, at most one a second and node
)

// NodeProgress is how far a node is now.
type NodeProgress struct {
	Node inventory.NodeID `json:"node"`
	Progress
}

// Action asks for something. ID makes it idempotent; the server makes one when
// it is empty.
type Action struct {
	ID     string            `json:"id,omitempty"`
	Params map[string]string `json:"params,omitempty"` // approve: image, profile, confirm; power: verb; hold: reason
}

// ActionResult is what became of it. 200 done, 409 refused, 202 still waiting.
type ActionResult struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // ActionResult
	ID         string `json:"id"`
	Done       bool   `json:"done"`
	Error      string `json:"error,omitempty"`
}

// Problem is every error answer (RFC 9457).
type Problem struct {
	Title  string          `json:"title"`
	Status int             `json:"status"`
	Detail string          `json:"detail"`
	Next   string          `json:"next,omitempty"` // the command or page to try next
	Extra  json.RawMessage `json:"extra,omitempty"`
}
