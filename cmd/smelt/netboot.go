package main

import (
	"fmt"
	"net/netip"
	"slices"

	"smelt/internal/api"
	"smelt/internal/server"
	"smelt/inventory"
	"smelt/inventory/triage"
	"smelt/pxe"
)

// bootView is what the pages and the API show of the boot service.
func bootView(s *pxe.Server, networks []pxe.Network) server.Boot {
	return server.Boot{
		Trace:     func(macs []inventory.MAC) []api.BootEvent { return bootTrace(s, macs) },
		Networks:  func() []api.NetworkView { return networkViews(s, networks) },
		Sightings: func() []api.Sighting { return sightings(s.Sightings()) },
	}
}

// bootTrace is what the boot service last told a machine.
func bootTrace(s *pxe.Server, macs []inventory.MAC) []api.BootEvent {
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

// poolFull is the share of a pool from which on somebody should make it larger.
const poolFull = 0.9

func networkViews(s *pxe.Server, networks []pxe.Network) []api.NetworkView {
	heard := s.Heard()
	pools := map[string]pxe.Pool{}
	for _, p := range s.Stats().Pools {
		pools[p.Network] = p
	}
	rivals := map[string][]api.Rival{}
	for _, r := range s.Rivals() {
		rivals[r.Network] = append(rivals[r.Network], rivalView(r))
	}
	late := map[string][]pxe.LateStart{}
	for _, l := range s.LateStarts() {
		late[l.Network] = append(late[l.Network], l)
	}
	var out []api.NetworkView
	for _, n := range networks {
		v := api.NetworkView{
			Name: n.Name, Mode: n.Mode.String(), Interface: n.Interface, Address: n.Address.String(),
			Used: pools[n.Name].Used, Size: pools[n.Name].Size, Heard: heard[n.Name], Rivals: rivals[n.Name],
		}
		if n.Subnet.IsValid() {
			v.Subnet = n.Subnet.String()
		}
		if n.Pool != (pxe.Range{}) {
			v.Pool = n.Pool.String()
		}
		if float64(v.Used) >= poolFull*float64(v.Size) && v.Size > 0 {
			v.Warnings = append(v.Warnings, fmt.Sprintf("%d of %d addresses of the pool are given: make it larger in site.yaml (networks: pool), or machines that nobody named get none", v.Used, v.Size))
		}
		if l := late[n.Name]; len(l) > 0 {
			v.Warnings = append(v.Warnings, fmt.Sprintf("%d machines were first heard when they had asked for long (last %s, for %d s): their switch ports forward too late for some firmware; set spanning-tree portfast and LACP fallback there: smelt doctor snippet cisco-ios",
				len(l), l[0].MAC, int(l[0].After.Seconds())))
		}
		out = append(out, v)
	}
	return out
}

func rivalView(r pxe.Rival) api.Rival {
	v := api.Rival{Name: r.String(), Type: r.Kind(), Alarm: r.Alarm, Next: r.Next(), First: r.First, Last: r.Last, Gone: r.Gone}
	if r.MAC != (pxe.MAC{}) {
		v.MAC = r.MAC.String()
	}
	for _, a := range []struct {
		addr netip.Addr
		to   *string
	}{{r.Addr, &v.Addr}, {r.Server, &v.Addr}, {r.Offered, &v.Offered}} {
		if a.addr.IsValid() {
			*a.to = a.addr.String()
		}
	}
	for _, b := range r.Boots {
		v.Boots = append(v.Boots, b.String())
	}
	return v
}

// sightings are who was heard. Only ASIC miners have a verdict yet.
func sightings(list []pxe.Sighting) []api.Sighting {
	out := make([]api.Sighting, 0, len(list))
	for _, x := range list {
		m := x.Machine
		v := api.Sighting{
			MAC: inventory.MAC(m.MAC), Network: m.Network, First: x.First, Last: x.Last, Asks: x.Asks, Boots: x.Boots,
			Vendor: m.Vendor, Hostname: m.Hostname, Arch: int(m.Arch), Circuit: m.Circuit, Remote: m.Remote, Got: x.Got, Why: x.Why,
		}
		if m.Addr.IsValid() {
			v.Addr = m.Addr.String()
		}
		if m.Relay.IsValid() {
			v.Relay = m.Relay.String()
		}
		miner, ok := triage.MinerByMAC(v.MAC)
		if !ok {
			miner, ok = triage.MinerBySaying(m.Vendor, m.Hostname)
		}
		if ok {
			v.Verdict, v.Reason = api.SeenASIC, miner.NotConvertible()
		}
		out = append(out, v)
	}
	return out
}
