package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/server"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"smelt": main})
}

// The scripts run the real command against a real server and store; only the
// conductor is a stand-in that says yes, or no to what is held.
func TestScripts(t *testing.T) {
	example, err := os.ReadFile("../../site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE COMMAND...: the code is the contract.
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				var exit *exec.ExitError
				if got := "0"; errors.As(err, &exit) || err == nil {
					if exit != nil {
						got = strconv.Itoa(exit.ExitCode())
					}
					if neg || got != args[0] {
						ts.Fatalf("exit code %s, want %s", got, args[0])
					}
					return
				}
				ts.Fatalf("%v", err)
			},
		},
		Setup: func(e *testscript.Env) error {
			if err := os.WriteFile(filepath.Join(e.WorkDir, "site.yaml"), example, 0o644); err != nil {
				return err
			}
			return testSite(e)
		},
	})
}

type conductor struct {
	server.Conductor // what no script reaches
	stopped          bool
	mu               sync.Mutex
	power            inventory.SitePower
}

func (c *conductor) Live(inventory.NodeID) convert.Live { return convert.Live{} }
func (c *conductor) Stopped() bool                      { return c.stopped }
func (c *conductor) Levels() []convert.Level {
	return []convert.Level{
		{Circuit: inventory.Circuit{Name: "feed-a", Kind: "feed"}, Granted: 2800, Measured: 1650, Limit: 34918, Free: 32118, State: "ok"},
		{Circuit: inventory.Circuit{Name: "pdu-a1", Kind: "pdu", Parent: "feed-a"}, Granted: 1800, Measured: 1650, Limit: 5888, Free: 4088, State: "ok"},
		{Circuit: inventory.Circuit{Name: "pdu-a2", Kind: "pdu", Parent: "feed-a"}, Granted: 1000, Limit: 5888, Free: 0, State: "full", Why: "it drew more than 5888 W for 1m0s"},
	}
}
func (c *conductor) SitePower() inventory.SitePower {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.power
}
func (c *conductor) HallPower() convert.HallPower {
	now := time.Now()
	return convert.HallPower{SitePower: c.SitePower(), Draw: 2650, Machines: []convert.MachinePower{
		{Node: "rig-01", Position: "A3-S2", Circuit: "pdu-a1", State: inventory.NeedsWork, On: "unknown", Nameplate: 1800, Watts: 90000, WattsAt: now, Lie: "it says that it draws 90000 W"},
		{Node: "rig-02", State: inventory.Discovered, On: "unknown", Nameplate: 1800, ReadError: "GET /redfish/v1/: no route to host"},
		{Node: "srv-01", Position: "A1-U10", Circuit: "pdu-a1", State: inventory.BurningIn, On: "on", At: now.Add(-90 * time.Minute), Via: "redfish 10.0.0.5", Nameplate: 1800, Learned: 1500, Watts: 1650, WattsAt: now.Add(-12 * time.Second),
			Shed: []inventory.Shed{{Do: inventory.ShedPause, By: "budget", Why: "too hot", At: now}}},
	}}
}
func (c *conductor) BMCs(context.Context) ([]convert.BMC, error) {
	return []convert.BMC{
		{Node: "srv-01", Via: "redfish 10.0.0.5", Adopted: true, Audit: power.Audit{Vendor: "Contoso", Model: "X1", At: time.Now(), Restore: "LastState", Boot: []string{"network", "disk"},
			Firmware: map[string]string{"bmc": "1.2.3", "bios": "4.5", "psu1": "7"}, Findings: []power.Finding{{Code: "restore-policy", What: "all start at once", Fix: "set it to AlwaysOff"}}}},
		{Node: "srv-02", Via: "ipmi 10.0.0.6"},
	}, nil
}
func (c *conductor) Learned(context.Context) ([]convert.Learned, error) {
	return []convert.Learned{{Via: "redfish 10.0.0.5", Node: "srv-01", Code: "ok-and-nothing", Times: 2, Last: time.Now()}}, nil
}
func (c *conductor) CanGive(need float64, _ time.Duration) convert.CanGive {
	return convert.CanGive{Watts: 1300, Draw: 2650, Unmeasured: 1, Steps: []inventory.CurtailStep{{Node: "srv-01", Do: inventory.ShedPause, Watts: 1300}}}
}

// order does what the conductor would with an order about the site's power.
func (c *conductor) order(i store.Intent) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch i.Verb {
	case "power-hold":
		c.power.Hold = &inventory.PowerHold{By: i.Actor, Reason: i.Params["reason"], At: now}
	case "power-resume":
		if c.power.Hold == nil {
			return "nothing is held"
		}
		c.power.Hold = nil
	case "power-blackout":
		c.power.Blackout = &inventory.Blackout{At: now, By: i.Actor, Why: i.Params["reason"], Lost: []inventory.NodeID{"srv-01"}}
	case "power-release":
		c.power.Blackout = nil
	case "power-curtail":
		if i.Params["watts"] != "1000" {
			return "the site cannot give back " + i.Params["watts"] + " W within " + i.Params["within"] + ", but 1300 W"
		}
		c.power.Curtail = &inventory.Curtailment{By: i.Actor, Watts: 1000, At: now, Due: now.Add(10 * time.Minute), Base: 2650, Draw: 1450, Seen: now, Met: now}
		if i.Params["reason"] == "slow" {
			c.power.Curtail.Seen, c.power.Curtail.Met = time.Time{}, time.Time{}
		}
	case "power-curtail-end":
		c.power.Curtail = nil
	}
	return ""
}
func (c *conductor) Stop(_ context.Context, on bool, _, _ string) error { c.stopped = on; return nil }
func (c *conductor) Submit(_ context.Context, i store.Intent) (store.IntentResult, error) {
	switch {
	case i.Verb == "reinspect":
		return store.IntentResult{}, store.ErrNotFound // it never ends
	case strings.HasPrefix(i.Verb, "power-"):
		why := c.order(i)
		return store.IntentResult{ID: i.ID, OK: why == "", Error: why}, nil
	case i.Verb == "prove" && i.Node == "srv-02":
		return store.IntentResult{ID: i.ID, Error: "it is expected: its wiring is proven while it burns in under its whole load, or when it is off"}, nil
	case i.Verb == "release" && i.Node == "srv-01":
		return store.IntentResult{ID: i.ID, Error: "held by cluster: maintenance"}, nil
	}
	return store.IntentResult{ID: i.ID, OK: true}, nil
}

func testSite(e *testscript.Env) error {
	ctx := context.Background()
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(e.WorkDir, "server.db"))
	if err != nil {
		return err
	}
	conf := server.Config{Conductor: &conductor{}, Store: st, Log: slog.New(slog.DiscardHandler), Version: "test", Site: "hall-a", Boot: server.Boot{Trace: trace, Networks: testNetworks, Sightings: testSightings}}
	if err := watched(e, &conf); err != nil {
		return err
	}
	s, err := server.New(conf)
	if err != nil {
		return err
	}
	if _, err := server.FirstToken(ctx, st, filepath.Join(e.WorkDir, "operator.token")); err != nil {
		return err
	}
	viewer, err := server.AddToken(ctx, st, "vera", server.Viewer)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"viewer.token": viewer, "wrong.token": "smelt_wrong"} {
		if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	if err := fillStore(ctx, st); err != nil {
		return err
	}
	if err := fileCertificate(ctx, st, filepath.Join(e.WorkDir, "state")); err != nil {
		return err
	}
	ts := httptest.NewServer(s.UI())
	e.Defer(func() {
		s.Close()
		ts.Close()
		st.Close()
	})
	e.Setenv("SMELT_SERVER", ts.URL)
	e.Setenv("SMELT_TOKEN_FILE", filepath.Join(e.WorkDir, "operator.token"))
	return nil
}

// trace has more events of one machine than are shown unasked.
func trace(macs []inventory.MAC) []api.BootEvent {
	var out []api.BootEvent
	for i := range 12 {
		for _, m := range macs {
			at := time.Now().Add(time.Duration(i-12) * time.Minute)
			out = append(out, api.BootEvent{At: at, MAC: m, Kind: "script", Asked: fmt.Sprintf("ask %d", i), Answer: "hold", Why: "it waits", Times: 3, Since: at.Add(-time.Minute)})
		}
	}
	return out
}

func testNetworks() []api.NetworkView {
	return []api.NetworkView{
		{Name: "aisle-3", Mode: "authoritative", Interface: "eno2", Address: "10.20.0.1/16", Pool: "10.20.200.1-10.20.200.10", Used: 9, Size: 10, Heard: 3, Warnings: []string{"the pool is nearly empty"},
			Rivals: []api.Rival{{Name: "ProxyDHCP server 10.20.9.9", Type: "ProxyDHCP", MAC: "52:54:00:00:00:99", Addr: "10.20.9.9", Boots: []string{"hiveos/pxelinux.0"}, Alarm: "it takes machines away", Next: "switch it off", Last: time.Now()}}},
		{Name: "asics", Mode: "observe", Interface: "eno3", Address: "10.30.0.2/16"},
	}
}

func testSightings() []api.Sighting {
	return []api.Sighting{
		{MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 1}, Network: "aisle-3", Boots: true, Vendor: "PXEClient:Arch:00007", Arch: 7, Last: time.Now(), Got: "offer 10.20.1.1"},
		{MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 2}, Network: "aisle-3", Boots: true, Last: time.Now(), Circuit: "sw3/17", Relay: "10.21.0.1"},
		{MAC: inventory.MAC{0xe0, 0xa5, 9, 0, 0, 1}, Network: "asics", Hostname: "antMiner", Last: time.Now(), Verdict: api.SeenASIC, Reason: "Bitmain"},
		{MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 3}, Network: "asics", Hostname: "printer", Last: time.Now(), Got: "none"},
	}
}

// fillStore has one node in the queue, one that is expected, one that needs work.
func fillStore(ctx context.Context, st *store.Store) error {
	at := time.Now().Add(-2 * time.Hour)
	hw := &inventory.Hardware{
		Board: inventory.Board{Vendor: "ASRock", Serial: "B1"},
		GPUs:  []inventory.GPU{{PCI: inventory.PCI{Address: "0000:01:00.0", Link: inventory.PCILink{MaxWidth: 16}, Port: &inventory.Port{Link: inventory.PCILink{MaxWidth: 1}}}, Model: "RTX 3090"}},
		Disks: []inventory.Disk{{Name: "sda", Model: "KINGSTON", DiskID: inventory.DiskID{Serial: "S3YJNX0K412", Size: 240e9}, Signatures: []string{"ext4"}}},
	}
	verdict := &inventory.Verdict{Target: "slurm-batch", Answer: "upgrade", Reasons: []inventory.Reason{
		{Item: "pcie-link", Want: "x8", Got: "x1", Where: "slot 2", Fix: "move the card to a slot with 8 lanes", Part: "riser x16"}}}
	for id, events := range map[inventory.NodeID][]inventory.Event{
		"srv-01": {
			{Kind: inventory.KindCreated, To: inventory.Discovered, Spec: &inventory.Spec{Name: "srv-01", Position: "A1-U10", Class: "gpu-server-2x3090"}},
			{Kind: inventory.KindInspected, Hardware: hw},
			{Kind: inventory.KindTriaged, Verdict: verdict},
			{Kind: inventory.KindStep, Reason: "wiring mismatch: outlet 7 of pdu-a1 moved, site.yaml says outlet 3 of pdu-a1: swap the cord, or correct site.yaml", Evidence: map[string]string{"mark": "wiring", "wiring": "mismatch"}},
			{Kind: inventory.KindMoved, To: inventory.Inspected, Reason: "the agent reported"},
		},
		"srv-02": {{Kind: inventory.KindCreated, To: inventory.Expected, Spec: &inventory.Spec{Name: "srv-02", Position: "A1-U14"}}},
		"rig-01": {
			{Kind: inventory.KindCreated, To: inventory.Discovered, Spec: &inventory.Spec{Name: "rig-01", Position: "A3-S2", Circuit: "pdu-a1", MACs: []inventory.MAC{{0x52, 0x54, 0, 0, 0, 1}}}},
			{Kind: inventory.KindPower, Power: &inventory.PowerFact{On: "off", At: at, Via: "pdu pdu-a1 outlet 3", Detail: "lost power: nobody here switched it off"}},
			{Kind: inventory.KindMoved, To: inventory.NeedsWork, Reason: "a card is missing", Failure: &inventory.Failure{Step: inventory.Discovered, Cause: "gpu-lost"}},
		},
	} {
		var n inventory.Node
		var err error
		for i := range events {
			e := &events[i]
			e.Node, e.Version, e.At, e.Actor = id, uint64(i+1), at, "agent"
			if n, err = n.Apply(*e); err != nil {
				return err
			}
		}
		c := store.Change{Node: n, Events: events}
		if id == "rig-01" {
			c.Tasks = []inventory.Task{{ID: "t1", Node: id, Verb: "reseat", What: "GPU 3", Where: "A3-S2, slot 3", Why: "it is not on the bus", Proof: "reinspect", Opened: at}}
		}
		if _, err := st.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
