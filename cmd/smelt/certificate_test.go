package main

import (
	"context"
	"time"

	"smelt/internal/certificate"
	"smelt/internal/store"
	"smelt/inventory"
)

// fileCertificate files a wipe certificate of rig-01, signed with the key in
// state.
func fileCertificate(ctx context.Context, st *store.Store, state string) error {
	key, err := siteKey(state)
	if err != nil {
		return err
	}
	at := time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC)
	signed, err := certificate.Sign(certificate.Certificate{
		ID: "r1-20261122T140000Z", Site: "hall-a", Node: "rig-01", Run: "r1", Permit: "p1", Policy: "secure", Began: at, Ended: at.Add(time.Minute),
		Disks: []inventory.Wiped{{Disk: inventory.DiskID{Serial: "S3YJNX0K412", Size: 240e9}, Model: "KINGSTON", Level: "purge", NIST: "purge", Method: "ATA SANITIZE, block erase", Proofs: 80}},
		Was:   &certificate.Leftovers{MinerOS: "HiveOS", Worker: "rig042"},
	}, key)
	if err != nil {
		return err
	}
	return st.PutBlob(ctx, store.Blob{Node: "rig-01", Name: "certificates/r1-20261122T140000Z.json", Type: "application/json", Data: signed, At: at})
}
