package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Packet types (RFC 1350 section 5, RFC 2347).
const (
	opRRQ   = 1
	opWRQ   = 2
	opDATA  = 3
	opACK   = 4
	opERROR = 5
	opOACK  = 6
)

const (
	defaultBlock = 512   // RFC 1350
	minBlock     = 8     // RFC 2348
	maxBlock     = 65464 // RFC 2348

	// A window is sent in one go, so it must fit a client's socket buffer (Linux
	// starts with 208 KiB) and what is in flight stays bounded. 64 blocks of an
	// Ethernet frame do; larger windows gain nothing on a LAN.
	maxWindow      = 64
	maxWindowBytes = 128 << 10

	headers = 20 + 8 + 4 // IPv4, UDP, and opcode with block number
)

// request is a read request.
type request struct {
	name     string
	netascii bool
	options  []option // known to us, in the order and spelling they were asked in
}

type option struct {
	key   string // lower case
	asked string // as the client spells it
	value string
}

// parse reads what follows the opcode of a read request. Options are lenient,
// because there is always a transfer without them: padding or half an option
// at the end (ROMs pad) is ignored, as are names that nobody knows and the
// second of two equal ones.
func parse(p []byte) (request, error) {
	name, p, ok := field(p)
	mode, p, ok2 := field(p)
	if !ok || !ok2 || name == "" {
		return request{}, errFormat
	}
	r := request{name: name}
	switch strings.ToLower(mode) {
	case "octet":
	case "netascii":
		r.netascii = true
	default: // "mail" among them, which RFC 1350 calls obsolete
		return request{}, errMode
	}
	for {
		var o option
		if o.asked, p, ok = field(p); !ok || o.asked == "" {
			return r, nil
		}
		if o.value, p, ok = field(p); !ok {
			return r, nil
		}
		o.key = strings.ToLower(o.asked) // RFC 2347: case-insensitive
		switch o.key {
		case "blksize", "windowsize", "timeout", "tsize":
			if _, again := r.value(o.key); !again {
				r.options = append(r.options, o)
			}
		}
	}
}

func field(p []byte) (string, []byte, bool) {
	s, rest, ok := bytes.Cut(p, []byte{0})
	return string(s), rest, ok
}

func (r request) value(key string) (string, bool) {
	for _, o := range r.options {
		if o.key == key {
			return o.value, true
		}
	}
	return "", false
}

// number is the value of an option if it was asked with a number of at least
// least. Any other value is as if the option had not been asked: RFC 2347 lets
// a server leave out what it does not accept, and an ERROR would end a boot.
func (r request) number(key string, least uint64) (uint64, bool) {
	v, ok := r.value(key)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 63)
	return n, err == nil && n >= least
}

// terms is what client and server agree on.
type terms struct {
	block   int
	window  int
	timeout time.Duration // between two sends of the same; 0: the server's choice
	oack    []byte        // nil: no option was accepted, the first DATA is the answer
}

// agree answers the options of r for content of size bytes on a path of mtu.
// Nothing is answered that was not asked, and no number is larger than asked.
func (r request) agree(size int64, mtu int) terms {
	t := terms{block: defaultBlock, window: 1}
	granted := map[string]uint64{}
	if n, ok := r.number("blksize", minBlock); ok {
		// A larger block would travel in fragments, which firmware does not
		// put together.
		n = min(n, maxBlock, uint64(max(mtu-headers, minBlock)))
		granted["blksize"], t.block = n, int(n)
	}
	if n, ok := r.number("windowsize", 1); ok {
		n = min(n, maxWindow, uint64(max(1, maxWindowBytes/t.block)))
		granted["windowsize"], t.window = n, int(n)
	}
	if n, ok := r.number("timeout", 1); ok && n <= 255 {
		granted["timeout"], t.timeout = n, time.Duration(n)*time.Second
	}
	if _, ok := r.number("tsize", 0); ok {
		granted["tsize"] = uint64(size)
	}
	for _, o := range r.options {
		n, ok := granted[o.key]
		if !ok {
			continue
		}
		if t.oack == nil {
			t.oack = []byte{0, opOACK}
		}
		t.oack = append(t.oack, o.asked...)
		t.oack = append(t.oack, 0)
		t.oack = strconv.AppendUint(t.oack, n, 10)
		t.oack = append(t.oack, 0)
	}
	return t
}

// Error is an ERROR packet to a client. The text is all it learns: no path, no
// error of the system.
type Error struct {
	Code uint16
	Text string
}

func (e *Error) Error() string { return e.Text }

func (e *Error) packet() []byte {
	p := binary.BigEndian.AppendUint16([]byte{0, opERROR}, e.Code)
	return append(append(p, e.Text...), 0)
}

// told is what a client learns of err.
func told(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return errFailed
}

// What a client may be told (codes of RFC 1350).
var (
	ErrNotFound = &Error{1, "file not found"}
	ErrAccess   = &Error{2, "access violation"}
	ErrReadOnly = &Error{2, "access violation: read only"}
	ErrBusy     = &Error{0, "too many transfers, try again"}

	errFailed  = &Error{0, "not available"}
	errStopped = &Error{0, "server stops, try again"}
	errIllegal = &Error{4, "illegal operation"}
	errFormat  = &Error{4, "malformed request"}
	errMode    = &Error{4, "unknown mode: use octet"}
	errTooLong = &Error{4, "too large for netascii: use octet"}
	errTID     = &Error{5, "unknown transfer ID"}
)

// ClientError is an ERROR packet from a client, which ends its transfer.
type ClientError struct {
	Code uint16
	Text string
}

func (e *ClientError) Error() string {
	return "the client ended it: error " + strconv.Itoa(int(e.Code)) + " " + strconv.Quote(e.Text)
}
