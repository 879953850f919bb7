// Package lab is a whole site on one Linux machine: a network namespace with a
// bridge, QEMU machines with no Smelt on them behind virtual BMCs and a PDU, a
// real slurmctld, and the real smelt serve in the middle. Nothing of it is
// known to the server, which sees a site like any other that says lab: true.
//
// The namespace has no name and no mount: it lives as long as the lab's
// processes, and those die with the process that owns the lab, also when that
// is killed.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"smelt/internal/api"
	"smelt/internal/vbmc"
)

// Options say where a lab lives and what it runs.
type Options struct {
	Dir   string // keeps state, disks, logs; made when missing
	Bin   string // folder with smelt, smelt-agent, smelt-gpu, sim/
	Cache string // folder that holds the RAM system's kernel
	Image string // name of the image in the store that nodes get
	UI    string // loopback address of API and pages on the host, 127.0.0.1:8480
	Out   io.Writer
	Log   *slog.Logger
}

// Lab is a running lab.
type Lab struct {
	opts     Options
	space    *space
	machines []*machine
	ipmi     *vbmc.IPMI // of srv-a, for its counters
	procs    []*process
	closers  []func()
	slurm    map[string]string // environment of Slurm's tools
	client   *api.Client
	once     sync.Once
	sockets  string // short temporary folder: unix socket paths have 108 bytes
}

// ErrRunning: another process owns a lab in this folder.
var ErrRunning = errors.New("a lab is already running here")

func (o Options) path(elem ...string) string {
	return filepath.Join(append([]string{o.Dir}, elem...)...)
}

// State is the folder of smelt serve.
func (o Options) State() string { return o.path("state") }

// SiteFile is the lab's site.yaml.
func (o Options) SiteFile() string { return o.path("site.yaml") }

// TokenFile holds the operator's token once the server started.
func (o Options) TokenFile() string { return filepath.Join(o.State(), "operator.token") }

// SlurmDir is where the lab's slurmctld lives.
func (o Options) SlurmDir() string { return o.path("slurm") }

// Up starts the lab: network, cluster, server, and the machines, which are
// off. What an earlier run left (database, disks) is removed; images and keys
// are kept. Close must be called also when Up fails.
func Up(ctx context.Context, o Options) (*Lab, error) {
	return up(ctx, o, scene{machines: machineNames(), addrs: bridgeAddrs, site: siteYAML, furnish: func(ctx context.Context, l *Lab) error {
		if err := l.startSlurm(ctx); err != nil {
			return err
		}
		return l.startMachines(ctx)
	}})
}

// A scene is what one kind of lab consists of.
type scene struct {
	machines []string                          // each gets a tap
	addrs    []string                          // of the bridge: the server's and the BMCs'
	site     func(Options) string              // site.yaml
	furnish  func(context.Context, *Lab) error // makes the machines and what surrounds them
}

func up(ctx context.Context, o Options, s scene) (_ *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root to make a network namespace: run it with sudo")
	}
	for _, d := range []string{o.Dir, o.State(), o.path("log"), o.path("disks"), o.SlurmDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := own(o); err != nil {
		return nil, err
	}
	l := &Lab{opts: o}
	defer func() {
		if err != nil {
			l.Close()
			os.Remove(o.path("pid"))
		}
	}()
	if err := clearRun(o); err != nil {
		return nil, err
	}
	if l.sockets, err = socketDir(o); err != nil {
		return nil, err
	}
	if l.space, err = newSpace(); err != nil {
		return nil, fmt.Errorf("make the lab's namespaces: %w", err)
	}
	if err := l.space.network(s.machines, s.addrs); err != nil {
		return nil, fmt.Errorf("make the lab's network: %w", err)
	}
	if err := s.furnish(ctx, l); err != nil {
		return nil, err
	}
	if err := l.startServer(ctx, s.site(o)); err != nil {
		return nil, err
	}
	return l, nil
}

// own writes the pid file, or says who owns the folder.
func own(o Options) error {
	if pid, err := Owner(o.Dir); err == nil {
		return fmt.Errorf("%w (process %d): smelt lab down", ErrRunning, pid)
	}
	return os.WriteFile(o.path("pid"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}

// Owner returns the process that owns the lab in dir, an error if none runs.
func Owner(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		return 0, fmt.Errorf("no lab runs in %s", dir)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 || pid == os.Getpid() {
		return 0, fmt.Errorf("no lab runs in %s", dir)
	}
	// The number may have gone to another program since: believe only a smelt.
	exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(exe), "lab") {
		return 0, fmt.Errorf("no lab runs in %s", dir)
	}
	return pid, nil
}

// Down asks the owner of the lab in dir to end it and waits until it has.
func Down(ctx context.Context, dir string) error {
	pid, err := Owner(dir)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end the lab's process %d: %w", pid, err)
	}
	for {
		if _, err := Owner(dir); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the lab's process %d has not ended: %w", pid, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// clearRun removes what belongs to one run, the keys and passwords of its BMCs
// with it: those of the next run are others. The image store, the site's keys
// and its other secrets stay, so that a second run builds nothing again.
func clearRun(o Options) error {
	for _, pattern := range []string{"disks/*", "log/*", "slurm/*", "state/smelt.db*", "state/leases*", "state/operator.token",
		"state/bmc/*", "state/refused.json", "state/secrets/adopt*", "state/console/*", "state/locate/*"} {
		found, err := filepath.Glob(o.path(pattern))
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// socketDir makes the short folder for sockets and removes the one that a lab
// that was killed could not.
func socketDir(o Options) (string, error) {
	note := o.path("sockets")
	if old, err := os.ReadFile(note); err == nil {
		if dir := string(old); filepath.Dir(dir) == filepath.Clean(os.TempDir()) && strings.HasPrefix(filepath.Base(dir), "smelt-lab-") {
			if err := os.RemoveAll(dir); err != nil {
				return "", err
			}
		}
	}
	dir, err := os.MkdirTemp("", "smelt-lab-")
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(note, []byte(dir), 0o644)
}

// Close ends every process of the lab and leaves nothing behind but files. It
// may be called again.
func (l *Lab) Close() { l.once.Do(l.end) }

func (l *Lab) end() {
	for _, m := range l.machines {
		m.close()
	}
	for i := len(l.procs) - 1; i >= 0; i-- {
		l.procs[i].end(5 * time.Second)
	}
	for i := len(l.closers) - 1; i >= 0; i-- {
		l.closers[i]()
	}
	if l.space != nil {
		l.space.close()
	}
	if l.sockets != "" {
		os.RemoveAll(l.sockets)
	}
	os.Remove(l.opts.path("pid"))
}

// URL is where a browser on this machine finds the pages.
func (l *Lab) URL() string { return "http://" + l.opts.UI }

// startServer runs smelt serve inside the lab. Its listener for people is made
// out here, so that the pages are reached from this machine, and handed over
// as systemd would.
func (l *Lab) startServer(ctx context.Context, site string) error {
	if err := os.WriteFile(l.opts.SiteFile(), []byte(site), 0o644); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", l.opts.UI)
	if err != nil {
		return fmt.Errorf("listen for the pages: %w (is another server on %s? choose one with --ui)", err, l.opts.UI)
	}
	l.opts.UI = ln.Addr().String() // port 0 is any that is free
	f, err := ln.(*net.TCPListener).File()
	ln.Close()
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := l.start("serve", nil, []*os.File{f}, []string{"LISTEN_FDS=1"},
		filepath.Join(l.opts.Bin, "smelt"), "serve", "--site", l.opts.SiteFile(), "--cache", l.opts.Cache)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		if err := l.connect(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			return fmt.Errorf("smelt serve ended: %s", p.tail())
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("smelt serve did not answer within a minute: %s", p.tail())
		}
	}
}

// connect makes the operator's client once the server has written its token.
func (l *Lab) connect(ctx context.Context) error {
	token, err := os.ReadFile(l.opts.TokenFile())
	if err != nil {
		return err
	}
	c, err := api.NewClient(l.URL(), strings.TrimSpace(string(token)), nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := c.Site(ctx); err != nil {
		return err
	}
	l.client = c
	return nil
}
