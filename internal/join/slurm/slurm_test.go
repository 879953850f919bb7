package slurm

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"smelt/internal/join"
	"smelt/internal/join/jointest"
	"smelt/inventory"
)

// inside is set in the copy of this test that runs in its own network, mount
// and process namespaces: Slurm's ports and /run/munge are the machine's
// otherwise, and every daemon dies with its process 1.
const inside = "SMELT_TEST_SLURM_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || missing() != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !asExit(err, &exit) {
		fmt.Fprintln(os.Stderr, "slurm test: namespaces:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func asExit(err error, out **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*out = e
	return ok
}

// missing says what a real Slurm cannot be run for, or "".
func missing() string {
	if os.Getuid() != 0 {
		return "not root: network and mount namespaces are needed"
	}
	for _, p := range []string{"slurmctld", "slurmd", "munged", "scontrol", "sinfo", "srun", "scancel", "ip", "unshare"} {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed (Debian: slurm-wlm munge iproute2)"
		}
	}
	return ""
}

func needSlurm(t *testing.T) {
	t.Helper()
	why := missing()
	if why == "" {
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

const (
	ctlAddr  = "10.97.0.1"
	nodeAddr = "10.97.0.11"
)

// cluster is a slurmctld with its munged in the test's namespaces.
type cluster struct {
	dir, conf string
	key       []byte
	log       bytes.Buffer
}

func startCluster(t *testing.T) *cluster {
	needSlurm(t)
	c := &cluster{dir: t.TempDir(), key: make([]byte, 128)}
	_, _ = rand.Read(c.key)

	// Only lo is not enough: Slurm resolves its addresses with AI_ADDRCONFIG,
	// which finds none on a machine whose only address is the loopback.
	for _, cmd := range []string{
		"mount --make-rprivate /", "mount -t proc proc /proc", "mount -t tmpfs tmpfs /run", "mkdir -p /run/munge",
		"ip link set lo up", "ip link add br0 type bridge", "ip addr add " + ctlAddr + "/24 dev br0", "ip link set br0 up",
	} {
		must(t, cmd)
	}
	key := filepath.Join(c.dir, "munge.key")
	if err := os.WriteFile(key, c.key, 0o400); err != nil {
		t.Fatal(err)
	}
	must(t, mungedLine(key))

	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"slurm.conf", "cgroup.conf"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer("DIR", c.dir, "HOST", host, "ADDR", ctlAddr).Replace(string(raw))
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.conf = filepath.Join(c.dir, "slurm.conf")
	if err := os.Mkdir(filepath.Join(c.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.log.String())
		}
	})
	c.start(t, "slurmctld", exec.Command("slurmctld", "-D", "-f", c.conf))
	waitFor(t, "slurmctld", func() error {
		cmd := exec.Command("scontrol", "ping")
		cmd.Env = append(os.Environ(), "SLURM_CONF="+c.conf)
		out, _ := cmd.CombinedOutput()
		if !bytes.Contains(out, []byte("is UP")) {
			return fmt.Errorf("%s\n%s", out, c.log.Bytes())
		}
		return nil
	})
	return c
}

// mungedLine starts a munged that accepts a key in a folder of the test.
func mungedLine(key string) string {
	return "munged --force --key-file=" + key + " --pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed"
}

func (c *cluster) start(t *testing.T, name string, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = &c.log, &c.log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func (c *cluster) driver(t *testing.T) *Driver {
	t.Helper()
	d, err := New(Config{Conf: c.conf, Server: ctlAddr + ":6817", MungeKey: c.key})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (c *cluster) scontrol(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("scontrol", args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+c.conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scontrol %v: %v: %s", args, err, out)
	}
}

// startNode runs what a grant asks for as a machine of its own: its network is
// behind a veth pair, its /run and its munge key are its own.
func (c *cluster) startNode(t *testing.T, g join.Grant, addr string) {
	t.Helper()
	var key, options string
	for _, f := range g.Files {
		path := filepath.Join(t.TempDir(), filepath.Base(f.Path))
		if err := os.WriteFile(path, f.Data, os.FileMode(f.Mode)); err != nil {
			t.Fatal(err)
		}
		switch f.Path {
		case "/etc/munge/munge.key":
			key = path
		case "/etc/default/slurmd":
			options = path
		}
	}
	script := strings.Join([]string{
		"read go", "set -e", "mount -t tmpfs tmpfs /run", "mkdir -p /run/munge /run/spool /var/spool/slurmd",
		"mount --bind /run/spool /var/spool/slurmd", "mount -t tmpfs tmpfs /var/log",
		mungedLine(key), ". " + options, "exec slurmd -D $SLURMD_OPTIONS",
	}, "\n")
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no SLURM_CONF: configless
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.start(t, "slurmd", cmd)
	pid := fmt.Sprint(cmd.Process.Pid)
	must(t, "ip link add v"+pid+" type veth peer name eth0 netns "+pid)
	must(t, "ip link set v"+pid+" master br0 up")
	for _, l := range []string{"ip link set lo up", "ip addr add " + addr + "/24 dev eth0", "ip link set eth0 up"} {
		must(t, "nsenter --net=/proc/"+pid+"/ns/net "+l)
	}
	_, _ = io.WriteString(stdin, "\n")
}

func must(t *testing.T, line string) {
	t.Helper()
	f := strings.Fields(line)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestRealSlurm holds the driver to the suite against Debian's slurmctld,
// slurmd and munged.
func TestRealSlurm(t *testing.T) {
	c := startCluster(t)
	d := c.driver(t)
	jointest.Run(t, jointest.Cluster{
		Driver: d,
		Member: join.Member{Node: jointest.Node, Addr: nodeAddr, CPUs: 1, MemoryMB: 512},
		Start:  func(t *testing.T, g join.Grant) { c.startNode(t, g, nodeAddr) },
		Foreign: func(t *testing.T, reason string) {
			c.scontrol(t, "update", "nodename="+string(jointest.Node), "state=drain", "reason="+reason)
		},
		Lift: func(t *testing.T) {
			c.scontrol(t, "update", "nodename="+string(jointest.Node), "state=resume")
		},
		Patience: 30 * time.Second,
	})

	// A node that declares more than it has is registered and never ready.
	m := join.Member{Node: "liar", Addr: "10.97.0.12", CPUs: 1, MemoryMB: 512, GPUs: map[string]int{"RTX 3090": 2}}
	if err := d.Prepare(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	g, err := d.Grant(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	c.startNode(t, g, m.Addr)
	waitFor(t, "a node with fewer GPUs than declared", func() error {
		s, err := d.Observe(t.Context(), m.Node)
		if err != nil || s.Ready || !strings.Contains(s.Detail, "invalid_reg") {
			return fmt.Errorf("standing %+v, %v; want invalid_reg", s, err)
		}
		return nil
	})
}

func TestController(t *testing.T) {
	// No controller: an error that says where it was looked for, soon.
	needSlurm(t)
	conf := filepath.Join(t.TempDir(), "slurm.conf")
	if err := os.WriteFile(conf, []byte("ClusterName=x\nSlurmctldHost=x(127.0.0.1)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Conf: conf, Server: "127.0.0.1:6817", MungeKey: make([]byte, 32), Wait: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Observe(t.Context(), "rig-01"); err == nil || !strings.Contains(err.Error(), "127.0.0.1:6817") {
		t.Fatalf("observe without a controller: %v", err)
	}
}

func TestStanding(t *testing.T) {
	for _, tt := range []struct {
		flags, reason string
		want          join.Standing
	}{
		{"idle+cloud+drain+dynamic_norm+powered_down", "smelt: waits", join.Standing{Known: true, Held: true, HeldByUs: true}},
		{"idle+cloud+drain+dynamic_norm", "", join.Standing{Known: true, Registered: true, Held: true, HeldByUs: true}},
		{"idle+cloud+drain+dynamic_norm", "Kill task failed", join.Standing{Known: true, Registered: true, Held: true}},
		{"idle+cloud+drain+dynamic_norm", "smelter is hot", join.Standing{Known: true, Registered: true, Held: true}},
		{"idle+cloud+dynamic_norm+powered_down+not_responding", "", join.Standing{Known: true}},
		{"idle+cloud+drain+dynamic_norm+invalid_reg", "", join.Standing{Known: true, Held: true, HeldByUs: true}},
		{"mixed+cloud+dynamic_norm", "", join.Standing{Known: true, Registered: true, Ready: true, Busy: true}},
		{"mixed+cloud+drain+dynamic_norm", "smelt: leaving", join.Standing{Known: true, Registered: true, Held: true, HeldByUs: true, Busy: true}},
		{"down+cloud+dynamic_norm", "Not responding", join.Standing{Known: true}},
		{"idle+maint", "", join.Standing{Known: true, Registered: true, Held: true}},
	} {
		line := fmt.Sprintf("%-64s%-160s%-512s\n", "rig-01", tt.flags, tt.reason)
		got, err := parseStanding(line, "rig-01")
		if err != nil {
			t.Fatal(err)
		}
		got.Detail = ""
		if got != tt.want {
			t.Errorf("%s (%s): %+v, want %+v", tt.flags, tt.reason, got, tt.want)
		}
	}
}

func FuzzStanding(f *testing.F) {
	f.Add(fmt.Sprintf("%-64s%-160s%-512s\n", "rig-01", "idle+drain", "smelt: x"))
	f.Add("rig-01")
	f.Add("\n\n")
	f.Fuzz(func(t *testing.T, out string) {
		s, err := parseStanding(out, "rig-01")
		if (err != nil || !s.Known) && s != (join.Standing{}) {
			t.Fatalf("a standing beside an error or of an unknown node: %+v, %v", s, err)
		}
		if s.Ready && (s.Held || !s.Registered) {
			t.Fatalf("ready while held or not registered: %+v", s)
		}
	})
}

func TestGrantKeepsTheKeyToOneFile(t *testing.T) {
	key := bytes.Repeat([]byte("K"), 64)
	d, err := New(Config{Conf: "/c", Server: "10.0.0.1:6817", MungeKey: key})
	if err != nil {
		t.Fatal(err)
	}
	g, err := d.Grant(t.Context(), join.Member{Node: "rig-01", Addr: "10.0.0.2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range g.Files {
		if bytes.Contains(f.Data, key) != f.Secret {
			t.Errorf("%s: secret %v", f.Path, f.Secret)
		}
		if f.Secret && (f.Mode != 0o400 || f.Owner != "munge") {
			t.Errorf("%s: mode %o, owner %q", f.Path, f.Mode, f.Owner)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []Config{
		{Server: "a:1", MungeKey: make([]byte, 32)},
		{Conf: "/c", MungeKey: make([]byte, 32)},
		{Conf: "/c", Server: "a b", MungeKey: make([]byte, 32)},
		{Conf: "/c", Server: "a:1", MungeKey: make([]byte, 31)},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) succeeded", c)
		}
	}
	d, _ := New(Config{Conf: "/c", Server: "a:1", MungeKey: make([]byte, 32)})
	for _, id := range []inventory.NodeID{"", "a[1-9]", "a,b", "x=y", "-n"} {
		if _, err := d.Observe(t.Context(), id); err == nil {
			t.Errorf("a node named %q was accepted", id)
		}
	}
	if got := gres(map[string]int{"RTX 3090": 2, "A100": 1, "none": 0}); got != "gpu:a100:1,gpu:rtx3090:2" {
		t.Errorf("gres: %s", got)
	}
	if got := oneLine("a\nb\"c'"); got != "a b c" {
		t.Errorf("oneLine: %q", got)
	}
}
