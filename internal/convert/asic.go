package convert

import (
	"smelt/inventory"
	"smelt/inventory/triage"
	"smelt/pxe"
)

// asic answers an ASIC miner: it is never offered a boot and never becomes a
// node. An agent of ours that ran on the machine proves more than its address
// and what it calls itself.
func asic(m pxe.Machine, n inventory.Node) (pxe.Boot, bool) {
	if n.Hardware != nil {
		return pxe.Boot{}, false
	}
	miner, ok := triage.MinerByMAC(inventory.MAC(m.MAC))
	if !ok {
		miner, ok = triage.MinerBySaying(m.Vendor, m.Hostname)
	}
	return pxe.Boot{Action: pxe.Ignore, Why: miner.NotConvertible()}, ok
}
