package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

const kexecSite = `apiVersion: smelt/v1
site: e2e
lab: true
state: %s
listen: {boot: "10.78.0.1:80", agent: "10.78.0.1:8443", ui: "127.0.0.1:8480"}
networks:
  - {name: provisioning, interface: br0, address: 10.78.0.1/16, pool: 10.78.200.1-10.78.200.50}
classes:
  - {name: rig, image: debian-12-lab, target: lab, profile: lab, start: kexec, approve: rule, gpus: {count: 1, model: "RTX 3090"}}
nodes:
  - {name: rig-1, position: A1-S1, class: rig, macs: ["52:54:00:78:00:01"], serial: E2E-1}
standsFor:
  - {node: rig-1, pci: "0000:01:00.0", model: "RTX 3090", vram: 24GiB}
`

// TestStartsPastFirmware: the system that was written starts without the
// firmware, burns in, and is started from its disk before it goes in service.
func TestStartsPastFirmware(t *testing.T) {
	h := newHall(t)
	h.write(h.path("site.yaml"), fmt.Appendf(nil, kexecSite, h.path("state")))
	h.image()
	h.up()
	f, err := os.Create(h.path("disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(4 << 30); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m := h.bios(t, "-drive", "format=raw,if=none,id=d0,cache=unsafe,discard=unmap,file="+h.path("disk.raw"), "-device", "virtio-blk-pci,drive=d0,serial=LDE2E0001,bootindex=2")
	v := h.reach(m, "rig-1", "in service", 30*time.Minute, func(v api.NodeView) bool { return v.Node.State == inventory.InService })
	started := []string{}
	for _, e := range v.Events {
		t.Logf("%6.1f s %s", e.At.Sub(v.Events[0].At).Seconds(), eventLine(e))
		if s := e.Evidence["start"]; s != "" {
			started = append(started, s)
		}
	}
	if fmt.Sprint(started) != "[kexec disk]" {
		t.Errorf("it was started by %q, want by kexec and then from its disk", started)
	}
}
