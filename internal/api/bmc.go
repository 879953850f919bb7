package api

import (
	"time"

	"smelt/inventory"
)

// BMCList is the BMCs of a site, and what controllers were caught at.
type BMCList struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Items      []BMC     `json:"items"`
	Learned    []Learned `json:"learned"`
}

// BMC is one as it was last looked at; At is zero when nobody did yet.
type BMC struct {
	Node     inventory.NodeID  `json:"node"`
	Via      string            `json:"via"`
	Adopted  bool              `json:"adopted"` // it has a password of its own
	Vendor   string            `json:"vendor,omitempty"`
	Model    string            `json:"model,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	Firmware map[string]string `json:"firmware,omitempty"`
	Restore  string            `json:"restore,omitempty"` // when power comes back: AlwaysOff AlwaysOn LastState
	Boot     []string          `json:"boot,omitempty"`
	Accounts []BMCAccount      `json:"accounts,omitempty"`
	Findings []BMCFinding      `json:"findings,omitempty"`
	Quirks   []BMCQuirk        `json:"quirks,omitempty"`
	Keys     []DeviceKey       `json:"keys,omitempty"` // of what speaks TLS
	At       time.Time         `json:"at,omitzero"`
}

// DeviceKey is what tells a controller from an impostor: the SHA-256 of its
// public key, base64 (RFC 7469).
type DeviceKey struct {
	Via   string    `json:"via"`
	Pin   string    `json:"pin,omitempty"`   // left out before the first connection
	Since time.Time `json:"since,omitzero"`  // trusted on first use then; left out: site.yaml names it
	Other string    `json:"other,omitempty"` // the key that answers now, and is refused
}

// Word says in short where the trust comes from.
func (k DeviceKey) Word() string {
	switch {
	case k.Pin == "":
		return "never reached"
	case k.Since.IsZero():
		return "in site.yaml"
	}
	return "first seen " + k.Since.UTC().Format(time.DateOnly)
}

// BMCAccount is a user of a BMC.
type BMCAccount struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Role    string `json:"role,omitempty"`
	Enabled bool   `json:"enabled"`
}

// BMCFinding is something wrong with a BMC.
type BMCFinding struct {
	Code string `json:"code"`
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

// BMCQuirk is something that its kind is known to do.
type BMCQuirk struct {
	Code   string `json:"code"`
	What   string `json:"what"`
	Answer string `json:"answer,omitempty"`
	Source string `json:"source"`
}

// Learned is a lie that a controller of this site was caught at.
type Learned struct {
	Code   string           `json:"code"`
	Via    string           `json:"via"`
	Node   inventory.NodeID `json:"node"`
	Vendor string           `json:"vendor,omitempty"`
	Model  string           `json:"model,omitempty"`
	BMC    string           `json:"bmc,omitempty"`
	Times  int              `json:"times"`
	Last   time.Time        `json:"last"`
}
