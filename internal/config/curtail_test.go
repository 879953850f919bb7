package config

import (
	"strings"
	"testing"
	"time"
)

func TestCurtail(t *testing.T) {
	with := func(block string) (*Site, error) {
		return Parse("s", []byte(edit(t, "# lab: true", "curtail:\n"+block+"# lab: true")), Known{})
	}
	s, err := with("  - {name: evening, days: [mon, fri], from: \"17:00\", to: \"21:30\", watts: 20000}\n  - {name: night, from: \"22:00\", to: \"06:00\", watts: 500, within: 30m}\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Curtail) != 2 || s.Curtail[0].String() != "evening 17:00 to 21:30 20000 W" || s.Curtail[0].Days[1] != time.Friday || s.Curtail[1].Within != 30*time.Minute {
		t.Errorf("read %v", s.Curtail)
	}
	for _, tt := range []struct{ block, want string }{
		{"  - {name: a, from: \"25:00\", to: \"21:30\", watts: 20000}\n", `"25:00" is no time of day`},
		{"  - {name: a, from: \"17:00\", to: \"21:30\", watts: -1}\n", "cannot be given back"},
		{"  - {name: a, from: \"17:00\", to: \"21:30\", watts: .nan}\n", "cannot be given back"},
		{"  - {name: a, from: \"17:00\", to: \"21:30\", watts: 1, within: 5s}\n", "too short"},
		{"  - {name: a, days: [someday], from: \"17:00\", to: \"21:30\", watts: 1}\n", "someday"},
		{"  - {name: a, from: \"17:00\", to: \"21:30\"}\n", "watts"},
		{"  - {name: a, from: \"17:00\", to: \"18:00\", watts: 1}\n  - {name: a, from: \"19:00\", to: \"20:00\", watts: 1}\n", "stands twice"},
	} {
		if _, err := with(tt.block); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.block, err)
		}
	}
}
