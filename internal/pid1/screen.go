package pid1

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"rsc.io/qr"
)

// Show writes lines on every console of the kernel: the monitor at the rack
// and the serial line of a BMC. The log goes to one of them only. A monitor
// shows page as a QR code beside them, unless it is empty.
func Show(page string, lines ...string) {
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		text := plainText(lines)
		if rest, ok := strings.CutPrefix(name, "tty"); ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			text = screenText(page, lines)
		}
		if f, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err == nil {
			_, _ = f.WriteString(text)
			_ = f.Close()
		}
	}
}

func plainText(lines []string) string {
	text := "\n  S m e l t\n"
	for _, l := range lines {
		text += "  " + l + "\n"
	}
	return text
}

const (
	screenCols = 80
	border     = 2 // of the QR code, in modules: the standard says four, readers are content with two
	qrMax      = 41
)

// screenText is lines beside the QR code of page. Half blocks of the kernel's
// built-in font, two modules in a cell, make the code of any usual address
// smaller than the smallest console (80 by 25).
func screenText(page string, lines []string) string {
	if page == "" {
		return plainText(lines)
	}
	c, err := qr.Encode(page, qr.L)
	if err != nil || c.Size > qrMax {
		return plainText(append(lines, page))
	}
	beside := []string{"", "S m e l t", ""}
	for _, l := range append(lines, "", "scan this, or open", page) {
		beside = append(beside, wrap(l, screenCols-c.Size-2*border-4)...)
	}
	var b strings.Builder
	b.WriteString("\n")
	row := 0
	for y := -border; y < c.Size+border; y += 2 {
		b.WriteString("\x1b[30;47m")
		for x := -border; x < c.Size+border; x++ {
			b.WriteString(cells[c.Black(x, y)][c.Black(x, y+1)])
		}
		b.WriteString("\x1b[0m")
		if row < len(beside) {
			b.WriteString("  " + beside[row])
		}
		b.WriteString("\n")
		row++
	}
	for ; row < len(beside); row++ {
		b.WriteString("  " + beside[row] + "\n")
	}
	return b.String()
}

// cells are black on white, by the upper and the lower module.
var cells = map[bool]map[bool]string{
	false: {false: " ", true: "▄"},
	true:  {false: "▀", true: "█"},
}

// wrap cuts text into lines of at most width letters, between words where it can.
func wrap(text string, width int) []string {
	out := []string{""}
	for _, word := range strings.Fields(text) {
		last := &out[len(out)-1]
		if *last != "" && len(*last)+1+len(word) <= width {
			*last += " " + word
			continue
		}
		if *last != "" {
			out = append(out, "")
		}
		for len(word) > width {
			out[len(out)-1] = word[:width]
			word = word[width:]
			out = append(out, "")
		}
		out[len(out)-1] = word
	}
	return out
}

// Lines are what the screen says of the machine.
func (c CmdLine) Lines(doing string) []string {
	var out []string
	if c.Node != "" {
		out = append(out, "node "+c.Node)
	}
	if c.Code != "" {
		out = append(out, "code "+c.Code)
	}
	return append(out, "", doing)
}
