package main

import (
	"slices"

	"smelt/internal/api"
	"smelt/inventory"
	"smelt/pxe"
)

// bootTrace tells the pages what the boot service last told a machine.
func bootTrace(s *pxe.Server) func([]inventory.MAC) []api.BootEvent {
	return func(macs []inventory.MAC) []api.BootEvent {
		var out []api.BootEvent
		for _, mac := range macs {
			for _, e := range s.Recent(pxe.MAC(mac)) {
				b := api.BootEvent{
					At: e.At, MAC: mac, Network: e.Machine.Network, Kind: e.Kind, Firmware: e.Machine.Firmware(),
					Asked: e.Asked(), Answer: e.Answer, Why: e.Why, Times: e.Times, Since: e.Since,
				}
				if e.Machine.Addr.IsValid() {
					b.Addr = e.Machine.Addr.String()
				}
				out = append(out, b)
			}
		}
		slices.SortStableFunc(out, func(a, b api.BootEvent) int { return a.At.Compare(b.At) })
		return out
	}
}
