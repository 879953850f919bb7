// Package tftp sends files to firmware by TFTP: read requests of RFC 1350 with
// the options of RFC 2347, 2348 (blksize), 2349 (timeout, tsize) and 7440
// (windowsize). It keeps no files and knows no client: what is sent, and to
// whom, is asked of two functions.
//
// Anybody can put anybody's address on a request, so what one datagram can
// cause is bounded: the number of transfers for an address and in all, how
// often an answer is repeated before the client has acknowledged anything, and
// the bytes of that answer against the bytes of the request.
package tftp

import (
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

const (
	defaultPerClient = 4
	defaultTransfers = 4096

	// How long a client may take for its first ACK when everybody wants its place.
	unheardAge = 500 * time.Millisecond

	// A hall that is switched on asks all at once, and Linux's default buffer
	// holds some 280 requests.
	requestBuffer = 4 << 20
)

// Content is what a name stands for. *bytes.Reader and *io.SectionReader are
// Contents; it is read from one goroutine.
type Content interface {
	io.ReaderAt
	Size() int64
}

// Server answers read requests. Allow, Open, Done and Log must be set.
type Server struct {
	// Allow reports whether a client is served at all. It is asked for every
	// request before anything else, and must not block.
	Allow func(netip.Addr) bool
	// Open returns the content of name. A client is told an *Error as it is, and
	// nothing of any other error. A slow one holds up its own transfer only.
	Open func(ctx context.Context, name string, client netip.AddrPort) (Content, error)
	// Done is told how each request ended, by several goroutines at once.
	Done func(Transfer)
	Log  *slog.Logger

	PerClient int // transfers of one address at once; 0: 4
	Transfers int // transfers at once; 0: 4096

	mu      sync.Mutex
	active  map[netip.AddrPort]*transfer // by the client's transfer identifier
	clients map[netip.Addr][]*transfer
	unheard list.List // of *transfer whose client has acknowledged nothing yet, oldest first
	running sync.WaitGroup
}

// Transfer is how a request ended.
type Transfer struct {
	Client netip.AddrPort
	Name   string // as asked: hostile
	Size   int64  // of the content
	Acked  int64  // bytes of it that the client has
	Block  int    // bytes
	Window int    // blocks
	Resent int    // datagrams sent more than once
	Took   time.Duration
	Err    error // nil: the client has all. *Error: what it was told. *ClientError: what it told us.
}

// Serve answers requests on conn, an IPv4 socket, until ctx ends; then it
// tells running transfers, and closes conn. It is called once.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	defer s.running.Wait()
	defer conn.Close()
	s.mu.Lock()
	s.active = make(map[netip.AddrPort]*transfer)
	s.clients = make(map[netip.Addr][]*transfer)
	s.mu.Unlock()
	growBuffer(conn, requestBuffer)
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, t := range s.active {
			t.stop(errStopped)
		}
	})
	defer stop()
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		s.answer(ctx, conn, buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// answer starts a transfer or refuses it. Each packet is answered with one at
// most, and an ERROR never, so two servers cannot keep each other busy.
func (s *Server) answer(ctx context.Context, conn *net.UDPConn, p []byte, client netip.AddrPort) {
	defer func() {
		if v := recover(); v != nil {
			s.Log.Error("boot: TFTP request dropped after a panic", "from", client, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	if len(p) < 2 {
		return
	}
	var r request
	refuse := func(err error) {
		_, _ = conn.WriteToUDPAddrPort(told(err).packet(), client)
		s.Done(Transfer{Client: client, Name: r.name, Err: err})
	}
	switch op := binary.BigEndian.Uint16(p); {
	case op >= opDATA && op <= opOACK:
		return // of no transfer, or of one that is over: ours have their own ports
	case !s.Allow(client.Addr()):
		refuse(ErrAccess)
		return
	case op == opWRQ:
		refuse(ErrReadOnly)
		return
	case op != opRRQ:
		refuse(errIllegal)
		return
	}
	var err error
	if r, err = parse(p[2:]); err != nil {
		refuse(err)
		return
	}
	t := &transfer{s: s, request: r, asked: string(p), client: client, began: time.Now()}
	ctx, err = s.enter(ctx, t, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		if !errors.Is(err, errDropped) {
			refuse(err)
		}
		return
	}
	go func() {
		defer s.running.Done()
		err := t.run(ctx)
		s.leave(t)
		s.Done(Transfer{
			Client: client, Name: r.name, Size: t.size, Acked: t.acked(), Block: t.block, Window: t.window,
			Resent: t.resent, Took: time.Since(t.began), Err: err,
		})
	}()
}

var errDropped = errors.New("dropped")

// enter makes room for t, opens its port, which is its transfer identifier (RFC
// 1350 section 4), and returns the context it lives in.
//
// Where there is no room, the oldest transfer gives way whose client has not
// acknowledged anything: a flood of made-up requests pushes itself out and
// leaves those alone who are really there. If even that one is young, the
// request is dropped: a client asks again, and gives up when told an error.
// Among its own transfers a client also takes the place of a silent one.
func (s *Server) enter(ctx context.Context, t *transfer, local *net.UDPAddr) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return nil, errDropped
	}
	if old, ok := s.active[t.client]; ok {
		// A client repeats a request when the answer is late, and that one is on
		// its way. Another question from the same port, or the same after the
		// transfer fell silent, comes from a machine that has started again.
		if old.asked == t.asked && !(old.heard && old.silent.Load()) {
			return nil, errDropped
		}
		s.drop(old, errReplaced)
	}
	mine := s.clients[t.client.Addr()]
	if len(mine) >= cmp.Or(s.PerClient, defaultPerClient) {
		i := slices.IndexFunc(mine, func(o *transfer) bool { return !o.heard || o.silent.Load() })
		if i < 0 {
			return nil, ErrBusy
		}
		s.drop(mine[i], errCrowded)
	}
	if len(s.active) >= cmp.Or(s.Transfers, defaultTransfers) {
		oldest := s.unheard.Front()
		if oldest == nil {
			return nil, ErrBusy
		}
		old := oldest.Value.(*transfer)
		if t.began.Sub(old.began) < unheardAge {
			return nil, errDropped
		}
		s.drop(old, errCrowded)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: local.IP})
	if err != nil {
		return nil, fmt.Errorf("no port for a transfer: %v", err)
	}
	t.conn = conn
	s.active[t.client] = t
	s.clients[t.client.Addr()] = append(s.clients[t.client.Addr()], t)
	t.waiting = s.unheard.PushBack(t)
	s.running.Add(1)
	ctx, t.cancel = context.WithCancel(ctx)
	return ctx, nil
}

// hears notes that t's client is really there.
func (s *Server) hears(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.heard {
		t.heard = true
		s.unheard.Remove(t.waiting)
	}
}

func (s *Server) leave(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(t, net.ErrClosed)
}

// drop ends t, whose place is free at once.
func (s *Server) drop(t *transfer, why error) {
	t.stop(why)
	if s.active[t.client] != t {
		return
	}
	delete(s.active, t.client)
	if !t.heard {
		s.unheard.Remove(t.waiting)
	}
	a := t.client.Addr()
	if s.clients[a] = slices.DeleteFunc(s.clients[a], func(o *transfer) bool { return o == t }); len(s.clients[a]) == 0 {
		delete(s.clients, a)
	}
}
