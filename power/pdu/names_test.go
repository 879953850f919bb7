package pdu

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]string{ // "ok", "unnamed", or what the error says
		"rig-1":                  "ok",
		"RIG-1 left":             "ok",
		"psu2 of rig-1, rack A3": "ok",
		"rig_1":                  "ok", // an ATEN takes no dash
		"left_rig-1":             "ok", // a Sentry puts _ between words
		"A3-S2":                  "ok", // its place
		"":                       "unnamed",
		"3":                      "unnamed",
		"Outlet 3":               "unnamed",
		"Outlet-3":               "unnamed",
		"OUTLET3":                "unnamed", // a Raritan
		"Outlet A3":              "unnamed", // an Eaton
		"Master_Outlet_3":        "unnamed", // a Sentry
		"TowerA_InfeedA_Outlet3": "unnamed",
		"Receptacle 3":           "unnamed",
		"rig-10":                 "that is node rig-10",
		"Outlet 3 rig-10":        "that is node rig-10",
		"rig-1x":                 "not rig-1",
		"rig-11":                 "not rig-1",
		"core-switch":            "not rig-1",
		"spare":                  "not rig-1",
		"A3-S20":                 "not rig-1",
		"Do not switch off 3":    "not rig-1",
	} {
		u := &Unit{cfg: Config{Name: "p", Nodes: []string{"rig-1", "rig-10"}}}
		note, err := u.named(Outlet{Unit: u, Number: 3, Node: "rig-1", Place: "A3-S2"}, name)
		switch want {
		case "ok":
			if note != "" || err != nil {
				t.Errorf("%q: note %q, error %v", name, note, err)
			}
		case "unnamed":
			if note == "" || err != nil {
				t.Errorf("%q: note %q, error %v", name, note, err)
			}
		default:
			if err == nil || !strings.Contains(err.Error(), want) || note != "" {
				t.Errorf("%q: note %q, error %v; want %q", name, note, err, want)
			}
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("rig-1 left", "rig-1")
	f.Add("Outlet 3", "rig-10")
	f.Fuzz(func(t *testing.T, name, node string) {
		u := &Unit{cfg: Config{Nodes: []string{"rig-10"}}}
		note, err := u.named(Outlet{Unit: u, Number: 1, Node: node}, name)
		if err != nil && note != "" || err == nil && note == "" && !strings.Contains(strings.ReplaceAll(strings.ToLower(name), "_", "-"), strings.ReplaceAll(strings.ToLower(node), "_", "-")) {
			t.Errorf("%q is taken for %q: note %q, error %v", name, node, note, err)
		}
	})
}
