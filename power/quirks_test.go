package power

import (
	"os"
	"strings"
	"testing"
)

func TestQuirks(t *testing.T) {
	for _, q := range Quirks() {
		if q.Code == "" || q.What == "" || q.Answer == "" || q.Source == "" {
			t.Errorf("row %+v", q)
		}
	}
	old := Audit{Vendor: "supermicro", Model: "SYS-221H-TNR", Firmware: map[string]string{"bmc": "1.02"}}
	var got []string
	for _, q := range Quirks() {
		if q.Of(old) {
			got = append(got, q.Code)
		}
	}
	if len(got) != 3 || got[2] != "boot-order-lost" {
		t.Errorf("quirks of a SYS-221H: %q", got)
	}
	for _, q := range Quirks() {
		if q.Of(Audit{Vendor: "Nobody"}) {
			t.Errorf("%+v is known of a maker that no row names", q)
		}
	}
}

// TestQuirksDoc holds docs/hardware.md to the data.
func TestQuirksDoc(t *testing.T) {
	b, err := os.ReadFile("../docs/hardware.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range Quirks() {
		of := strings.Join(strings.Fields(q.Vendor+" "+q.Model+" "+q.Firmware), " ")
		if of == "" {
			of = "any"
		}
		row := "| " + strings.Join([]string{of, q.Code, q.What, q.Answer, q.Source}, " | ") + " |"
		if !strings.Contains(string(b), row) {
			t.Errorf("docs/hardware.md has no row:\n%s", row)
		}
	}
}
