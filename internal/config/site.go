package config

import (
	"net/netip"
	"time"

	"smelt/inventory"
)

// A Site is a checked site.yaml. Names it refers to exist, addresses parse,
// and nothing stands twice.
type Site struct {
	Name       string
	State      string // folder
	Store      Store
	Listen     Listen
	Images     *Images // nil: images are built and signed here
	Networks   []Network
	Circuits   []inventory.Circuit // parents before children
	PDUs       []PDU
	Classes    map[string]Class
	Nodes      []Node
	Cluster    *Cluster // nil: nodes go in service without one
	Rescue     []string // public ssh keys of who may log in to a machine in rescue
	MaxActive  int
	SlotWindow time.Duration // one start on a circuit
	Curtail    []Curtail     // weekly times in which power is given back
	BootWait   time.Duration // within it a machine that was started asks the boot service
	Swarm      Swarm
	Lab        bool
	StandsFor  map[inventory.NodeID][]StandIn

	PanelWindow time.Duration // one start on a panel after a blackout
	MeterStale  time.Duration // older readings are missing
	Hints       Errors        // what is no mistake and worth knowing
}

// A SecretRef is the name of a stored secret; "" where none is given.
type SecretRef string

// Store says where state is kept: SQLite in the state folder unless Postgres
// names the secret that holds a connection string.
type Store struct {
	Postgres SecretRef
}

// Listen holds the addresses of the listeners. BootTLS may be empty: none. UI may also be "fd:N" or
// "systemd" (an inherited socket).
type Listen struct {
	Boot, BootTLS, Agent, UI string
	Public                   string // URL by which people reach UI, without a slash at its end; may be empty
}

// Images says where released images come from, and whose word counts.
type Images struct {
	Remote   string
	Root     string // file
	Channel  string // canary stable
	Every    time.Duration
	User     string
	Password SecretRef
}

// A Network is one that machines boot on.
type Network struct {
	Name                string
	Mode                string // authoritative proxy relay observe
	Interface           string
	Address             netip.Prefix // ours, with host bits
	Subnet              netip.Prefix // of the machines, when they come through relays; else invalid
	Relays              []netip.Addr // relay agents that are answered
	Servers             []netip.Addr // DHCP servers of the hall
	Pool                Range        // zero: only machines with a fixed address get one
	Router              netip.Addr   // may be invalid: none
	DNS                 []netip.Addr
	RouterAdvertisement bool
	HTTPS               bool         // loaders of UEFI HTTP clients come from Listen.BootTLS
	IPv6                netip.Prefix // ours, with host bits; invalid: no boot over IPv6
	Allow, Deny         Rule
}

// Machines are the addresses that machines of the network have.
func (n Network) Machines() netip.Prefix {
	if n.Relayed() {
		return n.Subnet
	}
	return n.Address.Masked()
}

// Relayed tells whether its machines come through relays.
func (n Network) Relayed() bool { return n.Mode == "relay" || n.Subnet.IsValid() }

// GivesAddresses tells whether machines get their addresses from us.
func (n Network) GivesAddresses() bool { return n.Mode == "authoritative" || n.Mode == "relay" }

// A Rule names machines, by what they say of themselves or by what the site
// says of them.
type Rule struct {
	MACs    []inventory.MAC
	OUIs    [][3]byte
	Vendors []string // of DHCP option 60; * stands for any text
	Classes []string
}

// A Range is first to last address, both included. The zero Range is empty.
type Range struct {
	First, Last netip.Addr
}

// Contains tells whether a is inside.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.IsValid() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// A PDU is a switched power distribution unit spoken to by SNMP.
type PDU struct {
	Name       string
	Address    string // HOST:PORT
	Model      string // "" is what the PDU says it is
	Version    string // v1, v2c, v3
	Community  SecretRef
	User       string
	Auth, Priv SecretRef
	Names      string // check, ignore: whether outlet names are held against nodes
}

// A Class is what is expected of a group of nodes.
type Class struct {
	Name         string
	Image        string
	Profile      string
	Target       string
	Wipe         string
	Disk         inventory.DiskRule
	ReadBack     bool // all of the disk is read again after writing, not a sample
	Watts        float64
	GPUs         int
	GPUModel     string
	MinLinkWidth int
	Slots        map[string]string
	MayFail      []string // units of the image whose failure burn-in accepts
	Boot         string   // uki, shim, ipxe: how its firmware is to boot; empty: as it can
	Root         string   // ram: its nodes run the image from memory; empty: from a disk
	Start        string   // kexec: the first start goes past the firmware; empty: by a restart
	ApproveRule  bool     // approved without a person when the verdict is convert
}

// A Node is one expected machine. Spec has the class's values filled in where
// the node gives none.
type Node struct {
	inventory.Spec
	Address netip.Addr // fixed lease; may be invalid: none
	Power   []Power    // ways to switch it, in the order that they are tried; at least one
}

// Power is one way to switch a node. Only the fields of its driver are set.
type Power struct {
	Driver      string // redfish ipmi pdu wol plug amt inband manual
	Kind        string // plug: shelly tasmota homeassistant
	Address     string
	User        string
	Password    SecretRef // wol: SecureOn
	Token       SecretRef // plug: homeassistant
	CipherSuite int       // ipmi
	Pin         string    // redfish, amt
	System      string    // redfish
	Outlets     []Outlet  // pdu
	Channel     int       // plug: shelly from 0, tasmota from 1
	Entity      string    // plug: homeassistant
	Meter       string    // plug: homeassistant; "" without
	Network     string    // wol
	// Kept is under which node's name the password of an account is kept once the
	// BMC is adopted: the first by name of the nodes that log in by it.
	Kept inventory.NodeID // redfish, ipmi
}

// An Outlet is one outlet of a PDU, counted from 1.
type Outlet struct {
	PDU    string
	Outlet int
}

// Cluster is what validated nodes join.
type Cluster struct {
	Kind     string // slurm
	Name     string
	Conf     string
	Server   string
	MungeKey SecretRef
}

// A StandIn says which card an emulated device stands for, on a lab site.
type StandIn struct {
	PCI   string
	Model string
	UUID  string
	VRAM  int64
	Fault string
}

// Secrets lists the secrets that the site names, each once.
func (s *Site) Secrets() []SecretRef {
	var out []SecretRef
	seen := map[SecretRef]bool{"": true}
	add := func(refs ...SecretRef) {
		for _, r := range refs {
			if !seen[r] {
				seen[r] = true
				out = append(out, r)
			}
		}
	}
	add(s.Store.Postgres)
	if s.Images != nil {
		add(s.Images.Password)
	}
	for _, p := range s.PDUs {
		add(p.Community, p.Auth, p.Priv)
	}
	for _, n := range s.Nodes {
		for _, w := range n.Power {
			add(w.Password, w.Token)
		}
	}
	if s.Cluster != nil {
		add(s.Cluster.MungeKey)
	}
	return out
}
