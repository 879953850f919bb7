package triage

import (
	_ "embed"
	"encoding/hex"
	"strings"
	"sync"

	"smelt/inventory"
)

// A Miner is a make of ASIC miner, and how a machine of it is known on the
// network.
type Miner struct {
	Maker, Product string
	Prefixes       []string // of the hardware address, hexadecimal digits
	Vendor         string   // what its vendor class (DHCP option 60) begins with; "" tells nothing
	Hostname       string   // what its host name (option 12) begins with
}

// NotConvertible is why no ASIC miner becomes a node.
func (m Miner) NotConvertible() string {
	return m.Maker + " " + m.Product + ": an ASIC miner computes one hash and nothing else; it cannot be converted"
}

//go:embed miners.csv
var minersCSV string

// Miners returns the table of ASIC miners.
var Miners = sync.OnceValue(func() []Miner {
	var out []Miner
	for _, r := range table(minersCSV) {
		out = append(out, Miner{r["maker"], r["product"], strings.Fields(r["prefixes"]), r["vendor"], r["hostname"]})
	}
	return out
})

// MinerByMAC finds the ASIC miner that an address belongs to.
func MinerByMAC(mac inventory.MAC) (Miner, bool) {
	digits := hex.EncodeToString(mac[:])
	for _, m := range Miners() {
		for _, p := range m.Prefixes {
			if strings.HasPrefix(digits, p) {
				return m, true
			}
		}
	}
	return Miner{}, false
}

// MinerBySaying finds the ASIC miner that a machine's own words in DHCP name.
func MinerBySaying(vendor, hostname string) (Miner, bool) {
	vendor, hostname = strings.ToLower(vendor), strings.ToLower(hostname)
	for _, m := range Miners() {
		if m.Vendor != "" && strings.HasPrefix(vendor, m.Vendor) || m.Hostname != "" && strings.HasPrefix(hostname, m.Hostname) {
			return m, true
		}
	}
	return Miner{}, false
}
