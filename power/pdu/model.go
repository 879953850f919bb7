package pdu

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed models.yaml
var modelsYAML []byte

// models lists every family, in the order of models.yaml.
var models = mustParse(modelsYAML)

// A model is where one family of PDUs keeps its outlets, and in which words.
// models.yaml says what the fields mean.
type model struct {
	Name    string    `yaml:"name"`
	Devices string    `yaml:"devices"`
	Objects []string  `yaml:"objects"`
	On      command   `yaml:"on"`
	Off     command   `yaml:"off"`
	Cancel  []command `yaml:"cancel"`
	State   words     `yaml:"state"`
	Pending *idle     `yaml:"pending"`
	Label   column    `yaml:"label"`
	Watts   *gauge    `yaml:"watts"`
	Amps    *gauge    `yaml:"amps"`
	Blink   *command  `yaml:"blink"`
	Meters  []meter   `yaml:"meters"`
	Source  string    `yaml:"source"`
	Run     string    `yaml:"run"`
}

// A command is one value to one column.
type command struct {
	At   column `yaml:"at"`
	Word int    `yaml:"word"`
}

// words are what a state column says.
type words struct {
	At      column `yaml:"at"`
	On      []int  `yaml:"on"`
	Off     []int  `yaml:"off"`
	Pending []int  `yaml:"pending"`
}

// idle is a column that says whether a delayed command waits.
type idle struct {
	At   column `yaml:"at"`
	Idle []int  `yaml:"idle"`
}

// A gauge is a measured column.
type gauge struct {
	At     column  `yaml:"at"`
	Scale  float64 `yaml:"scale"`  // 0 is 1
	Digits column  `yaml:"digits"` // decimals of the value
	Valid  column  `yaml:"valid"`  // 1 while the value means something
}

// A meter is what is measured above outlets, for each inlet, phase or bank.
type meter struct {
	Level string `yaml:"level"`
	Watts *gauge `yaml:"watts"`
	Amps  *gauge `yaml:"amps"`
	Volts *gauge `yaml:"volts"`
}

// gauges are those that m has.
func (m meter) gauges() []*gauge {
	var out []*gauge
	for _, g := range []*gauge{m.Watts, m.Amps, m.Volts} {
		if g != nil {
			out = append(out, g)
		}
	}
	return out
}

func mustParse(data []byte) []model {
	ms, err := parseModels(data)
	if err != nil {
		panic("pdu: models.yaml: " + err.Error()) // embedded, and held by a test
	}
	return ms
}

// The values of run, and of a meter's level.
var (
	runs   = []string{"snmpd and simulated", "simulated", "read"}
	levels = []string{"inlet", "phase", "bank", "phase or bank"}
)

func parseModels(data []byte) ([]model, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	var ms []model
	if err := d.Decode(&ms); err != nil {
		return nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	owner := map[string]string{}
	names := map[string]bool{}
	for _, m := range ms {
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("model %q: %w", m.Name, err)
		}
		if names[m.Name] {
			return nil, fmt.Errorf("model %q stands twice", m.Name)
		}
		names[m.Name] = true
		for _, o := range m.Objects {
			if owner[o] != "" {
				return nil, fmt.Errorf("sysObjectID %s is %q and %q", o, owner[o], m.Name)
			}
			owner[o] = m.Name
		}
	}
	return ms, nil
}

// check finds what would switch blindly: a word for on and for off, a column
// without a place for the outlet.
func (m model) check() error {
	switch {
	case m.Name == "" || m.Devices == "" || m.Source == "":
		return errors.New("name, devices and source are needed")
	case !slices.Contains(runs, m.Run):
		return fmt.Errorf("run %q: want one of %q", m.Run, runs)
	case len(m.Objects) == 0:
		return errors.New("no sysObjectID")
	case !m.On.At.ofOutlet() || !m.Off.At.ofOutlet() || !m.State.At.ofOutlet():
		return errors.New("on, off and state are needed, each with a place for the outlet's number")
	case m.On == m.Off:
		return errors.New("on and off are the same command")
	case len(m.State.On) == 0 || len(m.State.Off) == 0:
		return errors.New("a state needs words for on and off")
	case m.Pending != nil && (!m.Pending.At.ofOutlet() || len(m.Pending.Idle) == 0):
		return errors.New("pending needs a column and the words for no")
	case m.Label.set() && !m.Label.ofOutlet():
		return errors.New("label has no place for the outlet's number")
	}
	for _, o := range m.Objects {
		if _, err := parseOID(o); err != nil {
			return fmt.Errorf("sysObjectID: %w", err)
		}
	}
	seen := map[int]bool{}
	for _, w := range slices.Concat(m.State.On, m.State.Off, m.State.Pending) {
		if seen[w] {
			return fmt.Errorf("the state word %d means two things", w)
		}
		seen[w] = true
	}
	for _, c := range append(slices.Clone(m.Cancel), blinks(m)...) {
		if !c.At.ofOutlet() || c == m.On || c == m.Off {
			return errors.New("cancel or blink has no place for the outlet's number, or switches")
		}
	}
	for _, g := range []*gauge{m.Watts, m.Amps} {
		if g != nil && (!g.At.ofOutlet() || g.Scale < 0) {
			return errors.New("watts or amps without a place for the outlet's number, or with a negative scale")
		}
	}
	for _, t := range m.Meters {
		if !slices.Contains(levels, t.Level) || len(t.gauges()) == 0 {
			return fmt.Errorf("a meter of level %q: want one of %q, and something measured", t.Level, levels)
		}
		for _, g := range t.gauges() {
			if !g.At.any() || g.Scale < 0 {
				return fmt.Errorf("a meter of level %q: want [*] in its column and no negative scale", t.Level)
			}
		}
	}
	return nil
}

func blinks(m model) []command {
	if m.Blink == nil {
		return nil
	}
	return []command{*m.Blink}
}

// Models names every model that Config.Model may be.
func Models() []string {
	var names []string
	for _, m := range models {
		names = append(names, m.Name)
	}
	return names
}

// under tells whether oid is prefix or below it.
func under(oid, prefix string) bool {
	return oid == prefix || strings.HasPrefix(oid, prefix+".")
}

// modelOf is the model that a sysObjectID belongs to: the one with the longest
// prefix.
func modelOf(object string) (*model, bool) {
	object, ok := strings.CutPrefix(strings.TrimPrefix(object, "."), enterprises+".")
	if !ok {
		return nil, false
	}
	var found *model
	longest := 0
	for i, m := range models {
		for _, o := range m.Objects {
			if under(object, o) && len(o) > longest {
				found, longest = &models[i], len(o)
			}
		}
	}
	return found, found != nil
}
