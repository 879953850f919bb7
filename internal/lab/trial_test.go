package lab

import (
	"testing"

	"smelt/internal/config"
)

// TestTrialSite: the site file of a trial must parse with the parser that serve
// uses, and nothing that it is given may end up as anything else in it.
func TestTrialSite(t *testing.T) {
	trial := Trial{Machines: []TrialMachine{{Name: "bios"}, {Name: "uefi", UEFI: true}, {Name: "tamper"}}, MayFail: []string{`nvidia-persistenced.service`, `dev-disk\x2d1.swap`}}
	known := config.Known{Profiles: []string{"image"}, LabOnly: []string{"image"}, Targets: []string{"lab"}}
	site, err := config.Parse("site.yaml", []byte(trial.site(Options{Dir: "/work", Image: "ai-node.r535"})), known)
	if err != nil {
		t.Fatal(err)
	}
	c := site.Classes["image-test"]
	if !site.Lab || len(site.Nodes) != 3 || c.Image != "ai-node.r535" || c.Profile != "image" || len(c.MayFail) != 2 || c.MayFail[1] != trial.MayFail[1] {
		t.Errorf("lab %v, %d nodes, class %+v", site.Lab, len(site.Nodes), c)
	}
	if n := site.Nodes[2]; n.Name != "tamper" || n.Power[0].Driver != "redfish" || n.Power[0].Address != "https://10.77.0.33" || n.Address.String() != "10.77.1.3" {
		t.Errorf("%+v", n)
	}
	trial.MayFail = []string{"x], image: [y"}
	if _, err := config.Parse("site.yaml", []byte(trial.site(Options{Dir: "/work", Image: "x"})), known); err == nil {
		t.Error("what is no unit's name went into the site file")
	}
}
