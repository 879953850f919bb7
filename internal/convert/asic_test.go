package convert_test

import (
	"strings"
	"testing"

	"smelt/inventory"
	"smelt/pxe"
)

// An ASIC miner is never offered a boot and never becomes a node, whatever it
// asks; a machine on which our agent ran is no ASIC miner, whatever it is called.
func TestASICMiners(t *testing.T) {
	h := newHall(t, layout{Nodes: 2, Dead: true})
	boot := func(m pxe.Machine) pxe.Boot {
		t.Helper()
		b, err := h.c.Boot(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, stage := range []pxe.Stage{pxe.AskAddress, pxe.AskScript} {
		for _, m := range []pxe.Machine{
			{MAC: pxe.MAC{0xe0, 0xa5, 0x09, 1, 2, 3}, Stage: stage, Vendor: "PXEClient"},
			{MAC: pxe.MAC{0x52, 0x54, 0, 9, 9, 9}, Stage: stage, Hostname: "WhatsMiner"},
			{MAC: pxe.MAC(macOf(1)), Stage: stage, Hostname: "antMiner"}, // named in site.yaml, never inspected
		} {
			if b := boot(m); b.Action != pxe.Ignore || !strings.Contains(b.Why, "cannot be converted") {
				t.Errorf("%s: %v, %s", m.MAC, b.Action, b.Why)
			}
		}
	}
	nodes, err := h.s.Nodes(t.Context())
	if err != nil || len(nodes) != 2 || h.node(nodeID(1)).State != inventory.Expected {
		t.Errorf("an ASIC miner became a node: %d nodes, %v, %v", len(nodes), h.node(nodeID(1)).State, err)
	}
	h.inspectedAs(0)
	if b := boot(pxe.Machine{MAC: pxe.MAC(macOf(0)), Stage: pxe.AskScript, Hostname: "antMiner"}); b.Action != pxe.Kernel {
		t.Errorf("an inspected machine with a miner's host name: %v, %s", b.Action, b.Why)
	}
}
