package pxe

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"rsc.io/qr"
)

// TestPicture: what fits a text console is drawn, the rest is told in words.
func TestPicture(t *testing.T) {
	for _, c := range []struct {
		page  string
		rows  int
		light string // the first row's border
	}{
		{"", 0, ""},
		{"HTTPS://H.EXAMPLE/N/7QX2", 23, "11"},
		{"HTTPS://ABCDEFGHIJ/N/7QX2", 23, "11"},                     // 25 letters
		{"HTTPS://SMELT.HALL.EXAMPLE/N/7QX2", 25, "0"},              // light on dark
		{"https://smelt.hall.example/n/7QX2", 0, ""},                // 33 bytes: 29 modules
		{"HTTPS://" + strings.Repeat("A", 40) + "/N/7QX2", 0, ""},   // 55 letters
		{"HTTPS://" + strings.Repeat("A", 9000) + "/N/7QX2", 0, ""}, // no QR code at all
		{"HTTPS://SMELT.HALL.EXAMPLE:8443/N/7QX2", 25, "0"},
	} {
		p, ok := qrPicture(c.page)
		if ok != (c.rows > 0) || len(p.rows) != c.rows {
			t.Errorf("%.50s: %d rows, want %d", c.page, len(p.rows), c.rows)
			continue
		}
		s := newScript()
		if ok {
			s.panel(p, panelTexts(Boot{Why: strings.Repeat("why ", 80), Code: "7QX2", Page: c.page, Screen: []string{strings.Repeat("x", 200)}}, "asking"))
		}
		for _, line := range strings.Split(s.String(), "\n") {
			if cols := 2*strings.Count(line, "${qw}") + 2*strings.Count(line, "${qb}"); cols > 0 {
				if _, text, _ := strings.Cut(line, "${qr}"); cols+len(text) >= screenCols {
					t.Errorf("%s: %d columns", c.page, cols+len(text))
				}
			}
		}
		for i, want := range c.light {
			if p.rows[0][i] != (want == '1') {
				t.Errorf("%s: column %d of the first row is light: %v", c.page, i, p.rows[0][i])
			}
		}
	}
	if c, err := qr.Encode("HTTPS://SMELT.HALL.EXAMPLE/N/7QX2", qr.L); err != nil || c.Size != 25 {
		t.Errorf("%v, %v", c, err)
	}
}

func TestWrap(t *testing.T) {
	for text, want := range map[string]string{
		"":              "",
		"one two three": "one two|three",
		"abcdefghijkl":  "abcdefgh|ijkl",
		"a bcdefghijkl": "a|bcdefghi|jkl",
		"abcdefgh abc":  "abcdefgh|abc",
	} {
		if got := strings.Join(wrap(text, 8), "|"); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestScreen: a phone that looks at the screen of a machine which waits opens
// the page of its node.
func TestScreen(t *testing.T) {
	e2e(t)
	needs(t, "zbarimg")
	for _, row := range []struct {
		name, page string
		flags      func(*lab) []string
	}{
		{"bios-21", "HTTPS://H.EXAMPLE/N/7QX2", bios},
		{"bios-25", "HTTPS://SMELT.HALL.EXAMPLE/N/7QX2", bios},
		{"uefi-25", "HTTPS://SMELT.HALL.EXAMPLE/N/7QX2", uefi},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newBootLab(t)
			l.spec.Boots[guestMAC] = Boot{
				Action: Hold, Wait: time.Minute, Why: "node rig-01 booted again and again and came to nothing: it waits for a technician (smelt task list rig-01)",
				Screen: []string{"node rig-01 at A3-S2", "state needs-work"}, Code: "7QX2", Page: row.page,
			}
			l.start()
			shot := filepath.Join(l.dir, "screen.png")
			read := ""
			l.screen(shot, row.flags(l), 120*time.Second, func() bool {
				// As phones do, zbar tries light on dark as well.
				out, _ := exec.Command("zbarimg", "-q", "--raw", "-Sdisable", "-Sqrcode.enable", "-Stest-inverted", shot).Output()
				read = strings.TrimSpace(string(out))
				return read == row.page
			})
			if dir := os.Getenv("SMELT_SCREENS"); dir != "" {
				data, err := os.ReadFile(shot)
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, "screen-"+row.name+".png"), data, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if read != row.page {
				t.Errorf("the screen says %q, want %s", read, row.page)
			}
		})
	}
}

// screen runs a machine and takes a picture of its screen each second, until
// one will do or the limit is over.
func (l *lab) screen(shot string, flags []string, limit time.Duration, done func() bool) {
	l.t.Helper()
	monitor := filepath.Join(l.dir, "monitor")
	cmd := exec.Command("ip", append([]string{
		"netns", "exec", l.server, "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-no-reboot", "-display", "none", "-vga", "std", "-serial", "none",
		"-monitor", "unix:" + monitor + ",server=on,wait=off", "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
	}, flags...)...)
	runtime.LockOSThread() // PDEATHSIG goes by the thread that forked
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && !done(); time.Sleep(500 * time.Millisecond) {
		c, err := net.Dial("unix", monitor)
		if err != nil {
			continue // not yet
		}
		fmt.Fprintf(c, "screendump %s -f png\n", shot)
		time.Sleep(500 * time.Millisecond) // it answers when it is done, among much else
		c.Close()
	}
}
