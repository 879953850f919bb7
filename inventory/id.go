package inventory

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// A NodeID names a node for its whole life: the name given in site.yaml, or
// one made from its first MAC (UnknownID) when the site did not expect it.
// Lower-case letters, digits, '-' and '.', at most 63 bytes, so that it is
// also a host name label and a Slurm node name.
type NodeID string

// ParseNodeID checks s against the rules of NodeID.
func ParseNodeID(s string) (NodeID, error) {
	if s == "" || len(s) > 63 {
		return "", fmt.Errorf("node name %q: want 1 to 63 characters", s)
	}
	for i, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || (r == '-' || r == '.') && i > 0 && i < len(s)-1
		if !ok {
			return "", fmt.Errorf("node name %q: %q is not allowed (a-z, 0-9, and '-' or '.' inside)", s, r)
		}
	}
	return NodeID(s), nil
}

// UnknownID is the name of a machine that no site.yaml names.
func UnknownID(m MAC) NodeID { return NodeID("new-" + hex.EncodeToString(m[:])) }

// A Position is a place in the site: a rack unit, a shelf of an open frame, a
// container cell. Free text chosen by the site, for example "A3-S2".
type Position string

// Rack is the part of a position that its neighbours share: what stands before
// the last dash, "A3" of "A3-S2". Empty when the position has no dash.
func (p Position) Rack() string {
	if i := strings.LastIndexByte(string(p), '-'); i > 0 {
		return string(p[:i])
	}
	return ""
}

// A MAC is a 48-bit hardware address. It is a label, never a credential.
type MAC [6]byte

// ParseMAC accepts the forms of net.ParseMAC that have six bytes. The zero,
// broadcast and multicast addresses name no machine and are refused.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC address %q: want six hexadecimal bytes such as 52:54:00:12:34:56", s)
	}
	m := MAC(hw)
	if m == (MAC{}) || m[0]&1 == 1 {
		return MAC{}, fmt.Errorf("MAC address %q: names no single machine (zero or multicast)", s)
	}
	return m, nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes the colon form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}
