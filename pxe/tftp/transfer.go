package tftp

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Before the client has acknowledged anything it may not exist, or be
	// somebody else: an answer is repeated twice, a second apart, and only while
	// all of it stays below a hundred times the request.
	unheardResends   = 2
	maxAmplification = 100

	// After that it is waited for patiently: GRUB acknowledges a block when it
	// has use for the next one.
	firstWait = time.Second
	leastWait = 200 * time.Millisecond
	patience  = 30 * time.Second

	// Netascii has another size than the file, so it is made in memory: enough
	// for the scripts it is of use for.
	maxNetascii = 16 << 10
)

var (
	errReplaced = errors.New("the client asked anew")
	errCrowded  = errors.New("gave way to newer requests, the client never answered")
	errSilent   = errors.New("the client is silent")
)

// transfer is one file on its way to one client.
type transfer struct {
	s      *Server
	asked  string // the whole request
	client netip.AddrPort
	conn   *net.UDPConn
	cancel context.CancelFunc // of Open
	began  time.Time

	request
	terms
	content Content
	size    int64

	// Blocks are numbered without end. Number 0 is the OACK, which is
	// acknowledged like a block; last is shorter than a whole block.
	base, last int64
	inFlight   int // blocks sent, from base on
	batch      int // blocks in one call of the kernel
	in         [128]byte

	again bool // something in flight was sent before
	fast  bool // an ACK without progress means that the first block is lost

	rtt     time.Duration
	resent  int
	sent    int // bytes, before the client was heard
	sendErr error

	silent atomic.Bool // sent again for want of an answer

	// Guarded by Server.mu; heard is written by run's goroutine only.
	heard   bool
	waiting *list.Element // in Server.unheard
	why     error
}

// stop ends run. Server.mu is held.
func (t *transfer) stop(why error) {
	if t.why != nil {
		return
	}
	t.why = why
	if e, ok := why.(*Error); ok && t.heard {
		t.tell(e)
	}
	t.cancel()
	t.conn.Close()
}

// tell sends an ERROR, once: it is not acknowledged.
func (t *transfer) tell(e *Error) { _, _ = t.conn.WriteToUDPAddrPort(e.packet(), t.client) }

// run sends the file and returns how that ended.
func (t *transfer) run(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			t.s.Log.Error("boot: TFTP transfer ended by a panic", "to", t.client, "panic", v, "stack", string(debug.Stack()))
			t.tell(errFailed)
			err = errFailed
		}
	}()
	if err := t.prepare(ctx); err != nil {
		t.tell(told(err))
		return err
	}
	for t.base <= t.last {
		if err := t.send(); err != nil {
			t.tell(errFailed)
			return err
		}
		if err := t.await(); err != nil {
			return err
		}
	}
	return nil
}

// prepare finds the content and agrees with the client on how it is sent.
func (t *transfer) prepare(ctx context.Context) error {
	c, err := t.s.Open(ctx, t.name, t.client)
	if err != nil {
		return err
	}
	if t.netascii {
		if c, err = toNetascii(c); err != nil {
			return err
		}
	}
	mtu := 1500
	if _, ok := t.value("blksize"); ok {
		mtu = pathMTU(t.client, mtu)
	}
	t.content, t.size = c, c.Size()
	t.terms = t.agree(t.size, mtu)
	t.last = t.size/int64(t.block) + 1
	if t.oack == nil {
		t.base = 1
	}
	t.batch = 1
	if t.window > 1 && t.block >= leastSegment {
		t.batch = segment(t.conn, 4+t.block)
	}
	return nil
}

// acked is how much of the content the client has.
func (t *transfer) acked() int64 {
	return min(t.size, max(0, t.base-1)*int64(t.block))
}

var buffers = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// send sends the window that starts at base.
func (t *transfer) send() error {
	if t.base == 0 {
		t.inFlight = 1
		t.write(t.oack, 1)
		return nil
	}
	t.inFlight = int(min(int64(t.window), t.last-t.base+1))
	buf := buffers.Get().(*[1 << 16]byte)
	defer buffers.Put(buf)
	for i := 0; i < t.inFlight; {
		n := min(t.batch, t.inFlight-i)
		p, err := t.fill(buf[:], t.base+int64(i), n)
		if err != nil {
			return err
		}
		if t.write(p, n) {
			i += n
		}
	}
	return nil
}

// fill writes n DATA packets, one behind the other.
func (t *transfer) fill(buf []byte, first int64, n int) ([]byte, error) {
	from := (first - 1) * int64(t.block)
	size := int(min(int64(n*t.block), t.size-from))
	// The content is read in one piece, behind the room for all headers, and
	// moved apart to the front.
	data := buf[4*n : 4*n+size]
	if size > 0 {
		if _, err := t.content.ReadAt(data, from); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	p := buf[:0]
	for i := range n {
		p = append(p, 0, opDATA, byte((first+int64(i))>>8), byte(first+int64(i)))
		b := data[:min(t.block, len(data))]
		p, data = append(p, b...), data[len(b):]
	}
	return p, nil
}

// write sends n packets in one call. It returns false if the kernel will not
// cut p into packets: then it must be called for each. Any other error is as
// good as a lost packet.
func (t *transfer) write(p []byte, n int) bool {
	_, err := t.conn.WriteToUDPAddrPort(p, t.client)
	if err != nil && n > 1 {
		t.batch = 1
		segment(t.conn, 0)
		return false
	}
	if err != nil {
		t.sendErr = err
	}
	if !t.heard {
		t.sent += len(p)
	}
	if t.again {
		t.resent += n
	}
	return true
}

// await returns when the client has acknowledged some of what is in flight;
// until then it sends it again when it is time to.
func (t *transfer) await() error {
	began := time.Now()
	wait := t.firstWait()
	deadline := began.Add(wait)
	for tries := 0; ; {
		_ = t.conn.SetReadDeadline(deadline)
		n, from, err := t.conn.ReadFromUDPAddrPort(t.in[:])
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return t.ended(err)
			}
			if tries++; t.givesUp(tries, deadline.Sub(began)) {
				return t.lost()
			}
			if t.timeout == 0 && t.heard {
				wait *= 2
			}
			deadline = deadline.Add(wait)
			t.silent.Store(true)
			if err := t.repeat(); err != nil {
				return err
			}
			continue
		}
		if from != t.client {
			// RFC 1350 section 4: the stranger is told, the transfer goes on.
			_, _ = t.conn.WriteToUDPAddrPort(errTID.packet(), from)
			continue
		}
		if n < 4 {
			continue
		}
		switch binary.BigEndian.Uint16(t.in[:]) {
		case opERROR:
			text, _, _ := bytes.Cut(t.in[4:n], []byte{0})
			return &ClientError{binary.BigEndian.Uint16(t.in[2:]), string(text)}
		case opACK:
		default:
			continue
		}
		acked := int(binary.BigEndian.Uint16(t.in[2:]) - uint16(t.base-1)) // blocks, across the wrap to 0
		switch {
		case acked > t.inFlight:
			continue // an old one, late
		case acked == 0:
			// With one block in flight this is the Sorcerer's Apprentice: an answer
			// to each of two equal ACKs doubles every packet to the end. In a window
			// it is also how a client says that the first block is lost (RFC 7440
			// section 4), and then waiting costs more than all the rest. So it is
			// believed once, and not again before a window has gone through clean.
			if !t.fast {
				continue
			}
			if err := t.repeat(); err != nil {
				return err
			}
			continue
		}
		if !t.heard {
			t.s.hears(t)
		}
		full := acked == t.inFlight
		if full && !t.again {
			t.measure(time.Since(began))
		}
		t.silent.Store(false)
		t.fast = full && !t.again && t.window > 1
		t.again = !full // what follows the gap was sent already
		t.base += int64(acked)
		return nil
	}
}

func (t *transfer) repeat() error {
	t.fast, t.again = false, true
	return t.send()
}

// firstWait is how long an answer may take before what is in flight is sent
// again: what the client asked for, else some round trips.
func (t *transfer) firstWait() time.Duration {
	switch {
	case t.timeout != 0:
		return t.timeout
	case t.rtt == 0:
		return firstWait
	}
	return min(firstWait, max(leastWait, 4*t.rtt))
}

func (t *transfer) measure(rtt time.Duration) {
	if t.rtt == 0 {
		t.rtt = rtt
		return
	}
	t.rtt += (rtt - t.rtt) / 8
}

func (t *transfer) givesUp(tries int, silence time.Duration) bool {
	if !t.heard {
		return tries > unheardResends || t.sent+t.sent/tries > maxAmplification*len(t.asked)
	}
	return silence >= max(patience, 6*t.timeout)
}

func (t *transfer) lost() error {
	if t.sendErr != nil {
		return fmt.Errorf("%w, and sending failed: %v", errSilent, t.sendErr)
	}
	return errSilent
}

// ended is why the connection was closed.
func (t *transfer) ended(err error) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.why != nil {
		return t.why
	}
	return err
}

// toNetascii puts content into the form of RFC 1350's netascii, for people who
// look at a script with a client that has it as default.
func toNetascii(c Content) (Content, error) {
	if c.Size() > maxNetascii {
		return nil, errTooLong
	}
	p := make([]byte, c.Size())
	if _, err := c.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := make([]byte, 0, len(p)+len(p)/16)
	for _, b := range p {
		switch b {
		case '\n':
			out = append(out, '\r', '\n')
		case '\r':
			out = append(out, '\r', 0)
		default:
			out = append(out, b)
		}
	}
	return bytes.NewReader(out), nil
}
