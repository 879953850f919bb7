package rescue

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))) + " anna"
}

// start runs a server with the shell of this machine, and how to log in to it.
func start(t *testing.T) (s *Server, login func(user string, auth ...ssh.AuthMethod) (*ssh.Client, error), key ssh.Signer, stop func()) {
	t.Helper()
	key, line := newKey(t)
	s, err := New(Config{Keys: []string{line}, Shell: []string{"/bin/sh"}, Env: []string{"PATH=/usr/bin:/bin", "PS1=$ "}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return s, func(user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
		c, err := ssh.Dial("tcp", ln.Addr().String(), &ssh.ClientConfig{User: user, Auth: auth, Timeout: 10 * time.Second,
			HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
				if ssh.FingerprintSHA256(k) != s.Fingerprint() {
					t.Errorf("host key %s, want %s", ssh.FingerprintSHA256(k), s.Fingerprint())
				}
				return nil
			}})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}, key, stop
}

// TestWhoMayLogIn: one user, by a key that was named, and by nothing else.
func TestWhoMayLogIn(t *testing.T) {
	_, login, key, _ := start(t)
	other, _ := newKey(t)
	for what, try := range map[string]func() (*ssh.Client, error){
		"another key":  func() (*ssh.Client, error) { return login("root", ssh.PublicKeys(other)) },
		"another user": func() (*ssh.Client, error) { return login("admin", ssh.PublicKeys(key)) },
		"a password":   func() (*ssh.Client, error) { return login("root", ssh.Password("")) },
		"nothing":      func() (*ssh.Client, error) { return login("root") },
		"a question": func() (*ssh.Client, error) {
			return login("root", ssh.KeyboardInteractive(func(_, _ string, q []string, _ []bool) ([]string, error) { return make([]string, len(q)), nil }))
		},
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s logged in", what)
		}
	}
	c, err := login("root", ssh.PublicKeys(other, key))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial("tcp", "127.0.0.1:22"); err == nil {
		t.Error("it forwards connections")
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("it forwards ports")
	}
	for _, line := range []string{"", "ssh-ed25519 AAAA", `command="reboot" ` + string(ssh.MarshalAuthorizedKey(key.PublicKey()))} {
		if _, err := New(Config{Keys: []string{line}, Shell: []string{"/bin/sh"}}); err == nil {
			t.Errorf("%q is taken for a key", line)
		}
	}
	if _, err := New(Config{Shell: []string{"/bin/sh"}}); err == nil {
		t.Error("nobody may log in, and it is served")
	}
}

func TestCommands(t *testing.T) {
	_, login, key, _ := start(t)
	c, err := login("root", ssh.PublicKeys(key))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	s.Stdout, s.Stderr, s.Stdin = &out, &errs, strings.NewReader("over the wire\n")
	err = s.Run("cat; echo told >&2; exit 3")
	var exit *ssh.ExitError
	if e, ok := err.(*ssh.ExitError); ok {
		exit = e
	}
	if exit == nil || exit.ExitStatus() != 3 || out.String() != "over the wire\n" || errs.String() != "told\n" {
		t.Errorf("%v, said %q and %q", err, out.String(), errs.String())
	}
}

// TestTerminal: a shell on a terminal of the size that was asked for, which
// says what it runs until its end.
func TestTerminal(t *testing.T) {
	_, login, key, _ := start(t)
	c, err := login("root", ssh.PublicKeys(key))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("vt100", 33, 77, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s.Stdout = &out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	if err := s.WindowChange(40, 80); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(in, "for i in $(seq 200); do stty size | grep -qx '40 80' && break; sleep 0.05; done; stty size; tty; echo $TERM; exit 5\n"); err != nil {
		t.Fatal(err)
	}
	err = s.Wait()
	if e, ok := err.(*ssh.ExitError); !ok || e.ExitStatus() != 5 {
		t.Errorf("ended with %v", err)
	}
	for _, want := range []string{"40 80\r\n", "\n/dev/pts/", "vt100"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// TestEnds: when the time is over, so is every session, with what it started.
func TestEnds(t *testing.T) {
	_, login, key, stop := start(t)
	c, err := login("root", ssh.PublicKeys(key))
	if err != nil {
		t.Fatal(err)
	}
	for _, pty := range []bool{false, true} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if pty {
			if err := s.RequestPty("vt100", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Start("sleep 3600"); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := c.Wait(); err == nil {
		t.Error("the connection ended as if nothing was")
	}
}
