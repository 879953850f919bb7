package convert

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"smelt/internal/certificate"
	"smelt/internal/store"
	"smelt/inventory"
)

// short says which disk of the plan was not wiped as the plan has it, or "".
// An agent that says that all is well is not believed without the level of
// each disk.
func short(p inventory.Plan, wiped []inventory.Wiped) string {
	for _, want := range p.Disks {
		reached := "nothing is known of it"
		for _, w := range wiped {
			if w.Disk != want {
				continue
			}
			if reached = "it was wiped to " + w.Level; w.Reaches(p.Wipe) {
				reached = ""
				break
			}
		}
		if reached != "" {
			return fmt.Sprintf("the plan wants %s wiped to %s, and %s", want, p.Wipe, reached)
		}
	}
	return ""
}

// certificateID names the certificate of this entry into wiping: filing it
// twice is one certificate.
func certificateID(n inventory.Node) string {
	return n.Plan.Run + "-" + n.Since.UTC().Format("20060102T150405Z")
}

// certify files the certificate of a wipe, signed with the site's key, and a
// page of it for people.
func (t *turn) certify(p store.PermitUse, wiped []inventory.Wiped) (id string, err error) {
	n := t.n
	c := certificate.Certificate{
		ID: certificateID(n), Site: t.Site.Name, Simulated: t.Site.Lab, Node: n.ID, Position: string(n.Spec.Position),
		Run: n.Plan.Run, Plan: n.Plan.Digest, Permit: p.ID, Policy: n.Plan.Wipe,
		Began: p.Used, Ended: t.at, Was: certificate.LeftoversOf(n.Salvage),
	}
	h, err := t.all()
	if err != nil {
		return "", err
	}
	for _, e := range h {
		if e.Kind == inventory.KindMoved && e.To == inventory.Approved {
			c.Approved = e.Actor
		}
	}
	// What the plan names, nothing that an agent adds.
	for _, d := range n.Plan.Disks {
		for _, w := range wiped {
			if w.Disk == d && w.Reaches(c.Policy) {
				c.Disks = append(c.Disks, w)
				break
			}
		}
	}
	if n.Hardware != nil {
		c.Board = n.Hardware.Board
		for _, d := range n.Hardware.Disks {
			named := false
			for _, want := range n.Plan.Disks {
				named = named || want.Same(d.DiskID)
			}
			if !named {
				c.Spared = append(c.Spared, certificate.Disk{DiskID: d.DiskID, Model: d.Model})
			}
		}
	}
	signed, err := certificate.Sign(c, t.SiteKey)
	if err != nil {
		return "", err
	}
	var page bytes.Buffer
	if err := certificate.WriteHTML(&page, c.Sealed(), signed, certificate.KeyID(t.SiteKey.Public().(ed25519.PublicKey))); err != nil {
		return "", err
	}
	for _, b := range []store.Blob{
		{Name: "certificates/" + c.ID + ".json", Type: "application/json", Data: signed},
		{Name: "certificates/" + c.ID + ".html", Type: "text/html; charset=utf-8", Data: page.Bytes()},
	} {
		b.Node, b.At = n.ID, t.at
		if err := t.Store.PutBlob(t.ctx, b); err != nil {
			return "", err
		}
	}
	return c.ID, nil
}
