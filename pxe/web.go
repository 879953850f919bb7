package pxe

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Boot HTTP is open to every machine of a network, also to one that stops in
// the middle of a request, that never reads what it asked for, or that means
// harm. None of them may cost another machine its boot.
const (
	// A request line and its headers arrive in one packet from any firmware.
	webHeaderTime = 10 * time.Second
	webHeaderSize = 16 << 10
	webIdleTime   = 30 * time.Second

	// A client that in so long does not take so much of what waits for it is
	// gone. There is no limit on a whole answer: a BMC's virtual NIC that moves
	// 50 kB/s is slow and honest.
	webStallTime  = 30 * time.Second
	webStallBytes = 64 << 10

	// iPXE and firmware use one connection or two, the agent a few more for
	// the chunks of an image; a hundred rigs can stand behind one NAT.
	webClients   = 16384 // a hall of 5,000, and what an attacker takes of it
	webPerClient = 256
)

// HTTPServer is how h, which only reads, is served to machines. Give it a
// listener from Limit.
func HTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           bodiless(h),
		ReadHeaderTimeout: webHeaderTime,
		// Not ReadTimeout: it ends the request's context while a long answer is
		// still on its way.
		IdleTimeout:    webIdleTime,
		ConnContext:    func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		MaxHeaderBytes: webHeaderSize,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // whoever talks nonsense must not fill the disk
	}
}

// connKey finds the connection in the context of its requests.
type connKey struct{}

// cork makes the kernel send full packets only, until the function that it
// returns is called: headers leave with the file behind them, and no piece of a
// sendfile ends in a small packet (TCP_CORK in tcp(7), nginx's tcp_nopush). A
// file of 100 MiB arrives a tenth sooner. Not for HTTPS, whose records are its own.
func cork(r *http.Request) (uncork func()) {
	c, ok := r.Context().Value(connKey{}).(*limitedConn)
	if !ok {
		return func() {}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return func() {}
	}
	set := func(v int) {
		// Without it all arrives as well.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, v) })
	}
	set(1)
	return func() { set(0) }
}

// bodiless refuses a request that carries a body: nothing here reads one, and
// net/http would wait for the rest of it before the next request.
func bodiless(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now())
			w.Header().Set("Connection", "close")
			http.Error(w, "a request with a body: nothing here takes one", http.StatusBadRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Limit bounds the connections of ln: of each client, of all, and the time in
// which a client takes nothing.
func Limit(ln net.Listener) net.Listener {
	return &limiter{Listener: ln, all: webClients, each: webPerClient, stall: webStallTime, least: webStallBytes,
		clients: make(map[netip.Addr]int), conns: make(map[*limitedConn]struct{})}
}

type limiter struct {
	net.Listener
	all, each int
	stall     time.Duration // within it
	least     uint64        // a client takes so much

	mu      sync.Mutex
	clients map[netip.Addr]int
	conns   map[*limitedConn]struct{}
	sweeper *time.Timer // nil before the first connection
	closed  bool
}

// Accept returns the next connection within the limits; others are closed at
// once, which tells an honest client to come again.
func (l *limiter) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t, ok := c.(*net.TCPConn)
		if !ok {
			return c, nil // a socket that somebody else opened for us, not a network
		}
		lc := &limitedConn{TCPConn: t, l: l, client: t.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}
		if l.enter(lc) {
			return lc, nil
		}
		reset(t)
	}
}

// reset ends a connection of which nothing stays, not even in the kernel.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

func (l *limiter) enter(c *limitedConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= l.all || l.clients[c.client] >= l.each {
		return false
	}
	l.conns[c] = struct{}{}
	l.clients[c.client]++
	if l.sweeper == nil && !l.closed {
		l.sweeper = time.AfterFunc(l.stall, l.sweep)
	}
	return true
}

func (l *limiter) leave(c *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	if l.clients[c.client]--; l.clients[c.client] == 0 {
		delete(l.clients, c.client)
	}
}

// sweep cuts who takes too little, and comes again.
func (l *limiter) sweep() {
	l.mu.Lock()
	conns := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range conns {
		if c.stalled() {
			l.leave(c)
			reset(c.TCPConn)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.sweeper.Reset(l.stall)
	}
}

// Close stops the listener. Connections go on; whoever serves them ends them.
func (l *limiter) Close() error {
	l.mu.Lock()
	l.closed = true
	if l.sweeper != nil {
		l.sweeper.Stop()
	}
	l.mu.Unlock()
	return l.Listener.Close()
}

// limitedConn is a connection that counts until it is closed. Nothing stands
// between it and the connection in it, so that a file goes from disk to
// network without us (sendfile), and progress is asked of the kernel. (Its own
// TCP_USER_TIMEOUT would spare the sweeps, but one byte now and then satisfies it.)
type limitedConn struct {
	*net.TCPConn
	l      *limiter
	client netip.Addr

	// At the last sweep, and of the sweeper alone.
	queued uint64 // waited to be taken
	taken  uint64 // since the beginning
}

// stalled reports whether, of what waited at the last call, the client still
// has not taken enough.
func (c *limitedConn) stalled() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var queued, taken uint64
	ok := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		q, err2 := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
		if err == nil && err2 == nil {
			queued, taken, ok = uint64(q), info.Bytes_acked, true
		}
	})
	stalled := ok && c.queued > 0 && taken < c.taken+min(c.queued, c.l.least)
	c.queued, c.taken = queued, taken
	return stalled
}

func (c *limitedConn) Close() error {
	c.l.leave(c)
	return c.TCPConn.Close()
}
