package care

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"strings"
)

//go:embed defaults.csv
var defaultsCSV string

// Default is a credential that a maker ships, or shipped, on every device.
type Default struct {
	Vendor   string // one word, as an operator types it
	User     string
	Password string `json:"-"`
	Note     string
}

// Defaults lists the well-known credentials. Trying one is always an explicit
// order of an operator.
func Defaults() []Default {
	r := csv.NewReader(strings.NewReader(defaultsCSV))
	r.Comment = '#'
	rows, err := r.ReadAll()
	if err != nil {
		panic(err) // the file is part of the program; a test reads it
	}
	var out []Default
	for _, row := range rows[1:] {
		out = append(out, Default{row[0], row[1], row[2], row[3]})
	}
	return out
}

// DefaultOf is the credential of a vendor.
func DefaultOf(vendor string) (Default, error) {
	var known []string
	for _, d := range Defaults() {
		if strings.EqualFold(d.Vendor, vendor) {
			return d, nil
		}
		known = append(known, d.Vendor)
	}
	return Default{}, fmt.Errorf("no default credential is known of vendor %q; known are %s", vendor, strings.Join(known, ", "))
}
