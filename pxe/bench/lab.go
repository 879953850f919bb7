package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smelt/pxe"
)

// The two ends of the cable.
const (
	serverIf, clientIf     = "s0", "c0"
	serverAddr, clientAddr = "10.99.0.1", "10.99.0.2"
	prefixBits             = "/16"
	poolFrom, poolTo       = "10.99.16.0", "10.99.255.0" // more addresses than perfdhcp has clients
)

// lab is two network namespaces with a cable between them.
type lab struct {
	server, client string // namespaces
	dir            string // for files; removed
	rounds         int
	profile        string
	started        int
}

// inLab makes a lab, runs f in it, and removes what was made.
func inLab(ctx context.Context, rounds int, profile string, f func(context.Context, *lab) ([]result, error)) (_ []result, err error) {
	l := &lab{server: fmt.Sprintf("pxb-s%d", os.Getpid()), client: fmt.Sprintf("pxb-c%d", os.Getpid()), rounds: rounds, profile: profile}
	if l.dir, err = os.MkdirTemp("", "smelt-bench-*"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(l.dir)
	// Servers that give up their rights (tftpd-hpa, nginx) read files in it.
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		_ = exec.Command("ip", "netns", "del", l.client).Run()
		_ = exec.Command("ip", "netns", "del", l.server).Run()
	}()
	err = ip(
		"netns add "+l.server,
		"netns add "+l.client,
		"-n "+l.server+" link set lo up",
		"-n "+l.client+" link set lo up",
		"-n "+l.server+" link add "+serverIf+" type veth peer name "+clientIf+" netns "+l.client,
		"-n "+l.server+" addr add "+serverAddr+prefixBits+" dev "+serverIf,
		"-n "+l.client+" addr add "+clientAddr+prefixBits+" dev "+clientIf,
		"-n "+l.server+" link set "+serverIf+" up",
		"-n "+l.client+" link set "+clientIf+" up",
	)
	if err != nil {
		return nil, err
	}
	return f(ctx, l)
}

func ip(lines ...string) error {
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %v: %s", line, err, out)
		}
	}
	return nil
}

// file writes a file of the lab and returns its path.
func (l *lab) file(name string, content []byte) (string, error) {
	p := filepath.Join(l.dir, name)
	return p, os.WriteFile(p, content, 0o644)
}

// command is a program in a namespace, which ends with us.
func (l *lab) command(ctx context.Context, namespace, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", namespace, name}, args...)...)
	cmd.Dir = l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// server is a program that serves until it is stopped.
type server struct {
	name string
	cmd  *exec.Cmd
	said bytes.Buffer
	done chan struct{}
}

// start starts a foreign server in the server's namespace and waits until
// ready says so.
func (l *lab) start(ctx context.Context, ready func() bool, env []string, name string, args ...string) (*server, error) {
	cmd := l.command(ctx, l.server, name, args...)
	cmd.Env = append(os.Environ(), env...)
	s := &server{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &s.said, &s.said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	for deadline := time.Now().Add(10 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) {
		select {
		case <-s.done:
			return nil, fmt.Errorf("%s ended: %s", name, &s.said)
		default:
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("%s is not ready after 10 s: %s", name, &s.said)
		}
	}
	return s, nil
}

// cpu is the processor time that the server has used, in seconds.
func (s *server) cpu() float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// proc_pid_stat(5): utime and stime are fields 14 and 15, the third one
	// follows the name, which ends in the last parenthesis.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // USER_HZ
}

// stop ends the server as systemd would, and kills it if that does nothing.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// udpOpen reports whether somebody in the server's namespace listens on a UDP
// port, tcpOpen on a TCP port.
func (l *lab) udpOpen(port int) func() bool { return l.open("-uln", port) }
func (l *lab) tcpOpen(port int) func() bool { return l.open("-tln", port) }

func (l *lab) open(flags string, port int) func() bool {
	return func() bool {
		out, err := exec.Command("ip", "netns", "exec", l.server, "ss", "-H", flags, fmt.Sprintf("sport = :%d", port)).Output()
		return err == nil && len(bytes.TrimSpace(out)) > 0
	}
}

// spec is what our own server serves.
type spec struct {
	Network pxe.Network
	Leases  string
	Files   map[string]string // name: path
	Boot    pxe.Boot          // for every machine
	NoDHCP  bool              // HTTP alone, beside another DHCP server
	Profile string            // where to write a CPU profile
}

// spec is a network on the lab's cable, without leases.
func (l *lab) spec() spec {
	l.started++
	s := spec{
		Network: pxe.Network{
			Interface: serverIf, Address: netip.MustParsePrefix(serverAddr + prefixBits),
			Pool: pxe.Range{From: netip.MustParseAddr(poolFrom), To: netip.MustParseAddr(poolTo)},
		},
		Leases: filepath.Join(l.dir, fmt.Sprintf("leases-%d", l.started)),
		Files:  make(map[string]string),
		Boot:   pxe.Boot{Action: pxe.Hold, Why: "a benchmark"},
	}
	if l.profile != "" {
		s.Profile = filepath.Join(l.profile, fmt.Sprintf("smelt-%d.pprof", l.started))
	}
	return s
}

// serve starts our own server in the server's namespace.
func (l *lab) serve(ctx context.Context, s spec) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	cmd := l.command(ctx, l.server, self, "serve")
	our := &server{name: "smelt", cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &our.said
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		_ = cmd.Wait()
		close(our.done)
	}()
	if line != "READY\n" {
		our.stop()
		return nil, fmt.Errorf("our server did not start: %v: %s", err, &our.said)
	}
	return our, nil
}

// serve is our server as cmd/smelt runs it, with one answer for every machine.
func serve(in io.Reader) error {
	var s spec
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if s.Profile != "" {
		f, err := os.Create(s.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	files := &pxe.Files{}
	for name, p := range s.Files {
		if err := files.AddFile(name, p); err != nil {
			return err
		}
	}
	srv, err := pxe.New(pxe.Config{
		Networks: []pxe.Network{s.Network}, Files: files, Booter: always(s.Boot), Leases: s.Leases,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), HTTP: netip.AddrPortFrom(netip.IPv4Unspecified(), 80),
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp4", ":80")
	if err != nil {
		return err
	}
	web := pxe.HTTPServer(srv.Handler())
	go func() { _ = web.Serve(pxe.Limit(ln)) }()
	defer web.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	if s.NoDHCP {
		fmt.Println("READY")
	} else {
		go func() { ended <- srv.Run(ctx) }()
		select {
		case <-srv.Ready():
			fmt.Println("READY")
		case err := <-ended:
			return err
		}
	}
	select {
	case err := <-ended:
		return errors.Join(errors.New("it ended by itself"), err)
	case <-stop:
		return nil
	}
}

// always is a Booter with one answer.
type always pxe.Boot

func (a always) Boot(context.Context, pxe.Machine) (pxe.Boot, error) { return pxe.Boot(a), nil }
