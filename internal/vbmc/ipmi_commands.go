package vbmc

import (
	"context"
	"encoding/binary"
	"math"
)

// Completion codes (IPMI 2.0, table 5-2).
const (
	ccUnknown    = 0xc1
	ccLength     = 0xc7
	ccRange      = 0xc9
	ccNotPresent = 0xcb
	ccField      = 0xcc
	ccFailed     = 0xff
)

// command does one command of a session. m.state is held.
func (m *MC) command(id uint32, netfn, cmd byte, d []byte) (code byte, data []byte, mute bool) {
	switch netfn {
	case 0x00:
		return m.chassis(cmd, d)
	case 0x04:
		code, data = m.sensor(cmd, d)
	case 0x06:
		code, data = m.app(id, cmd, d)
	case 0x0a:
		code, data = m.storage(cmd, d)
	case 0x2c:
		code, data = m.dcmi(cmd, d)
	default:
		code = ccUnknown
	}
	return code, data, false
}

func (m *MC) chassis(cmd byte, d []byte) (code byte, data []byte, mute bool) {
	f, ctx := m.fault(), context.Background()
	switch cmd {
	case 0x01: // get chassis status
		if f.Blind != 0 {
			return f.Blind, nil, false
		}
		on, err := m.power.State(ctx)
		if err != nil {
			return ccFailed, nil, false
		}
		if f.Says != "" {
			on = f.Says == "on"
		}
		data = []byte{m.policy << 5, 0, 0x40}
		if on {
			data[0] |= 0x01
		}
		if m.lit {
			data[2] |= 0x20
		}
	case 0x02: // chassis control
		if len(d) < 1 {
			return ccLength, nil, false
		}
		if f.Refuse != 0 {
			return f.Refuse, nil, false
		}
		m.orders = append(m.orders, d[0]&0x0f)
		if err := m.control(ctx, d[0]); err != nil {
			return ccFailed, nil, f.Mute
		}
		return f.Fails, nil, f.Mute
	case 0x04: // chassis identify
		m.lit = len(d) == 0 || d[0] > 0 || len(d) > 1 && d[1]&1 != 0
	case 0x06: // set power restore policy
		if len(d) < 1 || d[0]&0x07 > 3 {
			return ccField, nil, false
		}
		if p := d[0] & 0x07; p < 3 && !f.KeepPolicy {
			m.policy = p
		}
		data = []byte{0x07}
	case 0x08:
		code = m.setBoot(f, d)
	case 0x09:
		if len(d) < 3 || d[0] != 5 {
			return ccField, nil, false
		}
		flags := m.boot
		if f.OtherBoot {
			flags[1] = 0x0f << 2 // floppy
		}
		data = append([]byte{0x01, 0x05}, flags[:]...)
	default:
		code = ccUnknown
	}
	return code, data, false
}

func (m *MC) control(ctx context.Context, what byte) error {
	switch what & 0x0f {
	case 0:
		return m.power.PowerOff(ctx)
	case 1:
		return m.power.PowerOn(ctx)
	case 2, 3:
		return m.power.Reset(ctx)
	case 5:
		return m.power.Shutdown(ctx)
	}
	return nil
}

// setBoot is Set System Boot Options (section 28.12).
func (m *MC) setBoot(f IPMIFaults, d []byte) byte {
	if len(d) < 2 {
		return ccLength
	}
	switch d[0] & 0x7f {
	case 0, 4:
		return 0
	case 3:
		if f.Expires {
			return 0x80 // parameter not supported
		}
		m.expiry = d[1]
		return 0
	case 5:
		if len(d) < 6 {
			return ccLength
		}
		if f.ForgetBoot {
			return 0
		}
		m.boot = [5]byte(d[1:6])
		b := map[byte]Boot{1: BootNetwork, 2: BootDisk}[d[2]>>2&0x0f]
		if d[1]&0x80 == 0 {
			b = 0
		}
		if m.power.SetBoot(context.Background(), b, d[1]&0x40 == 0) != nil {
			return ccFailed
		}
		return 0
	}
	return 0x80
}

func (m *MC) app(id uint32, cmd byte, d []byte) (byte, []byte) {
	switch cmd {
	case 0x01: // get device id: firmware 4.02, manufacturer 0
		return 0, []byte{0x20, 0x01, 0x04, 0x02, 0x02, 0x8f, 0, 0, 0, 0x01, 0x00}
	case 0x37:
		return 0, mcGUID
	case 0x38:
		return 0, m.capabilities()
	case 0x3b: // set session privilege level
		return 0, []byte{0x04}
	case 0x3c: // close session
		delete(m.sessions, id)
		return 0, nil
	case 0x42: // get channel info: 802.3 LAN, IPMB, multi-session
		return 0, []byte{0x01, 0x04, 0x01, 0x80, 0xf2, 0x1b, 0, 0, 0}
	case 0x44, 0x46, 0x47:
		return m.user(cmd, d)
	}
	return ccUnknown, nil
}

// mcUsers is how many users an MC has room for.
const mcUsers = 10

func (m *MC) user(cmd byte, d []byte) (byte, []byte) {
	if len(d) < 1 {
		return ccLength, nil
	}
	n := d[0] & 0x3f
	if cmd == 0x44 && len(d) > 1 {
		n = d[1] & 0x3f
	}
	if n == 0 || n > mcUsers {
		return ccRange, nil
	}
	var u account
	if int(n) <= len(m.users) {
		u = m.users[n-1]
	}
	switch cmd {
	case 0x44: // get user access
		access := []byte{mcUsers, 0x80, 0x01, 0x0f} // disabled, no access
		if u.enabled {
			access[1], access[3] = 0x40, 0x34 // by IPMI messaging and link, as ADMINISTRATOR
		}
		return 0, access
	case 0x46:
		if u.name == "" {
			return ccField, nil
		}
		return 0, append([]byte(u.name), make([]byte, 16-len(u.name))...)
	}
	return m.password(int(n), d)
}

// password is Set User Password (section 22.30).
func (m *MC) password(n int, d []byte) (byte, []byte) {
	size := 16
	if d[0]&0x80 != 0 {
		size = 20
	}
	if n > len(m.users) || len(d) != 2+size {
		return ccLength, nil
	}
	said := d[2:]
	for len(said) > 0 && said[len(said)-1] == 0 {
		said = said[:len(said)-1]
	}
	u := &m.users[n-1]
	switch d[1] & 0x03 {
	case 2:
		if !m.fault().KeepSecret {
			u.password = string(said)
		}
	case 3:
		if u.password != string(said) {
			return 0x80, nil
		}
	}
	return 0, nil
}

func (m *MC) storage(cmd byte, d []byte) (byte, []byte) {
	switch cmd {
	case 0x10: // get FRU inventory area info
		return 0, []byte{byte(len(mcFRU)), byte(len(mcFRU) >> 8), 0}
	case 0x11: // read FRU data
		if len(d) < 4 {
			return ccLength, nil
		}
		at := min(int(binary.LittleEndian.Uint16(d[1:])), len(mcFRU))
		n := min(int(d[3]), len(mcFRU)-at, 32)
		return 0, append([]byte{byte(n)}, mcFRU[at:at+n]...)
	case 0x20: // get SDR repository info
		n := len(m.cfg.Sensors)
		return 0, append([]byte{0x51, byte(n), byte(n >> 8), 0xff, 0xff}, 1, 0, 0, 0, 0, 0, 0, 0, 0x02)
	case 0x22:
		return 0, []byte{1, 0}
	case 0x23:
		return m.record(d)
	case 0x40: // get SEL info
		n := len(m.sel)
		return 0, append([]byte{0x51, byte(n), byte(n >> 8), 0xff, 0xff}, make([]byte, 9)...)
	case 0x42:
		return 0, []byte{1, 0}
	case 0x43:
		return m.entry(d)
	case 0x44: // add SEL entry
		if len(d) < 16 {
			return ccLength, nil
		}
		e := append([]byte{}, d[:16]...)
		binary.LittleEndian.PutUint16(e, uint16(len(m.sel)+1))
		m.sel = append(m.sel, e)
		return 0, e[:2]
	case 0x48: // get SEL time
		return 0, []byte{0, 0, 0, 0}
	}
	return ccUnknown, nil
}

// entry is Get SEL Entry (section 31.5).
func (m *MC) entry(d []byte) (byte, []byte) {
	if len(d) < 6 {
		return ccLength, nil
	}
	id := int(binary.LittleEndian.Uint16(d[2:]))
	switch {
	case id == 0:
		id = 1
	case id == 0xffff:
		id = len(m.sel)
	}
	if id < 1 || id > len(m.sel) {
		return ccNotPresent, nil
	}
	next := uint16(id + 1)
	if id == len(m.sel) {
		next = 0xffff
	}
	return 0, append(binary.LittleEndian.AppendUint16(nil, next), m.sel[id-1]...)
}

// record is Get SDR (section 33.12). It sends 20 bytes at most, as many BMCs.
func (m *MC) record(d []byte) (byte, []byte) {
	if len(d) < 6 {
		return ccLength, nil
	}
	id := int(binary.LittleEndian.Uint16(d[2:]))
	if id >= len(m.cfg.Sensors) {
		return ccNotPresent, nil
	}
	b := m.cfg.Sensors[id].sdr(id)
	at, n := int(d[4]), int(d[5])
	if n == 0xff {
		n = len(b) - at
	}
	if n > 20 {
		return 0xca, nil
	}
	if at+n > len(b) || n < 0 {
		return ccRange, nil
	}
	next := uint16(id + 1)
	if id+1 == len(m.cfg.Sensors) {
		next = 0xffff
	}
	return 0, append(binary.LittleEndian.AppendUint16(nil, next), b[at:at+n]...)
}

// sdr is a full sensor record (section 43.1).
func (s Sensor) sdr(id int) []byte {
	b := make([]byte, 48, 64)
	binary.LittleEndian.PutUint16(b, uint16(id))
	b[2], b[3] = 0x51, 0x01
	b[5], b[7] = 0x20, byte(id+1) // owner, number
	b[8], b[9] = 0x07, 0x01       // entity: system board
	b[10], b[11] = 0x7f, 0x68
	b[12], b[13] = map[byte]byte{1: 0x01, 6: 0x0b, 18: 0x04}[s.Unit], 0x01
	b[21], b[24] = s.Unit, byte(max(s.Scale, 1))
	b[47] = 0xc0 | byte(len(s.Name)&0x1f)
	b = append(b, s.Name[:len(s.Name)&0x1f]...)
	b[4] = byte(len(b) - 5)
	return b
}

func (m *MC) sensor(cmd byte, d []byte) (byte, []byte) {
	if cmd != 0x2d {
		return ccUnknown, nil
	}
	if len(d) < 1 || d[0] == 0 || int(d[0]) > len(m.cfg.Sensors) {
		return ccNotPresent, nil
	}
	return 0, []byte{m.cfg.Sensors[d[0]-1].Value, 0xc0, 0, 0}
}

// dcmi is Get Power Reading (DCMI 1.5, section 6.6.1), which other things of
// the same network function (PICMG, VITA) do not know.
func (m *MC) dcmi(cmd byte, d []byte) (byte, []byte) {
	if m.cfg.Watts <= 0 || cmd != 0x02 || len(d) < 4 || d[0] != 0xdc {
		return ccUnknown, nil
	}
	on, err := m.power.State(context.Background())
	if err != nil {
		return ccFailed, nil
	}
	w := uint16(12) // standby
	if on {
		w = uint16(math.Round(m.cfg.Watts))
	}
	out := []byte{0xdc}
	for range 4 {
		out = binary.LittleEndian.AppendUint16(out, w)
	}
	return 0, append(out, 0, 0, 0, 0, 0xe8, 0x03, 0, 0, 0x40)
}

// mcFRU is a FRU inventory with a product area (Platform Management FRU
// Information Storage Definition 1.0, sections 8 and 12).
var mcFRU = func() []byte {
	area := []byte{0x01, 0, 0x19} // version, length, English
	for _, s := range []string{"Smelt (simulated)", "Virtual server", "VS-1", "1", "SIM0001"} {
		area = append(append(area, 0xc0|byte(len(s))), s...)
	}
	area = append(area, 0xc0, 0xc0, 0xc1) // asset tag, file id, end
	for len(area)%8 != 7 {
		area = append(area, 0)
	}
	area[1] = byte((len(area) + 1) / 8)
	area = append(area, checksum(area))
	head := []byte{0x01, 0, 0, 0, 1, 0, 0}
	return append(append(head, checksum(head)), area...)
}()
