package vbmc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// IPMIConfig is a BMC that speaks IPMI 2.0 over LAN.
type IPMIConfig struct {
	Dir      string         // state of ipmi_sim, made if missing; short: it holds a socket
	Conn     net.PacketConn // where the BMC listens; closed by Close
	User     string         // "admin" when empty
	Password string         // at most 20 bytes (IPMI 2.0, table 22-30)
}

// IPMI is Debian's ipmi_sim (package openipmi) in front of a Power. ipmi_sim
// listens on a loopback address of its own; what reaches Conn is relayed to it
// and counted on the way. It knows the cipher suites 1 to 15, so a client must
// ask for 3, and it never locks a user out.
type IPMI struct {
	gate
	power  Power
	conn   net.PacketConn
	sim    *exec.Cmd
	gone   chan struct{} // closed when sim has ended
	script *http.Server
	host   string       // of ipmi_sim, in 127.0.0.0/8
	port   string       // of ipmi_sim: that of conn
	sol    net.Listener // for ipmi_sim to reach the serial port; nil without one

	wait sync.WaitGroup

	at      sync.Mutex // guards what follows
	closed  bool
	boot    string // what "get boot" answers
	lit     bool   // the identify light
	clients map[string]net.Conn
}

// StartIPMI starts the BMC and returns when it answers.
func StartIPMI(ctx context.Context, c IPMIConfig, p Power) (*IPMI, error) {
	b := &IPMI{power: p, conn: c.Conn, boot: "none", clients: map[string]net.Conn{}}
	if err := b.start(ctx, c); err != nil {
		b.Close()
		return nil, fmt.Errorf("virtual IPMI BMC %s: %w", c.Conn.LocalAddr(), err)
	}
	return b, nil
}

func (b *IPMI) start(ctx context.Context, c IPMIConfig) error {
	if c.User == "" {
		c.User = "admin"
	}
	if len(c.Password) > 20 || strings.ContainsAny(c.User+c.Password, "\"\\\n") {
		return errors.New("user or password cannot be written into lan.conf (over 20 bytes, a quote or a backslash)")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	sock := filepath.Join(dir, "sock")
	if len(sock) > maxSocket {
		return fmt.Errorf("socket path %s has %d bytes, the system allows %d: use a shorter directory", sock, len(sock), maxSocket)
	}
	if err := os.MkdirAll(filepath.Join(dir, "state", "ipmi_sim", "node"), 0o700); err != nil {
		return err
	}
	if err := b.listenScript(sock); err != nil {
		return err
	}
	if b.host, b.port, err = behind(c.Conn.LocalAddr()); err != nil {
		return err
	}
	sol, err := b.listenSOL()
	if err != nil {
		return err
	}
	files := map[string]string{
		"chassis.sh": fmt.Sprintf(chassisScript, sock),
		"node.emu":   emuConf,
		"lan.conf":   fmt.Sprintf(lanConf, b.host, b.port, filepath.Join(dir, "chassis.sh"), sol, c.User, c.Password),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			return err
		}
	}
	var said tail
	b.sim = exec.Command("ipmi_sim", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "node.emu"),
		"-s", filepath.Join(dir, "state"), "-n")
	b.sim.Dir = dir
	b.sim.Stdout, b.sim.Stderr = &said, &said
	b.sim.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, gone := make(chan error), make(chan struct{})
	go func() {
		// The signal comes with the death of the thread that started it, and
		// threads end with goroutines that change their network namespace.
		runtime.LockOSThread()
		defer close(gone)
		err := b.sim.Start()
		started <- err
		if err == nil {
			_ = b.sim.Wait() // it is always killed
		}
	}()
	if err := <-started; err != nil {
		b.sim = nil
		return fmt.Errorf("start ipmi_sim (Debian package openipmi): %w", err)
	}
	b.gone = gone
	if err := b.ready(ctx); err != nil {
		return fmt.Errorf("%w; ipmi_sim said: %s", err, said.String())
	}
	b.wait.Add(1)
	go b.relay()
	return nil
}

// The configuration of ipmi_sim; lan.conf is ipmi_lan(5).
const lanConf = `name "node"
set_working_mc 0x20
  startlan 1
    addr %s %s
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user     none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin    none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%s"
%s  startnow false
  user 1 false "" "test" user 10 none md2 md5 straight
  user 2 true "%s" "%s" admin 10 none md2 md5 straight
`

const emuConf = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

// ipmi_sim runs the script as "chassis.sh get|set WHAT [VALUE]" and waits.
const chassisScript = `#!/bin/sh
exec curl -q -s -f --noproxy '*' --max-time 30 --unix-socket '%s' \
	--data-urlencode "do=$1" --data-urlencode "what=$2" --data-urlencode "value=$3" http://bmc/
`

// behind chooses where ipmi_sim listens: at conn's own port, of another
// loopback address. It tells its port to whoever opens a console (IPMI 2.0,
// table 24-2, payload UDP port number), and ipmitool takes no other than the
// one it speaks to.
func behind(conn net.Addr) (host, port string, err error) {
	if _, port, err = net.SplitHostPort(conn.String()); err != nil {
		return "", "", err
	}
	for range 20 {
		host = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
		c, err := net.ListenPacket("udp4", net.JoinHostPort(host, port))
		if err == nil {
			return host, port, c.Close()
		}
	}
	return "", "", fmt.Errorf("no loopback address has UDP port %s free", port)
}

// ping is an ASF presence ping (IPMI 2.0, section 13.2.3), which a BMC answers
// without a session.
var ping = []byte{0x06, 0x00, 0xff, 0x06, 0x00, 0x00, 0x11, 0xbe, 0x80, 0x00, 0x00, 0x00}

func (b *IPMI) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := net.Dial("udp4", net.JoinHostPort(b.host, b.port))
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 256)
	for {
		if _, err := c.Write(ping); err == nil {
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := c.Read(buf); err == nil {
				return nil
			}
		}
		select {
		case <-b.gone:
			return errors.New("ipmi_sim ended at once")
		case <-ctx.Done():
			return errors.New("ipmi_sim does not answer a presence ping")
		case <-time.After(20 * time.Millisecond): // a closed port answers at once
		}
	}
}

// listenScript answers the chassis script.
func (b *IPMI) listenScript(sock string) error {
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	b.script = &http.Server{Handler: http.HandlerFunc(b.chassis), ReadTimeout: 5 * time.Second}
	b.wait.Add(1)
	go func() {
		defer b.wait.Done()
		_ = b.script.Serve(l) // always ErrServerClosed, by Close
	}()
	return nil
}

func (b *IPMI) chassis(w http.ResponseWriter, r *http.Request) {
	do, what, value := r.PostFormValue("do"), r.PostFormValue("what"), r.PostFormValue("value")
	say, err := b.control(r.Context(), do, what, value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, say)
}

func (b *IPMI) control(ctx context.Context, do, what, value string) (string, error) {
	switch do + " " + what {
	case "get power":
		on, err := b.power.State(ctx)
		if err != nil {
			return "", err
		}
		if on {
			return "power:1", nil
		}
		return "power:0", nil
	case "get boot":
		b.at.Lock()
		defer b.at.Unlock()
		return "boot:" + b.boot, nil
	case "set power":
		if value == "0" {
			return "", b.power.PowerOff(ctx)
		}
		return "", b.power.PowerOn(ctx)
	case "set reset":
		return "", b.power.Reset(ctx)
	case "set shutdown":
		return "", b.power.Shutdown(ctx)
	case "set identify": // "SECONDS FORCE"
		b.at.Lock()
		defer b.at.Unlock()
		b.lit = value != "0" && value != "0 0"
		return "", nil
	case "set boot":
		b.at.Lock()
		b.boot = value
		b.at.Unlock()
		switch value { // ipmi_sim drops the persistent bit: always once
		case "pxe":
			return "", b.power.SetBoot(ctx, BootNetwork, true)
		case "default":
			return "", b.power.SetBoot(ctx, BootDisk, true)
		}
		return "", nil
	}
	return "", fmt.Errorf("chassis control %s %s is unknown", do, what)
}

// relay moves packets between clients and ipmi_sim, one socket per client so
// that ipmi_sim tells them apart.
func (b *IPMI) relay() {
	defer b.wait.Done()
	buf := make([]byte, 2048)
	for {
		n, from, err := b.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a client that left
		}
		answer, through := b.in(buf[:n])
		if answer != nil {
			b.send(b.conn, answer, from)
		}
		if !through {
			continue
		}
		if up := b.client(from); up != nil {
			_, _ = up.Write(buf[:n]) // UDP may lose it; the client repeats
		}
	}
}

// client returns the socket towards ipmi_sim for a client.
func (b *IPMI) client(from net.Addr) net.Conn {
	b.at.Lock()
	defer b.at.Unlock()
	up := b.clients[from.String()]
	if up != nil || b.closed {
		return up
	}
	up, err := net.Dial("udp4", net.JoinHostPort(b.host, b.port))
	if err != nil {
		return nil
	}
	b.clients[from.String()] = up
	b.wait.Add(1)
	go b.back(from, up)
	return up
}

// idle is how long a client may be silent; IPMI sessions end after 60 s.
const idle = 90 * time.Second

func (b *IPMI) back(to net.Addr, up net.Conn) {
	defer b.wait.Done()
	defer func() {
		b.at.Lock()
		defer b.at.Unlock()
		delete(b.clients, to.String())
		up.Close()
	}()
	buf := make([]byte, 2048)
	for {
		up.SetReadDeadline(time.Now().Add(idle))
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		b.send(b.conn, buf[:n], to)
	}
}

// Addr is where the BMC listens.
func (b *IPMI) Addr() net.Addr { return b.conn.LocalAddr() }

func (b *IPMI) String() string { return "virtual IPMI BMC " + b.Addr().String() }

// Lit tells whether the identify light was switched on last.
func (b *IPMI) Lit() bool {
	b.at.Lock()
	defer b.at.Unlock()
	return b.lit
}

// Close ends ipmi_sim and everything that serves it. The machine stays as it
// is.
func (b *IPMI) Close() error {
	b.at.Lock()
	b.closed = true
	for _, up := range b.clients {
		up.Close()
	}
	b.at.Unlock()
	err := b.conn.Close()
	if b.sim != nil {
		_ = b.sim.Process.Kill() // it does not end on SIGTERM
		<-b.gone
	}
	if b.script != nil {
		b.script.Close()
	}
	if b.sol != nil {
		b.sol.Close()
	}
	b.wait.Wait()
	return err
}
