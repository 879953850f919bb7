package console

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFilter(t *testing.T) {
	for _, c := range []struct{ name, in, text, moves string }{
		{"plain", "hello\r\nworld\n", "hello\nworld\n", "hello\r\nworld\n"},
		{"colour", "\x1b[1;31mred\x1b[0m", "red", "\x1b[1;31mred\x1b[0m"},
		{"title", "a\x1b]0;evil\ab", "ab", "ab"},
		{"clipboard", "a\x1b]52;c;cm0gLXJmIC8=\x1b\\b", "ab", "ab"},
		{"device status", "a\x1b[6nb", "ab", "ab"},
		{"device attributes", "a\x1b[c\x1b[>c\x1b[=cb", "ab", "ab"},
		{"title report", "a\x1b[21tb", "ab", "ab"},
		{"media copy", "a\x1b[5ib", "ab", "ab"},
		{"DECRQSS", "a\x1bP$qm\x1b\\b", "ab", "ab"},
		{"APC", "a\x1b_Gf=100\x1b\\b", "ab", "ab"},
		{"answerback", "a\x05b", "ab", "ab"},
		{"C1 CSI in UTF-8", "a\u009b6nb", "a\uFFFD6nb", "a\uFFFD6nb"},
		{"C1 CSI as a byte", "a\x9b6nb", "a\uFFFD6nb", "a\uFFFD6nb"},
		{"reset", "a\x1bcb", "ab", "ab"},
		{"charset", "a\x1b(0b", "ab", "ab"},
		{"paste mode", "\x1b[?2004h", "", ""},
		{"mouse", "\x1b[?1000h\x1b[?1006h", "", ""},
		{"alternate screen", "\x1b[?1049h", "", "\x1b[?1049h"},
		{"huge repeat", "x\x1b[99999999999b\x1b[99999C", "x", "x"},
		{"cursor home", "top\x1b[2;1Hnext", "top\nnext", "top\x1b[2;1Hnext"},
		{"progress bar", "10%\r20%\r\n", "10%\n20%\n", "10%\r20%\r\n"},
		{"backspace", "ab\b \b", "ab ", "ab\b \b"},
		{"right to left", "ls \u202etxt.exe", "ls \uFFFDtxt.exe", "ls \uFFFDtxt.exe"},
		{"invisible", "a\u200bb", "a\uFFFDb", "a\uFFFDb"},
		{"not UTF-8", "a\xc3(b\xff", "a\uFFFD(b\uFFFD", "a\uFFFD(b\uFFFD"},
		{"umlaut", "grün ✓", "grün ✓", "grün ✓"},
		{"a string that never ends", "a\x1b]0;noise\nb", "a\nb", "a\nb"},
		{"cancelled", "a\x1b[3\x18b", "ab", "ab"},
		{"escape in escape", "a\x1b[1\x1b[32mb", "ab", "a\x1b[32mb"},
		{"newline in sequence", "a\x1b[1\nm", "a\nm", "a\nm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for moves, want := range map[bool]string{false: c.text, true: c.moves} {
				f := Filter{Moves: moves}
				if got := string(f.Append(nil, []byte(c.in))); got != want {
					t.Errorf("moves %v: %q becomes %q, want %q", moves, c.in, got, want)
				}
			}
		})
	}
}

// drawing is every escape that may remain where the cursor may move.
var drawing = regexp.MustCompile("^(?:\x1b[78DEM]|\x1b\\[[0-9;]*[@A-HJ-MPSTXZdefmrsu`]|\x1b\\[\\?(?:1|7|25|47|1047|1049)[hl])")

func checkHarmless(t *testing.T, moves bool, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Fatalf("not UTF-8: %q", out)
	}
	for i := 0; i < len(out); {
		r, n := utf8.DecodeRuneInString(out[i:])
		if r == 0x1b {
			m := drawing.FindString(out[i:])
			if !moves || m == "" {
				t.Fatalf("an escape is left at %d of %q", i, out)
			}
			n = len(m)
		} else if r < ' ' && r != '\n' && r != '\t' && !(moves && (r == '\r' || r == '\b' || r == '\a')) || r >= 0x7f && r < 0xa0 {
			t.Fatalf("control character %U is left in %q", r, out)
		}
		if strings.ContainsRune("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f", r) {
			t.Fatalf("%U turns text around in %q", r, out)
		}
		i += n
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"hello\r\n", "\x1b[31m\x1b]52;c;x\a", "\x1bP\x1b\x1b\\", "\xc2\x9b6n", "\xe2\x80\xae", "\x1b[?25l\x1b[2J\x1b[H", "\x1b[1\x1b]\x1b[0c"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		for _, moves := range []bool{false, true} {
			whole := Filter{Moves: moves}
			want := string(whole.Append(nil, in))
			checkHarmless(t, moves, want)
			// Where a stream is cut does not matter.
			parts := Filter{Moves: moves}
			var got []byte
			for rest := in; len(rest) > 0; {
				n := min(int(cut)%7+1, len(rest))
				got = parts.Append(got, rest[:n])
				rest = rest[n:]
			}
			if string(got) != want {
				t.Fatalf("in pieces of %d: %q, whole: %q", int(cut)%7+1, got, want)
			}
		}
	})
}

func TestLines(t *testing.T) {
	at := func(s int) (e Entry) { e.At = start.Add(secs(s)); e.Kind = Output; return e }
	a, b, c, m := at(0), at(1), at(3), at(2)
	a.Data, b.Data, c.Data = []byte("one\r\ntw"), []byte("o \x1b[3"), []byte("1mthree\n")
	m.Kind, m.Data = Mark, []byte("lost\x1b[2J")
	got := Lines([]Entry{a, b, c})
	if len(got) != 2 || got[0].Text != "one" || got[1].Text != "two three" || !got[1].At.Equal(a.At) {
		t.Errorf("a line and a sequence over several entries: %+v", got)
	}
	got = Lines([]Entry{a, m, c})
	if len(got) != 4 || got[1].Text != "tw" || !got[2].Mark || got[2].Text != "-- smelt: lost --" || got[3].Text != "1mthree" {
		t.Errorf("around a mark: %+v", got)
	}
}
