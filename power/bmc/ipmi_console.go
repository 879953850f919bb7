package bmc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"smelt/power"
)

// console is serial over LAN (IPMI 2.0, section 15): "ipmitool sol activate"
// on pipes. A BMC has one, so a session that is there already, of whomever, is
// ended first.
type console struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	pipe io.Closer // under out
	stop func() bool
	gone chan struct{} // closed when ipmitool has ended

	closing sync.Once
	writing sync.Mutex
	typed   escaper
}

// solScript is run in one session. What ipmitool prints before the console is
// active is thrown away; activated is the last of it.
const (
	solScript = "sol deactivate\nsol activate\n"
	activated = "[SOL Session operational."
)

// solParting is how long ipmitool has to end the console at the BMC.
const solParting = 3 * time.Second

// Console opens the serial port.
func (i *ipmi) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	password, err := i.secret(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := i.capabilities(ctx); err != nil {
		return nil, err
	}
	script, err := os.CreateTemp("", "smelt-sol")
	if err != nil {
		return nil, err
	}
	defer os.Remove(script.Name()) // ipmitool has read it when the console is active
	_, err = script.WriteString(solScript)
	if err := errors.Join(err, script.Close()); err != nil {
		return nil, err
	}
	cmd := i.tool(i.cfg.CipherSuite, password, "exec", script.Name())
	// As in fed: when this process is killed, ipmitool ends the console. And on a
	// pipe it keeps back what it says of itself until the machine speaks, which a
	// machine that waits for a key never does: stdbuf (coreutils) ends lines.
	cmd.Path, cmd.Args = "/bin/bash", append([]string{"bash", "-c", `trap "" PIPE; exec stdbuf -oL "$0" "$@"`}, cmd.Args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	var said tail
	cmd.Stdout, cmd.Stderr = w, &said
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	w.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("ipmitool (Debian package ipmitool): %w", err)
	}
	c := &console{cmd: cmd, in: in, out: bufio.NewReader(out), pipe: out, gone: make(chan struct{}), typed: escaper{fresh: true}}
	go func() {
		defer close(c.gone)
		_ = cmd.Wait() // its words say why
	}()
	c.stop = context.AfterFunc(ctx, func() { c.end() })
	for {
		line, err := c.out.ReadString('\n')
		if err == nil && strings.HasPrefix(line, activated) {
			return c, nil
		}
		if err == nil && len(line) < maxAnswer {
			continue // "Info: SOL payload already de-activated"
		}
		c.Close()
		return nil, i.explainSOL(ctx, said.String())
	}
}

// explainSOL words why there is no console: ipmitool's sol_activate prints the
// reasons of section 24.1.
func (i *ipmi) explainSOL(ctx context.Context, said string) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("serial over LAN: %w", ctx.Err())
	case strings.Contains(said, "already active"):
		return errors.New("serial over LAN: another session holds the console, and the BMC did not end it")
	case strings.Contains(said, "disabled"):
		return fmt.Errorf("serial over LAN is switched off at the BMC (ipmitool sol set enabled true): %w", power.ErrUnsupported)
	case strings.Contains(said, "Unable to establish"), strings.Contains(said, "Set Session Privilege"):
		return i.explain(ctx, said)
	}
	return fmt.Errorf("serial over LAN: ipmitool said: %s", clip(said))
}

func (c *console) Read(p []byte) (int, error) { return c.out.Read(p) }

// Write types p. Every byte reaches the machine as it is.
func (c *console) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.in.Write(c.typed.escape(p)); err != nil {
		return 0, fmt.Errorf("serial over LAN: %w", err)
	}
	return len(p), nil
}

// Close ends the console at the BMC and waits until ipmitool is gone.
func (c *console) Close() error {
	c.stop()
	c.end()
	<-c.gone
	return c.pipe.Close()
}

// end ends the console. ipmitool deactivates it and logs out at the end of its
// input.
func (c *console) end() {
	c.closing.Do(func() {
		c.in.Close()
		timer := time.NewTimer(solParting)
		defer timer.Stop()
		select {
		case <-c.gone:
		case <-timer.C:
			_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it has not been waited for
			<-c.gone
		}
	})
}

// escaper doubles the tildes that ipmitool would take for its escape
// character: those at the beginning of a line (its lib/ipmi_sol.c,
// processSolUserInput).
type escaper struct {
	fresh bool // at the beginning of a line
}

func (e *escaper) escape(p []byte) []byte {
	out := make([]byte, 0, len(p)+8)
	for _, b := range p {
		if b == '~' && e.fresh {
			out = append(out, '~')
		}
		out = append(out, b)
		e.fresh = b == '\r' || b == '\n'
	}
	return out
}

// tail keeps the end of what a program says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - 4096; n > 0 {
		t.b = append([]byte(nil), t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
