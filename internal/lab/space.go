package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a network and a mount namespace held by one OS thread. Everything
// of the lab is started from that thread, and dies with it (PDEATHSIG), so
// that even a killed lab leaves no process behind.
type space struct {
	work chan func()
	done chan struct{}
}

// bridge is the lab's provisioning network.
const bridge = "br0"

func newSpace() (*space, error) {
	s := &space{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		// Slurm and munge keep sockets and pid files below /run: theirs are not
		// those of a cluster this machine may belong to.
		if err == nil {
			err = unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
		}
		ready <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		<-s.done
		return nil, err
	}
	return s, nil
}

// do runs f inside. Sockets that f opens belong to the lab's network.
func (s *space) do(f func() error) error {
	res := make(chan error)
	s.work <- func() { res <- f() }
	return <-res
}

// start starts a command inside.
func (s *space) start(c *exec.Cmd) error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	c.SysProcAttr.Setpgid = true // Ctrl-C in the terminal reaches only the lab, which ends them in order
	return s.do(c.Start)
}

func (s *space) close() {
	close(s.work)
	<-s.done
}

// network makes lo, the bridge with its addresses, and one tap for each machine.
func (s *space) network(machines, addrs []string) error {
	return s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		// No duplicate address detection and no listening phase: what the lab
		// shows should not wait for a protocol it does not need.
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(br, addr); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return err
		}
		for _, m := range machines {
			tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName(m)}, Mode: netlink.TUNTAP_MODE_TAP}
			if err := netlink.LinkAdd(tap); err != nil {
				return fmt.Errorf("tap for %s: %w", m, err)
			}
			if err := netlink.LinkSetMaster(tap, br); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(tap); err != nil {
				return err
			}
		}
		return nil
	})
}

func tapName(machine string) string { return "tap-" + machine }

// listen opens a TCP listener on an address of the lab.
func (s *space) listen(addr string) (ln net.Listener, err error) {
	err = s.do(func() error {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// process is one program of the lab.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
	once sync.Once
}

// start runs a program inside the lab; its output goes to log/NAME.log.
func (l *Lab) start(name string, env map[string]string, files []*os.File, extra []string, argv ...string) (*process, error) {
	p := &process{name: name, log: l.opts.path("log", name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = out, out, files
	p.cmd.Env = append(os.Environ(), extra...)
	for k, v := range env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	if err := l.space.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	l.procs = append(l.procs, p)
	return p, nil
}

// run runs a short program inside the lab and returns what it printed.
func (l *Lab) run(env map[string]string, argv ...string) (string, error) {
	var b strings.Builder
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &b, &b
	c.Env = os.Environ()
	for k, v := range env {
		c.Env = append(c.Env, k+"="+v)
	}
	if err := l.space.start(c); err != nil {
		return "", err
	}
	err := c.Wait()
	if err != nil {
		return b.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(b.String()))
	}
	return b.String(), nil
}

// end asks the process to end, and ends it after grace.
func (p *process) end(grace time.Duration) {
	p.once.Do(func() {
		select {
		case <-p.done:
			return
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(grace):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
}

// tail is the last lines of the log, for an error message.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return "see " + p.log
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return strings.Join(lines, "\n") + "\n(whole log: " + p.log + ")"
}
