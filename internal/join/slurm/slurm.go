// Package slurm joins nodes to a Slurm cluster. It drives the site's own
// scontrol, sinfo and srun (argv only, no shell) with SLURM_CONF naming the
// configuration of the controller: the REST API of Slurm 22.05 can neither
// create nor delete a node.
//
// A node is created as a dynamic CLOUD node and drained before its slurmd ever
// starts, so that it arrives drained: the scheduler never sees an unvalidated
// machine. What Slurm 22.05.8 really does, and this package lives with:
//
//   - create of a node that exists succeeds and changes nothing; delete and
//     update of one that does not exist fail with "Invalid node name";
//   - a CLOUD node that was not yet started is hidden from "scontrol show
//     node" and from "sinfo -a", unless it is named with -n;
//   - the reason of a drain is lost when slurmd first registers; the drain
//     stays. scontrol refuses a drain without a reason, so a drain that has
//     none is always such a lost one of ours, and nobody else's;
//   - state=resume of a node that is not drained fails with "Invalid node
//     state"; right after a resume the node may be "not responding" for some
//     seconds;
//   - fewer CPUs or GPUs than declared put the node in INVALID_REG: it has
//     registered and takes no work, which is a free check of the join.
package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smelt/internal/join"
	"smelt/inventory"
)

// Prefix begins the reason of every hold that is ours.
const Prefix = "smelt: "

// Config names a cluster.
type Config struct {
	Conf      string // slurm.conf of the controller, for scontrol, sinfo and srun here
	Server    string // host:port at which the nodes find slurmctld (configless)
	MungeKey  []byte // the cluster's munge key; goes to validated nodes only
	Partition string // of the verify job; the cluster's default when empty
	Features  string // comma-separated features of every node, for NodeSets
	// Wait bounds one command; 20 s when zero. A verify job may take three times as long.
	Wait time.Duration
}

// Driver is a join.Driver for one Slurm cluster.
type Driver struct{ c Config }

var _ join.Driver = (*Driver)(nil)

// New checks c; it talks to nobody.
func New(c Config) (*Driver, error) {
	if c.Conf == "" {
		return nil, errors.New("cluster slurm: conf is empty: name the slurm.conf of the controller")
	}
	if c.Server == "" || strings.ContainsAny(c.Server, " \t\"'\\$") {
		return nil, fmt.Errorf("cluster slurm: server %q: want host:port of slurmctld", c.Server)
	}
	// munge(7): a key has 32 to 1024 bytes.
	if n := len(c.MungeKey); n < 32 || n > 1024 {
		return nil, fmt.Errorf("cluster slurm: the munge key has %d bytes, want 32 to 1024", n)
	}
	if c.Wait == 0 {
		c.Wait = 20 * time.Second
	}
	return &Driver{c}, nil
}

func (d *Driver) String() string { return "slurm " + d.c.Server }

// Prepare creates the node and drains it before its slurmd starts.
func (d *Driver) Prepare(ctx context.Context, m join.Member) error {
	name, err := nodeName(m.Node)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(m.Addr)
	if err != nil {
		// Without nodeaddr Slurm takes the host name, which does not resolve.
		return fmt.Errorf("slurm: node %s: address %q: want an IP address", m.Node, m.Addr)
	}
	args := []string{"create", "nodename=" + name, "nodeaddr=" + addr.String(), "state=cloud"}
	if m.CPUs > 0 {
		args = append(args, "cpus="+strconv.Itoa(m.CPUs))
	}
	if m.MemoryMB > 0 {
		// slurmd reports what its kernel has at its start. A little less is
		// promised, so that a new kernel does not put the node in INVALID_REG.
		args = append(args, "realmemory="+strconv.FormatInt(m.MemoryMB-m.MemoryMB/16, 10))
	}
	if g := gres(m.GPUs); g != "" {
		args = append(args, "gres="+g)
	}
	if d.c.Features != "" {
		args = append(args, "features="+d.c.Features)
	}
	if _, err := d.run(ctx, d.c.Wait, "scontrol", args...); err != nil {
		return err
	}
	// create leaves a node that exists as it is: it may have moved.
	if _, err := d.run(ctx, d.c.Wait, "scontrol", "update", "nodename="+name, "nodeaddr="+addr.String()); err != nil {
		return err
	}
	return d.Hold(ctx, m.Node, "not yet admitted")
}

// Grant is a munge key and a slurmd that fetches its configuration from the
// controller (configless).
func (d *Driver) Grant(_ context.Context, m join.Member) (join.Grant, error) {
	name, err := nodeName(m.Node)
	if err != nil {
		return join.Grant{}, err
	}
	return join.Grant{
		Kind: "slurm",
		Files: []join.File{
			{Path: "/etc/munge/munge.key", Mode: 0o400, Owner: "munge", Data: d.c.MungeKey, Secret: true},
			{Path: "/etc/default/slurmd", Mode: 0o644,
				Data: []byte("SLURMD_OPTIONS=\"-Z -N " + name + " --conf-server " + d.c.Server + "\"\n")},
			// Debian's unit starts only where /etc/slurm/slurm.conf exists,
			// which a configless node has not, and never starts again when
			// the controller did not answer at boot.
			{Path: "/etc/systemd/system/slurmd.service.d/smelt.conf", Mode: 0o644,
				Data: []byte("[Unit]\nConditionPathExists=\n\n[Service]\nRestart=on-failure\nRestartSec=5s\n")},
		},
		Units:   []string{"munge.service", "slurmd.service"},
		Options: map[string]string{"node": name, "server": d.c.Server},
	}, nil
}

// Observe asks sinfo: it shows the node whether it was started or not.
func (d *Driver) Observe(ctx context.Context, node inventory.NodeID) (join.Standing, error) {
	name, err := nodeName(node)
	if err != nil {
		return join.Standing{}, err
	}
	out, err := d.run(ctx, d.c.Wait, "sinfo", "-a", "-N", "-h", "-n", name, "-O", columns)
	if err != nil {
		return join.Standing{}, err
	}
	return parseStanding(string(out), name)
}

// columns of sinfo: fixed widths, because a reason may hold any character.
const (
	columns   = "NodeList:64,StateComplete:160,Reason:512"
	nameWidth = 64
	reasonAt  = 64 + 160
)

// parseStanding reads the line of node name; a node in several partitions has
// several lines that say the same.
func parseStanding(out, name string) (join.Standing, error) {
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if len(line) < reasonAt {
			if strings.TrimSpace(line) == "" {
				continue
			}
			return join.Standing{}, fmt.Errorf("slurm: node %s: sinfo wrote a line of %d bytes, want %d or more", name, len(line), reasonAt)
		}
		if strings.TrimSpace(line[:nameWidth]) != name {
			continue
		}
		flags := strings.Split(strings.TrimSpace(line[nameWidth:reasonAt]), "+")
		reason := strings.TrimSpace(line[reasonAt:])
		if reason == "none" {
			reason = ""
		}
		return standing(flags, reason), nil
	}
	return join.Standing{}, nil
}

func standing(flags []string, reason string) join.Standing {
	has := func(words ...string) bool {
		return slices.ContainsFunc(flags, func(f string) bool { return slices.Contains(words, f) })
	}
	s := join.Standing{Known: true, Detail: strings.Join(flags, "+")}
	s.Held = has("drain", "drained", "draining", "fail", "failing", "maint", "reserved")
	s.HeldByUs = s.Held && has("drain", "drained", "draining") && ours(reason)
	s.Registered = !has("powered_down", "powering_down", "powering_up", "power_down", "power_up",
		"not_responding", "down", "unknown", "future", "error", "invalid_reg", "inval", "reboot_issued")
	s.Busy = has("mixed", "allocated", "completing")
	s.Ready = s.Registered && !s.Held && has("idle", "mixed", "allocated", "completing")
	if reason != "" {
		s.Detail += ": " + reason
	}
	return s
}

// ours tells whether a drain is ours: by our prefix, or because it lost its
// reason when slurmd registered (see the package comment).
func ours(reason string) bool {
	return reason == "" || strings.HasPrefix(reason, strings.TrimSpace(Prefix))
}

// Hold drains the node. A node that somebody else drained stays theirs: their
// reason is not overwritten, or Release would one day lift it.
func (d *Driver) Hold(ctx context.Context, node inventory.NodeID, reason string) error {
	s, err := d.Observe(ctx, node)
	if err != nil {
		return err
	}
	if !s.Known {
		return fmt.Errorf("slurm: node %s is not in the cluster: nothing to hold", node)
	}
	if s.Held && !s.HeldByUs {
		return nil
	}
	want := Prefix + oneLine(reason)
	if s.HeldByUs && strings.HasSuffix(s.Detail, ": "+want) {
		return nil
	}
	_, err = d.run(ctx, d.c.Wait, "scontrol", "update", "nodename="+string(node), "state=drain", "reason="+want)
	return err
}

// Release resumes the node if the drain is ours.
func (d *Driver) Release(ctx context.Context, node inventory.NodeID) error {
	s, err := d.Observe(ctx, node)
	if err != nil || !s.HeldByUs {
		return err
	}
	_, err = d.run(ctx, d.c.Wait, "scontrol", "update", "nodename="+string(node), "state=resume")
	return err
}

// Verify runs a job on the node that prints the name its slurmd has.
func (d *Driver) Verify(ctx context.Context, node inventory.NodeID) (string, error) {
	name, err := nodeName(node)
	if err != nil {
		return "", err
	}
	// The job of a verify that was killed with its server stays in the queue
	// and runs whenever the node is free again.
	if err := d.cancel(ctx, name); err != nil {
		return "", err
	}
	wait := 3 * d.c.Wait
	args := []string{"--nodelist=" + name, "--nodes=1", "--ntasks=1", "--time=1", "--job-name=" + verifyJob + name,
		"--chdir=/", "--export=NONE", "--quiet", "--immediate=" + strconv.Itoa(max(1, int((wait-wait/6)/time.Second)))}
	if d.c.Partition != "" {
		args = append(args, "--partition="+d.c.Partition)
	}
	out, err := d.run(ctx, wait, "srun", append(args, "/usr/bin/printenv", "SLURMD_NODENAME")...)
	if err != nil {
		return "", err
	}
	got := strings.TrimSpace(string(out))
	if got != name {
		return got, fmt.Errorf("slurm: node %s: the verify job ran on %q", node, got)
	}
	return got, nil
}

// verifyJob begins the name of the verify job of each node.
const verifyJob = "smelt-verify-"

func (d *Driver) cancel(ctx context.Context, name string) error {
	_, err := d.run(ctx, d.c.Wait, "scancel", "--quiet", "--name="+verifyJob+name)
	return err
}

// Remove drains and deletes the node. Slurm deletes no node with a running
// job: the error then says so, and calling again later finishes it.
func (d *Driver) Remove(ctx context.Context, node inventory.NodeID) error {
	s, err := d.Observe(ctx, node)
	if err != nil || !s.Known {
		return err
	}
	if err := d.Hold(ctx, node, "leaving"); err != nil {
		return err
	}
	if err := d.cancel(ctx, string(node)); err != nil {
		return err
	}
	_, derr := d.run(ctx, d.c.Wait, "scontrol", "delete", "nodename="+string(node))
	if derr == nil {
		return nil
	}
	// A delete may time out under load although it took effect.
	if s, err := d.Observe(ctx, node); err == nil && !s.Known {
		return nil
	}
	return derr
}

// run runs one command of Slurm and returns its standard output.
func (d *Driver) run(ctx context.Context, wait time.Duration, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// No variable of ours (SLURM_*, SBATCH_*) may change what is asked.
	cmd.Env = []string{"SLURM_CONF=" + d.c.Conf, "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/"}
	// srun takes its job out of the queue when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	var out, serr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &serr
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	what := name
	if len(args) > 0 && name == "scontrol" {
		what += " " + args[0]
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("slurm: %s did not answer within %s: is slurmctld running at %s?", what, wait, d.c.Server)
	}
	return nil, fmt.Errorf("slurm: %s: %v: %s", what, err, lastLine(serr.String()))
}

// nodeName is the name of the node in Slurm: a NodeID is one already. Names
// with a bracket or a comma would be host lists.
func nodeName(id inventory.NodeID) (string, error) {
	if _, err := inventory.ParseNodeID(string(id)); err != nil {
		return "", fmt.Errorf("slurm: %w", err)
	}
	return string(id), nil
}

func gres(gpus map[string]int) string {
	var types []string
	for t, n := range gpus {
		if n > 0 {
			types = append(types, "gpu:"+gresType(t)+":"+strconv.Itoa(n))
		}
	}
	slices.Sort(types)
	return strings.Join(types, ",")
}

// gresType makes "RTX 3090" a word that gres.conf can hold: rtx3090.
func gresType(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return -1
	}, s)
}

// oneLine keeps a reason printable, short, and free of what scontrol would
// take for the next key: it splits no argument, but a quote ends a value.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == '"' || r == '\'' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return strings.TrimSpace(s)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for _, l := range slices.Backward(lines) {
		if l = strings.TrimSpace(l); l != "" {
			return l
		}
	}
	return "no message"
}
