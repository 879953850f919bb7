package vbmc

import (
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// IPMIFaults is what is wrong with an IPMI BMC. The zero value is honest.
type IPMIFaults struct {
	Silent     bool          // answers nothing, as if its cable were out
	Lose       int           // loses so many packets first
	Slow       time.Duration // before each answer
	PreSession bool          // answers what needs no session, and nothing else
	Full       bool          // every session is taken
	NoLogin    bool          // knows no user (locked out)

	// What follows only an MC does; in front of ipmi_sim a Liar does the like.

	Blind      byte   // answers a read of the chassis status with this completion code
	Refuse     byte   // answers chassis control with this code and does nothing
	Fails      byte   // does what chassis control says and answers with this code
	Mute       bool   // does what chassis control says and never answers it
	Says       string // the power state it tells: "on" or "off"; "" for the true one
	ForgetBoot bool   // accepts a boot device and reads back none
	OtherBoot  bool   // reads back another boot device than it was told
	Expires    bool   // does not know how to keep the boot device for more than 60 s
	KeepPolicy bool   // accepts a restore policy and stays with its own
	KeepSecret bool   // accepts a new password and stays with the old one
}

// IPMIStats counts what went through the BMC.
type IPMIStats struct {
	Attempts int // logins begun: RAKP message 1, once however often it is sent
	Logins   int // logins granted: RAKP message 4 with status 0
	Packets  int // packets from clients
}

// gate is where packets go in and out: it counts them, and has the faults that
// need no knowledge of a session.
type gate struct {
	mu     sync.Mutex
	faults IPMIFaults
	stats  IPMIStats
	lost   int
	begun  string // the session that began to log in last
}

// SetFaults chooses the faults from now on.
func (g *gate) SetFaults(f IPMIFaults) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.faults, g.lost = f, 0
}

// Drop makes the BMC silent, as if its cable were out.
func (g *gate) Drop(drop bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.faults.Silent = drop
}

// Stats tells what went through so far.
func (g *gate) Stats() IPMIStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats
}

func (g *gate) fault() IPMIFaults {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.faults
}

// in lets p through, or returns what the BMC answers instead, nil for nothing.
func (g *gate) in(p []byte) (answer []byte, through bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stats.Packets++
	typ, _ := payload(p)
	if id := rakp1Session(p); typ == rakp1 && id != g.begun {
		g.begun = id
		g.stats.Attempts++
	}
	f := g.faults
	switch {
	case f.Silent:
		return nil, false
	case g.lost < f.Lose:
		g.lost++
		return nil, false
	case typ < 0:
		return nil, true
	case f.PreSession:
		return nil, false
	case f.Full && typ == openRequest:
		return refusal(openResponse, p, 0x01), false // insufficient resources to create a session
	case f.NoLogin && typ == rakp1:
		return refusal(rakp2, p, 0x0d), false // unauthorized name
	}
	return nil, true
}

// out counts p on its way to a client, and takes its time.
func (g *gate) out(p []byte) {
	g.mu.Lock()
	if typ, status := payload(p); typ == rakp4 && status == 0 {
		g.stats.Logins++
	}
	slow := g.faults.Slow
	g.mu.Unlock()
	time.Sleep(slow)
}

// The payload types of RMCP+ that log in (IPMI 2.0, table 13-16).
const (
	openRequest  = 0x10
	openResponse = 0x11
	rakp1        = 0x12
	rakp2        = 0x13
	rakp3        = 0x14
	rakp4        = 0x15
)

// plusHead is the length of RMCP's header and RMCP+'s session header without
// an OEM payload (section 13.6).
const plusHead = 4 + 12

// rakp1Session is the managed system's session ID in a RAKP message 1 (section
// 13.20): a client that hears nothing sends the message again.
func rakp1Session(p []byte) string {
	if len(p) < plusHead+8 {
		return ""
	}
	return string(p[plusHead+4 : plusHead+8])
}

// payload is the RMCP+ payload type of a packet and its second byte, the
// status of an answer, or -1 for anything else.
func payload(p []byte) (typ, status int) {
	if len(p) < plusHead+2 || p[0] != 0x06 || p[3] != 0x07 || p[4] != 0x06 {
		return -1, -1
	}
	return int(p[5] & 0x3f), int(p[plusHead+1])
}

// plus is an RMCP+ packet outside a session.
func plus(typ byte, payload []byte) []byte {
	p := make([]byte, plusHead, plusHead+len(payload))
	copy(p, []byte{0x06, 0x00, 0xff, 0x07, 0x06, typ})
	binary.LittleEndian.PutUint16(p[14:], uint16(len(payload)))
	return append(p, payload...)
}

// refusal answers a session setup message with a status (table 13-15).
func refusal(typ byte, request []byte, status byte) []byte {
	b := make([]byte, 8) // tag, status, reserved, the console's session id
	b[0], b[1] = request[plusHead], status
	// An Open Session Request names the console's session; RAKP 1 the BMC's,
	// for which ipmitool does not look in an error.
	if len(request) >= plusHead+8 {
		copy(b[4:], request[plusHead+4:plusHead+8])
	}
	return plus(typ, b)
}

// send writes p to a client; UDP may lose it.
func (g *gate) send(c net.PacketConn, p []byte, to net.Addr) {
	g.out(p)
	_, _ = c.WriteTo(p, to)
}
