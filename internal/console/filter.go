package console

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Filter makes what a machine printed harmless: a machine that was taken
// over could otherwise make the terminal of whoever looks at it type commands
// (answers to queries), fill its clipboard (OSC 52) or hide what was said. It
// reads a stream in pieces; where it is cut does not matter. The zero Filter
// leaves text, tabs and newlines.
//
// The states follow ECMA-48 and Paul Williams' parser for DEC terminals.
type Filter struct {
	// Moves leaves colours, cursor movement and erasing, which firmware menus
	// and editors need, for a terminal of the reader's own.
	Moves bool

	state state
	seq   []byte // of the escape sequence so far
	rune  []byte // of a character that is cut at the end of a piece
	cr    bool   // a carriage return that may be half of a line end
	dirty bool   // something stands on the line
}

type state uint8

const (
	ground  state = iota
	escape        // after ESC
	inter         // after ESC and an intermediate byte
	csi           // after ESC [
	text          // in a string: OSC, DCS, SOS, PM, APC
	textEnd       // after ESC in a string
)

// maxSeq is the longest control sequence that is understood; a longer one is
// dropped whole.
const maxSeq = 48

const (
	esc = 0x1b
	can = 0x18 // cancels a sequence, as does sub
	sub = 0x1a
	del = 0x7f
)

// Append appends what is left of src to dst.
func (f *Filter) Append(dst, src []byte) []byte {
	for _, b := range src {
		dst = f.next(dst, b)
	}
	return dst
}

func (f *Filter) next(dst []byte, b byte) []byte {
	if len(f.rune) > 0 && (b < 0x80 || b > 0xbf) {
		f.rune = f.rune[:0]
		dst = f.put(dst, utf8.RuneError)
	}
	if f.state != ground {
		switch {
		case b == can || b == sub:
			f.state = ground
			return dst
		case b == '\n': // ends what never ends, so that noise hides one line at most
			f.state = ground
		case b == esc && f.state != text:
			f.state, f.seq = escape, f.seq[:0]
			return dst
		case b < ' ' && f.state != text && f.state != textEnd:
			return f.control(dst, b) // executed inside the sequence (ECMA-48)
		}
	}
	switch f.state {
	case escape:
		return f.afterEscape(dst, b)
	case inter:
		if b >= 0x30 {
			f.state = ground
		}
		return dst
	case csi:
		return f.inCSI(dst, b)
	case text:
		switch b {
		case esc:
			f.state = textEnd
		case '\a':
			f.state = ground
		}
		return dst
	case textEnd:
		f.state = ground
		if b == '\\' {
			return dst
		}
		f.state, f.seq = escape, f.seq[:0]
		return f.afterEscape(dst, b)
	case ground:
	}
	switch {
	case b == esc:
		f.state, f.seq = escape, f.seq[:0]
		return dst
	case b < ' ' || b == del:
		return f.control(dst, b)
	case b < 0x80:
		return f.put(dst, rune(b))
	}
	f.rune = append(f.rune, b)
	if !utf8.FullRune(f.rune) {
		return dst
	}
	r, n := utf8.DecodeRune(f.rune)
	rest := slices.Clone(f.rune[n:])
	f.rune = f.rune[:0]
	dst = f.put(dst, r)
	for _, b := range rest {
		dst = f.next(dst, b)
	}
	return dst
}

// put writes one character. What has no form of its own, turns the direction
// of text around or is a control character of the upper half is marked.
func (f *Filter) put(dst []byte, r rune) []byte {
	dst = f.flush(dst)
	if !unicode.IsPrint(r) {
		r = utf8.RuneError
	}
	f.dirty = true
	return utf8.AppendRune(dst, r)
}

// flush settles a carriage return: without a newline behind it the line is
// begun anew, which text without a cursor shows as another line.
func (f *Filter) flush(dst []byte) []byte {
	if !f.cr {
		return dst
	}
	f.cr = false
	return f.newline(dst)
}

func (f *Filter) newline(dst []byte) []byte {
	if !f.dirty {
		return dst
	}
	f.dirty = false
	return append(dst, '\n')
}

func (f *Filter) control(dst []byte, b byte) []byte {
	switch b {
	case '\n':
		f.cr, f.dirty = false, false
		return append(dst, '\n')
	case '\r':
		if f.Moves {
			return append(dst, b)
		}
		f.cr = true
	case '\t':
		dst = f.flush(dst)
		f.dirty = true
		return append(dst, '\t')
	case '\b', '\a':
		if f.Moves {
			return append(f.flush(dst), b)
		}
	}
	return dst
}

func (f *Filter) afterEscape(dst []byte, b byte) []byte {
	switch {
	case b == '[':
		f.state = csi
		return dst
	case strings.IndexByte("]PX^_", b) >= 0: // OSC, DCS, SOS, PM, APC
		f.state = text
		return dst
	case b >= 0x20 && b <= 0x2f:
		f.state = inter
		return dst
	}
	f.state = ground
	switch {
	case b >= 0x80:
		return f.next(dst, b)
	case f.Moves && strings.IndexByte("78DEM", b) >= 0: // save, restore, index, next line, reverse index
		return append(f.flush(dst), esc, b)
	}
	return dst
}

func (f *Filter) inCSI(dst []byte, b byte) []byte {
	switch {
	case b >= 0x20 && b <= 0x3f:
		if len(f.seq) <= maxSeq {
			f.seq = append(f.seq, b)
		}
		return dst
	case b >= 0x80 || b == del:
		f.state = ground
		return f.next(dst, b)
	}
	f.state = ground
	switch {
	case f.Moves && len(f.seq) <= maxSeq && harmless(f.seq, b):
		return append(append(append(f.flush(dst), esc, '['), f.seq...), b)
	case !f.Moves && (b == 'H' || b == 'f'):
		return f.newline(dst) // the cursor went elsewhere: so does the text
	}
	return dst
}

// harmless tells whether a control sequence does nothing but draw. Everything
// that a terminal answers, prints, keeps or resizes by is missing.
func harmless(seq []byte, final byte) bool {
	if final == 'h' || final == 'l' {
		mode, ok := bytes.CutPrefix(seq, []byte("?"))
		// Cursor keys, wrapping, visible cursor, the other screen.
		return ok && slices.Contains([]string{"1", "7", "25", "47", "1047", "1049"}, string(mode))
	}
	if strings.IndexByte("@ABCDEFGHJKLMPSTXdefmrsu`", final) < 0 {
		return false
	}
	for _, p := range bytes.Split(seq, []byte(";")) {
		if len(p) == 0 {
			continue
		}
		if n, err := strconv.Atoi(string(p)); err != nil || n < 0 || n > 9999 {
			return false
		}
	}
	return true
}
