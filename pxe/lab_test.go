package pxe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// serverEnv makes the test binary a boot server instead: a process of its own
// in a network namespace of its own, that can be killed.
const serverEnv = "PXE_TEST_SERVER"

// serverSpec is what such a process serves.
type serverSpec struct {
	Network Network
	More    []Network // beside it
	Leases  string
	Files   map[string]string // name: path
	Boots   map[string]Boot   // by MAC; "" is for all others
	Then    Boot              // once a machine has its script, it gets this at the next, if set
	TLS     string            // certificate and key of HTTPS boot, as PEM; may be empty
	NoHTTP  bool              // a second server cannot have the port, and is not about it
	Not4    bool              // see not4
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(serverEnv); spec != "" {
		if err := serveSpec(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type tableBooter map[string]Boot

func (t tableBooter) Boot(_ context.Context, m Machine) (Boot, error) {
	if b, ok := t[m.MAC.String()]; ok {
		return b, nil
	}
	if b, ok := t[""]; ok {
		return b, nil
	}
	return Boot{}, errors.New("nobody knows this machine")
}

// onceBooter gives every machine its first script from a table and a fixed
// one after that.
type onceBooter struct {
	first tableBooter
	then  Boot

	mu   sync.Mutex
	done map[MAC]bool
}

func (o *onceBooter) Boot(ctx context.Context, m Machine) (Boot, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done[m.MAC] {
		return o.then, nil
	}
	o.done[m.MAC] = m.Stage == AskScript
	return o.first.Boot(ctx, m)
}

func serveSpec(text string) error {
	var spec serverSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line != "stop\n" {
			os.Exit(1)
		}
		cancel()
	}()
	files := &Files{}
	for name, p := range spec.Files {
		if err := files.AddFile(name, p); err != nil {
			return err
		}
	}
	var booter Booter = tableBooter(spec.Boots)
	if spec.Then.Action != 0 {
		booter = &onceBooter{first: spec.Boots, then: spec.Then, done: make(map[MAC]bool)}
	}
	if spec.Not4 {
		booter = not4{booter}
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	s, err := New(Config{
		Networks: append([]Network{spec.Network}, spec.More...), Files: files, Booter: booter, Leases: spec.Leases,
		Log:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		HTTP: netip.AddrPortFrom(netip.IPv4Unspecified(), 80),
		Observe: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(e)
		},
	})
	if err != nil {
		return err
	}
	if !spec.NoHTTP {
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: s.Handler()}
		go srv.Serve(l)
		defer srv.Close()
		if spec.TLS != "" {
			cert, err := tls.LoadX509KeyPair(spec.TLS, spec.TLS)
			if err != nil {
				return err
			}
			l, err := tls.Listen("tcp4", ":443", FirmwareTLS(cert))
			if err != nil {
				return err
			}
			go srv.Serve(l)
		}
	}
	go func() {
		<-s.Ready()
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("READY")
	}()
	before := goleak.IgnoreCurrent()
	if err := s.Run(ctx); err != nil {
		return err
	}
	return goleak.Find(before)
}

// needs skips the test when the machine cannot run it, unless skipping is forbidden.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	skip := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	if os.Getuid() != 0 {
		skip("needs root for network namespaces")
	}
	for _, p := range append([]string{"ip"}, programs...) {
		if _, err := exec.LookPath(p); err != nil {
			skip("needs the program %s", p)
		}
	}
}

// lab is a network: a namespace with a bridge for the server, and one for
// clients behind the wire c0.
type lab struct {
	t      *testing.T
	server string
	client string
	spec   serverSpec
	dir    string

	mu     sync.Mutex
	events []Event
	cmd    *exec.Cmd
	stdin  io.Writer
	exit   *error
	stderr bytes.Buffer
	done   chan struct{}
}

const bridge = "br0"

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, server: fmt.Sprintf("pxe-s%d", os.Getpid()), client: fmt.Sprintf("pxe-c%d", os.Getpid()), dir: t.TempDir()}
	l.spec = serverSpec{
		Network: Network{
			Interface: bridge, Address: netip.MustParsePrefix("10.77.0.1/24"),
			Pool:   Range{netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("10.77.0.199")},
			Fixed:  map[MAC]netip.Addr{{0x52, 0x54, 0, 0, 0, 1}: netip.MustParseAddr("10.77.0.11")},
			Router: netip.MustParseAddr("10.77.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.77.0.1")},
			LeaseTime: 10 * time.Minute,
		},
		Leases: filepath.Join(l.dir, "leases"),
		Files:  make(map[string]string),
		Boots:  make(map[string]Boot),
	}
	t.Cleanup(func() {
		l.stop()
		_ = exec.Command("ip", "netns", "del", l.client).Run()
		_ = exec.Command("ip", "netns", "del", l.server).Run()
		if t.Failed() {
			t.Logf("server:\n%s", l.log())
		}
	})
	for _, line := range []string{
		"netns add " + l.server,
		"netns add " + l.client,
		"-n " + l.server + " link set lo up",
		"-n " + l.server + " link add " + bridge + " type bridge forward_delay 0 mcast_snooping 0",
		"-n " + l.server + " addr add 10.77.0.1/24 dev " + bridge,
		"-n " + l.server + " link set " + bridge + " up",
		"-n " + l.server + " link add s0 type veth peer name c0 netns " + l.client,
		"-n " + l.server + " link set s0 master " + bridge + " up",
		"-n " + l.client + " link set lo up",
		"-n " + l.client + " link set c0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	// A bridge whose carrier was not noticed yet drops what it should send.
	for ns, link := range map[string]string{l.server: bridge, l.client: "c0"} {
		l.wait(link+" is up", 5*time.Second, func() bool {
			out, _ := exec.Command("ip", "-n", ns, "link", "show", link).Output()
			return bytes.Contains(out, []byte("state UP"))
		})
	}
	return l
}

// file puts content into the server's file table before start.
func (l *lab) file(name string, content []byte) {
	l.t.Helper()
	p := filepath.Join(l.dir, strings.ReplaceAll(name, "/", "_"))
	if err := os.WriteFile(p, content, 0o644); err != nil {
		l.t.Fatal(err)
	}
	l.spec.Files[name] = p
}

// tryStart starts the server and returns how that failed, if it did.
func (l *lab) tryStart() error {
	l.t.Helper()
	spec, err := json.Marshal(l.spec)
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", l.server, os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+string(spec))
	// It ends when its input does, so it outlives no test. (The kernel's own way,
	// PDEATHSIG, goes by the thread that forked, and threads end in within.)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stderr = lockedWriter{&l.mu, &l.stderr}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ready := make(chan struct{})
	done := make(chan struct{})
	var exit error
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if lines.Text() == "READY" {
				close(ready)
				continue
			}
			var e Event
			if err := json.Unmarshal(lines.Bytes(), &e); err == nil {
				l.mu.Lock()
				l.events = append(l.events, e)
				l.mu.Unlock()
			}
		}
		exit = cmd.Wait()
	}()
	select {
	case <-ready:
		l.cmd, l.stdin, l.done, l.exit = cmd, stdin, done, &exit
		return nil
	case <-done:
		return fmt.Errorf("%v: %s", exit, l.log())
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-done
		l.t.Fatalf("server not ready: %s", l.log())
		return nil
	}
}

func (l *lab) start() {
	l.t.Helper()
	if err := l.tryStart(); err != nil {
		l.t.Fatal(err)
	}
}

// stop kills the server as a power cut would.
func (l *lab) stop() {
	if l.cmd != nil {
		_ = l.cmd.Process.Kill()
		<-l.done
		l.cmd = nil
	}
}

// end stops the server as systemd would, and returns how it ended.
func (l *lab) end(limit time.Duration) error {
	l.t.Helper()
	fmt.Fprintln(l.stdin, "stop")
	select {
	case <-l.done:
		l.cmd = nil
		return *l.exit
	case <-time.After(limit):
		l.t.Fatalf("the server did not stop within %s", limit)
		return nil
	}
}

func (l *lab) log() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stderr.String()
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

// event waits for a decision that fits.
func (l *lab) event(what string, fits func(Event) bool) Event {
	l.t.Helper()
	var found Event
	l.wait(what, 5*time.Second, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, e := range l.events {
			if fits(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func (l *lab) wait(what string, limit time.Duration, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// run runs a foreign client in the client namespace.
func (l *lab) run(name string, args ...string) (string, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.client, name}, args...)...)
	cmd.Dir = l.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// within runs f on a thread in the namespace; sockets it opens stay there.
func within(t *testing.T, namespace string, f func() error) {
	t.Helper()
	c := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + namespace)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		c <- err
	}()
	if err := <-c; err != nil {
		t.Fatal(err)
	}
}
