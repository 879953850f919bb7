package vbmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/gosnmp/gosnmp"
	"github.com/slayercat/GoSNMPServer"
)

// PDUConfig is a switched PDU that speaks SNMP v1 and v2c.
type PDUConfig struct {
	Conn      net.PacketConn // where the agent listens; closed by Close
	Model     string         // apc-rpdu (AP79xx) or apc-rpdu2 (AP8xxx)
	Community string         // for reading and writing
	Outlets   []Outlet       // the first is outlet 1
}

// An Outlet feeds one machine. A machine on several outlets runs while one of
// them is on. A nil Power is an empty socket.
type Outlet struct {
	Name  string
	Power Power
	Watts float64 // what the machine draws while it is on
}

// OutletFault is what an outlet does instead of what it is told.
type OutletFault int

// The faults. All of them answer the write with success.
const (
	OutletObeys    OutletFault = iota
	OutletIgnores              // does nothing
	OutletInverts              // off is on, on is off
	OutletHesitant             // acts after a second
)

// PDU is an SNMP agent in front of machines. On is the outlet, not the
// machine: to switch an outlet on that is on already does nothing, also when
// the machine behind it has shut itself down.
type PDU struct {
	conn    net.PacketConn
	agent   *GoSNMPServer.MasterAgent
	outlets []*outlet
	wait    sync.WaitGroup

	mu   sync.Mutex
	drop bool
	sets int
}

type outlet struct {
	Outlet
	on    bool
	fault OutletFault
}

// A pduModel is where an APC PDU keeps its outlets, from the PowerNet-MIB.
type pduModel struct {
	object  string       // sysObjectID
	control string       // column of commands: 1 on, 2 off, 3 reboot
	status  string       // column of states
	state   map[bool]int // words of the status column
	name    string       // column of outlet names
	watts   string       // column of outlet watts, "" without metering
}

var pduModels = map[string]pduModel{
	"apc-rpdu": {
		object:  "1.3.6.1.4.1.318.1.3.4.5",
		control: "1.3.6.1.4.1.318.1.1.12.3.3.1.1.4",
		status:  "1.3.6.1.4.1.318.1.1.12.3.5.1.1.4",
		state:   map[bool]int{true: 1, false: 2},
		name:    "1.3.6.1.4.1.318.1.1.12.3.5.1.1.2",
	},
	"apc-rpdu2": {
		object:  "1.3.6.1.4.1.318.1.3.4.6",
		control: "1.3.6.1.4.1.318.1.1.26.9.2.4.1.5",
		status:  "1.3.6.1.4.1.318.1.1.26.9.2.3.1.5",
		state:   map[bool]int{true: 2, false: 1}, // the other way round than its commands
		name:    "1.3.6.1.4.1.318.1.1.26.9.2.3.1.3",
		watts:   "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7",
	},
}

// StartPDU starts the agent. An outlet starts on when its machine runs.
func StartPDU(c PDUConfig) (*PDU, error) {
	model, ok := pduModels[c.Model]
	if !ok {
		return nil, fmt.Errorf("virtual PDU: model %q: want apc-rpdu or apc-rpdu2", c.Model)
	}
	p := &PDU{conn: c.Conn}
	for _, o := range c.Outlets {
		out := &outlet{Outlet: o}
		if o.Power != nil {
			on, err := o.Power.State(context.Background())
			if err != nil {
				return nil, fmt.Errorf("virtual PDU: outlet %s: %w", o.Name, err)
			}
			out.on = on
		}
		p.outlets = append(p.outlets, out)
	}
	p.agent = &GoSNMPServer.MasterAgent{
		SecurityConfig: GoSNMPServer.SecurityConfig{
			AuthoritativeEngineID: GoSNMPServer.SNMPEngineID{EngineIDData: "smelt"},
		},
		SubAgents: []*GoSNMPServer.SubAgent{{
			CommunityIDs:        []string{c.Community},
			UserErrorMarkPacket: true,
			OIDs:                p.oids(model, c.Model),
		}},
	}
	if err := p.agent.ReadyForWork(); err != nil {
		return nil, fmt.Errorf("virtual PDU: %w", err)
	}
	p.wait.Add(1)
	go p.serve()
	return p, nil
}

func (p *PDU) oids(m pduModel, name string) []*GoSNMPServer.PDUValueControlItem {
	get := func(oid string, typ gosnmp.Asn1BER, f func() any) *GoSNMPServer.PDUValueControlItem {
		return &GoSNMPServer.PDUValueControlItem{OID: oid, Type: typ, OnGet: func() (any, error) { return f(), nil }}
	}
	items := []*GoSNMPServer.PDUValueControlItem{
		get("1.3.6.1.2.1.1.1.0", gosnmp.OctetString, func() any { return "Smelt virtual PDU (" + name + ", simulated)" }),
		get("1.3.6.1.2.1.1.2.0", gosnmp.ObjectIdentifier, func() any { return m.object }),
		get("1.3.6.1.2.1.1.5.0", gosnmp.OctetString, func() any { return "vpdu" }),
	}
	for i, o := range p.outlets {
		n := "." + strconv.Itoa(i+1)
		state := func() any {
			p.mu.Lock()
			defer p.mu.Unlock()
			return m.state[o.on]
		}
		items = append(items,
			get(m.name+n, gosnmp.OctetString, func() any { return o.Name }),
			get(m.status+n, gosnmp.Integer, state),
			&GoSNMPServer.PDUValueControlItem{
				OID: m.control + n, Type: gosnmp.Integer,
				// What the PDU answers for the command column is its state in
				// the words of commands.
				OnGet: func() (any, error) {
					p.mu.Lock()
					defer p.mu.Unlock()
					if o.on {
						return 1, nil
					}
					return 2, nil
				},
				OnSet: func(v any) error { return p.set(o, v) },
			})
		if m.watts != "" {
			items = append(items, get(m.watts+n, gosnmp.Integer, func() any { return p.watts(o) }))
		}
	}
	return items
}

func (p *PDU) watts(o *outlet) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !o.on || o.Power == nil {
		return 0
	}
	if on, err := o.Power.State(context.Background()); err != nil || !on {
		return 0
	}
	return int(o.Watts)
}

func (p *PDU) set(o *outlet, v any) error {
	n, ok := v.(int)
	if !ok {
		return fmt.Errorf("%T is no integer", v)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets++
	var on bool
	switch n {
	case 1:
		on = true
	case 2:
	case 3: // reboot: off and on
		if err := p.turn(o, false); err != nil {
			return err
		}
		return p.turn(o, true)
	default:
		return fmt.Errorf("command %d is unknown", n)
	}
	switch o.fault {
	case OutletIgnores:
		return nil
	case OutletInverts:
		on = !on
	case OutletHesitant:
		time.AfterFunc(time.Second, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			_ = p.turn(o, on) // nobody is there to tell
		})
		return nil
	}
	return p.turn(o, on)
}

// turn switches the outlet and, when it is the first or the last one that
// feeds its machine, the machine. p.mu is held.
func (p *PDU) turn(o *outlet, on bool) error {
	if o.on == on {
		return nil
	}
	o.on = on
	if o.Power == nil {
		return nil
	}
	for _, other := range p.outlets {
		if other != o && other.Power == o.Power && other.on {
			return nil // another cord feeds it
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if on {
		return o.Power.PowerOn(ctx) // as with "restore on AC loss: power on"
	}
	return o.Power.PowerOff(ctx)
}

func (p *PDU) serve() {
	defer p.wait.Done()
	buf := make([]byte, 4096)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a client that left
		}
		if reply := p.answer(buf[:n]); reply != nil {
			_, _ = p.conn.WriteTo(reply, from)
		}
	}
}

// answer is the reply to one packet, nil for none. A wrong community gets
// none, as on real devices. The library panics on some malformed packets.
func (p *PDU) answer(b []byte) (reply []byte) {
	defer func() {
		if recover() != nil {
			reply = nil
		}
	}()
	p.mu.Lock()
	drop := p.drop
	p.mu.Unlock()
	if drop {
		return nil
	}
	var g gosnmp.GoSNMP
	if req, err := g.SnmpDecodePacket(b); err != nil || req.Version == gosnmp.Version3 ||
		req.Community != p.agent.SubAgents[0].CommunityIDs[0] {
		return nil
	}
	reply, err := p.agent.ResponseForBuffer(b)
	if err != nil {
		return nil
	}
	return reply
}

// Addr is where the agent listens.
func (p *PDU) Addr() net.Addr { return p.conn.LocalAddr() }

func (p *PDU) String() string { return "virtual PDU " + p.Addr().String() }

// On tells whether an outlet (1 is the first) is on.
func (p *PDU) On(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outlets[n-1].on
}

// Turn switches an outlet (1 is the first) as a button on the PDU would.
func (p *PDU) Turn(n int, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(p.outlets[n-1], on)
}

// Fault makes an outlet (1 is the first) misbehave from now on.
func (p *PDU) Fault(n int, f OutletFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outlets[n-1].fault = f
}

// Drop makes the PDU silent, as if its cable were out.
func (p *PDU) Drop(drop bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop = drop
}

// Sets is how many commands were written so far.
func (p *PDU) Sets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sets
}

// Close stops the agent. The outlets stay as they are.
func (p *PDU) Close() error {
	err := p.conn.Close()
	p.wait.Wait()
	return err
}
