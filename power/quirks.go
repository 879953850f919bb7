package power

import (
	_ "embed"
	"encoding/csv"
	"strings"
)

//go:embed quirks.csv
var quirksCSV string

// A Quirk is something that a device is known to do other than its standard
// says, and what Smelt does about it.
type Quirk struct {
	Vendor   string `json:"vendor,omitempty"` // beginning of the word that Audit has; empty: any
	Model    string `json:"model,omitempty"`
	Firmware string `json:"firmware,omitempty"`
	Code     string `json:"code"`
	What     string `json:"what"`
	Answer   string `json:"answer,omitempty"`
	Source   string `json:"source"`
}

// Quirks lists what is known.
func Quirks() []Quirk {
	r := csv.NewReader(strings.NewReader(quirksCSV))
	r.Comment = '#'
	rows, err := r.ReadAll()
	if err != nil {
		panic(err) // the file is part of the program; a test reads it
	}
	var out []Quirk
	for _, row := range rows[1:] {
		out = append(out, Quirk{row[0], row[1], row[2], row[3], row[4], row[5], row[6]})
	}
	return out
}

// Of tells whether q is known of a device. What holds for any device is of none
// in particular.
func (q Quirk) Of(a Audit) bool {
	begins := func(s, prefix string) bool {
		return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
	}
	return q.Vendor+q.Model+q.Firmware != "" &&
		begins(a.Vendor, q.Vendor) && begins(a.Model, q.Model) && begins(a.Firmware["bmc"], q.Firmware)
}
