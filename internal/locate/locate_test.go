package locate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is a controller that can switch and nothing else.
type plain struct{ power.Controller }

// lamp is a controller with a light.
type lamp struct {
	*powertest.Fake
	mu    sync.Mutex
	calls []bool
	fail  error
}

func (l *lamp) Light() string { return "chassis LED" }
func (l *lamp) Identify(_ context.Context, on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, on)
	return l.fail
}

func (l *lamp) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.calls)
}

type hall struct {
	*Locator
	lamp  *lamp
	dir   string
	mu    sync.Mutex
	story []string
	stop  func()
}

func newHall(t *testing.T, dir string, l *lamp) *hall {
	t.Helper()
	h := &hall{lamp: l, dir: dir}
	var err error
	h.Locator, err = New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler),
		Power: map[inventory.NodeID]*power.Verified{"srv-01": power.Verify(l, power.Limits{}), "srv-02": power.Verify(plain{new(powertest.Fake)}, power.Limits{})},
		Record: func(_ context.Context, node inventory.NodeID, actor, reason string, evidence map[string]string) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.story = append(h.story, fmt.Sprintf("%s %s: %s", node, actor, reason))
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-ended })
	return h
}

func node(id inventory.NodeID, s inventory.State) inventory.Node {
	return inventory.Node{ID: id, State: s, Spec: inventory.Spec{Position: "A3-S2"}, Hardware: &inventory.Hardware{Board: inventory.Board{Serial: "B77"}}}
}

func TestLightEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, t.TempDir(), &lamp{Fake: new(powertest.Fake)})
		defer h.stop()
		got, err := h.Start(t.Context(), Request{Node: node("srv-01", inventory.Inspected), By: "technician:ana"})
		if err != nil || !got.Used() || got.Ways[0].Look != "the chassis LED of A3-S2 is lit or blinks" {
			t.Fatalf("%+v %v", got, err)
		}
		time.Sleep(usual - time.Second)
		if h.Now("srv-01") == nil || strings.Contains(h.lamp.said(), "false") {
			t.Error("it ended early")
		}
		if n := len(h.lamp.calls); n < 4 || n > 6 {
			t.Errorf("lit %d times in ten minutes: a BMC whose light goes out by itself needs every few", n)
		}
		time.Sleep(5 * time.Second)
		if h.Now("srv-01") != nil || !strings.HasSuffix(h.lamp.said(), "false]") {
			t.Errorf("it does not end: %s", h.lamp.said())
		}
		if files, _ := filepath.Glob(h.dir + "/*"); len(files) != 0 {
			t.Errorf("files are left: %v", files)
		}
		want := []string{"srv-01 technician:ana: is being looked for", "srv-01 system: shows itself: the chassis LED of A3-S2 is lit or blinks", "srv-01 system: is no longer looked for"}
		if !slices.Equal(h.story, want) {
			t.Errorf("story %q", h.story)
		}
	})
}

// TestServerDies: the next one puts the light out, whenever the last one died.
func TestServerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, l := t.TempDir(), &lamp{Fake: new(powertest.Fake)}
		h := newHall(t, dir, l)
		if _, err := h.Start(t.Context(), Request{Node: node("srv-01", inventory.Inspected), For: time.Minute, By: "technician:ana"}); err != nil {
			t.Fatal(err)
		}
		h.stop()
		if err := os.WriteFile(filepath.Join(dir, "torn.json"), []byte(`{"id":`), 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if strings.Contains(l.said(), "false") {
			t.Fatal("who put it out?")
		}
		h = newHall(t, dir, l)
		defer h.stop()
		time.Sleep(2 * time.Second)
		if !strings.HasSuffix(l.said(), "false]") || h.Now("srv-01") != nil {
			t.Errorf("the light is still lit: %s", l.said())
		}
		if files, _ := filepath.Glob(dir + "/*"); len(files) != 0 {
			t.Errorf("files are left: %v", files)
		}
	})
}

func TestALightThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, t.TempDir(), &lamp{Fake: new(powertest.Fake)})
		defer h.stop()
		if _, err := h.Start(t.Context(), Request{Node: node("srv-01", inventory.Inspected), For: time.Minute, By: "technician:ana"}); err != nil {
			t.Fatal(err)
		}
		h.lamp.mu.Lock()
		h.lamp.fail = errors.New("500")
		h.lamp.mu.Unlock()
		time.Sleep(time.Hour)
		h.mu.Lock()
		defer h.mu.Unlock()
		if last := h.story[len(h.story)-1]; !strings.Contains(last, "its light may be lit") {
			t.Errorf("nobody is told: %q", h.story)
		}
	})
}

func TestAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, t.TempDir(), &lamp{Fake: new(powertest.Fake)})
		defer h.stop()
		var asked *Order
		go func() { // an agent that asks for orders
			for asked == nil {
				asked = h.Order("srv-02", "")
				time.Sleep(100 * time.Millisecond)
			}
			h.Shown("srv-01", asked.ID, []Way{{Way: Disk, Look: "somebody else's"}}) // not its own
			h.Shown("srv-02", asked.ID, []Way{{Way: Screen, Look: "the screen of PLACE"}, {Way: Disk, Look: "the drive light of PLACE blinks"}})
		}()
		got, err := h.Start(t.Context(), Request{Node: node("srv-02", inventory.Inspected), By: "technician:ana", Agent: true})
		if err != nil || !got.Used() {
			t.Fatalf("%+v %v", got, err)
		}
		var ways []string
		for _, w := range got.Ways {
			ways = append(ways, w.Way+" "+w.Look+w.Error)
		}
		want := []string{"disk-light the drive light of A3-S2 blinks", "screen the screen of A3-S2", "light fake controller (simulated) has no light"}
		if !slices.Equal(ways, want) {
			t.Errorf("ways %q", ways)
		}
		if asked.Quiet || asked.For < 9*time.Minute {
			t.Errorf("order %+v", asked)
		}
		if o := h.Order("srv-02", asked.ID); o != nil {
			t.Errorf("it is asked twice: %+v", o)
		}
		h.Stop("srv-02", "technician:ana")
		if o := h.Order("srv-02", asked.ID); o == nil || o.For != 0 {
			t.Errorf("it is not told to stop: %+v", o)
		} else if h.Order("srv-02", o.ID) != nil {
			t.Error("it is told to stop for ever")
		}
		time.Sleep(2 * time.Second)

		// A machine that works: its screen alone.
		go func() {
			for o := h.Order("srv-02", ""); ; o = h.Order("srv-02", "") {
				if o != nil {
					asked = o
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		if _, err := h.Start(t.Context(), Request{Node: node("srv-02", inventory.InService), By: "technician:ana", Agent: true}); err != nil || !asked.Quiet {
			t.Errorf("%v, order %+v", err, asked)
		}
	})
}

func TestNothingCanBeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, t.TempDir(), &lamp{Fake: new(powertest.Fake)})
		defer h.stop()
		n := node("rig-03", inventory.NeedsWork)
		got, err := h.Start(t.Context(), Request{Node: n, By: "technician:ana"})
		if err != nil || got.Used() || got.Lit {
			t.Errorf("%+v %v", got, err)
		}
		if s := Otherwise(n); s != "find it by its place A3-S2, the serial number of its board, B77" {
			t.Error(s)
		}
		if _, err := h.Start(t.Context(), Request{Node: n, For: 5 * time.Hour}); err == nil {
			t.Error("for five hours")
		}
	})
}
