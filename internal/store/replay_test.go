package store_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"smelt/internal/store"
	"smelt/inventory"
)

// TestStoredNodeIsItsEvents sends sensible and senseless events through
// Commit: it must take exactly those that Apply takes, and what is stored must
// stay the fold of what was taken.
func TestStoredNodeIsItsEvents(t *testing.T) {
	each(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		var run atomic.Int64
		rapid.Check(t, func(r *rapid.T) {
			model := map[inventory.NodeID]inventory.Node{}
			prefix := fmt.Sprintf("run-%d-", run.Add(1))
			for range rapid.IntRange(1, 12).Draw(r, "events") {
				id := inventory.NodeID(prefix + rapid.SampledFrom([]string{"a", "b"}).Draw(r, "node"))
				e := anyEvent(r, model[id])
				e.Node = id
				want, refused := model[id].Apply(e)
				node := want
				if refused != nil {
					node = model[id] // a liar: claims the event changed nothing
					node.ID, node.Version = id, node.Version+1
				}
				_, err := s.Commit(t.Context(), store.Change{Node: node, Events: []inventory.Event{e}})
				if (err == nil) != (refused == nil) {
					r.Fatalf("Apply says %v, Commit says %v", refused, err)
				}
				if refused == nil {
					model[id] = want
				}
			}
			for id, want := range model {
				got, err := s.Node(t.Context(), id)
				if err != nil {
					r.Fatal(err)
				}
				same(t, "stored "+string(id), got, want)
				same(t, "replayed "+string(id), replayed(t, s, id), want)
			}
		})
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// anyEvent draws an event that often fits n and often does not.
func anyEvent(r *rapid.T, n inventory.Node) inventory.Event {
	e := inventory.Event{Version: n.Version + 1, At: at, Actor: "operator:anna", Reason: "drawn"}
	if n.Version == 0 && rapid.IntRange(0, 9).Draw(r, "begin") > 0 {
		e.Kind, e.To = inventory.KindCreated, inventory.Discovered
		return e
	}
	e.Kind = rapid.SampledFrom([]inventory.Kind{
		inventory.KindMoved, inventory.KindMoved, inventory.KindMoved, inventory.KindNote, inventory.KindHeld, inventory.KindReleased,
		inventory.KindFence, inventory.KindInspected, inventory.KindSpec, inventory.KindReport, inventory.KindCreated, "no such kind",
	}).Draw(r, "kind")
	if rapid.IntRange(0, 9).Draw(r, "stale") == 0 {
		e.Version += uint64(rapid.IntRange(0, 2).Draw(r, "by")) - 1
	}
	e.To = rapid.SampledFrom(append(inventory.States(), 0)).Draw(r, "to")
	if next := n.Waits().Next; len(next) > 0 && rapid.Bool().Draw(r, "listed") {
		e.To = rapid.SampledFrom(next).Draw(r, "next")
	}
	e.Fence = uint64(rapid.IntRange(0, 4).Draw(r, "fence"))
	if rapid.Bool().Draw(r, "facts") {
		hw := &inventory.Hardware{Board: inventory.Board{Serial: rapid.StringMatching(`[A-Z0-9]{0,3}`).Draw(r, "serial")}, Disks: []inventory.Disk{}}
		later := at.Add(time.Hour)
		e.Hardware, e.Hold = hw, &inventory.Hold{Owner: "operator", Reason: "look first", At: at}
		disk := inventory.DiskID{Serial: "S3X0NB0K812345", Size: 1}
		plan := inventory.Plan{Run: "r1", Image: "img", Disks: []inventory.DiskID{disk}, Target: disk, Hardware: hw.Digest()}
		if n.Hardware != nil {
			plan.Hardware = n.Hardware.Digest()
		}
		plan = plan.Seal()
		e.Plan = &plan
		e.Failure, e.Deadline, e.Image = &inventory.Failure{Cause: "drawn"}, &later, "img"
		e.Report, e.Passed = "rep", &inventory.Passed{Report: "rep", Hardware: hw.Digest(), Image: "img", At: at}
		e.Spec = &inventory.Spec{Protect: rapid.Bool().Draw(r, "protect"), MACs: []inventory.MAC{{2, 0, 0, 0, 0, byte(rapid.IntRange(1, 3).Draw(r, "mac"))}}}
		if n.Hardware != nil { // sometimes a PASS that counts
			e.Passed.Hardware, e.Passed.Image = n.Hardware.Digest(), n.Image
		}
	}
	return e
}
