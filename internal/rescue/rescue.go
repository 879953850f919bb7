// Package rescue lets an operator into the RAM system of a machine: an ssh
// server that knows public keys and no passwords, and a shell on a terminal.
//
// It offers a session and nothing else: no forwarding, no subsystems. Its own
// key is made at each boot; whoever logs in compares the fingerprint with what
// the machine told its server.
package rescue

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// Bounds on who talks to us before we know them, and on how many.
const (
	handshake = 30 * time.Second
	tries     = 6
	atOnce    = 16 // connections
	sessions  = 8  // of one connection
)

// Config says who may log in to what.
type Config struct {
	Keys  []string // as in authorized_keys; options are not understood and refused
	Shell []string // command of a session without one; its last words are -c COMMAND with one
	Env   []string
	Log   *slog.Logger
}

// Server lets operators in.
type Server struct {
	c     Config
	host  ssh.Signer
	known map[string]string // marshalled key -> comment
}

// New checks c and makes the server's key.
func New(c Config) (*Server, error) {
	s := &Server{c: c, known: map[string]string{}}
	for _, line := range c.Keys {
		key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("rescue: %.40q is no public ssh key: %v", line, err)
		}
		s.known[string(key.Marshal())] = comment
	}
	if len(s.known) == 0 {
		return nil, errors.New("rescue: no key may log in")
	}
	if len(c.Shell) == 0 {
		return nil, errors.New("rescue: no shell")
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	s.host, err = ssh.NewSignerFromSigner(key)
	return s, err
}

// Fingerprint is the server's key as ssh shows it at the first login.
func (s *Server) Fingerprint() string { return ssh.FingerprintSHA256(s.host.PublicKey()) }

// Serve lets operators in until ctx ends, which ends their sessions, too.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	room := make(chan struct{}, atOnce)
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("rescue: %w", err)
		}
		select {
		case room <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			s.connection(ctx, conn)
		})
	}
}

func (s *Server) config() *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		MaxAuthTries:  tries,
		ServerVersion: "SSH-2.0-smelt-rescue",
		PublicKeyCallback: func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			who, ok := s.known[string(key.Marshal())]
			if !ok || m.User() != "root" {
				return nil, errors.New("unknown key or user")
			}
			return &ssh.Permissions{Extensions: map[string]string{"who": who}}, nil
		},
	}
	c.AddHostKey(s.host)
	return c
}

func (s *Server) connection(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(handshake))
	c, channels, requests, err := ssh.NewServerConn(conn, s.config())
	if err != nil {
		s.c.Log.Warn("rescue: nobody logged in", "from", conn.RemoteAddr(), "err", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	who := c.Permissions.Extensions["who"]
	s.c.Log.Info("rescue: logged in", "who", who, "from", conn.RemoteAddr())
	defer func() { s.c.Log.Info("rescue: logged out", "who", who, "from", conn.RemoteAddr()) }()
	go ssh.DiscardRequests(requests)
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, sessions)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			_ = ch.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			_ = ch.Reject(ssh.ResourceShortage, "too many sessions")
			continue
		}
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { <-room }()
			s.session(ctx, channel, requests)
		})
	}
}

// session serves one terminal or command (RFC 4254 section 6).
func (s *Server) session(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		term string
		size unix.Winsize
		p    *program
	)
	defer func() {
		cancel()
		if p != nil {
			<-p.done
		}
		_ = ch.Close()
	}()
	for r := range requests {
		ok := false
		switch r.Type {
		case "pty-req":
			var want struct {
				Term                      string
				Cols, Rows, Width, Height uint32
				Modes                     string
			}
			if ok = p == nil && ssh.Unmarshal(r.Payload, &want) == nil; ok {
				term, size = want.Term, winsize(want.Cols, want.Rows)
			}
		case "window-change":
			var want struct{ Cols, Rows, Width, Height uint32 }
			if ok = p != nil && p.tty != nil && ssh.Unmarshal(r.Payload, &want) == nil; ok {
				size = winsize(want.Cols, want.Rows)
				_ = unix.IoctlSetWinsize(int(p.tty.Fd()), unix.TIOCSWINSZ, &size)
			}
		case "shell", "exec":
			argv := s.c.Shell
			var want struct{ Command string }
			if r.Type == "exec" {
				if ssh.Unmarshal(r.Payload, &want) != nil {
					break
				}
				argv = append(argv[:len(argv):len(argv)], "-c", want.Command)
			}
			if p != nil {
				break
			}
			started, err := s.start(ctx, argv, term, size, ch)
			if err != nil {
				s.c.Log.Warn("rescue: no shell", "err", err)
				fmt.Fprintf(ch.Stderr(), "no shell: %v\r\n", err)
				break
			}
			p, ok = started, true
		}
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
	}
}

// program is what runs in a session.
type program struct {
	tty  *os.File // nil without a terminal
	done chan struct{}
}

// start starts argv, on a terminal when term names one, and ends the session
// with it.
func (s *Server) start(ctx context.Context, argv []string, term string, size unix.Winsize, ch ssh.Channel) (*program, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = s.c.Env
	c.WaitDelay = 2 * time.Second
	// What the shell started ends with it.
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	p := &program{done: make(chan struct{})}
	said := make(chan struct{})
	if term == "" {
		close(said)
		if err := onPipes(c, ch); err != nil {
			return nil, err
		}
	} else {
		c.Env = append(c.Env[:len(c.Env):len(c.Env)], "TERM="+term)
		var err error
		if p.tty, err = onTerminal(c, size); err != nil {
			return nil, err
		}
		go func() {
			_, _ = io.Copy(p.tty, ch)
		}()
		go func() {
			defer close(said)
			_, _ = io.Copy(ch, p.tty) // EIO once nobody has the terminal open
		}()
	}
	go func() {
		defer close(p.done)
		code := status(c.Wait())
		select {
		case <-said:
		case <-time.After(time.Second): // something in the background has the terminal
		}
		if p.tty != nil {
			_ = p.tty.Close()
		}
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
		_ = ch.Close()
	}()
	return p, nil
}

func winsize(cols, rows uint32) unix.Winsize {
	return unix.Winsize{Col: uint16(min(cols, 1000)), Row: uint16(min(rows, 1000))}
}

func status(err error) uint32 {
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e) && e.ExitCode() >= 0:
		return uint32(e.ExitCode())
	}
	return 255
}

func onPipes(c *exec.Cmd, ch ssh.Channel) error {
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	c.Stdout, c.Stderr = ch, ch.Stderr()
	if err := c.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(in, ch)
		_ = in.Close()
	}()
	return nil
}

// onTerminal starts c on a new terminal (pty(7)).
func onTerminal(c *exec.Cmd, size unix.Winsize) (*os.File, error) {
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, errors.Join(err, ptm.Close())
	}
	pts, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Join(err, ptm.Close())
	}
	defer pts.Close()
	_ = unix.IoctlSetWinsize(int(ptm.Fd()), unix.TIOCSWINSZ, &size)
	c.Stdin, c.Stdout, c.Stderr = pts, pts, pts
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		return nil, errors.Join(err, ptm.Close())
	}
	return ptm, nil
}
