package pxe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// web serves s on loopback with limits that a test can wait for.
type web struct {
	t    testing.TB
	addr string
	l    *limiter
}

func serveWeb(t testing.TB, s *Server, change func(*http.Server, *limiter)) *web {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(ln).(*limiter)
	srv := HTTPServer(s.Handler())
	if change != nil {
		change(srv, l)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.conns) != 0 || len(l.clients) != 0 {
			t.Errorf("%d connections of %d clients are still counted", len(l.conns), len(l.clients))
		}
	})
	return &web{t, ln.Addr().String(), l}
}

// dial connects from one of the many addresses of loopback, which stand for
// many machines.
func (w *web) dial(from string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second,
		// Segments as on Ethernet and a buffer as in firmware: a receiver opens
		// its window in steps of one segment, which on loopback are 64 kB.
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1460)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)
			})
		}}
	c, err := d.Dial("tcp4", w.addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// bigFile serves a file of so many bytes as big.
func bigFile(t testing.TB, s *Server, size int) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(p, bytes.Repeat([]byte{'x'}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.files.AddFile("big", p); err != nil {
		t.Fatal(err)
	}
}

// TestSlowloris: 2,000 connections that each send a header now and then, from
// one machine or from many, do not keep another one from its file, and are cut.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	s := testServer(t, tableBooter{})
	w := serveWeb(t, s, func(srv *http.Server, _ *limiter) { srv.ReadHeaderTimeout = 3 * time.Second })
	const attackers = 2000
	var conns []net.Conn
	for i := range attackers {
		from := "127.0.1.1"
		if i%2 == 0 {
			from = fmt.Sprintf("127.0.2.%d", 1+i/2%50) // 20 connections each
		}
		c, err := w.dial(from)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // refused before we even knew
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\n"); err == nil {
			conns = append(conns, c)
		}
	}
	// The whole time, not only after.
	dripped := make(chan struct{})
	go func() {
		defer close(dripped)
		for range 8 {
			for _, c := range conns {
				_, _ = io.WriteString(c, "X-A: b\r\n")
			}
			time.Sleep(400 * time.Millisecond)
		}
	}()
	for range 10 {
		began := time.Now()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		r, err := client.Get("http://" + w.addr + "/boot/file/vmlinuz")
		if err != nil {
			t.Fatalf("a machine got no file beside the attack: %v", err)
		}
		if got := body(t, r); got != "content of vmlinuz" || r.StatusCode != 200 {
			t.Fatalf("a machine got %d %q", r.StatusCode, got)
		}
		if took := time.Since(began); took > 2500*time.Millisecond {
			t.Errorf("a machine waited %s for a small file", took)
		}
	}
	w.l.mu.Lock()
	if got := w.l.clients[netip.MustParseAddr("127.0.1.1")]; got > webPerClient {
		t.Errorf("one attacker holds %d connections", got)
	}
	w.l.mu.Unlock()
	<-dripped
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w.l.mu.Lock()
		left := len(w.l.conns)
		w.l.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections without a request are still open", left)
		}
	}
}

// TestManyClients: the limit on all clients holds, and a place is free again
// once somebody leaves.
func TestManyClients(t *testing.T) {
	s := testServer(t, tableBooter{})
	w := serveWeb(t, s, func(_ *http.Server, l *limiter) { l.all = 3 })
	ask := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, "GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	var conns []net.Conn
	for i := range 4 {
		c, err := w.dial(fmt.Sprintf("127.0.3.%d", 1+i))
		if err == nil {
			defer c.Close()
			conns = append(conns, c)
			err = ask(c)
		}
		if (err == nil) != (i < 3) {
			t.Fatalf("client %d of 3: %v", i+1, err)
		}
	}
	conns[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := w.dial("127.0.3.9")
		if err == nil {
			err = ask(c)
			c.Close()
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no place although one left: %v", err)
		}
	}
}

// TestSlowReader: who takes nothing is cut, and who takes a little now and then
// to stay; who is only slow is not.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	s := testServer(t, tableBooter{})
	bigFile(t, s, 64<<20) // more than the kernel keeps for a client
	// A second here is half a minute there: who takes 150 kB in it, as at
	// 50 kB/s would take ten times that, is slow and honest.
	w := serveWeb(t, s, func(_ *http.Server, l *limiter) { l.stall, l.least = time.Second, 32<<10 })
	start := func(from string) net.Conn {
		c, err := w.dial(from)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /boot/file/big HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const slow, none, drop = "127.0.4.1", "127.0.4.2", "127.0.4.3"
	slowly, dropwise := start(slow), start(drop)
	start(none)
	cut := map[string]bool{}
	buf := make([]byte, 15000)
	for deadline := time.Now().Add(20 * time.Second); !cut[none] || !cut[drop]; time.Sleep(100 * time.Millisecond) {
		if _, err := io.ReadFull(slowly, buf); err != nil {
			t.Fatalf("the slow reader was cut: %v", err)
		}
		_, _ = dropwise.Read(buf[:2000])
		w.l.mu.Lock()
		for _, c := range []string{none, drop} {
			cut[c] = w.l.clients[netip.MustParseAddr(c)] == 0
		}
		left := w.l.clients[netip.MustParseAddr(slow)]
		w.l.mu.Unlock()
		if left != 1 {
			t.Fatal("the slow reader was cut")
		}
		if time.Now().After(deadline) {
			t.Fatalf("still connected although they take nothing: %v", cut)
		}
	}
	for range 20 { // two more sweeps
		if _, err := io.ReadFull(slowly, buf); err != nil {
			t.Fatalf("the slow reader was cut: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// readsFrom is a listener whose connections tell what they were given to send.
type readsFrom struct {
	net.Listener
	sent *sync.Map
}

type readFromConn struct {
	*limitedConn
	sent *sync.Map
}

func (l readsFrom) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return readFromConn{c.(*limitedConn), l.sent}, nil
}

func (c readFromConn) ReadFrom(r io.Reader) (int64, error) {
	kind := fmt.Sprintf("%T", r)
	if lr, ok := r.(*io.LimitedReader); ok {
		kind = fmt.Sprintf("%T of %T", r, lr.R)
	}
	n, err := c.limitedConn.ReadFrom(r)
	c.sent.Store(kind, n)
	return n, err
}

// TestSendfile: net/http hands an open file to the connection, in the form in
// which package net lets the kernel copy it.
func TestSendfile(t *testing.T) {
	s := testServer(t, tableBooter{})
	const size = 1 << 20
	bigFile(t, s, size)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sent sync.Map
	srv := HTTPServer(s.Handler())
	go func() { _ = srv.Serve(readsFrom{Limit(ln), &sent}) }()
	defer srv.Close()
	for _, r := range []string{"", "bytes=1000-500999"} {
		req, _ := http.NewRequest("GET", "http://"+ln.Addr().String()+"/boot/file/big", nil)
		want := size
		if r != "" {
			req.Header.Set("Range", r)
			want = 500000
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(body(t, resp)); got != want || resp.ContentLength != int64(want) {
			t.Errorf("range %q: %d bytes and Content-Length %d", r, got, resp.ContentLength)
		}
		// All but what net/http looks at for a type, or nothing of it.
		var n any
		for range 100 { // the client has its bytes before the server has counted them
			if n, _ = sent.Load("*io.LimitedReader of *os.File"); n != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if n, _ := n.(int64); n < int64(want)-1024 {
			var other []string
			sent.Range(func(k, v any) bool { other = append(other, fmt.Sprint(k, ": ", v)); return true })
			t.Errorf("range %q: %d of %d bytes were sent as a file; all: %v", r, n, want, other)
		}
		sent.Clear()
	}
}

// oddRequests are what firmware, scanners and attackers send.
var oddRequests = []struct {
	request string
	status  int
}{
	{"GET /boot/file/vmlinuz HTTP/1.0\r\n\r\n", 200},
	{"GET http://elsewhere/boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"GET //boot//file///VMLINUZ HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"GET /boot/file/%76mlinuz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"GET /boot/file\\vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"HEAD /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=2-5\r\n\r\n", 206},
	{"GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=2-5,0-1,-3\r\n\r\n", 206},
	{"GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=99999999999999999999-\r\n\r\n", 416},
	{"GET /boot/file/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"GET /boot/file/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"GET /boot/file/..\\..\\etc\\passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"GET /boot/file/vmlinuz%00.txt HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"GET /boot/file/%ff%fe%0d%0aX: HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"GET /boot/file/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 404},
	{"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"CONNECT 10.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
	{"POST /boot/script HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nmac=", 400},
	{"GET /boot/script?mac=52:54:00:00:00:01 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx", 400},
	{"GET /boot/script?mac=52:54:00:00:00:01&uuid=%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"GET /boot/script?mac=a&uuid=b;c%gg HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	{"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 405},
}

// TestOddRequests: each gets one whole answer over a real connection, whose
// length is what it says, and is never a redirect, which firmware does not
// follow.
func TestOddRequests(t *testing.T) {
	s := testServer(t, tableBooter{})
	w := serveWeb(t, s, nil)
	long := strings.Repeat("a", webHeaderSize+8192)
	all := slices.Clone(oddRequests)
	for _, request := range []string{"GET /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nX: " + long + "\r\n\r\n"} {
		all = append(all, struct {
			request string
			status  int
		}{request, http.StatusRequestHeaderFieldsTooLarge})
	}
	for _, c := range all {
		conn, err := w.dial("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, c.request)
		_ = conn.CloseWrite()
		method, _, _ := strings.Cut(c.request, " ")
		r, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			t.Errorf("%.60q: no answer: %v", c.request, err)
			conn.Close()
			continue
		}
		b, err := io.ReadAll(r.Body)
		conn.Close()
		if err != nil || r.StatusCode != c.status || bytes.Contains(b, []byte("root:")) {
			t.Errorf("%.60q: %d, %d bytes, %v; want %d", c.request, r.StatusCode, len(b), err, c.status)
		}
	}
}

// TestBodyIsCut: a request with a body that trickles does not hold a place.
func TestBodyIsCut(t *testing.T) {
	s := testServer(t, tableBooter{})
	w := serveWeb(t, s, nil)
	c, err := w.dial("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /boot/file/vmlinuz HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		t.Errorf("%v, %.80q: want an answer and the end of the connection", err, answer)
	}
}

// FuzzHTTP gives the handler whatever net/http takes for a request: it answers
// with what is served, with a script of our form, or with a refusal.
func FuzzHTTP(f *testing.F) {
	for _, r := range oddRequests {
		f.Add([]byte(r.request))
	}
	s := testServer(f, tableBooter{"": {Action: Hold, Why: "fuzz"}})
	h := bodiless(s.Handler())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		r.RemoteAddr = "10.77.0.11:1234"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Body.String()
		switch w.Code {
		case 200, 206:
			if r.Method != "GET" && r.Method != "HEAD" {
				t.Fatalf("%s was answered", r.Method)
			}
			if strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
				if r.Method == "GET" {
					checkScript(t, got)
				}
				return
			}
			if w.Code == 200 && r.Method == "GET" && !strings.HasPrefix(got, "content of ") {
				t.Fatalf("something that is not served: %q", got)
			}
		case 304, 400, 404, 405, 412, 416:
		default:
			t.Fatalf("status %d: %q", w.Code, got)
		}
		for name, values := range w.Header() {
			for _, v := range values {
				if strings.ContainsAny(name+v, "\r\n\x00") {
					t.Fatalf("header %q: %q", name, v)
				}
			}
		}
	})
}

// TestWebHall: a hall of 5,000 machines with two connections each is let in.
func TestWebHall(t *testing.T) {
	l := Limit(nil).(*limiter)
	l.closed = true // nothing is swept
	for i := range 10000 {
		if !l.enter(&limitedConn{l: l, client: netip.AddrFrom4([4]byte{10, 77, byte(i / 2 / 250), byte(i / 2 % 250)})}) {
			t.Fatalf("connection %d is refused", i)
		}
	}
}

// A connection is corked while a file goes out and not a moment longer: what
// stays corked waits for 200 ms.
func TestCork(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	srv := HTTPServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		state := func() {
			raw, err := r.Context().Value(connKey{}).(*limitedConn).SyscallConn()
			if err != nil {
				t.Error(err)
				return
			}
			_ = raw.Control(func(fd uintptr) {
				v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK)
				if err != nil {
					t.Error(err)
				}
				got = append(got, v)
			})
		}
		uncork := cork(r)
		state()
		uncork()
		state()
	}))
	go func() { _ = srv.Serve(Limit(ln)) }()
	defer srv.Close()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !slices.Equal(got, []int{1, 0}) {
		t.Errorf("TCP_CORK was %v, want 1 and then 0", got)
	}
}
