package triage

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// A Card is what is known of a GPU by its PCI id, whatever firmware or seller
// call it.
type Card struct {
	Vendor, Device string // PCI ids
	Model          string
	Arch           string
	CC             int     // CUDA compute capability times ten: 86 is 8.6; 0 for none
	VRAM           []int64 // bytes; several where one id was sold with several
	Watts          int
	Gen, Width     int // PCIe link of the card itself
	Use            Use
	Drivers        Drivers
}

// Use says what a card is good for.
type Use string

// The uses.
const (
	Full    Use = "full"
	Special Use = "special" // crippled or unsupported: needs kernels made for it
	None    Use = "none"
	IGPU    Use = "igpu" // part of a CPU: not a card
)

// Drivers is the range of NVIDIA driver branches that run a card, and with
// which kernel modules.
type Drivers struct {
	First, Last       int // Last 0: still made
	Proprietary, Open bool
}

//go:embed cards.csv
var cardsCSV string

//go:embed boards.csv
var boardsCSV string

// Cards returns the card table.
var Cards = sync.OnceValue(func() []Card {
	var out []Card
	for _, r := range table(cardsCSV) {
		c := Card{Vendor: r["vendor"], Model: r["model"], Arch: r["arch"], Use: Use(r["use"]), Watts: number(r["watts"]), Gen: number(r["gen"]), Width: number(r["width"])}
		if major, minor, ok := strings.Cut(r["cc"], "."); ok {
			c.CC = number(major)*10 + number(minor)
		}
		for _, g := range strings.Fields(r["vram"]) {
			c.VRAM = append(c.VRAM, int64(number(g))<<30)
		}
		if first, last, ok := strings.Cut(r["drivers"], "-"); ok {
			c.Drivers = Drivers{number(first), number(last), strings.Contains(r["modules"], "p"), strings.Contains(r["modules"], "o")}
		}
		for _, id := range strings.Fields(r["ids"]) {
			c.Device = id
			out = append(out, c)
		}
	}
	return out
})

// CardByID finds a card by its PCI ids.
func CardByID(vendor, device string) (Card, bool) {
	for _, c := range Cards() {
		if strings.EqualFold(c.Vendor, vendor) && strings.EqualFold(c.Device, device) {
			return c, true
		}
	}
	return Card{}, false
}

// CardByModel finds a card by its name, as people and drivers write it
// ("NVIDIA GeForce RTX 3090" is "RTX 3090").
func CardByModel(model string) (Card, bool) {
	for _, c := range Cards() {
		if foldModel(c.Model) == foldModel(model) {
			return c, true
		}
	}
	return Card{}, false
}

// foldModel drops the maker's words in front of a model.
func foldModel(s string) string {
	f := fold(s)
	for _, word := range []string{"nvidia", "geforce", "amd", "radeon"} {
		f = strings.TrimPrefix(f, word)
	}
	return f
}

// A Board is what is known of a main board by its name.
type Board struct {
	Model        string
	Wide, Narrow int   // slots with 16 lanes, and with one
	RAM          int64 // most bytes it takes
	Mining       bool
}

var boards = sync.OnceValue(func() map[string]Board {
	out := map[string]Board{}
	for _, r := range table(boardsCSV) {
		out[fold(r["product"])+plus(r["product"])] = Board{r["model"], number(r["wide"]), number(r["narrow"]), int64(number(r["ram"])) << 30, r["mining"] == "yes"}
	}
	return out
})

// BoardByProduct finds a board by SMBIOS' product name of it.
func BoardByProduct(product string) (Board, bool) {
	b, ok := boards()[fold(product)+plus(product)]
	return b, ok
}

// plus keeps boards apart that differ in a plus sign only.
func plus(s string) string { return strings.Repeat("+", strings.Count(s, "+")) }

// table parses one of the embedded files: lines with '#' are comments, the
// first other line names the columns. The files are part of the program: what
// is wrong with them is a bug, which a test finds.
func table(text string) []map[string]string {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment = '#'
	rows, err := r.ReadAll()
	if err != nil {
		panic("triage: " + err.Error())
	}
	var out []map[string]string
	for _, row := range rows[1:] {
		m := map[string]string{}
		for i, v := range row {
			m[rows[0][i]] = v
		}
		out = append(out, m)
	}
	return out
}

// number reads a column that may be empty.
func number(s string) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		panic(fmt.Sprintf("triage: %q is not a number", s))
	}
	return n
}

// fold is s in lower case with its letters and digits only.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return -1
	}, s)
}
