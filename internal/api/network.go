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
