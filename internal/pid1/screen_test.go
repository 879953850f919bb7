package pid1

import (
	"regexp"
	"strings"
	"testing"

	"rsc.io/qr"
)

// modules reads the code back from the cells of a screen.
func modules(t *testing.T, text string) (rows [][]bool) {
	t.Helper()
	for _, m := range regexp.MustCompile("\x1b\\[30;47m(.*?)\x1b\\[0m").FindAllStringSubmatch(text, -1) {
		var up, low []bool
		for _, r := range m[1] {
			up, low = append(up, r == '▀' || r == '█'), append(low, r == '▄' || r == '█')
		}
		rows = append(rows, up, low)
	}
	return rows
}

func TestScreenText(t *testing.T) {
	for _, page := range []string{"HTTPS://H.EXAMPLE/N/7QX2", "HTTPS://SMELT.HALL.EXAMPLE/N/7QX2", "https://smelt.hall.example:8443/pages/n/7QX2"} {
		text := screenText(page, []string{"node rig-01", "code 7QX2", strings.Repeat("long ", 40)})
		c, err := qr.Encode(page, qr.L)
		if err != nil {
			t.Fatal(err)
		}
		rows := modules(t, text)
		if len(rows) < c.Size+2*border {
			t.Fatalf("%s: %d rows of modules for %d", page, len(rows), c.Size)
		}
		for y, row := range rows {
			for x, black := range row {
				if black != c.Black(x-border, y-border) {
					t.Fatalf("%s: module %d, %d is black: %v", page, x-border, y-border, black)
				}
			}
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if len(lines) > 24 {
			t.Errorf("%s: %d lines", page, len(lines))
		}
		for _, l := range lines {
			seen := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(l, "")
			if n := len([]rune(seen)); n >= screenCols {
				t.Errorf("%s: a line has %d columns: %q", page, n, seen)
			}
		}
		for _, want := range []string{"node rig-01", "code 7QX2", "S m e l t"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q", page, want)
			}
		}
	}
	for _, none := range []string{"", strings.Repeat("x", 2000), strings.Repeat("x", 9000)} {
		if text := screenText(none, []string{"node rig-01"}); strings.Contains(text, "\x1b") || !strings.Contains(text, "node rig-01") {
			t.Errorf("%d letters: %.200q", len(none), text)
		}
	}
	if c, _ := ParseCmdLine("smelt.server=https://h smelt.nonce=n smelt.node=rig-01 smelt.code=7QX2 smelt.page=HTTPS://H/N/7\x1b[2J"); c.Node != "rig-01" || c.Code != "7QX2" || strings.Contains(c.Page, "\x1b") {
		t.Errorf("%+v", c)
	}
}
