package inventory

import (
	"slices"
	"time"
)

// WipeLevels are the words for how thoroughly a disk is wiped, from weak to
// strong. What each means is in images/disk; a test keeps the two lists alike.
var WipeLevels = []string{"metadata", "discard", "overwrite", "secure", "purge"}

// Wiped is the level that a disk was wiped to, and how that is known.
type Wiped struct {
	Disk   DiskID        `json:"disk"`
	Model  string        `json:"model,omitempty"`
	Bus    string        `json:"bus,omitempty"`
	Level  string        `json:"level"`            // reached
	NIST   string        `json:"nist,omitempty"`   // what SP 800-88r1 calls that: none, clear, purge
	Method string        `json:"method,omitempty"` // "NVMe Sanitize, block erase"
	Notes  []string      `json:"notes,omitempty"`  // what the drive has not, refused, or did not do although it said so
	Bytes  int64         `json:"bytes,omitempty"`
	Proofs int           `json:"proofs,omitempty"` // places that held data before, and were seen not to hold it afterwards
	Zeros  bool          `json:"zeros,omitempty"`  // a random sample of it reads as zeros
	Took   time.Duration `json:"took"`
}

// Reaches tells whether the level reached is at least the one that was asked
// for. A level that nobody knows reaches nothing, and nothing reaches it.
func (w Wiped) Reaches(level string) bool {
	want := slices.Index(WipeLevels, level)
	return want >= 0 && slices.Index(WipeLevels, w.Level) >= want
}
