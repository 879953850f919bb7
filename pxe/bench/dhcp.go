package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	saturation = 12000 // four-way exchanges per second: more than any of the servers does here
	steady     = 2500  // a hall of 5,000 machines that all come up within two seconds
	clients    = 50000
	period     = 4 // seconds
)

// dhcpServers start each server on the lab's cable with no lease in its file.
// Kea and dnsmasq are as fast as their options make them: Kea on two threads
// with its memfile, silent; dnsmasq without the ping before an offer.
var dhcpServers = []struct {
	name  string
	start func(context.Context, *lab) (*server, error)
}{
	{"smelt", func(ctx context.Context, l *lab) (*server, error) { return l.serve(ctx, l.spec()) }},
	{"kea", startKea},
	{"dnsmasq", func(ctx context.Context, l *lab) (*server, error) {
		l.started++
		return l.start(ctx, l.udpOpen(67), nil, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
			"--interface="+serverIf, "--bind-interfaces", "--no-ping", "--quiet-dhcp", "--log-facility=/dev/null", "--pid-file="+filepath.Join(l.dir, "dnsmasq.pid"),
			"--dhcp-range="+poolFrom+","+poolTo+",255.255.0.0,1h", "--dhcp-lease-max=100000",
			"--dhcp-leasefile="+filepath.Join(l.dir, fmt.Sprintf("dnsmasq-%d", l.started)))
	}},
}

func startKea(ctx context.Context, l *lab) (*server, error) {
	l.started++
	config, err := json.Marshal(map[string]any{"Dhcp4": map[string]any{
		// perfdhcp speaks as a relay: UDP is the faster way, and enough.
		"interfaces-config": map[string]any{"interfaces": []string{serverIf}, "dhcp-socket-type": "udp"},
		"lease-database": map[string]any{"type": "memfile", "persist": true, "lfc-interval": 0,
			"name": filepath.Join(l.dir, fmt.Sprintf("kea-%d.csv", l.started))},
		"multi-threading": map[string]any{"enable-multi-threading": true, "thread-pool-size": 2, "packet-queue-size": 64},
		"valid-lifetime":  3600,
		"subnet4": []any{map[string]any{"subnet": serverAddr + prefixBits, "interface": serverIf,
			"pools": []any{map[string]any{"pool": poolFrom + " - " + poolTo}}}},
		"loggers": []any{map[string]any{"name": "kea-dhcp4", "severity": "ERROR", "output_options": []any{map[string]any{"output": "stderr"}}}},
	}})
	if err != nil {
		return nil, err
	}
	path, err := l.file("kea.json", config)
	if err != nil {
		return nil, err
	}
	return l.start(ctx, l.udpOpen(67), []string{"KEA_PIDFILE_DIR=" + l.dir, "KEA_LOCKFILE_DIR=" + l.dir}, "kea-dhcp4", "-c", path)
}

func benchDHCP(ctx context.Context, l *lab) ([]result, error) {
	rate, drops, p99, cpu := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for i := range l.rounds {
		for _, s := range dhcpServers {
			for _, offered := range []int{saturation, steady} {
				r, err := dhcpRun(ctx, l, s.start, offered)
				if err != nil {
					return nil, fmt.Errorf("%s at %d/s: %w", s.name, offered, err)
				}
				say("dhcp round %d: %-7s offered %5d/s: %6.0f leases/s, dropped %6.2f %%, OFFER avg %6.2f ms p99 %6.2f, ACK avg %6.2f ms p99 %6.2f, CPU %4.0f us each",
					i+1, s.name, offered, r.rate(), 100*r.drops(), r.offer.avg, r.offer.p99(), r.ack.avg, r.ack.p99(), r.cpu())
				if offered == saturation {
					rate[s.name] = append(rate[s.name], r.rate())
				} else {
					drops[s.name] = append(drops[s.name], r.drops())
					cpu[s.name] = append(cpu[s.name], r.cpu())
					p99[s.name] = append(p99[s.name], max(r.offer.p99(), r.ack.p99()))
				}
			}
		}
	}
	ours, kea, dnsmasq := median(rate["smelt"]), median(rate["kea"]), median(rate["dnsmasq"])
	return []result{
		atLeast("dhcp_leases_vs_kea", ours/kea, 1, "%.0f leases/s, each durable before its ACK; Kea 2.2 memfile %.0f, which never syncs", ours, kea),
		inform("dhcp_leases_vs_dnsmasq", ours/dnsmasq, "dnsmasq %.0f leases/s", dnsmasq),
		atMost("dhcp_drop_share_at_2500", median(drops["smelt"]), 0, "of %d exchanges/s; Kea %.4f, dnsmasq %.2f", steady, median(drops["kea"]), median(drops["dnsmasq"])),
		inform("dhcp_cpu_us_at_2500", median(cpu["smelt"]), "of CPU for each exchange; Kea %.0f, dnsmasq %.0f", median(cpu["kea"]), median(cpu["dnsmasq"])),
		inform("dhcp_p99_ms_at_2500", median(p99["smelt"]), "the slower of OFFER and ACK; Kea %.2f ms, dnsmasq %.2f ms", median(p99["kea"]), median(p99["dnsmasq"])),
	}, nil
}

func dhcpRun(ctx context.Context, l *lab, start func(context.Context, *lab) (*server, error), offered int) (perf, error) {
	s, err := start(ctx, l)
	if err != nil {
		return perf{}, err
	}
	defer s.stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Without a second of waiting at the end, what is on its way then would
	// count as dropped.
	out, err := l.command(ctx, l.client, "perfdhcp", "-4", "-l", clientIf, "-r", strconv.Itoa(offered), "-R", strconv.Itoa(clients),
		"-p", strconv.Itoa(period), "-W", "1000000", "-x", "t", serverAddr).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) { // 3: some exchanges did not end
		return perf{}, fmt.Errorf("perfdhcp: %v: %.2000s", err, out)
	}
	p, err := parsePerf(string(out))
	p.used = s.cpu()
	return p, err
}

// perf is what perfdhcp reports, and what the server used meanwhile.
type perf struct {
	offer, ack half
	used       float64 // seconds of CPU
}

// cpu is what one exchange that ended cost, in microseconds. It depends less
// than the rest on what else the machine does.
func (p perf) cpu() float64 { return 1e6 * p.used / p.ack.received }

// half is one half of the exchange: DISCOVER to OFFER, REQUEST to ACK.
type half struct {
	sent, received float64
	avg            float64   // ms
	delays         []float64 // ms, sorted
}

func (p perf) rate() float64 { return p.ack.received / period }

// drops is the share of exchanges that did not end.
func (p perf) drops() float64 { return 1 - p.ack.received/p.offer.sent }

func (h half) p99() float64 {
	if len(h.delays) == 0 {
		return 0
	}
	return h.delays[len(h.delays)*99/100]
}

var timestamps = regexp.MustCompile(`sent / received: (\d+\.\d+) / (\d+\.\d+)`)

func parsePerf(text string) (perf, error) {
	var p perf
	for name, h := range map[string]*half{"DISCOVER-OFFER": &p.offer, "REQUEST-ACK": &p.ack} {
		_, part, ok := strings.Cut(text, "***Statistics for: "+name+"***\n")
		if !ok {
			return p, fmt.Errorf("perfdhcp says nothing about %s: %.2000s", name, text)
		}
		part, _, _ = strings.Cut(part, "***")
		for line := range strings.Lines(part) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			f, _ := strconv.ParseFloat(strings.TrimSuffix(value, " ms"), 64)
			switch key {
			case "sent packets":
				h.sent = f
			case "received packets":
				h.received = f
			case "avg delay":
				h.avg = f
			}
		}
		_, part, _ = strings.Cut(text, "***Timestamps for packets: "+name+"***\n")
		part, _, _ = strings.Cut(part, "***")
		for _, m := range timestamps.FindAllStringSubmatch(part, -1) {
			sent, err1 := strconv.ParseFloat(m[1], 64)
			received, err2 := strconv.ParseFloat(m[2], 64)
			if err := errors.Join(err1, err2); err != nil {
				return p, err
			}
			h.delays = append(h.delays, 1000*(received-sent))
		}
		slices.Sort(h.delays)
		// Its receiving thread can count one more while it writes the list.
		if h.sent == 0 || len(h.delays) == 0 || h.received-float64(len(h.delays)) > 0.01*h.received {
			return p, fmt.Errorf("perfdhcp's report on %s was not understood: %d timestamps for %g answers of %g", name, len(h.delays), h.received, h.sent)
		}
	}
	return p, nil
}
