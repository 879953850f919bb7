package pdu

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gosnmp/gosnmp"

	"smelt/internal/vbmc"
	"smelt/power"
)

// What a PDU may do instead of what it is told. Each lie ends in the right
// result or in an error that says what was seen: never a false ok, and no
// command for another machine's outlet.
func TestLies(t *testing.T) {
	const ours, theirs = 2, 3
	patient := brisk
	patient.Reach = 5 * time.Second
	type scene struct {
		pdu *vbmc.PDU
		u   *Unit
		c   *Controller
	}
	state := enterprises + ".318.1.1.26.9.2.3.1.5."
	// reply changes what is answered for our outlet's state.
	reply := func(change func(*gosnmp.SnmpPDU)) func(scene) {
		return func(s scene) {
			s.pdu.Mangle(func(_, p *gosnmp.SnmpPacket) {
				for i := range p.Variables {
					if strings.TrimPrefix(p.Variables[i].Name, ".") == state+"2" {
						change(&p.Variables[i])
					}
				}
			})
		}
	}
	for name, l := range map[string]struct {
		lie    func(scene)
		reach  time.Duration
		want   error // nil: it worked; errAny: some error
		says   string
		notes  string
		sets   int // commands that reached the PDU; -1: any number
		theirs bool
	}{
		"none":                      {lie: func(scene) {}, sets: 1, notes: "outlet 2: told to switch on, was off"},
		"ignores":                   {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletIgnores) }, want: power.ErrNotReached, sets: 1},
		"inverts":                   {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletInverts) }, want: power.ErrNotReached, sets: 1},
		"hesitant":                  {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletHesitant) }, sets: 1},
		"delays":                    {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletDelays) }, sets: 1},
		"too slow":                  {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletHesitant) }, want: power.ErrNotReached, sets: 1},
		"refuses":                   {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletRefuses) }, want: power.ErrNotReached, says: "the PDU answers GenErr", sets: 1},
		"denies and does":           {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletDeniesAndDoes) }, notes: "the PDU answers GenErr", sets: 1},
		"switches the next outlet":  {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletNeighbour) }, want: power.ErrMismatch, says: `outlet 3 ("rig-02"): off to on changed instead`, sets: 1, theirs: true},
		"switches both":             {lie: func(s scene) { s.pdu.Fault(ours, vbmc.OutletBoth) }, notes: `outlet 3 ("rig-02"): off to on changed instead or as well`, sets: 1, theirs: true},
		"loses packets":             {lie: func(s scene) { s.pdu.Lose(1) }, sets: 1},
		"a state of no meaning":     {lie: reply(func(v *gosnmp.SnmpPDU) { v.Value = 99 }), want: power.ErrNotReached, says: "nothing was done because the state is not known"},
		"a state in words":          {lie: reply(func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.OctetString, []byte("2") }), want: power.ErrNotReached, says: "not with a number"},
		"no state":                  {lie: reply(func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.NoSuchInstance, nil }), want: power.ErrMismatch, says: "there is no outlet 2: this apc-rpdu2 has 2, from 1 to 3"},
		"a state of another outlet": {lie: reply(func(v *gosnmp.SnmpPDU) { v.Name = "." + state + "3" }), want: power.ErrNotReached, says: "and answers with"},
		"says on without being":     {lie: reply(func(v *gosnmp.SnmpPDU) { v.Value = 2 }), notes: "it was on already"}, // a false sensor: no command, and the boot is what proves it
		"says done of nothing": {lie: func(s scene) {
			s.pdu.Mangle(func(req, p *gosnmp.SnmpPacket) {
				if req.PDUType == gosnmp.SetRequest { // v2c agents do that for a missing instance
					p.Error, p.Variables[0].Type, p.Variables[0].Value = gosnmp.NoError, gosnmp.NoSuchInstance, nil
				}
			})
			s.pdu.Fault(ours, vbmc.OutletIgnores)
		}, want: power.ErrNotReached, says: "the PDU does not have it", sets: 1},
		"a delayed command waits": {lie: func(s scene) { s.pdu.Later(ours, true, time.Minute) }, want: power.ErrNotReached, says: "nothing was done because the state is not known"},
		"another node's name":     {lie: func(s scene) { s.pdu.Rename(ours, "rig-02 left") }, want: power.ErrMismatch, says: "that is node rig-02, not rig-01"},
		"another thing's name":    {lie: func(s scene) { s.pdu.Rename(ours, "core switch") }, want: power.ErrMismatch, says: `the PDU calls it "core switch", not rig-01`},
		"no name":                 {lie: func(s scene) { s.pdu.Rename(ours, "Outlet 2") }, notes: `calls it "Outlet 2", so nothing confirms that it feeds rig-01`, sets: 1},
		"tables without end": {lie: func(s scene) {
			n := 100
			s.pdu.Mangle(func(req, p *gosnmp.SnmpPacket) {
				if req.PDUType == gosnmp.GetBulkRequest {
					for i := range p.Variables {
						n++
						p.Variables[i] = gosnmp.SnmpPDU{Name: "." + state + number(n), Type: gosnmp.Integer, Value: 1}
					}
				}
			})
		}, reach: 2 * time.Second, want: power.ErrNotReached, says: "states of all outlets: "},
		"tables in a circle": {lie: func(s scene) {
			s.pdu.Mangle(func(req, p *gosnmp.SnmpPacket) {
				if req.PDUType == gosnmp.GetBulkRequest {
					for i := range p.Variables {
						p.Variables[i].Name = "." + state + "1"
					}
				}
			})
		}, sets: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m, other vbmc.Switch
			p := start(t, "apc-rpdu2", vbmc.Outlet{}, vbmc.Outlet{Name: "rig-01", Power: &m}, vbmc.Outlet{Name: "rig-02", Power: &other})
			u := unit(t, Config{Address: p.Addr().String(), Nodes: []string{"rig-01", "rig-02"}})
			c := controller(t, Outlet{Unit: u, Number: ours, Node: "rig-01"})
			l.lie(scene{p, u, c})
			limits := patient
			if l.want != nil {
				limits = brisk // for what never happens
			}
			if l.reach > 0 {
				limits.Reach = l.reach
			}
			e, err := power.Verify(c, limits).On(t.Context())
			if !errors.Is(err, l.want) || l.want != nil && err == nil {
				t.Errorf("error %v, want %v; evidence %+v", err, l.want, e)
			}
			if err != nil && !strings.Contains(err.Error(), l.says) {
				t.Errorf("error %v, want %q", err, l.says)
			}
			if notes := strings.Join(e.Notes, "\n"); !strings.Contains(notes, l.notes) {
				t.Errorf("notes %q, want %q", notes, l.notes)
			}
			if name != "says on without being" && m.On() != (err == nil) {
				t.Errorf("machine on %v, error %v", m.On(), err)
			}
			if p.Sets() != l.sets {
				t.Errorf("%d commands, want %d", p.Sets(), l.sets)
			}
			if other.On() != l.theirs {
				t.Errorf("the other machine is on: %v", other.On())
			}
		})
	}
}

// A PDU that switched an outlet nobody told it to is not written to any more,
// for none of its machines, until a person says so.
func TestDistrust(t *testing.T) {
	var m, other vbmc.Switch
	p := start(t, "vertiv", vbmc.Outlet{Name: "rig-01", Power: &m}, vbmc.Outlet{Name: "rig-02", Power: &other}, vbmc.Outlet{Name: "rig-03"})
	u := unit(t, Config{Address: p.Addr().String()})
	v := power.Verify(controller(t, Outlet{Unit: u, Number: 1, Node: "rig-01"}), brisk)
	third := controller(t, Outlet{Unit: u, Number: 3, Node: "rig-03"})
	p.Fault(1, vbmc.OutletNeighbour)
	if _, err := v.On(t.Context()); !errors.Is(err, power.ErrMismatch) {
		t.Fatalf("error %v", err)
	}
	p.Fault(1, vbmc.OutletObeys)
	p.Restart() // of its management card: no person looked
	sets := p.Sets()
	for _, s := range []power.State{power.On, power.Off} {
		if err := third.Set(t.Context(), s); err == nil || !strings.Contains(err.Error(), `it was told to switch outlet 1 on, and outlet 2 ("rig-02"): off to on changed`) {
			t.Errorf("set %s: %v", s, err)
		}
	}
	if s, err := third.State(t.Context()); err != nil || s != power.Off {
		t.Errorf("reading is not forbidden: %s, %v", s, err)
	}
	if p.Sets() != sets {
		t.Error("it was written to")
	}
	v.Reset()
	if _, err := v.On(t.Context()); err != nil || !m.On() {
		t.Errorf("after a reset: %v, machine on %v", err, m.On())
	}
	if err := third.Set(t.Context(), power.On); err != nil {
		t.Errorf("after a reset: %v", err)
	}
}

// A name is looked at once, and again when the PDU restarted or was replaced:
// somebody may have moved the cords.
func TestNamesAfterRestart(t *testing.T) {
	var m vbmc.Switch
	p := start(t, "raritan", vbmc.Outlet{Name: "rig-01", Power: &m}, vbmc.Outlet{})
	u := unit(t, Config{Address: p.Addr().String()})
	c := controller(t, Outlet{Unit: u, Number: 1, Node: "rig-01"})
	if err := c.Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	p.Rename(1, "rig-02")
	if err := c.Set(t.Context(), power.Off); err != nil || m.On() {
		t.Errorf("the name was looked at already: %v", err)
	}
	p.Restart()
	if err := c.Set(t.Context(), power.On); err == nil || m.On() || !strings.Contains(err.Error(), `calls it "rig-02"`) {
		t.Errorf("after a restart: %v, machine on %v", err, m.On())
	}
	p.Rename(1, "rig-01")
	if err := c.Set(t.Context(), power.On); err != nil || !m.On() {
		t.Errorf("with its name back: %v", err)
	}
	// Another device of the same family, which has run for longer.
	u.turn <- struct{}{}
	u.up -= time.Hour
	<-u.turn
	p.Rename(1, "rig-07")
	if err := c.Set(t.Context(), power.Off); err == nil || !m.On() {
		t.Errorf("after it was replaced: %v, machine on %v", err, m.On())
	}
}

// A restart in the middle of a command: what the outlets do then says nothing of
// the command.
func TestRestartInTheMiddle(t *testing.T) {
	var m, other vbmc.Switch
	p := start(t, "cyberpower", vbmc.Outlet{Name: "rig-01", Power: &m}, vbmc.Outlet{Name: "rig-02", Power: &other})
	c := controller(t, Outlet{Unit: unit(t, Config{Address: p.Addr().String()}), Number: 1, Node: "rig-01"})
	p.Fault(1, vbmc.OutletDelays)
	if err := c.Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	p.Restart() // and the command is lost
	if err := p.Turn(2, true); err != nil {
		t.Fatal(err)
	}
	if s, err := c.State(t.Context()); err != nil || s != power.Off || m.On() {
		t.Errorf("state %s, error %v", s, err)
	}
	p.Fault(1, vbmc.OutletObeys)
	if _, err := power.Verify(c, brisk).On(t.Context()); err != nil || !m.On() {
		t.Errorf("again: %v", err)
	}
}

// A delayed command is taken back before a new one, where the family can; where
// it cannot, nothing is written: it would run in the middle of our work.
func TestDelayedCommand(t *testing.T) {
	for _, model := range Models() {
		i := slices.IndexFunc(models, named(model))
		if models[i].Pending == nil && len(models[i].State.Pending) == 0 {
			continue // it does not say
		}
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			var m vbmc.Switch
			p := start(t, model, vbmc.Outlet{Power: &m})
			c := controller(t, Outlet{Unit: unit(t, Config{Address: p.Addr().String()}), Number: 1})
			p.Later(1, true, time.Minute)
			if s, err := c.State(t.Context()); err != nil || s != power.Unknown {
				t.Errorf("state %s, error %v; want unknown", s, err)
			}
			err := c.Set(t.Context(), power.On)
			if cancel := models[i].Cancel; len(cancel) > 0 {
				if notes := strings.Join(c.Notes(), " "); err != nil || !m.On() || p.Sets() != len(cancel)+1 || !strings.Contains(notes, "after a delayed command was taken back") {
					t.Errorf("error %v, machine on %v, %d commands, notes %q", err, m.On(), p.Sets(), notes)
				}
				if s, err := c.State(t.Context()); err != nil || s != power.On {
					t.Errorf("state %s, error %v", s, err)
				}
				return
			}
			if err == nil || m.On() || p.Sets() != 0 || !strings.Contains(err.Error(), "which a "+model+" cannot take back") {
				t.Errorf("error %v, machine on %v, %d commands", err, m.On(), p.Sets())
			}
		})
	}
}

func named(name string) func(model) bool { return func(m model) bool { return m.Name == name } }

func number(n int) string { return strconv.Itoa(n) }
