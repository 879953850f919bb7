package pxe

import (
	"fmt"
	"strings"

	"rsc.io/qr"
)

// The screen of a machine that waits is a text console of 80 columns and 25
// rows, whatever its firmware is: iPXE draws no pixels unless it was built to.
// Two columns are about as wide as a row is high, so a module of a QR code is
// two blanks on a coloured ground, and 25 rows are all there is:
//
//	21 modules (25 letters: https://abcdefghij/N/7QX2): dark on light, with a
//	light border, which every reader knows.
//	25 modules (47 letters): no row is left for a border. It is drawn light on
//	dark, so that the dark screen is the border; phones read that too.
//	more: no room. The code and the address stand there as text.
//
// Half blocks would halve the rows, but iPXE before 2020 writes bytes of code
// page 437 and later ones nothing beyond ASCII.
const (
	screenCols = 80
	screenRows = 25
)

// picture is a QR code as rows of modules, true for light.
type picture struct {
	rows [][]bool
	full bool // it takes every row: nothing may scroll
}

// qrPicture draws url, or returns nothing when it does not fit.
func qrPicture(url string) (picture, bool) {
	if url == "" || len(url) > screenCols { // no small code, and not worth the work to find that out
		return picture{}, false
	}
	c, err := qr.Encode(url, qr.L)
	if err != nil {
		return picture{}, false
	}
	switch c.Size {
	case 21:
		const border = 2 // left and right; one above and below
		p := picture{}
		for y := -1; y <= c.Size; y++ {
			row := make([]bool, 0, c.Size+2*border)
			for x := -border; x < c.Size+border; x++ {
				row = append(row, !c.Black(x, y)) // outside it is white
			}
			p.rows = append(p.rows, row)
		}
		return p, true
	case screenRows:
		p := picture{full: true}
		for y := range c.Size {
			row := []bool{false}
			for x := range c.Size {
				row = append(row, c.Black(x, y))
			}
			p.rows = append(p.rows, row)
		}
		return p, true
	}
	return picture{}, false
}

// panel clears the screen and draws p with text to its right. The last row of
// a picture that takes them all ends without a new line.
func (s *script) panel(p picture, texts []string) {
	// iPXE writes settings as they are: this is how an escape and a blank that
	// does not divide words get into a line.
	s.line("set esc:hex 1b ||")
	s.line("set sp:hex 20:20 ||")
	s.line("set qw ${esc:string}[47m${sp:string} ||")
	s.line("set qb ${esc:string}[40m${sp:string} ||")
	s.line("set qr ${esc:string}[0m ||")
	s.line("set qc ${esc:string}[2J${esc:string}[1;1H ||")
	width := screenCols - 2*len(p.rows[0]) - len(" | ") - 1 // the last column would wrap
	var lines []string
	for _, text := range texts {
		lines = append(lines, wrap(plain(text, maxText), width)...)
	}
	for y, row := range p.rows {
		var b strings.Builder
		b.WriteString("echo ")
		if p.full && y == len(p.rows)-1 {
			b.WriteString("-n ")
		}
		if y == 0 {
			b.WriteString("${qc}")
		}
		for _, light := range row {
			if light {
				b.WriteString("${qw}")
			} else {
				b.WriteString("${qb}")
			}
		}
		b.WriteString("${qr}")
		if y < len(lines) && lines[y] != "" {
			b.WriteString(" |" + words(lines[y]))
		}
		s.line(b.String())
	}
}

// wrap cuts text into lines of at most width letters, between words where it can.
func wrap(text string, width int) []string {
	out := []string{""}
	for _, word := range strings.Fields(text) {
		for len(word) > width {
			if out[len(out)-1] != "" {
				out = append(out, "")
			}
			out[len(out)-1] = word[:width]
			word = word[width:]
			out = append(out, "")
		}
		last := &out[len(out)-1]
		switch {
		case *last == "":
			*last = word
		case len(*last)+1+len(word) <= width:
			*last += " " + word
		default:
			out = append(out, word)
		}
	}
	return out
}

// panelTexts is what stands beside the QR code.
func panelTexts(b Boot, waits string) []string {
	out := []string{"", "S m e l t", ""}
	for i, text := range b.Screen {
		if i == 4 {
			break
		}
		out = append(out, text)
	}
	if b.Code != "" {
		out = append(out, "code "+b.Code)
	}
	out = append(out, "", b.Why, "", waits)
	if b.Page != "" {
		out = append(out, "", "scan this, or open", b.Page)
	}
	return out
}

// codeLine tells the code where there is no room for a picture.
func codeLine(b Boot) string {
	switch {
	case b.Code == "":
		return ""
	case b.Page == "":
		return fmt.Sprintf("code %s: smelt node show %s", b.Code, b.Code)
	}
	return fmt.Sprintf("code %s: %s", b.Code, b.Page)
}
