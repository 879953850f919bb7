package pdu

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"smelt/internal/vbmc"
)

var update = flag.Bool("update", false, "write the table of docs/hardware.md anew")

// Every family can be driven: what the data says was simulated has a
// simulation, of which the driver thinks the same.
func TestModels(t *testing.T) {
	if !slices.Equal(slices.Sorted(slices.Values(Models())), vbmc.PDUModels()) {
		t.Errorf("models.yaml has %q, the simulation %q", Models(), vbmc.PDUModels())
	}
	for _, m := range models {
		if m.Run == "read" {
			t.Errorf("%s was never run, and there is a simulation", m.Name)
		}
		for _, o := range m.Objects {
			for _, object := range []string{o, o + ".7.1"} {
				if got, ok := modelOf("." + enterprises + "." + object); !ok || got.Name != m.Name {
					t.Errorf("%s: sysObjectID %s is taken for %+v", m.Name, object, got)
				}
			}
		}
	}
	for _, o := range []string{"1.3.6.1.4.1.318.1.3.4.60", "1.3.6.1.4.1.318.1.3.4.4", "1.3.6.1.4.1.13742.4", "1.3.6.1.4.1.8072.3.2.10", "1.3.6.1.4.1.171", "1.3.6.1.4.1", "", "x", "318.1.3.4.5"} {
		if m, ok := modelOf(o); ok {
			t.Errorf("sysObjectID %q is taken for a %s", o, m.Name)
		}
	}
}

// No sysObjectID belongs to two families: of two that match, one is longer.
func TestModelsAreApart(t *testing.T) {
	var all []string
	for _, m := range models {
		all = append(all, m.Objects...)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a == b {
				t.Errorf("%s belongs to two families", a)
			}
		}
	}
	keep := models
	defer func() { models = keep }()
	short, long := models[0], models[1]
	short.Objects, long.Objects = []string{"9.9"}, []string{"9.9.1"}
	for _, order := range [][]model{{short, long}, {long, short}} {
		models = order
		if m, ok := modelOf(enterprises + ".9.9.1.5"); !ok || m.Name != long.Name {
			t.Errorf("the shorter prefix won: %v", m)
		}
		if m, ok := modelOf(enterprises + ".9.9.10"); !ok || m.Name != short.Name {
			t.Errorf("9.9.10 does not lie under 9.9.1: %v", m)
		}
	}
}

func TestBadModels(t *testing.T) {
	const good = `
- name: a
  devices: d
  objects: ["9.1"]
  on: {at: "9.1.1.[n]", word: 1}
  off: {at: "9.1.1.[n]", word: 2}
  state: {at: "9.1.2.[n]", on: [1], off: [2]}
  watts: {at: "9.1.3.[n]"}
  meters: [{level: bank, amps: {at: "9.1.4.[*]", scale: 0.1}}]
  source: s
  run: read
`
	if _, err := parseModels([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for says, edit := range map[string][2]string{
		"field sourze not found":          {"source:", "sourze:"},
		"has no [..]":                     {`"9.1.1.[n]", word: 1`, `"9.1.1.5", word: 1`},
		`index "m" is unknown`:            {`"9.1.2.[n]"`, `"9.1.2.[m]"`},
		"is no OID":                       {`"9.1.2.[n]"`, `"9..2.[n]"`},
		"is no end of an OID":             {`"9.1.2.[n]"`, `"9.1.2.[n]x"`},
		"the same command":                {"word: 2", "word: 1"},
		"means two things":                {"off: [2]", "off: [1]"},
		"words for on and off":            {"off: [2]", "off: []"},
		"a place for the outlet's number": {`"9.1.3.[n]"`, `"9.1.3.[*]"`},
		"want [*]":                        {`"9.1.4.[*]"`, `"9.1.4.[n]"`},
		`level "rack"`:                    {"level: bank", "level: rack"},
		`run "well"`:                      {"run: read", "run: well"},
		"stands twice":                    {"- name: a", good[1:] + "- name: a"},
		`is "a" and "b"`:                  {"- name: a", good[1:] + "- name: b"},
		"more than one document":          {"run: read", "run: read\n---\n[]"},
		"means two things 2":              {"off: [2]}", "off: [2], pending: [2]}"},
		"negative scale":                  {"scale: 0.1", "scale: -1"},
	} {
		text := strings.Replace(good, edit[0], edit[1], 1)
		says = strings.TrimSuffix(says, " 2")
		if _, err := parseModels([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
}

func TestColumns(t *testing.T) {
	for _, c := range []struct {
		form   form
		outlet int
		index  string // "" is an error
	}{
		{plain, 1, "1"}, {plain, 24, "24"}, {plain, 192, "192"}, {plain, 0, ""}, {plain, -3, ""}, {plain, 1 << 40, ""},
		{below0, 3, "0.3"}, {below0, 103, "1.3"}, {below0, 100, ""}, {below0, 10003, ""},
		{below1, 36, "1.36"}, {below1, 203, "2.3"}, {below1, 103, ""},
		{below11, 3, "1.1.3"}, {below11, 203, "1.2.3"}, {below11, 20103, "2.1.3"}, {below11, 640203, "64.2.3"},
		{below11, 103, ""}, {below11, 10203, ""}, {below11, 10103, ""}, {below11, 1020304, ""},
		{skip10, 1, "2"}, {skip10, 8, "9"}, {skip10, 9, "11"}, {skip10, 24, "26"},
	} {
		col := column{enterprises + ".9.1", c.form, ".0"}
		oid, err := col.at(c.outlet)
		if c.index == "" {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("there is no outlet %d", c.outlet)) {
				t.Errorf("[%s] %d: %s, %v; want an error", c.form, c.outlet, oid, err)
			}
			continue
		}
		if want := enterprises + ".9.1." + c.index + ".0"; err != nil || oid != want {
			t.Errorf("[%s] %d: %s, %v; want %s", c.form, c.outlet, oid, err, want)
		}
		if n, ok := col.number("." + oid); !ok || n != c.outlet {
			t.Errorf("[%s] %s is outlet %d, %v; want %d", c.form, oid, n, ok, c.outlet)
		}
	}
	for _, oid := range []string{"9.1.1.0.3.0", "9.1.1.1.0", "9.1.1.0", "9.1.10.0", "9.2.2.0", "9.1.2", "9.1..0", "9.1.2.0.0", "9.1.1.1.100.0"} {
		for _, f := range []form{below11, skip10} {
			if n, ok := (column{enterprises + ".9.1", f, ".0"}).number(enterprises + "." + oid); ok {
				t.Errorf("[%s] %s is taken for outlet %d", f, oid, n)
			}
		}
	}
}

// No two numbers are one outlet: two nodes could own it.
func TestColumnsAreApart(t *testing.T) {
	for _, f := range []form{plain, below0, below1, below11, skip10} {
		c := column{enterprises + ".9", f, ""}
		owner := map[string]int{}
		for range 20000 {
			n := rand.IntN(maxOutlet) + 1
			if rand.IntN(2) == 0 {
				n = rand.IntN(400) + 1
			}
			oid, err := c.at(n)
			if err != nil {
				continue
			}
			if first, ok := owner[oid]; ok && first != n {
				t.Fatalf("[%s] %d and %d are %s", f, first, n, oid)
			}
			owner[oid] = n
			if back, ok := c.number(oid); !ok || back != n {
				t.Fatalf("[%s] %d is %s is %d, %v", f, n, oid, back, ok)
			}
		}
	}
}

// table is the section of docs/hardware.md.
func table() string {
	var b strings.Builder
	b.WriteString("| `model` | devices | found by sysObjectID below " + enterprises + " | names | measured | takes a delayed command back | run |\n|---|---|---|---|---|---|---|\n")
	yes := func(ok bool, s string) []string {
		if ok {
			return []string{s}
		}
		return nil
	}
	or := func(list []string) string {
		if len(list) == 0 {
			return "no"
		}
		return strings.Join(list, ", ")
	}
	for _, m := range models {
		var measured []string
		measured = append(measured, yes(m.Watts != nil, "outlets")...)
		for _, t := range m.Meters {
			if !slices.Contains(measured, t.Level) {
				measured = append(measured, t.Level)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", m.Name, m.Devices, strings.Join(m.Objects, ", "),
			or(yes(m.Label.set(), "yes")), or(measured), or(yes(len(m.Cancel) > 0, "yes")), m.Run)
	}
	return b.String()
}

func TestHardwareTable(t *testing.T) {
	const file, head = "../../docs/hardware.md", "## Switched PDUs\n"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	_, section, ok := strings.Cut(doc, head)
	if !ok {
		t.Fatalf("%s has no section %q", file, head)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	i := strings.Index(section, "| `model`")
	if i < 0 {
		i = len(section)
	}
	j := i
	for _, line := range strings.SplitAfter(section[i:], "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		j += len(line)
	}
	if section[i:j] == table() {
		return
	}
	if !*update {
		t.Fatalf("the table is not what models.yaml says; write it anew: go test ./power/pdu -run TestHardwareTable -update\n%s", table())
	}
	if err := os.WriteFile(file, []byte(strings.Replace(doc, section, section[:i]+table()+section[j:], 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
