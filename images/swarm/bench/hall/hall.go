// Package hall is a site of network namespaces: a server and nodes, each behind
// a link of its own with a cap in both directions, on one bridge.
package hall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config of a Hall.
type Config struct {
	Nodes  int
	Mbit   int     // of each link, each direction
	Loss   float64 // per cent of the packets to each node
	Dir    string  // for logs
	Exe    string  // plays server and nodes
	Helper string  // plays what Job.Helper asks for
}

// Hall is made of namespaces until Close.
type Hall struct {
	c      Config
	prefix string
	server *exec.Cmd
	log    *os.File
}

// Job is one program in the namespace of a node.
type Job struct {
	Node     int
	Args     []string
	Helper   bool    // it accompanies: nobody waits for it
	DieAfter float64 // killed after this share of one image's time on its link, and started again
	Delay    float64 // starts after this share of it
}

// Result of a run.
type Result struct {
	Took       time.Duration // until the last node had the image
	ServerSent int64         // bytes that left the server's network card, with headers and what was sent twice
	CPU        time.Duration // of all programs
	PeakMiB    int64         // of the largest node
	Verified   int
}

const subnet = "10.211"

// ServerAddr is where the server listens.
func (h *Hall) ServerAddr() string { return subnet + ".0.1:80" }

// Dir is for disks.
func (h *Hall) Dir() string { return h.c.Dir }

func (h *Hall) ns(i int) string { return h.prefix + strconv.Itoa(i) } // 0 is the server's

// New makes the namespaces.
func New(c Config) (*Hall, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	h := &Hall{c: c, prefix: fmt.Sprintf("swarm%d-", os.Getpid())}
	sw := h.prefix + "sw"
	var main, in strings.Builder
	fmt.Fprintf(&main, "netns add %s\n", sw)
	fmt.Fprintf(&in, "link add br0 type bridge\nlink set br0 up\n")
	for i := range c.Nodes + 1 {
		fmt.Fprintf(&main, "netns add %s\n", h.ns(i))
		fmt.Fprintf(&in, "link add p%d type veth peer name eth0 netns %s\nlink set p%d master br0 up\n", i, h.ns(i), i)
	}
	err := ip("", main.String())
	if err == nil {
		err = ip(sw, in.String())
	}
	for i := 0; err == nil && i <= c.Nodes; i++ {
		addr := fmt.Sprintf("%s.1.%d", subnet, i)
		if i == 0 {
			addr = subnet + ".0.1"
		}
		if err = ip(h.ns(i), fmt.Sprintf("link set lo up\naddr add %s/16 dev eth0\nlink set eth0 up\n", addr)); err != nil {
			break
		}
		// What leaves the node is its upload, what leaves the bridge to it its
		// download. The queue holds 100 ms.
		rate := fmt.Sprintf("%dmbit", c.Mbit)
		for _, at := range [][2]string{{h.ns(i), "eth0"}, {sw, fmt.Sprint("p", i)}} {
			if err = h.run("tc", "-n", at[0], "qdisc", "add", "dev", at[1], "root", "tbf", "rate", rate, "burst", "128kb", "latency", "100ms"); err != nil {
				break
			}
		}
		if err == nil && c.Loss > 0 {
			err = h.run("ip", "netns", "exec", h.ns(i), "nft", fmt.Sprintf("add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; add rule ip lossy in iifname eth0 numgen random mod 10000 < %d drop", int(c.Loss*100)))
		}
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func ip(ns, batch string) error {
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	c := exec.Command("ip", args...)
	c.Stdin = strings.NewReader(batch)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

func (h *Hall) run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// Close ends what runs and takes the namespaces away.
func (h *Hall) Close() {
	h.StopServer()
	for i := range h.c.Nodes + 1 {
		_ = exec.Command("ip", "netns", "del", h.ns(i)).Run()
	}
	_ = exec.Command("ip", "netns", "del", h.prefix+"sw").Run()
}

func (h *Hall) command(ctx context.Context, ns int, exe string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.ns(ns), exe}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Env = append(os.Environ(), "GOGC=50", "GOMAXPROCS=2")
	return c
}

// StartServer runs the server and waits until it listens.
func (h *Hall) StartServer(ctx context.Context, args ...string) error {
	f, err := os.Create(filepath.Join(h.c.Dir, "server.log"))
	if err != nil {
		return err
	}
	c := h.command(ctx, 0, h.c.Exe, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		f.Close()
		return err
	}
	h.server, h.log = c, f
	for range 100 {
		out, _ := exec.Command("ip", "netns", "exec", h.ns(0), "ss", "-Hltn", "sport", "= :80").Output()
		if len(bytes.TrimSpace(out)) > 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(f.Name())
	return fmt.Errorf("the server does not listen: %s", b)
}

// StopServer ends it.
func (h *Hall) StopServer() {
	if h.server == nil {
		return
	}
	_ = h.server.Process.Signal(syscall.SIGTERM)
	_ = h.server.Wait()
	h.log.Close()
	if os.Getenv("SWARM_BENCH_LOG") != "" {
		b, _ := os.ReadFile(h.log.Name())
		os.Stderr.Write(b)
	}
	h.server = nil
}

func (h *Hall) sent() (int64, error) {
	b, err := exec.Command("ip", "netns", "exec", h.ns(0), "cat", "/sys/class/net/eth0/statistics/tx_bytes").Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// Run runs all jobs and returns when those that nobody accompanies are done.
// image is the bytes that each fetches: its time on a link is the unit of
// DieAfter and Delay.
func (h *Hall) Run(ctx context.Context, jobs []Job, image int64) (Result, error) {
	before, err := h.sent()
	if err != nil {
		return Result{}, err
	}
	unit := time.Duration(float64(image) * 8 / float64(h.c.Mbit) * 1000)
	company, end := context.WithCancel(ctx)
	defer end()
	var wg, helpers sync.WaitGroup
	var mu sync.Mutex
	var r Result
	var errs []error
	used := func(s *os.ProcessState) {
		mu.Lock()
		defer mu.Unlock()
		r.CPU += s.UserTime() + s.SystemTime()
		if u, ok := s.SysUsage().(*syscall.Rusage); ok {
			r.PeakMiB = max(r.PeakMiB, u.Maxrss>>10)
		}
	}
	began := time.Now()
	for _, j := range jobs {
		if j.Helper {
			c := h.command(company, j.Node+1, h.c.Helper, j.Args...)
			c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
			if os.Getenv("SWARM_BENCH_LOG") != "" {
				c.Stderr = os.Stderr
			}
			if err := c.Start(); err != nil {
				return r, err
			}
			helpers.Go(func() { _ = c.Wait() })
			continue
		}
		wg.Go(func() {
			sleep(ctx, time.Duration(j.Delay*float64(unit)))
			if j.DieAfter > 0 {
				short, cancel := context.WithTimeout(ctx, time.Duration(j.DieAfter*float64(unit)))
				c := h.command(short, j.Node+1, h.c.Exe, j.Args...)
				_ = c.Run()
				cancel()
				used(c.ProcessState)
				sleep(ctx, 2*time.Second) // it boots again
			}
			var log bytes.Buffer
			c := h.command(ctx, j.Node+1, h.c.Exe, j.Args...)
			c.Stdout, c.Stderr = &log, &log
			err := c.Run()
			if c.ProcessState != nil {
				used(c.ProcessState)
			}
			mu.Lock()
			defer mu.Unlock()
			r.Took = max(r.Took, time.Since(began))
			if err != nil {
				errs = append(errs, fmt.Errorf("node %d: %w: %s", j.Node, err, log.Bytes()))
			} else if os.Getenv("SWARM_BENCH_LOG") != "" {
				os.Stderr.Write(log.Bytes())
			}
		})
	}
	wg.Wait()
	after, err := h.sent()
	end()
	helpers.Wait()
	r.ServerSent = after - before
	return r, errors.Join(append(errs, err)...)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
