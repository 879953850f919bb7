package convert_test

import (
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/internal/certificate"
	"smelt/internal/convert"
	"smelt/inventory"
)

// A wipe that is done leaves a signed certificate of every disk of the plan.
func TestCertificate(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.wiping(0)
	o := a.ordered("wipe")
	p := a.permit(o)
	a.ok(h.c.UsePermit(t.Context(), a.agent, p.ID))
	var wiped []inventory.Wiped
	for _, d := range o.Plan.Disks {
		wiped = append(wiped, inventory.Wiped{Disk: d, Model: "Some SSD", Level: "purge", NIST: "purge", Method: "NVMe Sanitize, block erase", Proofs: 80, Took: time.Minute,
			Notes: []string{"NVMe Sanitize, crypto erase: it lied"}})
	}
	// A disk that the plan does not name is not the agent's to certify.
	stranger := inventory.Wiped{Disk: inventory.DiskID{Serial: "STRANGER", Size: 1}, Level: "purge"}
	a.finish(o, convert.Result{OK: true, Wiped: append(wiped, stranger)})
	n := h.reach(a.id, inventory.Imaging)
	blobs, err := h.s.Blobs(t.Context(), a.id, "certificates/")
	a.ok(err)
	if len(blobs) != 2 {
		t.Fatalf("%d documents, want JSON and HTML: %+v", len(blobs), blobs)
	}
	for _, b := range blobs {
		b, err := h.s.Blob(t.Context(), a.id, b.Name)
		a.ok(err)
		if strings.HasSuffix(b.Name, ".html") {
			if !strings.Contains(string(b.Data), "NVMe Sanitize, block erase") || !strings.Contains(string(b.Data), o.Plan.Disks[0].Serial) {
				t.Errorf("the page does not say how what was wiped:\n%s", b.Data)
			}
			continue
		}
		c, err := certificate.Open(b.Data, siteKey().Public().(ed25519.PublicKey))
		a.ok(err)
		if c.Node != a.id || c.Run != o.Plan.Run || c.Permit != p.ID || c.Policy != o.Plan.Wipe || !c.Simulated || c.Site == "" ||
			len(c.Disks) != len(o.Plan.Disks) || c.Disks[0].Disk != o.Plan.Disks[0] || c.Disks[0].Level != "purge" || c.Approved == "" || c.Board != n.Hardware.Board {
			t.Errorf("%+v", c)
		}
		events, err := h.s.NodeEvents(t.Context(), a.id)
		a.ok(err)
		if !slices.ContainsFunc(events, func(e inventory.Event) bool { return e.Evidence["certificate"] == c.ID }) {
			t.Error("the node's story does not name it")
		}
	}
}

// Weaker than the plan, or silent about a disk, is a failure, whatever the
// agent says of it, and what was reached is in the node's story.
func TestWeakerWipe(t *testing.T) {
	for name, wiped := range map[string]func(p *inventory.Plan) []inventory.Wiped{
		"weaker": func(p *inventory.Plan) []inventory.Wiped {
			return []inventory.Wiped{{Disk: p.Target, Level: "metadata"}}
		},
		"none":    func(p *inventory.Plan) []inventory.Wiped { return []inventory.Wiped{{Disk: p.Target, Level: "none"}} },
		"unknown": func(p *inventory.Plan) []inventory.Wiped { return []inventory.Wiped{{Disk: p.Target, Level: "very"}} },
		"silent":  func(p *inventory.Plan) []inventory.Wiped { return nil },
		"other":   func(p *inventory.Plan) []inventory.Wiped { return []inventory.Wiped{{Level: "purge"}} },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHall(t, layout{Nodes: 1, Dead: true})
			a := h.wiping(0)
			o := a.ordered("wipe")
			a.ok(h.c.UsePermit(t.Context(), a.agent, a.permit(o).ID))
			a.finish(o, convert.Result{OK: true, Wiped: wiped(o.Plan)})
			n := h.reach(a.id, inventory.NeedsWork)
			if n.Failure.Cause != "level" || !strings.Contains(n.Failure.Detail, "wiped to "+o.Plan.Wipe) {
				t.Errorf("failure %+v", n.Failure)
			}
			if blobs, err := h.s.Blobs(t.Context(), a.id, "certificates/"); err != nil || len(blobs) > 0 {
				t.Errorf("a certificate of a wipe that was too weak: %+v, %v", blobs, err)
			}
		})
	}
}

// A node that leaves is wiped, all of its internal disks, whatever its verdict
// says, and retired; no image is ever ordered.
func TestWipeOnly(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.inspectedAs(0)
	h.reach(a.id, inventory.Inspected)
	h.must(a.id, "wipe", map[string]string{"wipe": "overwrite", "confirm": string(a.id)})
	a = h.installer(0)
	o := a.ordered("wipe")
	if !o.Plan.WipeOnly || o.Plan.Image != "" || o.Plan.Wipe != "overwrite" {
		t.Errorf("plan %+v", o.Plan)
	}
	if err := h.do(a.id, "retire", map[string]string{"confirm": string(a.id)}); err == nil || !strings.Contains(err.Error(), "wait for its certificate") {
		t.Errorf("retired in the middle of its wipe: %v", err)
	}
	a.written("wipe")
	n := h.reach(a.id, inventory.Retired)
	if n.Plan != nil {
		t.Errorf("a plan is left: %+v", n.Plan)
	}
	blobs, err := h.s.Blobs(t.Context(), a.id, "certificates/")
	a.ok(err)
	if len(blobs) != 2 {
		t.Errorf("%d documents", len(blobs))
	}
}

// A drive that the firmware froze is thawed by hand while the machine is on.
// It must not be restarted then: the agent that waits there goes on.
func TestFrozenDrive(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true, Max: 1})
	a := h.wiping(0)
	o := a.ordered("wipe")
	a.ok(h.c.UsePermit(t.Context(), a.agent, a.permit(o).ID))
	a.finish(o, convert.Result{Cause: "frozen", Error: "SECURITY ERASE is frozen", Wiped: []inventory.Wiped{{Disk: o.Plan.Target, Level: "none"}}})
	n := h.reach(a.id, inventory.NeedsWork)
	tasks, err := h.s.Tasks(t.Context(), a.id)
	a.ok(err)
	if len(tasks) != 1 || tasks[0].Verb != "plug" || !strings.Contains(tasks[0].How, "Leave the machine on") || n.Failure.Cause != "frozen" {
		t.Fatalf("%+v, failure %+v", tasks, n.Failure)
	}
	if o := a.order(); o.Kind != "wait" {
		t.Errorf("frozen, it is told to %s", o.Kind)
	}
	h.must(a.id, "task-done", map[string]string{"task": tasks[0].ID})
	h.reach(a.id, inventory.Wiping)
	again := a.written("wipe")
	if again.ID == o.ID || again.Fence != o.Fence {
		t.Errorf("order %s with fence %d after %s with %d: it was restarted, or is the old one", again.ID, again.Fence, o.ID, o.Fence)
	}
	h.reach(a.id, inventory.Imaging)
}

// What a drive cannot do is said when its wipe is approved, not after the
// machine was restarted for it.
func TestDriveOffersLess(t *testing.T) {
	h := newHall(t, layout{Nodes: 1, Dead: true})
	a := h.boots(0)
	a.hw.Disks[0].Erase = "secure"
	a.ok(a.enrol())
	a.ok(h.c.Inspected(t.Context(), a.agent, convert.Inspection{Hardware: a.hw}))
	h.reach(a.id, inventory.Inspected)
	for _, verb := range []string{"approve", "wipe"} {
		err := h.do(a.id, verb, map[string]string{"wipe": "purge"})
		if err == nil || !strings.Contains(err.Error(), "cannot be wiped to purge, the drive's own erase reaches secure") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	h.must(a.id, "approve", map[string]string{"wipe": "secure"})
}
