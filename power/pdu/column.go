package pdu

import (
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"smelt/power"
)

// enterprises is where every vendor's objects lie (RFC 1155, section 3.1.4).
const enterprises = "1.3.6.1.4.1"

// A column is a column of a table, or a row of scalars, as models.yaml writes
// it: an OID with the place of the index in brackets.
type column struct {
	prefix string // up to the index, with enterprises before it, without a dot behind it
	form   form
	suffix string // behind the index, with its dot
}

// A form is how an outlet's number becomes an index.
type form string

// The forms; models.yaml explains them.
const (
	plain   form = "n"
	below0  form = "0.n"
	below1  form = "1.n"
	below11 form = "1.1.n"
	skip10  form = "n+1~10"
	every   form = "*"
)

// lead is what stands before the number in an index when nothing else is said.
func (f form) lead() []int {
	switch f {
	case below0:
		return []int{0}
	case below1:
		return []int{1}
	case below11:
		return []int{1, 1}
	}
	return nil
}

func (c column) set() bool      { return c.prefix != "" }
func (c column) any() bool      { return c.form == every }
func (c column) ofOutlet() bool { return c.set() && !c.any() }

func parseColumn(s string) (column, error) {
	front, rest, ok := strings.Cut(s, ".[")
	index, suffix, closed := strings.Cut(rest, "]")
	if !ok || !closed {
		return column{}, fmt.Errorf("column %q has no [..] for the index", s)
	}
	switch form(index) {
	case plain, below0, below1, below11, skip10, every:
	default:
		return column{}, fmt.Errorf("column %q: the index %q is unknown", s, index)
	}
	if _, err := parseOID(front); err != nil {
		return column{}, fmt.Errorf("column %q: %w", s, err)
	}
	if suffix != "" {
		if _, err := parseOID(strings.TrimPrefix(suffix, ".")); err != nil || suffix[0] != '.' {
			return column{}, fmt.Errorf("column %q: %q is no end of an OID", s, suffix)
		}
	}
	return column{enterprises + "." + front, form(index), suffix}, nil
}

// UnmarshalYAML makes a column of a text.
func (c *column) UnmarshalYAML(n *yaml.Node) (err error) {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: want a column", n.Line)
	}
	if *c, err = parseColumn(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

// parseOID reads numbers with dots between them.
func parseOID(s string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is no OID", s)
		}
		out = append(out, int(n))
	}
	return out, nil
}

// at is the OID of an outlet.
func (c column) at(outlet int) (string, error) {
	index, err := c.form.index(outlet)
	if err != nil {
		return "", err
	}
	return c.prefix + "." + index + c.suffix, nil
}

// number is the outlet that an OID of this column belongs to. It is at's
// inverse: no other number has that OID.
func (c column) number(oid string) (int, bool) {
	oid = strings.TrimPrefix(oid, ".")
	index, ok := c.index(oid)
	if !ok {
		return 0, false
	}
	parts, err := parseOID(index)
	if err != nil {
		return 0, false
	}
	n := 0
	switch lead := c.form.lead(); {
	case c.form == skip10:
		if len(parts) != 1 || parts[0] < 2 || parts[0] == 10 {
			return 0, false
		}
		n = parts[0] - 1
		if parts[0] > 10 {
			n--
		}
	case len(parts) != len(lead)+1:
		return 0, false
	case len(lead) == 0:
		n = parts[0]
	default:
		// Leading zeros of the number stand for the usual levels.
		usual := true
		for i, part := range parts[:len(lead)] {
			if part > 99 {
				return 0, false
			}
			if usual = usual && part == lead[i]; usual {
				part = 0
			}
			n = n*100 + part
		}
		if parts[len(lead)] > 99 {
			return 0, false
		}
		n = n*100 + parts[len(lead)]
	}
	back, err := c.at(n)
	return n, err == nil && back == oid
}

// index is what stands in the brackets in an OID of this column.
func (c column) index(oid string) (string, bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(oid, "."), c.prefix+".")
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, c.suffix)
	return rest, ok && rest != ""
}

// swap is the OID in d of the row that oid has in c.
func (c column) swap(oid string, d column) (string, bool) {
	index, ok := c.index(oid)
	return d.prefix + "." + index + d.suffix, ok
}

// maxOutlet bounds an outlet's number: the largest has six digits, 640203.
const maxOutlet = 999999

func (f form) index(outlet int) (string, error) {
	if outlet < 1 || outlet > maxOutlet {
		return "", fmt.Errorf("%w: there is no outlet %d: outlets are counted from 1", power.ErrMismatch, outlet)
	}
	lead := f.lead()
	switch {
	case f == skip10 && outlet > 8:
		return strconv.Itoa(outlet + 2), nil
	case f == skip10:
		return strconv.Itoa(outlet + 1), nil
	case len(lead) == 0:
		return strconv.Itoa(outlet), nil
	}
	parts := make([]string, len(lead)+1)
	parts[len(lead)] = strconv.Itoa(outlet % 100)
	bad := outlet%100 == 0
	// From the right. The leftmost level that is written is not the usual one:
	// else one outlet would have two numbers, and two nodes could own it.
	n := outlet / 100
	for i := len(lead) - 1; i >= 0; i-- {
		level := lead[i]
		if n > 0 {
			level = n % 100
			n /= 100
			bad = bad || n == 0 && level == lead[i]
		}
		parts[i] = strconv.Itoa(level)
	}
	if bad || n > 0 {
		return "", fmt.Errorf("%w: there is no outlet %d: the last two digits are the outlet, two digits each before them the levels of %s that are not the usual ones", power.ErrMismatch, outlet, f)
	}
	return strings.Join(parts, "."), nil
}
