package pid1

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"rsc.io/qr"

	"smelt/images/build"
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

// TestScreen: a phone that looks at the monitor of a machine in the RAM system
// opens the page of its node.
func TestScreen(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("boots a machine in QEMU: set SMELT_TEST_E2E=1")
	}
	for _, p := range []string{"qemu-system-x86_64", "zbarimg"} {
		if _, err := exec.LookPath(p); err != nil && os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		} else if err != nil {
			t.Skip(err)
		}
	}
	const page = "HTTPS://SMELT.HALL.EXAMPLE/N/7QX2"
	dir := t.TempDir()
	cache := os.Getenv("SMELT_TEST_CACHE")
	if cache == "" {
		cache = "../../.cache/kernel-test"
	}
	kernel, err := build.Kernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "init")
	compile := exec.Command("go", "build", "-o", program, "./testdata/screen")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	for _, r := range []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		{ReaderAt: bytes.NewReader(text), Info: cpio.Info{Name: "init", Mode: 0o100755, FileSize: uint64(len(text))}},
	} {
		if err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	initrd, monitor, shot := filepath.Join(dir, "initrd"), filepath.Join(dir, "monitor"), filepath.Join(dir, "screen.png")
	if err := os.WriteFile(initrd, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // PDEATHSIG goes by the thread that forked
	defer runtime.UnlockOSThread()
	machine := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-no-reboot", "-nic", "none", "-display", "none", "-vga", "std", "-serial", "none",
		"-monitor", "unix:"+monitor+",server=on,wait=off", "-kernel", kernel.Vmlinuz, "-initrd", initrd, "-append", "console=tty0 quiet page="+page)
	machine.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := machine.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = machine.Process.Kill()
		_ = machine.Wait()
	}()
	var read, said string
	start := time.Now()
	defer func() { t.Logf("read after %s", time.Since(start).Round(time.Second)) }()
	for deadline := time.Now().Add(120 * time.Second); read != page && time.Now().Before(deadline); time.Sleep(time.Second) {
		c, err := net.Dial("unix", monitor)
		if err != nil {
			continue // not yet
		}
		fmt.Fprintf(c, "screendump %s -f png\n", shot)
		time.Sleep(time.Second)
		c.Close()
		out, err := exec.Command("zbarimg", "-q", "--raw", "-Sdisable", "-Sqrcode.enable", shot).Output()
		read, said = strings.TrimSpace(string(out)), fmt.Sprint(err)
	}
	if dir := os.Getenv("SMELT_SCREENS"); dir != "" {
		if data, err := os.ReadFile(shot); err == nil {
			_ = os.WriteFile(filepath.Join(dir, "screen-ram.png"), data, 0o644)
		}
	}
	if read != page {
		t.Errorf("the screen says %q (%s), want %s", read, said, page)
	}
}
