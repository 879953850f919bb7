package jointest

import (
	"testing"
	"time"

	"smelt/internal/join"
)

func TestFake(t *testing.T) {
	f := NewFake()
	Run(t, Cluster{
		Driver:   f,
		Member:   join.Member{Node: Node, Addr: "10.97.0.11", CPUs: 2, MemoryMB: 1000},
		Start:    func(*testing.T, join.Grant) { f.Register(Node) },
		Foreign:  func(_ *testing.T, reason string) { f.HoldForeign(Node, reason) },
		Lift:     func(*testing.T) { f.HoldForeign(Node, "") },
		Patience: time.Second,
	})
}
