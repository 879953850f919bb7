package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smelt/internal/console"
	"smelt/internal/server"
	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

// terminalPair is a terminal: what is written to near is typed, what is read
// from it was shown.
func terminalPair(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if err := unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(near.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far
}

// shown is what a terminal showed so far.
type shown struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shown) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shown) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestConsoleTerminal: smelt node console on a real terminal. Every key goes to
// the machine, Ctrl-C too; ~. leaves, and the terminal is as it was.
func TestConsoleTerminal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := fillStore(ctx, st); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(dir, "operator.token")
	if _, err := server.FirstToken(ctx, st, token); err != nil {
		t.Fatal(err)
	}
	port := new(powertest.Port)
	v := power.Verify(labBMC{new(powertest.Fake), port}, power.Limits{})
	rec, err := console.New(console.Config{Dir: filepath.Join(dir, "console"), Ports: map[inventory.NodeID]console.Port{"srv-01": v}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- rec.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	s, err := server.New(server.Config{Conductor: &conductor{}, Store: st, Log: slog.New(slog.DiscardHandler), Version: "test", Site: "hall-a", Console: rec})
	if err != nil {
		t.Fatal(err)
	}
	ui := httptest.NewServer(s.UI())
	defer func() { s.Close(); ui.Close() }()
	within := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 20 s: %s", what)
			}
		}
	}
	within("the console is open", func() bool { return rec.State("srv-01").Is == "open" })
	port.Print("old line\r\n")

	near, far := terminalPair(t)
	was, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	var screen shown
	go io.Copy(&screen, near)
	// The test binary is smelt under that name: see TestMain.
	c := &exec.Cmd{Path: os.Args[0], Args: []string{"smelt", "node", "console", "srv-01", "--server", ui.URL, "--token-file", token},
		Env: os.Environ(), Stdin: far, Stdout: far, Stderr: far, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() { left <- c.Wait() }()
	within("it says how to leave", func() bool { return strings.Contains(screen.String(), "to leave: Ctrl-]") })
	if !strings.Contains(screen.String(), "old line") {
		t.Errorf("the past is missing: %q", screen.String())
	}
	within("keys are raw", func() bool {
		now, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
		return err == nil && now.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) == 0
	})
	for _, keys := range []string{"r", "oot\r", "\x03", "~~x\r"} {
		if _, err := io.WriteString(near, keys); err != nil {
			t.Fatal(err)
		}
	}
	within("the machine gets each key", func() bool { return port.Typed() == "root\r\x03~~x\r" || port.Typed() == "root\r\x03~x\r" })
	port.Print("\x1b[32mgreen\x1b[0m \x1b]52;c;ZXZpbA==\a\x1b[6n# ")
	within("what it says is shown", func() bool { return strings.Contains(screen.String(), "\x1b[32mgreen\x1b[0m # ") })
	port.Print("\x1b[?1049h\x1b[2;4r\x1b[?25l\x1b[8mhidden") // an editor, or something that means harm
	within("it draws", func() bool { return strings.Contains(screen.String(), "hidden") })
	if _, err := io.WriteString(near, "~."); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-left:
		if err != nil {
			t.Errorf("leaving is no success: %v\n%s", err, screen.String())
		}
	case <-time.After(20 * time.Second):
		_ = c.Process.Kill()
		t.Fatalf("~. does not leave: %q", screen.String())
	}
	now, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
	if err != nil || now.Lflag != was.Lflag || now.Iflag != was.Iflag {
		t.Errorf("the terminal is left raw: %v", err)
	}
	within("the terminal is as it was before the machine drew", func() bool {
		_, after, _ := strings.Cut(screen.String(), "hidden")
		return strings.Contains(after, "\x1b[?1049l"+plainAgain)
	})
	if strings.Contains(screen.String(), "]52;") || strings.Contains(screen.String(), "\x1b[6n") {
		t.Errorf("the machine could make the terminal act: %q", screen.String())
	}
}
