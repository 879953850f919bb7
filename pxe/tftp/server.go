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

	tick = 50 * time.Millisecond // between two looks for clients that fell silent
)

// Content is what a name stands for: a *bytes.Reader, or an *io.SectionReader
// of an open file.
type Content interface {
	io.ReaderAt
	Size() int64
}

// Server answers read requests. Allow, Open, Done and Log must be set. All
// functions are called by one goroutine, in the middle of everybody's
// transfers: they must not block.
type Server struct {
	// Allow reports whether a client is served at all. It is asked for every
	// request before anything else.
	Allow func(netip.Addr) bool
	// Open returns the content of name. A client is told an *Error as it is, and
	// nothing of any other error.
	Open func(name string, client netip.AddrPort) (Content, error)
	// Done is told how each request ended.
	Done func(Transfer)
	Log  *slog.Logger

	PerClient int // transfers of one address at once; 0: 4
	Transfers int // transfers at once; 0: 4096

	conn    *net.UDPConn
	poll    *poll
	active  map[netip.AddrPort]*transfer // by the client's transfer identifier
	sockets map[socket]*transfer
	clients map[netip.Addr][]*transfer
	out     *[1 << 16]byte // what is being sent
	unheard list.List      // of *transfer whose client has acknowledged nothing yet, oldest first
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

// Serve answers requests on conn, which has an address of ours, until ctx ends; then it
// tells running transfers, and closes conn. It is called once.
//
// One goroutine does it all, from one wait in the kernel for every socket. A
// client with one block in flight is as fast as the way from its ACK to the
// next block is short; over the scheduler of Go that way is twice as long.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	defer conn.Close()
	s.conn = conn
	s.active = make(map[netip.AddrPort]*transfer)
	s.sockets = make(map[socket]*transfer)
	s.out = new([1 << 16]byte)
	s.clients = make(map[netip.Addr][]*transfer)
	requests, err := descriptor(conn, requestBuffer)
	if err != nil {
		return err
	}
	if s.poll, err = openPoll(); err != nil {
		return err
	}
	defer s.poll.close()
	if err := s.poll.add(requests); err != nil {
		return err
	}
	defer func() {
		for _, t := range s.active {
			if t.heard {
				t.tell(errStopped)
			}
			s.end(t, errStopped)
		}
	}()
	stop := context.AfterFunc(ctx, s.poll.wake)
	defer stop()
	buf := make([]byte, 2048)
	looked := time.Now()
	for {
		wait := time.Duration(-1)
		if len(s.active) > 0 {
			wait = tick
		}
		ready, err := s.poll.wait(wait)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		for _, e := range ready {
			from := socket(e.Fd)
			n, client, err := from.receive(buf)
			if err != nil {
				continue // of one that is closed, or nothing after all
			}
			if from == requests {
				s.request(now, buf[:n], client)
			} else if t := s.sockets[from]; t != nil {
				s.advance(t, func() error { return t.receive(now, buf[:n], client) })
			}
		}
		if now.Sub(looked) >= tick {
			looked = now
			for _, t := range s.active {
				if !now.Before(t.deadline) {
					s.advance(t, func() error { return t.late(now) })
				}
			}
		}
	}
}

// errGoesOn is returned by what moves a transfer on that is not over.
var errGoesOn = errors.New("transfer goes on")

// advance lets step move t on, and ends t where that ends it.
func (s *Server) advance(t *transfer, step func() error) {
	defer func() {
		if v := recover(); v != nil {
			s.Log.Error("boot: TFTP transfer ended by a panic", "client", t.client, "panic", v, "stack", string(debug.Stack()))
			t.tell(errFailed)
			s.end(t, errFailed)
		}
	}()
	if err := step(); !errors.Is(err, errGoesOn) {
		s.end(t, err)
	}
}

// request starts a transfer or refuses it. Each packet is answered with one at
// most, and an ERROR never, so two servers cannot keep each other busy.
func (s *Server) request(now time.Time, p []byte, client netip.AddrPort) {
	if len(p) < 2 {
		return
	}
	var r request
	err := func() (err error) {
		defer func() {
			if v := recover(); v != nil {
				s.Log.Error("boot: TFTP request refused after a panic", "client", client, "panic", v, "stack", string(debug.Stack()))
				err = errFailed
			}
		}()
		switch op := binary.BigEndian.Uint16(p); {
		case op >= opDATA && op <= opOACK:
			return errDropped // of no transfer, or of one that is over: ours have their own ports
		case !s.Allow(client.Addr()):
			return ErrAccess
		case op == opWRQ:
			return ErrReadOnly
		case op != opRRQ:
			return errIllegal
		}
		if r, err = parse(p[2:]); err != nil {
			return err
		}
		c, err := s.Open(r.name, client)
		if err != nil {
			return err
		}
		t := &transfer{request: r, asked: string(p), client: client, to: sockaddr(client), out: s.out, began: now}
		if err := t.agree(c); err != nil {
			return err
		}
		if err := s.enter(t); err != nil {
			return err
		}
		s.advance(t, func() error { return t.start(now) })
		return nil
	}()
	if err != nil && !errors.Is(err, errDropped) {
		_, _ = s.conn.WriteToUDPAddrPort(told(err).packet(), client)
		s.Done(Transfer{Client: client, Name: r.name, Err: err})
	}
}

var errDropped = errors.New("dropped")

// makeRoom finds a place for t.
//
// Where there is none, the oldest transfer gives way whose client has not
// acknowledged anything: a flood of made-up requests pushes itself out and
// leaves those alone who are really there. If even that one is young, the
// request is dropped: a client asks again, and gives up when told an error.
// Among its own transfers a client also takes the place of a silent one.
func (s *Server) makeRoom(t *transfer) error {
	if old, ok := s.active[t.client]; ok {
		// A client repeats a request when the answer is late, and that one is on
		// its way. Another question from the same port, or the same after the
		// transfer fell silent, comes from a machine that has started again.
		if old.asked == t.asked && !(old.heard && old.silent) {
			s.advance(old, func() error { return old.repeated(t.began) })
			return errDropped
		}
		s.end(old, errReplaced)
	}
	mine := s.clients[t.client.Addr()]
	if len(mine) >= cmp.Or(s.PerClient, defaultPerClient) {
		i := slices.IndexFunc(mine, func(o *transfer) bool { return !o.heard || o.silent })
		if i < 0 {
			return ErrBusy
		}
		s.end(mine[i], errCrowded)
	}
	if len(s.active) >= cmp.Or(s.Transfers, defaultTransfers) {
		oldest := s.unheard.Front()
		if oldest == nil {
			return ErrBusy
		}
		old := oldest.Value.(*transfer)
		if t.began.Sub(old.began) < unheardAge {
			return errDropped
		}
		s.end(old, errCrowded)
	}
	return nil
}

// enter takes t in, and opens its port.
func (s *Server) enter(t *transfer) (err error) {
	if err := s.makeRoom(t); err != nil {
		return err
	}
	local := s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	if t.socket, err = openSocket(local); err != nil {
		return fmt.Errorf("no port for a transfer: %v", err)
	}
	if err := s.poll.add(t.socket); err != nil {
		t.socket.close()
		return fmt.Errorf("no port for a transfer: %v", err)
	}
	t.batch = 1
	if t.window > 1 && t.block >= leastSegment {
		t.batch = t.socket.segment(4 + t.block)
	}
	s.active[t.client] = t
	s.sockets[t.socket] = t
	a := t.client.Addr()
	s.clients[a] = append(s.clients[a], t)
	waiting := s.unheard.PushBack(t)
	t.hears = func() { s.unheard.Remove(waiting) }
	return nil
}

// end forgets t, whose place is free at once. It may be called twice.
func (s *Server) end(t *transfer, why error) {
	if s.active[t.client] != t {
		return
	}
	delete(s.active, t.client)
	delete(s.sockets, t.socket)
	t.hears()
	t.socket.close()
	a := t.client.Addr()
	if s.clients[a] = slices.DeleteFunc(s.clients[a], func(o *transfer) bool { return o == t }); len(s.clients[a]) == 0 {
		delete(s.clients, a)
	}
	s.Done(Transfer{
		Client: t.client, Name: t.name, Size: t.size, Acked: t.acked(), Block: t.block, Window: t.window,
		Resent: t.resent, Took: time.Since(t.began), Err: why,
	})
}
