package api

import (
	"time"

	"smelt/inventory"
)

// BootEvent is one decision of the boot service about a machine: what it
// asked, what it got, and why. They are kept in memory, the last few of each
// machine.
type BootEvent struct {
	At       time.Time     `json:"at"`
	MAC      inventory.MAC `json:"mac"`
	Network  string        `json:"network,omitempty"`
	Kind     string        `json:"kind"`               // dhcp discover, tftp NAME, script, file NAME, ...
	Firmware string        `json:"firmware,omitempty"` // bios, uefi-pxe, uefi-http, arm64, ipxe
	Asked    string        `json:"asked"`              // kind in words
	Answer   string        `json:"answer"`
	Why      string        `json:"why,omitempty"`
	Addr     string        `json:"addr,omitempty"`
	Times    int           `json:"times"` // in a row, since Since
	Since    time.Time     `json:"since"`
}

// NetworkList is the networks that machines boot on.
type NetworkList struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"` // NetworkList
	Items      []NetworkView `json:"items"`
}

// NetworkView is one network and how it fares.
type NetworkView struct {
	Name      string   `json:"name"`
	Mode      string   `json:"mode"` // authoritative, proxy, relay, observe
	Interface string   `json:"interface"`
	Address   string   `json:"address"`          // ours on it
	Subnet    string   `json:"subnet,omitempty"` // of the machines, when relays stand between
	Pool      string   `json:"pool,omitempty"`   // FIRST-LAST
	Used      int      `json:"used"`             // addresses of the pool
	Size      int      `json:"size"`
	Heard     int      `json:"heard"` // machines
	Rivals    []Rival  `json:"rivals,omitempty"`
	Warnings  []string `json:"warnings,omitempty"` // what keeps machines from booting, or soon will
}

// Rival is another DHCP or ProxyDHCP server that was heard on a network.
type Rival struct {
	Name    string    `json:"name"` // in one line
	Type    string    `json:"type"` // DHCP, ProxyDHCP, DHCP with boot, ...
	MAC     string    `json:"mac,omitempty"`
	Addr    string    `json:"addr,omitempty"`
	Offered string    `json:"offered,omitempty"` // the last address it gave
	Boots   []string  `json:"boots,omitempty"`   // files it gives to boot, and to whom
	Alarm   string    `json:"alarm,omitempty"`   // what harm it does
	Next    string    `json:"next,omitempty"`    // what to do about it
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Gone    bool      `json:"gone,omitempty"` // not heard for a while
}

// SightingList is the machines that were heard, the last one first.
type SightingList struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"` // SightingList
	Items      []Sighting `json:"items"`
}

// Verdicts of a Sighting.
const (
	SeenNode      = "node"      // it is a node
	SeenCandidate = "candidate" // it boots from the network and is no node: perhaps convertible
	SeenASIC      = "asic"      // an ASIC miner: never convertible, never offered a boot
	SeenUnknown   = "unknown"   // it only asks for an address
)

// Sighting is a machine that asked for an address or a boot, whether it was
// answered or not. All of it is what the machine said: labels, no proof.
type Sighting struct {
	MAC      inventory.MAC    `json:"mac"`
	Network  string           `json:"network"`
	First    time.Time        `json:"first"`
	Last     time.Time        `json:"last"`
	Asks     int              `json:"asks"`
	Boots    bool             `json:"boots"` // its firmware asks to boot from the network
	Vendor   string           `json:"vendor,omitempty"`
	Hostname string           `json:"hostname,omitempty"`
	Arch     int              `json:"arch"` // RFC 4578; says nothing unless it boots
	Addr     string           `json:"addr,omitempty"`
	Relay    string           `json:"relay,omitempty"`   // the relay agent that it came through
	Circuit  string           `json:"circuit,omitempty"` // of the relay: where it is plugged in
	Remote   string           `json:"remote,omitempty"`
	Got      string           `json:"got"` // the last answer, and why
	Why      string           `json:"why,omitempty"`
	Verdict  string           `json:"verdict"` // node, candidate, asic, unknown
	Reason   string           `json:"reason"`  // of the verdict
	Node     inventory.NodeID `json:"node,omitempty"`
}
