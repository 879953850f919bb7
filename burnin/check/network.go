package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smelt/burnin"
)

// Network fetches pieces of an image, verified, as fast as the server gives
// them, and asks the server for its time over fresh connections to see what
// gets lost. It watches the error counters of the port.
//
// Limits: minMbps, the slowest transfer that is accepted, in 10^6 bit/s (no
// default); maxLoss, the share of questions that may stay without an answer
// (default 0).
type Network struct {
	Client *http.Client // trusts the server
	// Fetch gets the i-th piece, verifies it and says how many bytes travelled.
	// Nil when there is nothing to fetch.
	Fetch func(ctx context.Context, i int) (int64, error)
}

// ID implements burnin.Check.
func (Network) ID() string { return burnin.Network }

const (
	streams  = 4
	probes   = 20
	timePath = "/agent/v1/time" // answered without a session
)

// Run implements burnin.Check.
func (n Network) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(n.ID())
	r.WorkUnit = "bytes verified"
	if n.Fetch == nil {
		return errored(r, "no image is known to fetch: how fast the network is cannot be said")
	}
	port, err := portTo(s.Server)
	if err != nil {
		return errored(r, "which port leads to the server: %v", err)
	}
	before := readPort(port)

	lost, slowest := n.probe(ctx, s.Server, rec)
	var bytes, wrong atomic.Int64
	var next atomic.Int64
	var mu sync.Mutex
	began := time.Now()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		last, at := int64(0), time.Now()
		untilDone(stop, began, spec.Duration, rec, func() string {
			v, now := bytes.Load(), time.Now()
			mbps := float64(v-last) * 8 / 1e6 / now.Sub(at).Seconds()
			last, at = v, now
			rec.Sample("network", "Mbit/s", mbps)
			return fmt.Sprintf("fetching, %.0f Mbit/s", mbps)
		})
	})
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			for k := 0; ctx.Err() == nil && (k == 0 || time.Since(began) < spec.Duration); k++ {
				got, err := n.Fetch(ctx, int(next.Add(1)-1))
				if err != nil {
					if ctx.Err() != nil {
						return
					}
					wrong.Add(1)
					mu.Lock()
					note(&r, "fetch: %v", err)
					mu.Unlock()
					select { // a server that is away is not asked in a loop
					case <-ctx.Done():
					case <-time.After(200 * time.Millisecond):
					}
					continue
				}
				bytes.Add(got)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(stop)
	watch.Wait()

	r.Work = float64(bytes.Load())
	item := "network port " + port
	if port == "" {
		item = "network"
	}
	find := func(name string, v float64, unit string) burnin.Finding {
		return burnin.Finding{Item: item, Name: name, Value: v, Unit: unit, Cause: burnin.CauseNetwork}
	}
	r.Findings = append(r.Findings,
		atLeast(find("throughput", float64(bytes.Load())*8/1e6/took.Seconds(), " Mbit/s"), limit(spec, "minMbps", 0)),
		atMost(find("share of questions without an answer", float64(lost)/probes, ""), limit(spec, "maxLoss", 0)),
		atMost(find("pieces that came damaged or not at all", float64(wrong.Load()), ""), 0),
		burnin.Finding{Item: item, Name: "slowest answer", Value: float64(slowest.Milliseconds()), Unit: " ms", Status: burnin.Pass},
	)
	after := readPort(port)
	if packets := after.packets - before.packets; packets > 0 {
		// A cable that loses one packet in 100,000 halves a long transfer.
		r.Findings = append(r.Findings, atMost(find("damaged packets in a million", float64(after.errors-before.errors)/float64(packets)*1e6, ""), 10))
	}
	if d := after.changes - before.changes; d > 0 {
		r.Findings = append(r.Findings, atMost(find("link losses", float64(d), ""), 0))
	}
	finish(ctx, &r, fmt.Sprintf("%.0f Mbit/s, %d of %d questions answered", float64(bytes.Load())*8/1e6/took.Seconds(), probes-lost, probes))
	return r
}

// probe asks for the time over fresh connections.
func (n Network) probe(ctx context.Context, server string, rec burnin.Recorder) (lost int, slowest time.Duration) {
	for i := range probes {
		if ctx.Err() != nil {
			return lost, slowest
		}
		rec.Progress(0, fmt.Sprintf("asking the server, %d of %d", i+1, probes))
		began := time.Now()
		if err := n.ask(ctx, server); err != nil {
			lost++
			continue
		}
		d := time.Since(began)
		slowest = max(slowest, d)
		rec.Sample("answer time", "ms", float64(d.Microseconds())/1000)
	}
	return lost, slowest
}

func (n Network) ask(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server, "/")+timePath, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := n.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// portTo is the name of the interface that packets to a server leave by.
func portTo(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("server %q is no URL", server)
	}
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), "9")) // sends nothing
	if err != nil {
		return "", err
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).IP
	ifs, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, i := range ifs {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, ok := a.(*net.IPNet); ok && p.IP.Equal(local) {
				return i.Name, nil
			}
		}
	}
	return "", nil
}

type portCounters struct{ packets, errors, changes int64 }

func readPort(name string) portCounters {
	dir := filepath.Join("/sys/class/net", name)
	get := func(f string) int64 {
		n, _ := readInt(filepath.Join(dir, f))
		return n
	}
	if name == "" {
		return portCounters{}
	}
	return portCounters{
		packets: get("statistics/rx_packets") + get("statistics/tx_packets"),
		errors:  get("statistics/rx_errors") + get("statistics/tx_errors"),
		changes: get("carrier_down_count"),
	}
}
