package vbmc

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net"
	"slices"
	"sync"
	"time"
)

// MCConfig is a management controller that speaks IPMI 2.0 over LAN.
type MCConfig struct {
	Conn     net.PacketConn // where it listens; closed by Close
	User     string         // "admin" when empty
	Password string         // at most 20 bytes
	Suites   []int          // the cipher suites it takes, of 0, 3 and 17; 17 and 3 when empty
	Sessions int            // how many it keeps; 4 when 0
	Watts    float64        // what DCMI measures while the machine is on; 0: it has no DCMI
	Sensors  []Sensor
}

// Sensor is a sensor of an MC.
type Sensor struct {
	Name  string
	Unit  byte // IPMI 2.0, table 43-15: 1 degrees Celsius, 6 watts, 18 RPM
	Scale int  // what one step of its byte is worth
	Value byte
}

// MC is a management controller of our own, in one goroutine: what ipmi_sim
// does not have (cipher suite 17, DCMI, a restore policy, boot flags that read
// back, a limit of sessions, faults inside a session), and thousands of them in
// a process. ipmitool is its judge.
type MC struct {
	gate
	cfg   MCConfig
	power Power
	done  chan struct{}

	state    sync.Mutex // guards what follows
	sessions map[uint32]*session
	next     uint32
	users    []account
	policy   byte
	boot     [5]byte
	expiry   byte // parameter 3: 08h keeps the boot device
	lit      bool
	orders   []byte // chassis control: 0 off, 1 on, 5 soft off
	sel      [][]byte
}

type account struct {
	name, password string
	enabled        bool
}

// session is an RMCP+ session, also while it is negotiated.
type session struct {
	suite     int
	console   uint32
	open      bool // RAKP is through
	user      account
	role      byte
	rm, rc    []byte // random numbers of console and MC
	sik       []byte
	k1, k2    []byte
	sent      uint32
	last      time.Time
	lastSeq   byte // of the last request, which may come again
	lastReply []byte
}

// suite is a cipher suite (table 22-20).
type suite struct {
	auth, integrity, secrecy byte
	hash                     func() hash.Hash
	proof                    int // bytes of an authentication code
}

var suites = map[int]suite{
	0:  {0, 0, 0, nil, 0},
	3:  {1, 1, 1, sha1.New, 12},
	17: {3, 4, 1, sha256.New, 16},
}

func (s suite) mac(key []byte, parts ...[]byte) []byte {
	if s.hash == nil {
		return nil
	}
	m := hmac.New(s.hash, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

var mcGUID = []byte("smelt-simulated!")

// StartMC starts a management controller in front of p.
func StartMC(c MCConfig, p Power) (*MC, error) {
	if c.User == "" {
		c.User = "admin"
	}
	if len(c.Suites) == 0 {
		c.Suites = []int{17, 3}
	}
	if c.Sessions == 0 {
		c.Sessions = 4
	}
	for _, s := range c.Suites {
		if _, ok := suites[s]; !ok {
			return nil, fmt.Errorf("virtual MC: cipher suite %d", s)
		}
	}
	if len(c.Password) > 20 || len(c.User) > 16 {
		return nil, errors.New("virtual MC: over 20 bytes of password or 16 of user")
	}
	m := &MC{
		cfg: c, power: p, done: make(chan struct{}), sessions: map[uint32]*session{}, next: 1, policy: 1, // previous
		users: []account{{}, {c.User, c.Password, true}},
	}
	go m.serve()
	return m, nil
}

func (m *MC) String() string { return "virtual MC " + m.Addr().String() + " (simulated)" }

// Addr is where it listens.
func (m *MC) Addr() net.Addr { return m.cfg.Conn.LocalAddr() }

// Close ends it. The machine stays as it is.
func (m *MC) Close() error {
	err := m.cfg.Conn.Close()
	<-m.done
	return err
}

// Sessions counts the sessions that nobody closed.
func (m *MC) Sessions() int {
	m.state.Lock()
	defer m.state.Unlock()
	n := 0
	for _, s := range m.sessions {
		if s.open {
			n++
		}
	}
	return n
}

// Forget ends every session, as their timeout does.
func (m *MC) Forget() {
	m.state.Lock()
	defer m.state.Unlock()
	clear(m.sessions)
}

// AddUser makes an account with ADMINISTRATOR privilege; without a name it is
// an anonymous one.
func (m *MC) AddUser(name, password string) {
	m.state.Lock()
	defer m.state.Unlock()
	if name == "" {
		m.users[0] = account{"", password, true}
		return
	}
	m.users = append(m.users, account{name, password, true})
}

// Lit tells whether the identify light is on.
func (m *MC) Lit() bool {
	m.state.Lock()
	defer m.state.Unlock()
	return m.lit
}

// Orders lists the chassis control commands that it took: 0 off, 1 on, 5 soft
// off (IPMI 2.0, section 28.3).
func (m *MC) Orders() []byte {
	m.state.Lock()
	defer m.state.Unlock()
	return bytes.Clone(m.orders)
}

// Policy is the restore policy: 0 always off, 1 previous, 2 always on.
func (m *MC) Policy() int {
	m.state.Lock()
	defer m.state.Unlock()
	return int(m.policy)
}

// Keeps tells whether the boot device outlives 60 s.
func (m *MC) Keeps() bool {
	m.state.Lock()
	defer m.state.Unlock()
	return m.expiry&0x08 != 0
}

func (m *MC) serve() {
	defer close(m.done)
	buf := make([]byte, 2048)
	for {
		n, from, err := m.cfg.Conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a client that left
		}
		answer, through := m.in(buf[:n])
		if through {
			answer = m.answer(buf[:n])
		}
		if answer != nil {
			m.send(m.cfg.Conn, answer, from)
		}
	}
}

// answer is what goes back for a packet, nil for nothing.
func (m *MC) answer(p []byte) []byte {
	m.state.Lock()
	defer m.state.Unlock()
	if len(p) < 5 || p[0] != 0x06 {
		return nil
	}
	switch {
	case p[3] == 0x06 && bytes.Equal(p, ping):
		// An ASF presence pong that supports IPMI (section 13.2.4).
		return append([]byte{0x06, 0, 0xff, 0x06, 0, 0, 0x11, 0xbe, 0x40, 0, 0, 16, 0, 0, 0x11, 0xbe, 0, 0, 0, 0, 0x81}, make([]byte, 7)...)
	case p[3] != 0x07:
		return nil
	case p[4] == 0x00:
		return m.outside(p)
	case p[4] != 0x06 || len(p) < plusHead:
		return nil
	}
	body := p[plusHead:]
	if n := int(binary.LittleEndian.Uint16(p[14:])); n <= len(body) {
		body = body[:n]
	} else {
		return nil
	}
	switch p[5] & 0x3f {
	case openRequest:
		return m.openSession(p, body)
	case rakp1:
		return m.rakp1(p, body)
	case rakp3:
		return m.rakp3(p, body)
	case 0: // IPMI
		return m.inside(p, body)
	}
	return nil
}

// outside answers an IPMI 1.5 message without a session (section 13.6).
func (m *MC) outside(p []byte) []byte {
	const head = 4 + 10
	if len(p) < head+7 || binary.LittleEndian.Uint32(p[9:]) != 0 || int(p[13]) != len(p)-head {
		return nil
	}
	msg := p[head:]
	netfn, cmd := msg[1]>>2, msg[5]
	code, data := byte(0xd4), []byte(nil) // only what needs no privilege
	if netfn == 0x06 && cmd == 0x38 {
		code, data = 0, m.capabilities()
	}
	out := append([]byte{0x06, 0x00, 0xff, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, responseTo(msg, code, data)...)
	out[13] = byte(len(out) - head)
	return out
}

// capabilities answers Get Channel Authentication Capabilities (section 22.13).
func (m *MC) capabilities() []byte {
	status := byte(0x04) // users with names
	if m.users[0].enabled {
		if status |= 0x02; m.users[0].password == "" {
			status |= 0x01
		}
	}
	return []byte{1, 0x80, status, 0x02, 0, 0, 0, 0}
}

// responseTo is an IPMI message that answers msg.
func responseTo(msg []byte, code byte, data []byte) []byte {
	out := []byte{msg[3], (msg[1]>>2+1)<<2 | msg[4]&0x03, 0, msg[0], msg[4]&^0x03 | msg[1]&0x03, msg[5], code}
	out[2] = checksum(out[:2])
	out = append(out, data...)
	return append(out, checksum(out[3:]))
}

// checksum makes the sum of all bytes and itself 0.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

// limit is after how long a silent session is forgotten.
const limit = 60 * time.Second

func (m *MC) openSession(p, b []byte) []byte {
	if len(b) < 32 {
		return nil
	}
	for id, s := range m.sessions {
		if time.Since(s.last) > limit {
			delete(m.sessions, id)
		}
	}
	open := 0
	for _, s := range m.sessions {
		if s.open {
			open++
		}
	}
	if open >= m.cfg.Sessions {
		return refusal(openResponse, p, 0x01)
	}
	auth, integrity, secrecy := b[12]&0x3f, b[20]&0x3f, b[28]&0x3f
	for _, n := range m.cfg.Suites {
		if s := suites[n]; s.auth != auth || s.integrity != integrity || s.secrecy != secrecy {
			continue
		}
		id := m.next
		m.next++
		m.sessions[id] = &session{suite: n, console: binary.LittleEndian.Uint32(b[4:]), last: time.Now()}
		out := []byte{b[0], 0, 4, 0}
		out = append(out, b[4:8]...)
		out = binary.LittleEndian.AppendUint32(out, id)
		return plus(openResponse, append(out, b[8:32]...))
	}
	return refusal(openResponse, p, 0x11) // no cipher suite match
}

// setup finds the session of a RAKP message.
func (m *MC) setup(b []byte, least int) *session {
	if len(b) < least {
		return nil
	}
	s := m.sessions[binary.LittleEndian.Uint32(b[4:])]
	if s == nil || s.open {
		return nil
	}
	s.last = time.Now()
	return s
}

func (m *MC) rakp1(p, b []byte) []byte {
	s := m.setup(b, 28)
	if s == nil || len(b) < 28+int(b[27]) {
		return nil
	}
	console := binary.LittleEndian.AppendUint32(nil, s.console)
	name := string(b[28 : 28+int(b[27])])
	at := slices.IndexFunc(m.users, func(a account) bool { return a.enabled && a.name == name })
	if at < 0 {
		out := refusal(rakp2, p, 0x0d)
		copy(out[plusHead+4:], console)
		return out
	}
	s.user, s.role = m.users[at], b[24]
	s.rm, s.rc = bytes.Clone(b[8:24]), make([]byte, 16)
	_, _ = rand.Read(s.rc) // it cannot fail
	out := append([]byte{b[0], 0, 0, 0}, console...)
	out = append(append(out, s.rc...), mcGUID...)
	out = append(out, suites[s.suite].mac([]byte(s.user.password), console, b[4:8], s.rm, s.rc, mcGUID, s.who())...)
	return plus(rakp2, out)
}

// who is the part of the RAKP proofs that names the user.
func (s *session) who() []byte {
	return append([]byte{s.role, byte(len(s.user.name))}, s.user.name...)
}

func (m *MC) rakp3(p, b []byte) []byte {
	s := m.setup(b, 8)
	if s == nil || s.rm == nil {
		return nil
	}
	suite := suites[s.suite]
	console := binary.LittleEndian.AppendUint32(nil, s.console)
	if b[1] != 0 { // the console found RAKP 2 wrong
		delete(m.sessions, binary.LittleEndian.Uint32(b[4:]))
		return nil
	}
	if !hmac.Equal(b[8:], suite.mac([]byte(s.user.password), s.rc, console, s.who())) && suite.hash != nil {
		out := refusal(rakp4, p, 0x0f) // invalid integrity check value
		copy(out[plusHead+4:], console)
		return out
	}
	s.sik = suite.mac([]byte(s.user.password), s.rm, s.rc, s.who())
	s.k1 = suite.mac(s.sik, bytes.Repeat([]byte{1}, 20))
	s.k2 = suite.mac(s.sik, bytes.Repeat([]byte{2}, 20))
	s.open = true
	proof := suite.mac(s.sik, s.rm, b[4:8], mcGUID)
	return plus(rakp4, append(append([]byte{b[0], 0, 0, 0}, console...), proof[:min(suite.proof, len(proof))]...))
}

// inside answers an IPMI message of a session.
func (m *MC) inside(p, body []byte) []byte {
	id := binary.LittleEndian.Uint32(p[6:])
	s := m.sessions[id]
	if s == nil || !s.open {
		return nil
	}
	suite := suites[s.suite]
	msg := body
	if suite.hash != nil {
		if p[5]&0xc0 != 0xc0 || len(p) < plusHead+len(body)+suite.proof+2 {
			return nil // neither authenticated nor encrypted
		}
		signed := p[4 : len(p)-suite.proof]
		if !hmac.Equal(p[len(p)-suite.proof:], suite.mac(s.k1, signed)[:suite.proof]) {
			return nil
		}
		if msg = decrypt(s.k2[:16], body); msg == nil {
			return nil
		}
	}
	if len(msg) < 7 || checksum(msg[:3]) != 0 || checksum(msg[3:]) != 0 {
		return nil
	}
	s.last = time.Now()
	// A request that comes again is answered again and done once.
	if seq := msg[4]; seq == s.lastSeq && s.lastReply != nil {
		return m.wrap(s, s.lastReply)
	}
	code, data, mute := m.command(id, msg[1]>>2, msg[5], msg[6:len(msg)-1])
	s.lastSeq, s.lastReply = msg[4], responseTo(msg, code, data)
	if mute {
		s.lastReply = []byte{}
	}
	return m.wrap(s, s.lastReply)
}

// wrap is an answer as a packet of its session.
func (m *MC) wrap(s *session, msg []byte) []byte {
	if len(msg) == 0 {
		return nil
	}
	suite := suites[s.suite]
	typ := byte(0)
	if suite.hash != nil {
		typ, msg = 0xc0, encrypt(s.k2[:16], msg)
	}
	s.sent++
	out := plus(typ, msg)
	binary.LittleEndian.PutUint32(out[6:], s.console)
	binary.LittleEndian.PutUint32(out[10:], s.sent)
	if suite.hash == nil {
		return out
	}
	pad := (4 - (len(out)-4+2)%4) % 4
	out = append(out, bytes.Repeat([]byte{0xff}, pad)...)
	out = append(out, byte(pad), 0x07)
	return append(out, suite.mac(s.k1, out[4:])[:suite.proof]...)
}

// encrypt is AES-CBC-128 with the padding of section 13.29.
func encrypt(key, plain []byte) []byte {
	pad := (16 - (len(plain)+1)%16) % 16
	padded := bytes.Clone(plain)
	for n := range pad {
		padded = append(padded, byte(n+1))
	}
	padded = append(padded, byte(pad))
	out := make([]byte, 16+len(padded))
	_, _ = rand.Read(out[:16]) // it cannot fail
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("vbmc: " + err.Error()) // the key has 16 bytes
	}
	cipher.NewCBCEncrypter(block, out[:16]).CryptBlocks(out[16:], padded)
	return out
}

func decrypt(key, b []byte) []byte {
	if len(b) < 32 || len(b)%16 != 0 {
		return nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("vbmc: " + err.Error())
	}
	out := make([]byte, len(b)-16)
	cipher.NewCBCDecrypter(block, b[:16]).CryptBlocks(out, b[16:])
	pad := int(out[len(out)-1])
	if pad+1 > len(out) {
		return nil
	}
	return out[:len(out)-1-pad]
}
