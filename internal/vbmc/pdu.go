package vbmc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gosnmp/gosnmp"
	"github.com/slayercat/GoSNMPServer"
)

// PDUConfig is a switched PDU that speaks SNMP v1, v2c and, when it has a user,
// v3 with SHA-256 and AES.
type PDUConfig struct {
	Conn      net.PacketConn // where the agent listens; closed by Close
	Model     string         // one of PDUModels
	Community string         // for reading and writing
	ReadOnly  string         // a community that may only read; none when empty
	User      string         // v3
	Auth      string         // its authentication passphrase
	Priv      string         // its privacy passphrase
	Outlets   []Outlet       // the first is outlet 1
}

// PDUModels names the families that can be simulated.
func PDUModels() []string { return slices.Sorted(maps.Keys(pduModels)) }

// An Outlet feeds one machine. A machine on several outlets runs while one of
// them is on. A nil Power is an empty socket.
type Outlet struct {
	Name  string
	Power Power
	Watts float64        // what the machine draws here while it is on
	Draw  func() float64 // instead of Watts, when it changes
}

// OutletFault is what an outlet does instead of what it is told.
type OutletFault int

// The faults. Where nothing else is said they answer the write with success.
const (
	OutletObeys         OutletFault = iota
	OutletIgnores                   // does nothing
	OutletInverts                   // off is on, on is off
	OutletHesitant                  // acts after a second, and says nothing of it
	OutletDelays                    // acts after a second, and says that a command waits
	OutletNeighbour                 // switches the outlet after it, or before the last
	OutletBoth                      // switches that one as well
	OutletRefuses                   // says genErr, and does nothing
	OutletDeniesAndDoes             // says genErr, and acts
)

// lag is how late a hesitant outlet acts.
const lag = time.Second

// PDU is an SNMP agent in front of machines. On is the outlet, not the
// machine: to switch an outlet on that is on already does nothing, also when
// the machine behind it has shut itself down.
type PDU struct {
	conn    net.PacketConn
	config  PDUConfig
	model   pduModel
	agent   *GoSNMPServer.MasterAgent
	outlets []*outlet
	wait    sync.WaitGroup

	mu      sync.Mutex
	drop    int // packets to swallow; below zero all
	mangle  func(req, reply *gosnmp.SnmpPacket)
	since   time.Time // when it started
	sets    int
	packets int
	blinked []int
	closed  bool
}

type outlet struct {
	Outlet
	on    bool
	fault OutletFault
	later *later
}

// A later is a delayed command.
type later struct {
	on    bool
	shown bool
	timer *time.Timer
}

// StartPDU starts the agent. An outlet starts on when its machine runs.
func StartPDU(c PDUConfig) (*PDU, error) {
	model, ok := pduModels[c.Model]
	if !ok {
		return nil, fmt.Errorf("virtual PDU: model %q: want one of %q", c.Model, PDUModels())
	}
	if model.switches == nil {
		model.switches = model.index
	}
	p := &PDU{conn: c.Conn, config: c, model: model, since: time.Now().Add(-time.Hour)}
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
	communities := []string{c.Community}
	if c.User != "" {
		communities = []string{""} // the context of SNMPv3
		if c.Community != "" {
			communities = append(communities, c.Community)
		}
	}
	if c.ReadOnly != "" {
		communities = append(communities, c.ReadOnly)
	}
	security := GoSNMPServer.SecurityConfig{
		AuthoritativeEngineID:    GoSNMPServer.SNMPEngineID{EngineIDData: "smelt"},
		AuthoritativeEngineBoots: 1,
	}
	if c.User != "" {
		security.Users = []gosnmp.UsmSecurityParameters{{
			UserName: c.User, AuthenticationProtocol: gosnmp.SHA256, AuthenticationPassphrase: c.Auth,
			PrivacyProtocol: gosnmp.AES, PrivacyPassphrase: c.Priv,
		}}
	}
	p.agent = &GoSNMPServer.MasterAgent{
		SecurityConfig: security,
		SubAgents:      []*GoSNMPServer.SubAgent{{CommunityIDs: communities, UserErrorMarkPacket: true, OIDs: p.oids()}},
	}
	if err := p.agent.ReadyForWork(); err != nil {
		return nil, fmt.Errorf("virtual PDU: %w", err)
	}
	p.wait.Add(1)
	go p.serve()
	return p, nil
}

const enterprises = "1.3.6.1.4.1."

func (p *PDU) oids() []*GoSNMPServer.PDUValueControlItem {
	var items []*GoSNMPServer.PDUValueControlItem
	get := func(oid string, typ gosnmp.Asn1BER, f func() any) *GoSNMPServer.PDUValueControlItem {
		i := &GoSNMPServer.PDUValueControlItem{OID: oid, Type: typ, OnGet: func() (any, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return f(), nil
		}}
		items = append(items, i)
		return i
	}
	// A gauge counts steps, or is text when it has none.
	gauge := func(oid string, step float64, f func() float64) {
		if step == 0 {
			get(oid, gosnmp.OctetString, func() any { return strconv.FormatFloat(f(), 'f', 1, 64) })
			return
		}
		get(oid, gosnmp.Integer, func() any { return int(math.Round(f() / step)) })
	}
	decimals := func(oid string, step float64) {
		get(oid, gosnmp.Gauge32, func() any { return uint32(math.Round(-math.Log10(step))) })
	}
	m := p.model
	get("1.3.6.1.2.1.1.1.0", gosnmp.OctetString, func() any { return "Smelt virtual PDU (" + p.config.Model + ", simulated)" })
	get("1.3.6.1.2.1.1.2.0", gosnmp.ObjectIdentifier, func() any { return enterprises + m.object })
	get("1.3.6.1.2.1.1.3.0", gosnmp.TimeTicks, func() any { return uint32(time.Since(p.since) / (10 * time.Millisecond)) })
	get("1.3.6.1.2.1.1.5.0", gosnmp.OctetString, func() any { return "vpdu" })
	for n, o := range p.outlets {
		cell := func(column string) string { return enterprises + column + "." + m.index(n+1) }
		button := func(column string) string { return enterprises + column + "." + m.switches(n+1) }
		shows := get(button(m.shows), gosnmp.Integer, func() any { return p.shows(o) })
		columns := map[string]*GoSNMPServer.PDUValueControlItem{m.shows: shows}
		for _, c := range m.commands {
			i := columns[c.column]
			if i == nil {
				// What a column of commands shows is the last one, or nothing much.
				i = get(button(c.column), gosnmp.Integer, func() any { return 0 })
				columns[c.column] = i
			}
			i.OnSet = func(v any) error { return p.set(n, c.column, v) }
			i.OnCheckPermission = func(_ gosnmp.SnmpVersion, t gosnmp.PDUType, community string) GoSNMPServer.PermissionAllowance {
				if t == gosnmp.SetRequest && p.config.ReadOnly != "" && community == p.config.ReadOnly {
					return GoSNMPServer.PermissionAllowanceDenied
				}
				return GoSNMPServer.PermissionAllowanceAllowed
			}
		}
		if m.waits != "" {
			get(cell(m.waits), gosnmp.Integer, func() any {
				if o.later != nil && o.later.shown {
					return 1
				}
				return 2
			})
		}
		if m.name != "" {
			get(cell(m.name), gosnmp.OctetString, func() any { return o.Name })
		}
		if m.watts.column != "" {
			gauge(cell(m.watts.column)+m.watts.suffix, m.watts.step, func() float64 { return p.watts(o) })
		}
		if m.decimals != "" {
			decimals(cell(m.decimals)+m.watts.suffix, m.watts.step)
		}
	}
	for _, t := range m.meters {
		gauge(enterprises+t.oid, t.step, func() float64 { return p.meter(t) })
		if t.more != "" {
			decimals(enterprises+t.more, t.step)
		}
	}
	return items
}

// volts is what every virtual PDU is fed with.
const volts = 230

// meter is what a meter above outlets shows. p.mu is held.
func (p *PDU) meter(t pduMeter) float64 {
	sum := 0.0
	for i, o := range p.outlets {
		first := i < (len(p.outlets)+1)/2
		if t.part == 0 || first == (t.part == 1) {
			sum += p.watts(o)
		}
	}
	switch t.unit {
	case 'A':
		return sum / volts
	case 'V':
		return volts
	}
	return sum
}

// shows is the word of an outlet's state. p.mu is held.
func (p *PDU) shows(o *outlet) int {
	if o.later != nil && o.later.shown {
		will := willOff
		if o.later.on {
			will = willOn
		}
		if w, ok := p.model.words[will]; ok {
			return w
		}
	}
	return p.model.words[o.on]
}

// watts is what an outlet gives. p.mu is held.
func (p *PDU) watts(o *outlet) float64 {
	if !o.on || o.Power == nil {
		return 0
	}
	if on, err := o.Power.State(context.Background()); err != nil || !on {
		return 0
	}
	if o.Draw != nil {
		return o.Draw()
	}
	return o.Watts
}

func (p *PDU) set(n int, column string, v any) error {
	word, ok := v.(int)
	if !ok {
		return fmt.Errorf("%T is no integer", v)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets++
	for _, c := range p.model.commands {
		if c.column == column && c.word == word {
			return p.do(n, c.verb)
		}
	}
	return fmt.Errorf("command %d is unknown", word)
}

// do carries out a command. p.mu is held.
func (p *PDU) do(n int, v verb) error {
	o := p.outlets[n]
	on := v == doOn || v == doOnLater
	switch v {
	case doReboot: // off and on
		if err := p.turn(o, false); err != nil {
			return err
		}
		return p.turn(o, true)
	case doOnLater, doOffLater:
		p.delay(o, on, 3*lag, true)
		return nil
	case doCancel:
		p.cancel(o)
		return nil
	case doBlink:
		p.blinked = append(p.blinked, n+1)
		return nil
	}
	beside := p.outlets[max(n-1, 0)]
	if n+1 < len(p.outlets) {
		beside = p.outlets[n+1]
	}
	switch o.fault {
	case OutletIgnores:
		return nil
	case OutletInverts:
		on = !on
	case OutletHesitant, OutletDelays:
		p.delay(o, on, lag, o.fault == OutletDelays)
		return nil
	case OutletNeighbour:
		return p.turn(beside, on)
	case OutletBoth:
		if err := p.turn(beside, on); err != nil {
			return err
		}
	case OutletRefuses:
		return errors.New("no")
	case OutletDeniesAndDoes:
		return errors.Join(p.turn(o, on), errors.New("no"))
	}
	return p.turn(o, on)
}

// delay switches an outlet later. p.mu is held.
func (p *PDU) delay(o *outlet, on bool, after time.Duration, shown bool) {
	p.cancel(o)
	l := &later{on: on, shown: shown}
	l.timer = time.AfterFunc(after, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if o.later == l && !p.closed {
			o.later = nil
			_ = p.turn(o, on) // nobody is there to tell
		}
	})
	o.later = l
}

// cancel takes a delayed command back. p.mu is held.
func (p *PDU) cancel(o *outlet) {
	if o.later != nil {
		o.later.timer.Stop()
		o.later = nil
	}
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
// none, as on real devices; so does a wrong key of SNMPv3, which real devices
// report. The library panics on some malformed packets.
func (p *PDU) answer(b []byte) (reply []byte) {
	defer func() {
		if recover() != nil {
			reply = nil
		}
	}()
	p.mu.Lock()
	p.packets++
	drop, mangle := p.drop != 0, p.mangle
	if p.drop > 0 {
		p.drop--
	}
	p.mu.Unlock()
	if drop {
		return nil
	}
	g := gosnmp.GoSNMP{SecurityParameters: &gosnmp.UsmSecurityParameters{}} // the library wants one even of v1
	req, err := g.SnmpDecodePacket(b)
	if req != nil && req.Version == gosnmp.Version3 {
		if p.config.User == "" {
			return nil
		}
		if reply, err = p.agent.ResponseForBuffer(b); err != nil {
			return nil
		}
		return reply
	}
	if err != nil || req.Community == "" || req.Community != p.config.Community && req.Community != p.config.ReadOnly {
		return nil
	}
	res, err := p.agent.ResponseForPkt(req)
	if err != nil || res == nil {
		return nil
	}
	p.dialect(req, res)
	if mangle != nil {
		mangle(req, res)
	}
	if reply, err = res.MarshalMsg(); err != nil {
		return nil
	}
	return reply
}

// dialect makes an answer what the version has it: the library speaks of what
// is not there in the words of SNMPv1.
func (p *PDU) dialect(req, res *gosnmp.SnmpPacket) {
	switch {
	case req.Version == gosnmp.Version1 && res.Error > gosnmp.GenErr:
		res.Error = gosnmp.NoSuchName // RFC 3584, section 4.3
	case req.Version == gosnmp.Version1 || res.Error != gosnmp.NoSuchName:
	case req.PDUType == gosnmp.SetRequest:
		res.Error = gosnmp.NoCreation
	default:
		res.Error, res.ErrorIndex = gosnmp.NoError, 0
	}
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

// Later makes an outlet (1 is the first) switch after a while, as when somebody
// asked for it on the PDU's own page.
func (p *PDU) Later(n int, on bool, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay(p.outlets[n-1], on, after, true)
}

// Rename gives an outlet (1 is the first) another name.
func (p *PDU) Rename(n int, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outlets[n-1].Name = name
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
	p.drop = 0
	if drop {
		p.drop = -1
	}
}

// Lose swallows the next n packets.
func (p *PDU) Lose(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop = n
}

// Restart makes its clock begin again. Outlets stay as they are, as on most
// PDUs; delayed commands are lost.
func (p *PDU) Restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Now()
	for _, o := range p.outlets {
		p.cancel(o)
	}
}

// Mangle changes every answer of SNMP v1 and v2c from now on; nil ends it.
func (p *PDU) Mangle(f func(req, reply *gosnmp.SnmpPacket)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mangle = f
}

// Sets is how many commands were written so far.
func (p *PDU) Sets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sets
}

// Packets is how many packets came so far.
func (p *PDU) Packets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.packets
}

// Blinked are the outlets whose light was told to blink, in order.
func (p *PDU) Blinked() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.blinked)
}

// Close stops the agent. The outlets stay as they are.
func (p *PDU) Close() error {
	err := p.conn.Close()
	p.wait.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, o := range p.outlets {
		p.cancel(o)
	}
	return err
}
