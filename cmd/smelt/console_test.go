package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"smelt/internal/console"
	"smelt/internal/locate"
	"smelt/internal/server"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

// labBMC is the controller of the scripts' srv-01.
type labBMC struct {
	*powertest.Fake
	*powertest.Port
}

func (labBMC) String() string { return "fake controller (simulated)" }
func (labBMC) Readings(context.Context) (power.Readings, error) {
	return power.Readings{Watts: 412, Celsius: map[string]float64{"Inlet": 24}, RPM: map[string]float64{"Fan1": math.NaN()}}, nil
}
func (labBMC) EventLog(context.Context) ([]power.LogEntry, error) {
	return []power.LogEntry{{ID: "1", Severity: "Critical", Sensor: "PSU1", Message: "AC lost\x1b[2J"}, {ID: "2", At: time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC), Message: "AC back"}}, nil
}
func (labBMC) Screen(context.Context) (power.Picture, error) {
	return power.Picture{Type: "image/png", Data: []byte("\x89PNG...")}, nil
}
func (labBMC) Light() string                        { return "chassis LED" }
func (labBMC) Identify(context.Context, bool) error { return nil }

func (c *conductor) Record(context.Context, inventory.NodeID, string, string, map[string]string) error {
	return nil
}

// watched gives the scripts' site a machine with a console, one that is
// switched by an outlet, and one that has nothing.
func watched(e *testscript.Env, c *server.Config) error {
	port := new(powertest.Port)
	b := power.Verify(labBMC{new(powertest.Fake), port}, power.Limits{})
	c.Power = map[inventory.NodeID]*power.Verified{"srv-01": b, "srv-02": power.Verify(struct{ power.Controller }{new(powertest.Fake)}, power.Limits{})}
	var err error
	c.Console, err = console.New(console.Config{Dir: filepath.Join(e.WorkDir, "console"), Ports: map[inventory.NodeID]console.Port{"srv-01": b}})
	if err != nil {
		return err
	}
	c.Locate, err = locate.New(locate.Config{Dir: filepath.Join(e.WorkDir, "locate"), Power: c.Power, Record: (&conductor{}).Record, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- c.Console.Run(ctx) }()
	go func() { ended <- c.Locate.Run(ctx) }()
	e.Defer(func() { cancel(); <-ended; <-ended })
	for end := time.Now().Add(10 * time.Second); !port.Busy() || c.Console.State("srv-01").Is != "open"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the console is not open: %+v", c.Console.State("srv-01"))
		}
	}
	port.Print("SeaBIOS\r\n\x1b[1mLinux version 6.1\x1b[0m\r\n\x1b]0;evil\alogin: ")
	return nil
}

// TestLeaver: what ends typing, and what of it reaches the machine.
func TestLeaver(t *testing.T) {
	for _, c := range []struct {
		in, typed string
		leaves    bool
	}{
		{"ls\r", "ls\r", false},
		{"~.", "", true},
		{"ls\r~.x", "ls\r", true},
		{"ls ~.", "ls ~.", false},
		{"~~.", "~.", false},
		{"~x", "~x", false},
		{"a\x1db", "a", true},
		{"\x03", "\x03", false}, // Ctrl-C goes to the machine
	} {
		for _, each := range []int{1, 100} { // key by key, and pasted
			var l leaver
			var got strings.Builder
			left := false
			for rest := c.in; rest != "" && !left; {
				n := min(each, len(rest))
				var typed []byte
				typed, left = l.keys([]byte(rest[:n]))
				got.Write(typed)
				rest = rest[n:]
			}
			if got.String() != c.typed || left != c.leaves {
				t.Errorf("%q by %d: types %q, leaves %v", c.in, each, got.String(), left)
			}
		}
	}
}
