package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Before the client has acknowledged anything it may not exist, or be
	// somebody else: an answer is repeated twice, and only while all of it stays
	// below a hundred times the request.
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
	asked  string // the whole request
	client netip.AddrPort
	to     unix.Sockaddr // the same
	socket socket        // its port is the transfer identifier (RFC 1350 section 4)
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
	out        *[1 << 16]byte

	again bool // something in flight was sent before
	fast  bool // an ACK without progress means that the first block is lost

	sent     time.Time // when what is in flight was sent first
	deadline time.Time // when it is sent again
	tries    int       // times that it was
	rtt      time.Duration

	heard  bool   // the client is really there
	hears  func() // called once it is, and at the end
	silent bool   // sent again for want of an answer

	resent  int
	paid    int // bytes of the request, and of its repetitions
	answer  int // bytes of the first answer
	bytes   int // sent before the client was heard
	sendErr error
}

// agree settles with the client how c is sent.
func (t *transfer) agree(c Content) (err error) {
	if t.netascii {
		if c, err = toNetascii(c); err != nil {
			return err
		}
	}
	mtu := 1500
	if _, ok := t.value("blksize"); ok {
		mtu = pathMTU(t.to, mtu)
	}
	t.content, t.size = c, c.Size()
	t.terms = t.request.agree(t.size, mtu)
	t.last = t.size/int64(t.block) + 1
	if t.oack == nil {
		t.base = 1
	}
	return nil
}

func (t *transfer) tell(e *Error) { _ = t.socket.send(e.packet(), t.to) }

// acked is how much of the content the client has.
func (t *transfer) acked() int64 {
	return min(t.size, max(0, t.base-1)*int64(t.block))
}

// start sends the first answer.
func (t *transfer) start(now time.Time) error {
	t.paid, t.sent, t.deadline = len(t.asked), now, now.Add(t.wait())
	err := t.send()
	t.answer = t.bytes
	return err
}

// repeated takes a request that came again. The answer to it may be lost, or
// late; who asks again soon is in a hurry.
func (t *transfer) repeated(now time.Time) error {
	t.paid += len(t.asked)
	if t.heard || now.Sub(t.sent) < leastWait {
		return errGoesOn
	}
	t.sent, t.deadline = now, now.Add(t.wait())
	return t.repeat()
}

// receive takes a packet from anybody.
func (t *transfer) receive(now time.Time, p []byte, from netip.AddrPort) error {
	if from != t.client {
		// RFC 1350 section 4: the stranger is told, the transfer goes on. An ERROR
		// is answered by nobody (section 7): two servers, or two transfers of ours,
		// would tell each other without end.
		if len(p) >= 4 && binary.BigEndian.Uint16(p) != opERROR {
			_ = t.socket.send(errTID.packet(), sockaddr(from))
		}
		return errGoesOn
	}
	if len(p) < 4 {
		return errGoesOn
	}
	switch n := binary.BigEndian.Uint16(p[2:]); binary.BigEndian.Uint16(p) {
	case opERROR:
		text, _, _ := bytes.Cut(p[4:], []byte{0})
		return &ClientError{n, string(text)}
	case opACK:
		return t.ack(now, n)
	}
	return errGoesOn
}

func (t *transfer) ack(now time.Time, block uint16) error {
	n := int(block - uint16(t.base-1)) // blocks that it acknowledges, across the wrap to 0
	switch {
	case n > t.inFlight:
		return errGoesOn // an old one, late
	case n == 0 && !t.fast:
		// With one block in flight an answer would be the Sorcerer's Apprentice: of
		// two equal ACKs each brings a block, and every packet to the end is
		// doubled.
		return errGoesOn
	case n == 0:
		// In a window it is also how a client says that the first block is lost
		// (RFC 7440 section 4), and then waiting costs more than all the rest. So
		// it is believed once, and not again before a window has gone through
		// without anything sent twice.
		return t.repeat()
	}
	if !t.heard {
		t.heard = true
		t.hears()
	}
	all := n == t.inFlight
	if all && !t.again {
		t.measure(now.Sub(t.sent))
	}
	t.fast = all && !t.again && t.window > 1
	t.again = !all // what follows a gap was sent already
	t.silent, t.tries, t.sent = false, 0, now
	if t.base += int64(n); t.base > t.last {
		return nil
	}
	t.deadline = now.Add(t.wait())
	return t.send()
}

// late is called past the deadline.
func (t *transfer) late(now time.Time) error {
	t.tries++
	over := t.tries > unheardResends || t.bytes+t.answer > maxAmplification*t.paid
	wait := t.wait()
	if t.heard {
		over = now.Sub(t.sent) >= max(patience, 6*t.timeout)
		// Not a client's own rhythm: atftp waits anew with each packet that it
		// ignores, and would never get to say what it misses.
		wait <<= min(t.tries, 8)
	}
	if over && t.sendErr != nil {
		return fmt.Errorf("%w, and sending failed: %v", errSilent, t.sendErr)
	}
	if over {
		return errSilent
	}
	t.deadline = now.Add(wait)
	t.silent = true
	return t.repeat()
}

func (t *transfer) repeat() error {
	t.fast, t.again = false, true
	return t.send()
}

// wait is how long an answer may take before what is in flight is sent again:
// what the client asked for, else some round trips.
func (t *transfer) wait() time.Duration {
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

// send sends the window that starts at base.
func (t *transfer) send() error {
	if t.base == 0 {
		t.inFlight = 1
		t.write(t.oack, 1)
		return errGoesOn
	}
	t.inFlight = int(min(int64(t.window), t.last-t.base+1))
	for i := 0; i < t.inFlight; {
		n := min(t.batch, t.inFlight-i)
		p, err := t.fill(t.out[:], t.base+int64(i), n)
		if err != nil {
			t.tell(errFailed)
			return err
		}
		if t.write(p, n) {
			i += n
		}
	}
	return errGoesOn
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
	err := t.socket.send(p, t.to)
	if err != nil && n > 1 {
		t.batch = 1
		t.socket.segment(0)
		return false
	}
	if err != nil {
		t.sendErr = err
	}
	if !t.heard {
		t.bytes += len(p)
	}
	if t.again {
		t.resent += n
	}
	return true
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
