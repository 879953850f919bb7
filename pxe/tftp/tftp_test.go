package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pattern is content of any size that takes no memory; each byte follows from
// its place.
type pattern int64

func (p pattern) Size() int64 { return int64(p) }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	n := int(min(int64(len(b)), int64(p)-off))
	for i := range b[:n] {
		o := off + int64(i)
		b[i] = byte(o ^ o>>8 ^ o>>16)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// site is a server on a loopback port that serves a few names, and what it did.
type site struct {
	Server
	t     testing.TB
	addr  netip.AddrPort
	files map[string]Content
	at    net.IP // nil: 127.0.0.1

	mu   sync.Mutex
	done []Transfer
	stop func()
}

func serve(t testing.TB, files map[string]Content) *site {
	t.Helper()
	return serveAs(t, &site{files: files})
}

func serveAs(t testing.TB, s *site) *site {
	t.Helper()
	if s.at == nil {
		s.at = net.IPv4(127, 0, 0, 1)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: s.at})
	if err != nil {
		t.Fatal(err)
	}
	s.t, s.addr = t, conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if s.Allow == nil {
		s.Allow = func(netip.Addr) bool { return true }
	}
	s.Log = slog.New(slog.DiscardHandler)
	s.Open = func(name string, _ netip.AddrPort) (Content, error) {
		switch c, ok := s.files[name]; {
		case ok:
			return c, nil
		case name == "panic":
			panic("a bug")
		case name == "secret":
			return nil, errors.New("open /etc/secret: permission denied")
		}
		return nil, ErrNotFound
	}
	s.Done = func(d Transfer) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done = append(s.done, d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, conn) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if len(s.active)+len(s.clients)+s.unheard.Len() != 0 {
			t.Errorf("left over: %d transfers, %d clients, %d unheard", len(s.active), len(s.clients), s.unheard.Len())
		}
	})
	t.Cleanup(s.stop)
	return s
}

// transfer waits for the end of a transfer that fits.
func (s *site) transfer(what string, fits func(Transfer) bool) Transfer {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		for _, d := range s.done {
			if fits(d) {
				s.mu.Unlock()
				return d
			}
		}
		s.mu.Unlock()
	}
	s.t.Fatalf("no transfer ended so: %s; ended: %+v", what, s.done)
	return Transfer{}
}

// peer is a client that a test leads by the hand.
type peer struct {
	t    testing.TB
	conn *net.UDPConn
	site *site
	tid  netip.AddrPort // of the server
}

func (s *site) peer() *peer { return s.peerAt(netip.MustParseAddr("127.0.0.1")) }

func (s *site) peerAt(a netip.Addr) *peer {
	s.t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return &peer{t: s.t, conn: conn, site: s}
}

// rrq is a read request: name, mode, and options in pairs.
func rrq(fields ...string) []byte {
	return append([]byte{0, opRRQ}, strings.Join(fields, "\x00")+"\x00"...)
}

func (p *peer) ask(fields ...string) *peer {
	p.t.Helper()
	p.to(p.site.addr, rrq(fields...))
	return p
}

func (p *peer) to(a netip.AddrPort, packet []byte) {
	p.t.Helper()
	if _, err := p.conn.WriteToUDPAddrPort(packet, a); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) ack(block int) {
	p.t.Helper()
	p.to(p.tid, []byte{0, opACK, byte(block >> 8), byte(block)})
}

// read returns the next packet, or nil if none comes in time.
func (p *peer) read(limit time.Duration) []byte {
	p.t.Helper()
	buf := make([]byte, 1<<16)
	_ = p.conn.SetReadDeadline(time.Now().Add(limit))
	n, from, err := p.conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil
	}
	p.tid = from
	return buf[:n]
}

// words puts a packet into words: "DATA 1 of 512", "OACK blksize 1428".
func words(p []byte) string {
	if len(p) < 4 {
		return "nothing"
	}
	n := binary.BigEndian.Uint16(p[2:])
	switch binary.BigEndian.Uint16(p) {
	case opDATA:
		return fmt.Sprintf("DATA %d of %d", n, len(p)-4)
	case opERROR:
		return fmt.Sprintf("ERROR %d %s", n, bytes.TrimSuffix(p[4:], []byte{0}))
	case opOACK:
		return "OACK " + strings.Join(strings.Split(strings.TrimSuffix(string(p[2:]), "\x00"), "\x00"), " ")
	}
	return fmt.Sprintf("%q", p)
}

// expect reads packets and compares them.
func (p *peer) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := words(p.read(3 * time.Second)); got != w {
			p.t.Fatalf("got %s, want %s", got, w)
		}
	}
}

const soon = 120 * time.Millisecond // less than the server waits at least

func (p *peer) expectSilence() {
	p.t.Helper()
	if got := p.read(soon); got != nil {
		p.t.Fatalf("got %s, want silence", words(got))
	}
}

// fetch is a client that does as RFC 7440 says: it acknowledges windows, and a
// gap at once.
func (p *peer) fetch(fields ...string) ([]byte, error) {
	block, window := defaultBlock, 1
	buf := make([]byte, 1<<16)
	var out []byte
	next, unacked := 1, 0
	ack := func() {
		unacked = 0
		_, _ = p.conn.WriteToUDPAddrPort([]byte{0, opACK, byte((next - 1) >> 8), byte(next - 1)}, p.tid)
	}
	_, err := p.conn.WriteToUDPAddrPort(rrq(fields...), p.site.addr)
	if err != nil {
		return nil, err
	}
	for tries := 0; ; {
		_ = p.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if tries++; tries > 20 {
				return out, err
			}
			if p.tid.IsValid() {
				ack()
			} else if _, err := p.conn.WriteToUDPAddrPort(rrq(fields...), p.site.addr); err != nil {
				return nil, err
			}
			continue
		}
		if p.tid.IsValid() && from != p.tid {
			continue
		}
		p.tid = from
		d := buf[:n]
		switch binary.BigEndian.Uint16(d) {
		case opOACK:
			v := strings.Split(string(d[2:]), "\x00")
			for i := 0; i+1 < len(v); i += 2 {
				switch v[i] {
				case "blksize":
					_, err = fmt.Sscan(v[i+1], &block)
				case "windowsize":
					_, err = fmt.Sscan(v[i+1], &window)
				}
				if err != nil {
					return nil, err
				}
			}
			ack()
		case opDATA:
			if binary.BigEndian.Uint16(d[2:]) != uint16(next) {
				if unacked >= 0 {
					ack()
					unacked = -1 // once for each gap
				}
				continue
			}
			out = append(out, d[4:]...)
			next++
			unacked = max(0, unacked) + 1
			last := len(d)-4 < block
			if last || unacked == window {
				ack()
			}
			if last {
				return out, nil
			}
		default:
			return out, errors.New(words(d))
		}
	}
}

// TestFirstAnswer is RFC 1350, 2347, 2348, 2349 and 7440 by what is answered
// to one packet. Content is 1000 bytes.
func TestFirstAnswer(t *testing.T) {
	t.Parallel()
	s := serveAs(t, &site{Server: Server{PerClient: 1000}, files: map[string]Content{
		"f": pattern(1000), "big": pattern(5 << 30), "long": pattern(maxNetascii + 1), "text": bytes.NewReader([]byte("a\nb\rc")),
	}})
	for _, c := range []struct{ name, packet, want string }{
		// RFC 1350
		{"plain", "\x00\x01f\x00octet\x00", "DATA 1 of 512"},
		{"mode in other case", "\x00\x01f\x00OcTeT\x00", "DATA 1 of 512"},
		{"netascii", "\x00\x01text\x00netascii\x00", "DATA 1 of 7"},
		{"netascii size", "\x00\x01text\x00netascii\x00tsize\x000\x00", "OACK tsize 7"},
		{"netascii too large", "\x00\x01long\x00netascii\x00", "ERROR 4 too large for netascii: use octet"},
		{"mode mail", "\x00\x01f\x00mail\x00", "ERROR 4 unknown mode: use octet"},
		{"mode of nobody", "\x00\x01f\x00zzz\x00", "ERROR 4 unknown mode: use octet"},
		{"no such file", "\x00\x01../etc/passwd\x00octet\x00", "ERROR 1 file not found"},
		{"no such file, with options", "\x00\x01no\x00octet\x00tsize\x000\x00blksize\x001468\x00", "ERROR 1 file not found"},
		{"an error of the system stays here", "\x00\x01secret\x00octet\x00", "ERROR 0 not available"},
		{"a bug stays here", "\x00\x01panic\x00octet\x00", "ERROR 0 not available"},
		{"write", "\x00\x02f\x00octet\x00", "ERROR 2 access violation: read only"},
		{"no NUL after the mode", "\x00\x01f\x00octet", "ERROR 4 malformed request"},
		{"no mode", "\x00\x01f\x00", "ERROR 4 malformed request"},
		{"no name", "\x00\x01\x00octet\x00", "ERROR 4 malformed request"},
		{"only an opcode", "\x00\x01", "ERROR 4 malformed request"},
		{"opcode 0", "\x00\x00f\x00octet\x00", "ERROR 4 illegal operation"},
		{"opcode 7", "\x00\x07f\x00octet\x00", "ERROR 4 illegal operation"},
		{"opcode of another byte order", "\x01\x00f\x00octet\x00", "ERROR 4 illegal operation"},
		{"half an opcode", "\x00", "nothing"},
		{"empty", "", "nothing"},
		{"ERROR is never answered", "\x00\x05\x00\x00x\x00", "nothing"},
		{"ACK of nothing", "\x00\x04\x00\x01", "nothing"},
		{"DATA of nothing", "\x00\x03\x00\x01data", "nothing"},
		// RFC 2347
		{"unknown option alone", "\x00\x01f\x00octet\x00multicast\x00\x00", "DATA 1 of 512"},
		{"unknown option beside a known one", "\x00\x01f\x00octet\x00rollover\x000\x00tsize\x000\x00", "OACK tsize 1000"},
		{"option in other case", "\x00\x01f\x00octet\x00BLKSIZE\x00600\x00TSize\x000\x00", "OACK BLKSIZE 600 TSize 1000"},
		{"option twice", "\x00\x01f\x00octet\x00blksize\x00600\x00BlkSize\x00700\x00", "OACK blksize 600"},
		{"order as asked", "\x00\x01f\x00octet\x00windowsize\x004\x00timeout\x003\x00tsize\x000\x00blksize\x00600\x00", "OACK windowsize 4 timeout 3 tsize 1000 blksize 600"},
		{"option without value", "\x00\x01f\x00octet\x00tsize\x000\x00blksize\x00", "OACK tsize 1000"},
		{"option without last NUL", "\x00\x01f\x00octet\x00tsize\x000\x00blksize\x00600", "OACK tsize 1000"},
		{"padding", "\x00\x01f\x00octet\x00tsize\x000\x00\x00\x00\x00\x00", "OACK tsize 1000"},
		// RFC 2348
		{"blksize 8", "\x00\x01f\x00octet\x00blksize\x008\x00", "OACK blksize 8"},
		{"blksize 511", "\x00\x01f\x00octet\x00blksize\x00511\x00", "OACK blksize 511"},
		{"blksize 1428", "\x00\x01f\x00octet\x00blksize\x001428\x00", "OACK blksize 1428"},
		{"blksize 65464", "\x00\x01f\x00octet\x00blksize\x0065464\x00", "OACK blksize 65464"}, // loopback's MTU
		{"blksize 65465", "\x00\x01f\x00octet\x00blksize\x0065465\x00", "OACK blksize 65464"},
		{"blksize 7", "\x00\x01f\x00octet\x00blksize\x007\x00", "DATA 1 of 512"},
		{"blksize 0", "\x00\x01f\x00octet\x00blksize\x000\x00", "DATA 1 of 512"},
		{"blksize in words", "\x00\x01f\x00octet\x00blksize\x00abc\x00", "DATA 1 of 512"},
		{"blksize negative", "\x00\x01f\x00octet\x00blksize\x00-1468\x00", "DATA 1 of 512"},
		{"blksize empty", "\x00\x01f\x00octet\x00blksize\x00\x00tsize\x000\x00", "OACK tsize 1000"},
		{"blksize of 30 digits", "\x00\x01f\x00octet\x00blksize\x00999999999999999999999999999999\x00", "DATA 1 of 512"},
		// RFC 2349
		{"timeout 1", "\x00\x01f\x00octet\x00timeout\x001\x00", "OACK timeout 1"},
		{"timeout 255", "\x00\x01f\x00octet\x00timeout\x00255\x00", "OACK timeout 255"},
		{"timeout 0", "\x00\x01f\x00octet\x00timeout\x000\x00", "DATA 1 of 512"},
		{"timeout 256", "\x00\x01f\x00octet\x00timeout\x00256\x00", "DATA 1 of 512"},
		{"tsize", "\x00\x01f\x00octet\x00tsize\x000\x00", "OACK tsize 1000"},
		{"tsize beyond 32 bits", "\x00\x01big\x00octet\x00tsize\x000\x00", "OACK tsize 5368709120"},
		{"tsize in words", "\x00\x01f\x00octet\x00tsize\x00?\x00", "DATA 1 of 512"},
		// RFC 7440
		{"windowsize 1", "\x00\x01f\x00octet\x00windowsize\x001\x00", "OACK windowsize 1"},
		{"windowsize 16", "\x00\x01f\x00octet\x00windowsize\x0016\x00", "OACK windowsize 16"},
		{"windowsize 65535", "\x00\x01f\x00octet\x00windowsize\x0065535\x00", "OACK windowsize 64"},
		{"windowsize 0", "\x00\x01f\x00octet\x00windowsize\x000\x00", "DATA 1 of 512"},
		{"a window stays below 128 KiB", "\x00\x01f\x00octet\x00windowsize\x0064\x00blksize\x008192\x00", "OACK windowsize 16 blksize 8192"},
		{"a window has a block", "\x00\x01f\x00octet\x00blksize\x0065464\x00windowsize\x0064\x00", "OACK blksize 65464 windowsize 2"},
		// What firmware sends.
		{"OVMF asks for the size", "\x00\x01f\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00", "OACK tsize 1000 blksize 1468 windowsize 4"},
		{"OVMF", "\x00\x01f\x00octet\x00blksize\x001468\x00windowsize\x004\x00", "OACK blksize 1468 windowsize 4"},
		{"shim", "\x00\x01revocations_sku.efi\x00octet\x00blksize\x00512\x00windowsize\x004\x00", "ERROR 1 file not found"},
		{"GRUB", "\x00\x01f\x00octet\x00blksize\x001024\x00tsize\x000\x00", "OACK blksize 1024 tsize 1000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := s.peer()
			p.to(s.addr, []byte(c.packet))
			limit := 3 * time.Second
			if c.want == "nothing" {
				limit = soon
			}
			got := p.read(limit)
			if words(got) != c.want {
				t.Errorf("got %s, want %s", words(got), c.want)
			}
			if tid := p.tid; got != nil && got[1] != opERROR && tid == s.addr {
				t.Error("the transfer has the identifier of the server")
			}
		})
	}
}

// TestContent: files of every awkward size arrive, with blocks and windows of
// every awkward size.
func TestContent(t *testing.T) {
	t.Parallel()
	files := map[string]Content{}
	for _, size := range []int64{0, 1, 7, 8, 9, 511, 512, 513, 1024, 1428 * 16, 1428*16 + 1, 1468*64*3 - 1, 300000} {
		files[fmt.Sprint(size)] = pattern(size)
	}
	s := serve(t, files)
	for name, c := range files {
		want := make([]byte, c.Size())
		_, _ = c.ReadAt(want, 0)
		for _, options := range [][]string{
			nil, {"tsize", "0"}, {"blksize", "8", "windowsize", "64"}, {"blksize", "512"}, {"blksize", "1428"},
			{"windowsize", "3"}, {"blksize", "1428", "windowsize", "16"}, {"blksize", "1468", "windowsize", "64"}, {"blksize", "65464", "windowsize", "2"},
		} {
			got, err := s.peer().fetch(append([]string{name, "octet"}, options...)...)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s bytes with %v: got %d that are equal: %v, err %v", name, options, len(got), bytes.Equal(got, want), err)
			}
		}
	}
}

// TestIPv6 is the same over IPv6, whose header takes 20 bytes more.
func TestIPv6(t *testing.T) {
	t.Parallel()
	s := serveAs(t, &site{files: map[string]Content{"f": pattern(100000)}, at: net.IPv6loopback})
	for _, options := range [][]string{nil, {"blksize", "1428", "windowsize", "16"}, {"blksize", "65464"}} {
		got, err := s.peerAt(netip.IPv6Loopback()).fetch(append([]string{"f", "octet"}, options...)...)
		if err != nil || len(got) != 100000 {
			t.Errorf("%v: %d bytes, %v", options, len(got), err)
		}
	}
}

func TestNetascii(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": bytes.NewReader([]byte("#!ipxe\nboot\r\n"))})
	got, err := s.peer().fetch("f", "netascii")
	if err != nil || string(got) != "#!ipxe\r\nboot\r\x00\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestRollover: block 65535 is followed by block 0, in the middle of a window
// and at its ends.
func TestRollover(t *testing.T) {
	t.Parallel()
	size, windows := 70000*defaultBlock, []string{"7", "64"}
	if os.Getenv("SMELT_TEST_E2E") == "1" {
		size, windows = 100<<20, []string{"1", "7", "64"}
	}
	s := serve(t, map[string]Content{"f": pattern(size)})
	want := make([]byte, size)
	_, _ = pattern(size).ReadAt(want, 0)
	for _, window := range windows {
		got, err := s.peer().fetch("f", "octet", "windowsize", window)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("window %s: got %d bytes, equal: %v, err %v", window, len(got), bytes.Equal(got, want), err)
		}
	}
}

// TestLockStep is RFC 1350 with one block in flight.
func TestLockStep(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(1200)})
	p := s.peer().ask("f", "octet", "timeout", "1")
	p.expect("OACK timeout 1")
	p.ack(1) // what was not sent
	p.expectSilence()
	p.ack(0)
	p.expect("DATA 1 of 512")
	p.ack(0) // Sorcerer's Apprentice: the same again sends nothing
	p.ack(0)
	p.ack(2)
	p.expectSilence()
	p.ack(1)
	p.expect("DATA 2 of 512")
	p.ack(1)
	p.expectSilence()

	stranger := s.peer()
	stranger.tid = p.tid
	stranger.ack(2)
	stranger.expect("ERROR 5 unknown transfer ID")
	stranger.to(p.tid, []byte{0, 5, 0, 5, 'n', 'o', 0}) // and no ERROR is answered
	stranger.expectSilence()
	p.expectSilence()

	p.to(p.tid, []byte{0, opACK}) // short
	p.to(p.tid, []byte{0, 9, 0, 2})
	p.ack(2)
	p.expect("DATA 3 of 176")
	p.expect("DATA 3 of 176") // lost: it comes again
	p.ack(3)
	d := s.transfer("sent", func(d Transfer) bool { return d.Err == nil })
	if d.Acked != 1200 || d.Resent != 1 || d.Client.Addr() != s.addr.Addr() {
		t.Errorf("%+v", d)
	}
	p.expectSilence()
}

// TestWindow is RFC 7440.
func TestWindow(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(9*600 + 10)})
	p := s.peer().ask("f", "octet", "blksize", "600", "windowsize", "4", "timeout", "3")
	p.expect("OACK blksize 600 windowsize 4 timeout 3")
	p.expectSilence() // no data before the OACK is acknowledged
	p.ack(0)
	p.expect("DATA 1 of 600", "DATA 2 of 600", "DATA 3 of 600", "DATA 4 of 600")
	p.expectSilence()
	p.ack(2) // a gap: on from there, at once
	p.expect("DATA 3 of 600", "DATA 4 of 600", "DATA 5 of 600", "DATA 6 of 600")
	p.ack(2) // the same for each block behind the gap: nothing
	p.ack(2)
	p.ack(1) // late
	p.ack(7) // not sent
	p.expectSilence()
	p.ack(6)
	p.expect("DATA 7 of 600", "DATA 8 of 600", "DATA 9 of 600", "DATA 10 of 10") // short
	p.ack(8)
	p.expect("DATA 9 of 600", "DATA 10 of 10") // a short window
	p.ack(10)
	if d := s.transfer("sent", func(d Transfer) bool { return d.Err == nil }); d.Resent != 6 || d.Window != 4 || d.Block != 600 {
		t.Errorf("%+v", d)
	}
}

// TestFirstOfWindowLost: the ACK of the window before says it, as an ACK that
// was merely doubled does. It is believed once, so that no doubled ACK doubles
// all that follows.
func TestFirstOfWindowLost(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(100 * 512)})
	p := s.peer().ask("f", "octet", "windowsize", "2", "timeout", "3")
	p.expect("OACK windowsize 2 timeout 3")
	p.ack(0)
	p.expect("DATA 1 of 512", "DATA 2 of 512")
	p.ack(2)
	p.expect("DATA 3 of 512", "DATA 4 of 512")
	p.ack(2)
	p.expect("DATA 3 of 512", "DATA 4 of 512")
	p.ack(2)
	p.expectSilence()
	p.ack(4)
	p.expect("DATA 5 of 512", "DATA 6 of 512")
	p.ack(4) // the client answers the second copy of 3 and 4
	p.expectSilence()
	p.ack(6)
	p.expect("DATA 7 of 512", "DATA 8 of 512")
	p.ack(8)
	p.expect("DATA 9 of 512", "DATA 10 of 512")
	p.ack(8)
	p.expect("DATA 9 of 512", "DATA 10 of 512")
}

// TestClientEnds: EDK2 asks for the size and wants no more.
func TestClientEnds(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(1000)})
	p := s.peer().ask("f", "octet", "tsize", "0")
	p.expect("OACK tsize 1000")
	p.to(p.tid, []byte("\x00\x05\x00\x08User aborted the transfer\x00"))
	d := s.transfer("aborted", func(d Transfer) bool {
		var e *ClientError
		return errors.As(d.Err, &e) && e.Code == 8 && e.Text == "User aborted the transfer"
	})
	if d.Acked != 0 || d.Size != 1000 {
		t.Errorf("%+v", d)
	}
	p.expectSilence()
}

// TestTimeout: what a client asked is the time between two sends, and for an
// ordinary client the second sends come sooner once its round trip is known.
func TestTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(1000)})
	after := func(p *peer) time.Duration {
		began := time.Now()
		if p.read(5*time.Second) == nil {
			t.Error("nothing was sent again")
		}
		return time.Since(began)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		p := s.peer().ask("f", "octet", "tsize", "0")
		p.expect("OACK tsize 1000")
		if d := after(p); d < 900*time.Millisecond || d > 1900*time.Millisecond {
			t.Errorf("before the first ACK it was sent again after %s", d)
		}
		q := s.peer().ask("f", "octet", "tsize", "0")
		q.expect("OACK tsize 1000")
		q.ack(0)
		q.expect("DATA 1 of 512")
		if d := after(q); d < 150*time.Millisecond || d > 900*time.Millisecond {
			t.Errorf("to a quick client it was sent again after %s", d)
		}
	})
	wg.Go(func() {
		p := s.peer().ask("f", "octet", "timeout", "2")
		p.expect("OACK timeout 2")
		p.ack(0)
		p.expect("DATA 1 of 512")
		if d := after(p); d < 1900*time.Millisecond || d > 2900*time.Millisecond {
			t.Errorf("sent again after %s, asked were 2 s", d)
		}
		p.ack(1)
		p.expect("DATA 2 of 488")
	})
}

// TestAmplification: for each byte of a request that nobody stands behind, at
// most 100 leave, counted without IP and UDP headers (with them it is less).
func TestAmplification(t *testing.T) {
	t.Parallel()
	s := serveAs(t, &site{Server: Server{PerClient: 100}, files: map[string]Content{"x": pattern(1 << 20), "snponly.efi": pattern(1 << 20)}})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range []struct {
		fields []string
		sends  int
	}{
		{[]string{"x", "octet"}, 1},
		{[]string{"snponly.efi", "octet"}, 4},
		{[]string{"snponly.efi", "octet", "blksize", "1468", "windowsize", "64"}, 4},
		{[]string{"snponly.efi", "octet", "tsize", "0", "blksize", "65464", "timeout", "1"}, 4},
		{[]string{"x", "octet", "multicast", ""}, 4},
		{[]string{"nothing", "octet"}, 1},
		{[]string{"x", "mail"}, 1},
	} {
		p := s.peer()
		wg.Go(func() { // most of it is waiting
			p.ask(c.fields...)
			in, out, packets := len(rrq(c.fields...)), 0, 0
			for {
				b := p.read(1700 * time.Millisecond)
				if b == nil {
					break
				}
				out += len(b)
				packets++
				if packets == 2 { // answered, because it is paid for
					p.ask(c.fields...)
					in += len(rrq(c.fields...))
				}
			}
			if ratio := float64(out) / float64(in); ratio > maxAmplification || packets != c.sends {
				t.Errorf("%q: %d bytes in %d packets for %d: %.0f times", c.fields, out, packets, in, ratio)
			}
		})
	}
}

// TestRepeatedRequest: a request that is repeated starts nothing, another one
// from the same port, or after the client has started anew, does.
func TestRepeatedRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(2000), "g": pattern(100)})
	again := []string{"f", "octet", "timeout", "1"}
	p := s.peer().ask(again...).ask(again...)
	p.expect("OACK timeout 1")
	p.expectSilence()
	p.ack(0)
	p.expect("DATA 1 of 512")
	p.ask(again...) // a copy that was long under way
	p.expectSilence()
	p.expect("DATA 1 of 512") // sent again for want of an answer: silent
	p.ask(again...)
	p.expect("OACK timeout 1")
	p.ask("g", "octet")
	p.expect("DATA 1 of 100")
	p.ack(1)
	s.transfer("g", func(d Transfer) bool { return d.Name == "g" && d.Err == nil })
	for range 2 {
		s.transfer("f replaced", func(d Transfer) bool { return d.Name == "f" && errors.Is(d.Err, errReplaced) })
	}
}

// TestLimits: a client has so many transfers, and those who never answer give
// way.
func TestLimits(t *testing.T) {
	t.Parallel()
	s := serveAs(t, &site{Server: Server{PerClient: 2, Transfers: 3}, files: map[string]Content{"f": pattern(5000)}})
	started := func(p *peer) *peer {
		t.Helper()
		p.ask("f", "octet", "timeout", "9")
		p.expect("OACK timeout 9")
		p.ack(0)
		p.expect("DATA 1 of 512")
		return p
	}
	a, b := started(s.peer()), started(s.peer())
	busy := s.peer().ask("f", "octet")
	busy.expect("ERROR 0 too many transfers, try again")
	other := started(s.peerAt(netip.MustParseAddr("127.0.0.2")))
	full := s.peerAt(netip.MustParseAddr("127.0.0.3")).ask("f", "octet")
	full.expect("ERROR 0 too many transfers, try again")

	a.to(a.tid, []byte{0, opERROR, 0, 0, 'x', 0})
	s.transfer("a", func(d Transfer) bool { var e *ClientError; return errors.As(d.Err, &e) })
	// The free place goes to one who never answers, for a while.
	s.peer().ask("f", "octet").expect("DATA 1 of 512")
	c := s.peerAt(netip.MustParseAddr("127.0.0.4")).ask("f", "octet")
	c.expectSilence() // no error, it would give up
	time.Sleep(unheardAge)
	started(c)
	s.transfer("crowded out", func(d Transfer) bool { return errors.Is(d.Err, errCrowded) })
	for _, p := range []*peer{b, other, c} { // unharmed
		p.ack(1)
		p.expect("DATA 2 of 512")
	}
}

// TestWithoutOffload: where the kernel will not cut a window into packets, each
// is sent alone.
func TestWithoutOffload(t *testing.T) {
	t.Parallel()
	p := serve(t, nil).peer()
	s, err := openSocket(p.site.addr.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	// Without a checksum there is no offload: the kernel says EINVAL.
	if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	to := p.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	x := &transfer{socket: s, to: sockaddr(to), client: to, content: pattern(3000), size: 3000, base: 1, last: 6, batch: s.segment(516), out: new([1 << 16]byte)}
	x.block, x.window = 512, 16
	if x.batch != maxSegments {
		t.Errorf("%d packets in one call", x.batch)
	}
	if err := x.send(); !errors.Is(err, errGoesOn) {
		t.Fatal(err)
	}
	p.expect("DATA 1 of 512", "DATA 2 of 512", "DATA 3 of 512", "DATA 4 of 512", "DATA 5 of 512", "DATA 6 of 440")
	if x.batch != 1 || x.sendErr != nil {
		t.Errorf("afterwards %d packets in one call, %v", x.batch, x.sendErr)
	}
}

// FuzzRequest: whatever comes as a request, it is answered with less than a
// hundred times as much, and an OACK holds nothing that was not asked.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"\x00\x01snponly.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00", // OVMF 2022.11, to learn the size
		"\x00\x01snponly.efi\x00octet\x00blksize\x001468\x00windowsize\x004\x00",               // then for the file
		"\x00\x01revocations_sku.efi\x00octet\x00blksize\x00512\x00windowsize\x004\x00",        // shim 16.1, by the firmware
		"\x00\x01/grub/x86_64-efi/command.lst\x00octet\x00blksize\x001024\x00tsize\x000\x00",   // GRUB 2.12
		"\x00\x01f\x00netascii\x00timeout\x00255\x00BLKSIZE\x008\x00", "\x00\x02f\x00octet\x00", "\x00\x01f\x00octet", "\x00\x01",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) < 2 {
			return
		}
		r, err := parse(packet[2:])
		if err != nil {
			if told(err) == errFailed {
				t.Errorf("%q: a client is told nothing of %v", packet, err)
			}
			return
		}
		const size, mtu = 1 << 20, 1500
		a := r.agree(size, mtu)
		if a.block < minBlock || a.block > mtu-headers || a.window < 1 || a.window > maxWindow || a.window > 1 && a.window*a.block > maxWindowBytes || a.timeout < 0 || a.timeout > 255*time.Second {
			t.Errorf("%q: %+v", packet, a)
		}
		if len(a.oack) > 100*len(packet) || a.oack == nil && (a.block != defaultBlock || a.window != 1 || a.timeout != 0) {
			t.Errorf("%q: %+v", packet, a)
		}
		if a.oack == nil {
			return
		}
		fields := strings.Split(string(a.oack[2:]), "\x00")
		if len(fields)%2 == 0 || fields[len(fields)-1] != "" || len(fields) > 9 {
			t.Fatalf("%q: OACK %q", packet, a.oack)
		}
		for i := 0; i+1 < len(fields); i += 2 {
			if !bytes.Contains(packet, []byte("\x00"+fields[i]+"\x00")) {
				t.Errorf("%q: %q was not asked", packet, fields[i])
			}
			asked, _ := r.number(strings.ToLower(fields[i]), 0)
			if n, err := strconv.ParseUint(fields[i+1], 10, 63); err != nil || n > asked && !strings.EqualFold(fields[i], "tsize") {
				t.Errorf("%q: %s %s, asked were %d", packet, fields[i], fields[i+1], asked)
			}
		}
	})
}

// FuzzTransfer: whatever a client sends during a transfer, none of it costs more
// than a window, and blocks count only if they were sent.
func FuzzTransfer(f *testing.F) {
	f.Add(uint16(16), uint16(512), []byte("\x04\x00\x04\x00\x00\x04\x00\x04\x00\x10\x04\x00\x04\x00\x14"))
	f.Add(uint16(1), uint16(8), []byte("\x04\x00\x04\x00\x00\x04\x00\x04\x00\x00\x05\x00\x05\x00\x08x"))
	f.Fuzz(func(t *testing.T, window, block uint16, packets []byte) {
		s, err := openSocket(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		client := netip.MustParseAddrPort("127.0.0.1:9") // nobody
		x := &transfer{asked: string(rrq("f", "octet")), client: client, to: sockaddr(client), socket: s, batch: 1, out: new([1 << 16]byte), hears: func() {}}
		x.options = []option{{"windowsize", "windowsize", fmt.Sprint(window)}, {"blksize", "blksize", fmt.Sprint(block)}}
		if err := x.agree(pattern(1 << 20)); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		err = x.start(now)
		for errors.Is(err, errGoesOn) && len(packets) > 0 {
			n := min(len(packets)-1, int(packets[0]))
			p := packets[1 : 1+n]
			packets = packets[1+n:]
			before, flying, resent := x.base, x.inFlight, x.resent
			now = now.Add(time.Millisecond)
			err = x.receive(now, p, client)
			if x.base < before || x.base > before+int64(flying) || x.inFlight > maxWindow || x.resent-resent > x.inFlight {
				t.Fatalf("%q: from %d with %d in flight to %d with %d, %d sent again", p, before, flying, x.base, x.inFlight, x.resent-resent)
			}
		}
		if err == nil && x.acked() != x.size {
			t.Fatalf("over with %d of %d bytes", x.acked(), x.size)
		}
	})
}

// TestStranger: who is not allowed is told so, and costs no transfer.
func TestStranger(t *testing.T) {
	t.Parallel()
	s := serveAs(t, &site{Server: Server{Allow: func(a netip.Addr) bool { return a != netip.MustParseAddr("127.0.0.9") }}, files: map[string]Content{"f": pattern(1000)}})
	s.peerAt(netip.MustParseAddr("127.0.0.9")).ask("f", "octet").expect("ERROR 2 access violation")
	s.peer().ask("f", "octet").expect("DATA 1 of 512")
}

// TestStop: a client in the middle of its file is told, one that was never
// heard of is not.
func TestStop(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(1 << 20)})
	p, q := s.peer().ask("f", "octet"), s.peer().ask("f", "octet")
	p.expect("DATA 1 of 512")
	q.expect("DATA 1 of 512")
	p.ack(1)
	p.expect("DATA 2 of 512")
	began := time.Now()
	s.stop()
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %s", d)
	}
	p.expect("ERROR 0 server stops, try again")
	q.expectSilence()
}

// TestShortened: a file that is shorter than it was ends its transfer.
func TestShortened(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": broken{}})
	p := s.peer().ask("f", "octet")
	p.expect("DATA 1 of 512")
	p.ack(1)
	p.expect("ERROR 0 not available")
	s.transfer("failed", func(d Transfer) bool { return d.Err != nil && d.Acked == 512 })
}

type broken struct{}

func (broken) Size() int64 { return 2000 }
func (broken) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		return 0, errors.New("read error")
	}
	return len(p), nil
}

// TestFlood: 20,000 requests from as many ports of many addresses leave a
// bounded number of transfers, and a real client is served all along.
func TestFlood(t *testing.T) {
	t.Parallel()
	const limit = 2000
	s := serveAs(t, &site{Server: Server{Transfers: limit}, files: map[string]Content{"f": pattern(1 << 20)}})
	over := make(chan struct{})
	go func() {
		defer close(over)
		packet := rrq("f", "octet", "blksize", "1428")
		for i := range 20000 {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := c.WriteToUDPAddrPort(packet, s.addr); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}()
	served := 0
	for running := true; running; {
		select {
		case <-over:
			running = false
		default:
		}
		if open, err := os.ReadDir("/proc/self/fd"); err != nil || len(open) > limit+200 {
			t.Errorf("%d files are open: %v", len(open), err)
		}
		if got, err := s.peer().fetch("f", "octet", "blksize", "1428", "windowsize", "16"); err != nil || len(got) != 1<<20 {
			t.Fatalf("after %d files in the flood: %d bytes, %v", served, len(got), err)
		}
		served++
	}
	t.Logf("%d files of 1 MiB fetched during the flood", served)
}

// TestLoss: with every packet in danger both ways, all arrives, and windows
// make it quick: a gap is answered at once.
func TestLoss(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]Content{"f": pattern(200000)})
	want := make([]byte, 200000)
	_, _ = pattern(200000).ReadAt(want, 0)
	for _, c := range []struct {
		share  float64
		window string
		limit  time.Duration
	}{{0.01, "1", 10 * time.Second}, {0.01, "16", 3 * time.Second}, {0.05, "16", 8 * time.Second}, {0.05, "64", 8 * time.Second}} {
		t.Run(fmt.Sprintf("%g window %s", c.share, c.window), func(t *testing.T) {
			t.Parallel()
			wire := lossy(t, s.addr, c.share)
			p := s.peer()
			p.site = &site{addr: wire} // what it talks to
			began := time.Now()
			got, err := p.fetch("f", "octet", "blksize", "1428", "windowsize", c.window)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("got %d bytes, equal: %v, err %v", len(got), bytes.Equal(got, want), err)
			}
			if d := time.Since(began); d > c.limit {
				t.Errorf("it took %s", d)
			}
		})
	}
}

// lossy is a wire that loses a share of the packets in each direction. It
// takes transfers like a server, each on a port of its own.
func lossy(t testing.TB, server netip.AddrPort, share float64) netip.AddrPort {
	t.Helper()
	open := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Error(err)
		}
		return c
	}
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	send := func(c *net.UDPConn, p []byte, to netip.AddrPort) {
		mu.Lock()
		lost := r.Float64() < share
		mu.Unlock()
		if !lost {
			_, _ = c.WriteToUDPAddrPort(p, to)
		}
	}
	front := open()
	var conns []*net.UDPConn
	var wg sync.WaitGroup
	t.Cleanup(func() {
		front.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	pipe := func(from, to *net.UDPConn, dest func(from netip.AddrPort) netip.AddrPort) {
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, a, err := from.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if d := dest(a); d.IsValid() {
					send(to, buf[:n], d)
				}
			}
		})
	}
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		backs := map[netip.AddrPort]*net.UDPConn{}
		for {
			n, client, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			back := backs[client]
			if back == nil {
				near := open()
				back = open()
				backs[client] = back
				mu.Lock()
				conns = append(conns, near, back)
				mu.Unlock()
				var tid netip.AddrPort // the server's; guarded by mu
				pipe(back, near, func(a netip.AddrPort) netip.AddrPort {
					mu.Lock()
					defer mu.Unlock()
					tid = a
					return client
				})
				pipe(near, back, func(netip.AddrPort) netip.AddrPort {
					mu.Lock()
					defer mu.Unlock()
					return tid
				})
			}
			send(back, buf[:n], server)
		}
	})
	return front.LocalAddr().(*net.UDPAddr).AddrPort()
}
