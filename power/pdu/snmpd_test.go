package pdu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smelt/power"
	"smelt/power/powertest"
)

// passEnv makes the test binary the program that snmpd asks (pass_persist of
// snmpd.conf(5)); it names the folder with the outlets.
const passEnv = "SMELT_PDU_PASS"

// pass is an AP79xx with three outlets, each a file with 1 (on) or 2 in it.
func pass(dir string, in io.Reader, out io.Writer) int {
	const base = ".1.3.6.1.4.1.318.1.1.12.3"
	read := func(n int) string {
		b, _ := os.ReadFile(filepath.Join(dir, "outlet"+strconv.Itoa(n)))
		return strings.TrimSpace(string(b))
	}
	table := func() map[string][2]string {
		rows := map[string][2]string{}
		for n, name := range []string{1: "spare", 2: "rig-01 left", 3: "rig-01 right"} {
			if n == 0 {
				continue
			}
			rows[fmt.Sprintf("%s.3.1.1.4.%d", base, n)] = [2]string{"integer", read(n)}
			rows[fmt.Sprintf("%s.5.1.1.2.%d", base, n)] = [2]string{"string", name}
			rows[fmt.Sprintf("%s.5.1.1.4.%d", base, n)] = [2]string{"integer", read(n)}
			rows[fmt.Sprintf("%s.5.1.1.5.%d", base, n)] = [2]string{"integer", "2"}
		}
		return rows
	}
	lines := bufio.NewScanner(in)
	next := func() string { lines.Scan(); return strings.TrimSpace(lines.Text()) }
	for lines.Scan() {
		switch strings.ToLower(strings.TrimSpace(lines.Text())) {
		case "ping":
			fmt.Fprintln(out, "PONG")
		case "get":
			oid := next()
			if r, ok := table()[oid]; ok {
				fmt.Fprintf(out, "%s\n%s\n%s\n", oid, r[0], r[1])
			} else {
				fmt.Fprintln(out, "NONE")
			}
		case "getnext":
			oid, rows := strings.TrimPrefix(next(), "."), table()
			found := ""
			for _, o := range slices.SortedFunc(maps.Keys(rows), func(a, b string) int {
				if after(a[1:], b[1:]) {
					return 1
				}
				return -1
			}) {
				if found == "" && after(o[1:], oid) {
					found = o
				}
			}
			if found == "" {
				fmt.Fprintln(out, "NONE")
			} else {
				fmt.Fprintf(out, "%s\n%s\n%s\n", found, rows[found][0], rows[found][1])
			}
		case "set":
			oid := next()
			_, value, _ := strings.Cut(next(), " ")
			n, err := strconv.Atoi(strings.TrimPrefix(oid, base+".3.1.1.4."))
			switch {
			case err != nil || n < 1 || n > 3:
				fmt.Fprintln(out, "not-writable")
			case value != "1" && value != "2":
				fmt.Fprintln(out, "wrong-value")
			case os.WriteFile(filepath.Join(dir, "outlet"+strconv.Itoa(n)), []byte(value), 0o600) != nil:
				fmt.Fprintln(out, "not-writable")
			default:
				fmt.Fprintln(out, "DONE")
			}
		}
	}
	return 0
}

// A relay stands before snmpd, counts the packets that carry a login of
// SNMPv3, and can swallow everything.
type relay struct {
	front, back net.PacketConn
	to          net.Addr
	logins      atomic.Int64
	hang        atomic.Bool
}

func startRelay(t *testing.T, to net.Addr) *relay {
	r := &relay{front: udp(t), back: udp(t), to: to}
	var client atomic.Value
	var wait sync.WaitGroup
	copyTo := func(from, out net.PacketConn, where func(net.Addr) net.Addr, count bool) {
		buf := make([]byte, 65536)
		for {
			n, addr, err := from.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || r.hang.Load() {
				continue
			}
			if count && (bytes.Contains(buf[:n], []byte("admin")) || bytes.Contains(buf[:n], []byte("nobody"))) {
				r.logins.Add(1)
			}
			if a := where(addr); a != nil {
				_, _ = out.WriteTo(buf[:n], a)
			}
		}
	}
	wait.Go(func() {
		copyTo(r.front, r.back, func(a net.Addr) net.Addr { client.Store(a); return r.to }, true)
	})
	wait.Go(func() {
		copyTo(r.back, r.front, func(net.Addr) net.Addr { a, _ := client.Load().(net.Addr); return a }, false)
	})
	t.Cleanup(func() {
		r.front.Close()
		r.back.Close()
		wait.Wait()
	})
	return r
}

// A bench is a snmpd with its outlets.
type bench struct {
	dir string
	*relay
}

func (b bench) outlet(n int) string {
	data, _ := os.ReadFile(filepath.Join(b.dir, "outlet"+strconv.Itoa(n)))
	return string(data)
}

func (b bench) turn(t *testing.T, n int, on bool) {
	word := "2"
	if on {
		word = "1"
	}
	if err := os.WriteFile(filepath.Join(b.dir, "outlet"+strconv.Itoa(n)), []byte(word), 0o600); err != nil {
		t.Error(err)
	}
}

func startSnmpd(t *testing.T) bench {
	t.Helper()
	snmpd, err := exec.LookPath("snmpd")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/snmpd"); err == nil {
			snmpd = "/usr/sbin/snmpd"
		} else if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("snmpd is missing: apt-get install snmpd")
		} else {
			t.Skip("snmpd is missing (Debian package snmpd)")
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conn := udp(t)
	addr := conn.LocalAddr()
	conn.Close()
	b := bench{dir: t.TempDir()}
	for n := 1; n <= 3; n++ {
		b.turn(t, n, false)
	}
	conf := fmt.Sprintf(`agentaddress udp:%s
rwcommunity hush
rocommunity public
createUser admin SHA-256 "authentic-42" AES "private-4242"
rwuser admin priv
sysObjectID .1.3.6.1.4.1.318.1.3.4.5
pass_persist .1.3.6.1.4.1.318.1.1.12 %s
`, addr, self)
	if err := os.WriteFile(filepath.Join(b.dir, "snmpd.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var said lockedBuilder
	cmd := exec.Command(snmpd, "-f", "-Lo", "-C", "-c", filepath.Join(b.dir, "snmpd.conf"), "-I", "-smux,-agentx")
	cmd.Env = append(os.Environ(), "SNMP_PERSISTENT_DIR="+b.dir, "SNMPCONFPATH="+b.dir, "MIBS=", passEnv+"="+b.dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	b.relay = startRelay(t, addr)
	probe := controller(t, Outlet{Unit: unit(t, Config{Address: b.front.LocalAddr().String()}), Number: 1})
	for end := time.Now().Add(20 * time.Second); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		s, err := probe.State(ctx)
		cancel()
		if err == nil && s == power.Off {
			return b
		}
		if time.Now().After(end) {
			t.Fatalf("snmpd: state %s, error %v", s, err)
		}
	}
}

// A real agent, with SNMPv3: Debian's snmpd answers for an AP79xx.
func TestSnmpd(t *testing.T) {
	t.Parallel()
	good := Config{Version: "v3", User: "admin", Auth: is("authentic-42"), Priv: is("private-4242")}
	on := func(t *testing.T, b bench, c Config) *Controller {
		c.Address, c.Model = b.front.LocalAddr().String(), "apc-rpdu"
		u := unit(t, c)
		return controller(t, Outlet{Unit: u, Number: 2, Node: "rig-01"}, Outlet{Unit: u, Number: 3, Node: "rig-01"})
	}
	t.Run("v3", func(t *testing.T) {
		powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
			b := startSnmpd(t)
			return on(t, b, good), powertest.Hardware{
				On: func() bool { return b.outlet(2) == "1" || b.outlet(3) == "1" },
				Turn: func(on bool) {
					b.turn(t, 2, on)
					b.turn(t, 3, on)
				},
				Refused: func(t *testing.T) (power.Controller, func() int) {
					bad := good
					bad.Auth = is("authentic-43")
					b.logins.Store(0)
					return on(t, b, bad), func() int { return int(b.logins.Load()) }
				},
				Dead: func(t *testing.T) power.Controller {
					c := udp(t)
					c.Close()
					bad := good
					bad.Address = c.LocalAddr().String()
					u := unit(t, bad)
					return controller(t, Outlet{Unit: u, Number: 2})
				},
				Hang: func() { b.hang.Store(true) },
			}
		})
	})
	t.Run("versions and refusals", func(t *testing.T) {
		t.Parallel()
		b := startSnmpd(t)
		for _, c := range []Config{{Version: "v1"}, {Version: "v2c"}} {
			v := power.Verify(on(t, b, c), brisk)
			if e, err := v.On(t.Context()); err != nil || b.outlet(2)+b.outlet(3) != "11" {
				t.Errorf("%s on: %v, %+v", c.Version, err, e)
			}
			if e, err := v.Off(t.Context()); err != nil || b.outlet(2)+b.outlet(3) != "22" {
				t.Errorf("%s off: %v, %+v", c.Version, err, e)
			}
		}
		wrongKey, nobody := good, good
		wrongKey.Priv = is("private-4243")
		nobody.User = "nobody"
		for name, c := range map[string]Config{
			"a community that may only read": {Community: is("public")},
			"a wrong privacy passphrase":     wrongKey,
			"an unknown user":                nobody,
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := on(t, b, c).Set(ctx, power.On)
			cancel()
			if name == "a wrong privacy passphrase" {
				// snmpd drops what it cannot decrypt; it looks dead.
				if err == nil {
					t.Errorf("%s: no error", name)
				}
			} else if !errors.Is(err, power.ErrAuth) {
				t.Errorf("%s: error %v", name, err)
			}
			if b.outlet(2)+b.outlet(3) != "22" {
				t.Errorf("%s: outlets %s %s", name, b.outlet(2), b.outlet(3))
			}
		}
		// All machines of a PDU together cost one refused login, until the
		// passphrase is another one or a person resets.
		var key atomic.Value
		key.Store("authentic-43")
		shared := good
		shared.Address, shared.Auth = b.front.LocalAddr().String(), func(context.Context) (string, error) { return key.Load().(string), nil }
		u := unit(t, shared)
		one, two := controller(t, Outlet{Unit: u, Number: 2}), controller(t, Outlet{Unit: u, Number: 3})
		b.logins.Store(0)
		for range 3 {
			for _, c := range []*Controller{one, two} {
				if _, err := c.State(t.Context()); !errors.Is(err, power.ErrAuth) {
					t.Errorf("a wrong key: %v", err)
				}
			}
		}
		if n := b.logins.Load(); n != 1 {
			t.Errorf("two machines cost %d refused logins, want 1", n)
		}
		two.Reset()
		if _, err := one.State(t.Context()); !errors.Is(err, power.ErrAuth) || b.logins.Load() != 2 {
			t.Errorf("after a reset: %v, %d logins", err, b.logins.Load())
		}
		key.Store("authentic-42")
		if s, err := one.State(t.Context()); err != nil || s != power.Off {
			t.Errorf("with the right passphrase: %s, %v", s, err)
		}
		all, err := on(t, b, good).outlets[0].Unit.Outlets(t.Context())
		if err != nil || len(all) != 3 || all[1].Name != "rig-01 left" || all[1].State != power.Off {
			t.Errorf("outlets %+v, error %v", all, err)
		}
		if b.outlet(1) != "2" {
			t.Error("another outlet was switched")
		}
	})
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
