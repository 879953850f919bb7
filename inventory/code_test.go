package inventory

import (
	"fmt"
	"strings"
	"testing"
)

// However many nodes there are, each code names one of them, and a code that
// stood on a screen names its node or says which two it could be.
func TestCodes(t *testing.T) {
	var c Codes
	var ids []NodeID
	early := map[NodeID]string{}
	for i := range 24000 {
		id := NodeID(fmt.Sprintf("rig-%05d", i))
		c.Add(id)
		c.Add(id)
		ids = append(ids, id)
		if i%100 == 0 {
			early[id] = c.Of(id)
		}
	}
	longest, lengths := 0, map[int]int{}
	for _, id := range ids {
		code := c.Of(id)
		if got := c.Find(strings.ToLower(code)); len(got) != 1 || got[0] != id {
			t.Fatalf("%s has the code %s, which finds %v", id, code, got)
		}
		longest = max(longest, len(code))
		lengths[len(code)]++
	}
	t.Logf("24,000 nodes: codes by length %v", lengths)
	if longest > 8 || lengths[minCode] < 22000 {
		t.Errorf("a code has %d letters", longest)
	}
	for id, code := range early {
		found := false
		for _, got := range c.Find(code) {
			found = found || got == id
		}
		if !found {
			t.Errorf("the code %s of %s finds others only", code, id)
		}
	}
	for _, wrong := range []string{"", "7", "7QX", "ÄÖÜß", "0000", "7QX2/../", strings.Repeat("A", 4000)} {
		if got := c.Find(wrong); len(got) != 0 {
			t.Errorf("%q finds %v", wrong, got)
		}
	}
	if strings.ContainsAny(codeLetters, "01OILU") {
		t.Error("letters that look alike")
	}
}
