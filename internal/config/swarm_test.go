package config

import (
	"fmt"
	"testing"
)

func TestSwarm(t *testing.T) {
	s, err := Parse("s", []byte(edit(t, "# lab: true", "# lab: false")), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Swarm); got != "{false 0 0 0 []}" {
		t.Errorf("the example: %s", got)
	}
	s, err = Parse("s", []byte(edit(t, "  peers: true                    # false", `  peers: false
  node: 50MiB
  rack: 1GiB
  origin: 500MiB
  caches: [{url: "http://10.20.3.1:80/", racks: [A3, A1]}]
# false`)), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Swarm); got != "{true 52428800 1073741824 524288000 [{http://10.20.3.1:80 [A3 A1]}]}" {
		t.Errorf("read %s", got)
	}
}
