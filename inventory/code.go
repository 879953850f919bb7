package inventory

import (
	"crypto/sha256"
	"slices"
	"strings"
)

// codeLetters cannot be taken for one another on a bad screen or in a noisy
// hall: no 0 and O, no 1, I and L, no U and V side by side.
const codeLetters = "23456789ABCDEFGHJKMNPQRSTVWXYZ"

// minCode is how long a code is at least: short enough to be read out.
const minCode = 4

// code is all there is of the code of a node. It follows from the name alone,
// so that every server shows the same after any restart.
func (id NodeID) code() string {
	sum := sha256.Sum256([]byte("smelt code " + id))
	var b strings.Builder
	for _, c := range sum[:12] {
		b.WriteByte(codeLetters[int(c)%len(codeLetters)])
	}
	return b.String()
}

// Codes are the short names of nodes, by which a person at a machine's screen
// finds its page. Like the short hash of a commit, a code is the beginning of
// something longer, as short as tells the nodes apart: when a node comes that
// begins alike, both codes grow by a letter and nobody else's changes. The zero
// Codes is empty and ready; it must not be used from two goroutines at once.
type Codes struct {
	byStart map[string][]NodeID // by the first minCode letters
}

// Add takes a node in. Adding it twice is once.
func (c *Codes) Add(id NodeID) {
	start := id.code()[:minCode]
	if c.byStart == nil {
		c.byStart = map[string][]NodeID{}
	}
	if !slices.Contains(c.byStart[start], id) {
		c.byStart[start] = append(c.byStart[start], id)
	}
}

// Of returns the code of a node.
func (c *Codes) Of(id NodeID) string {
	full := id.code()
	n := minCode
	for _, other := range c.byStart[full[:minCode]] {
		for other != id && n < len(full) && strings.HasPrefix(other.code(), full[:n]) {
			n++
		}
	}
	return full[:n]
}

// Find returns the nodes whose code begins as a person typed it: one, unless it
// is of another site or from before another node came that begins alike.
func (c *Codes) Find(typed string) []NodeID {
	typed = strings.ToUpper(typed)
	if len(typed) < minCode {
		return nil
	}
	var out []NodeID
	for _, id := range c.byStart[typed[:minCode]] {
		if strings.HasPrefix(id.code(), typed) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}
