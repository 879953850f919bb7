package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	tftpClients = 2000
	tftpSpread  = 2 * time.Second // in which they all start
	tftpBlock   = 1428            // as firmware and atftp ask on Ethernet

	// Each client of the load has an address of its own, so that limits for one
	// client hold. The server finds them behind one neighbour: Linux keeps 1,024.
	tftpFrom    = "10.99.128.0"
	tftpSubnet  = tftpFrom + "/20"
	tftpWait    = 2 * time.Second // until a client asks again
	tftpPatient = 3 * time.Minute // until it gives up
)

// tftpServers serve the folder tftp of the lab, each on an address of its own.
// dnsmasq is told to take as many clients as come.
var tftpServers = []struct {
	name  string
	addr  string
	start func(context.Context, *lab, string) (*server, error)
}{
	{"smelt", serverAddr, func(ctx context.Context, l *lab, _ string) (*server, error) {
		s := l.spec()
		for _, name := range []string{"10M", "1M", "x"} {
			s.Files[name] = filepath.Join(l.dir, "tftp", name)
		}
		return l.serve(ctx, s)
	}},
	{"tftpd-hpa", "10.99.0.3", func(ctx context.Context, l *lab, addr string) (*server, error) {
		return l.start(ctx, l.udpAt(addr, 69), nil, "in.tftpd", "--foreground", "--ipv4", "--user", "root", "--address", addr+":69", "--secure", filepath.Join(l.dir, "tftp"))
	}},
	{"dnsmasq", "10.99.0.4", func(ctx context.Context, l *lab, addr string) (*server, error) {
		return l.start(ctx, l.udpAt(addr, 69), nil, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
			"--listen-address="+addr, "--bind-interfaces", "--enable-tftp", "--tftp-root="+filepath.Join(l.dir, "tftp"), "--tftp-max=4000",
			"--log-facility=/dev/null", "--pid-file="+filepath.Join(l.dir, "dnsmasq.pid"))
	}},
}

// udpAt reports whether somebody listens on a UDP port of one address.
func (l *lab) udpAt(addr string, port int) func() bool {
	return func() bool {
		out, err := l.command(context.Background(), l.server, "ss", "-Huln", fmt.Sprintf("src %s:%d", addr, port)).Output()
		return err == nil && len(bytes.TrimSpace(out)) > 0
	}
}

func benchTFTP(ctx context.Context, l *lab) ([]result, error) {
	if err := os.Mkdir(filepath.Join(l.dir, "tftp"), 0o755); err != nil {
		return nil, err
	}
	content := make([]byte, 10<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	for name, size := range map[string]int{"10M": 10 << 20, "1M": 1 << 20, "x": 1 << 20} {
		if _, err := l.file("tftp/"+name, content[:size]); err != nil {
			return nil, err
		}
	}
	if err := ip(
		"-n "+l.server+" route add "+tftpSubnet+" via "+clientAddr,
		"-n "+l.client+" route add local "+tftpSubnet+" dev lo",
	); err != nil {
		return nil, err
	}
	for _, s := range tftpServers {
		if s.addr != serverAddr {
			if err := ip("-n " + l.server + " addr add " + s.addr + prefixBits + " dev " + serverIf); err != nil {
				return nil, err
			}
		}
		server, err := s.start(ctx, l, s.addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		defer server.stop()
	}
	results, err := tftpOne(ctx, l, content)
	if err != nil {
		return nil, err
	}
	more, err := tftpMany(ctx, l)
	if err != nil {
		return results, err
	}
	factor, what, err := tftpSpoofed(ctx, l)
	if err != nil {
		return results, err
	}
	return append(append(results, more...), atMost("tftp_amplification", factor, 100, "bytes out for each byte in, both without headers: %s", what)), nil
}

// tftpOne is one client alone: atftp, 10 MiB.
func tftpOne(ctx context.Context, l *lab, content []byte) ([]result, error) {
	speed := map[string][]float64{}
	rounds := 5 * l.rounds // a run takes a third of a second: many cost little
	for range rounds {
		for _, window := range []string{"1", "16"} {
			for _, s := range tftpServers {
				got := filepath.Join(l.dir, "got")
				_ = os.Remove(got)
				// bash times it in the namespace: to get there takes as long as a fast
				// download.
				out, err := l.command(ctx, l.client, "bash", "-c", fmt.Sprintf(`t=$EPOCHREALTIME
					atftp --option "blksize %d" --option "windowsize %s" -g -r 10M -l %s %s >&2 && echo $t $EPOCHREALTIME`,
					tftpBlock, window, got, s.addr)).Output()
				if err != nil {
					return nil, fmt.Errorf("atftp from %s: %v", s.name, err)
				}
				var began, ended float64
				if _, err := fmt.Sscan(string(out), &began, &ended); err != nil {
					return nil, fmt.Errorf("bash says %q: %v", out, err)
				}
				if b, err := os.ReadFile(got); err != nil || !bytes.Equal(b, content) {
					return nil, fmt.Errorf("atftp from %s: the file differs (%d bytes, %v)", s.name, len(b), err)
				}
				key := s.name + window
				speed[key] = append(speed[key], float64(len(content))/1e6/(ended-began))
			}
		}
	}
	m := func(key string) float64 { return median(speed[key]) }
	for _, s := range tftpServers {
		say("tftp 10 MiB by atftp, median of %d: %-9s window 1 %6.1f MB/s, window 16 %6.1f MB/s", rounds, s.name, m(s.name+"1"), m(s.name+"16"))
	}
	return []result{
		atLeast("tftp_w1_vs_tftpd_hpa", m("smelt1")/m("tftpd-hpa1"), 1, "10 MiB by atftp, blksize %d: %.1f MB/s, tftpd-hpa %.1f, dnsmasq %.1f", tftpBlock, m("smelt1"), m("tftpd-hpa1"), m("dnsmasq1")),
		atLeast("tftp_w16_vs_tftpd_hpa", m("smelt16")/m("tftpd-hpa16"), 5, "the same with windowsize 16: %.1f MB/s, tftpd-hpa %.1f, dnsmasq %.1f, which know no windows", m("smelt16"), m("tftpd-hpa16"), m("dnsmasq16")),
	}, nil
}

// tftpMany is a hall that is switched on: so many machines want 1 MiB.
func tftpMany(ctx context.Context, l *lab) ([]result, error) {
	reports := map[string]tftpReport{}
	for _, c := range []int{1, 200, tftpClients} {
		for _, s := range tftpServers {
			for _, window := range []int{1, 16} {
				if window > 1 && s.name != "smelt" {
					continue // they do not know it
				}
				r, err := l.tftpLoad(ctx, tftpLoad{Server: netip.MustParseAddr(s.addr), File: "1M", Path: filepath.Join(l.dir, "tftp", "1M"), Clients: c, Window: window})
				if err != nil {
					return nil, fmt.Errorf("%d clients of %s: %w", c, s.name, err)
				}
				say("tftp 1 MiB for %4d clients: %-9s window %2d: %4d served, %6.1f MB/s, p50 %5.2f s, p99 %5.2f s, asked again %d times %s",
					c, s.name, window, r.Served, r.MBs, r.P50, r.P99, r.Again, r.Error)
				reports[fmt.Sprintf("%s %d %d", s.name, c, window)] = r
			}
		}
	}
	at := func(name string, window int) tftpReport {
		return reports[fmt.Sprintf("%s %d %d", name, tftpClients, window)]
	}
	ours, plain, hpa, dnsmasq := at("smelt", 16), at("smelt", 1), at("tftpd-hpa", 1), at("dnsmasq", 1)
	return []result{
		atLeast("tftp_served_of_2000", float64(ours.Served), tftpClients, "1 MiB, window 16, p99 %.1f s; with window 1: %d, p99 %.1f s; tftpd-hpa %d, p99 %.1f s; dnsmasq %d, p99 %.1f s",
			ours.P99, plain.Served, plain.P99, hpa.Served, hpa.P99, dnsmasq.Served, dnsmasq.P99),
		inform("tftp_2000_w16_vs_tftpd_hpa", ours.MBs/hpa.MBs, "throughput to 2,000 clients: %.0f MB/s, tftpd-hpa %.0f, dnsmasq %.0f", ours.MBs, hpa.MBs, dnsmasq.MBs),
		inform("tftp_2000_w1_vs_tftpd_hpa", plain.MBs/hpa.MBs, "the same with window 1: %.0f MB/s", plain.MBs),
	}, nil
}

// tftpLoad is what the process in the clients' namespace does.
type tftpLoad struct {
	Server     netip.Addr
	File, Path string // name, and where the same content is
	Clients    int
	Window     int
	Spoof      []byte // not nil: send this request once from each client, and count what comes
}

// tftpReport is what it says about it.
type tftpReport struct {
	Served   int
	MBs      float64 // all of it, from the first start to the last end
	P50, P99 float64 // seconds
	Again    int     // times that a client asked again
	Error    string  // of one of those who were not served
	In, Out  int     // bytes of spoofed requests and of what came for them
}

func (l *lab) tftpLoad(ctx context.Context, load tftpLoad) (r tftpReport, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	text, err := json.Marshal(load)
	if err != nil {
		return r, err
	}
	cmd := l.command(ctx, l.client, self, "tftp-load")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// runTFTPLoad is that process.
func runTFTPLoad(in io.Reader) error {
	var l tftpLoad
	if err := json.NewDecoder(in).Decode(&l); err != nil {
		return err
	}
	var r tftpReport
	var want []byte
	if l.Spoof == nil {
		var err error
		if want, err = os.ReadFile(l.Path); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var took []float64
	began := time.Now()
	for i := range l.Clients {
		wg.Go(func() {
			from := netip.MustParseAddr(tftpFrom).As4()
			n := binary.BigEndian.Uint32(from[:]) + 1 + uint32(i)
			conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: binary.BigEndian.AppendUint32(nil, n)})
			if err == nil {
				defer conn.Close()
				time.Sleep(tftpSpread * time.Duration(i) / time.Duration(l.Clients))
			}
			started := time.Now()
			var again, out int
			if err == nil && l.Spoof != nil {
				out, err = tftpIgnore(conn, l)
			} else if err == nil {
				again, err = tftpGet(conn, l, want)
			}
			mu.Lock()
			defer mu.Unlock()
			r.In, r.Out, r.Again = r.In+len(l.Spoof), r.Out+out, r.Again+again
			if err != nil {
				r.Error = err.Error()
				return
			}
			r.Served++
			took = append(took, time.Since(started).Seconds())
		})
	}
	wg.Wait()
	r.MBs = float64(r.Served*len(want)) / 1e6 / time.Since(began).Seconds()
	if slices.Sort(took); len(took) > 0 {
		r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// tftpGet is a client that does as RFC 7440 says, and compares each byte.
func tftpGet(conn *net.UDPConn, l tftpLoad, want []byte) (again int, err error) {
	request := tftpRequest(l.File, "blksize", strconv.Itoa(tftpBlock))
	if l.Window > 1 {
		request = append(request, "windowsize\x00"+strconv.Itoa(l.Window)+"\x00"...)
	}
	var tid netip.AddrPort // of the server
	window, next, unacked, gap := 1, 1, 0, false
	send := func() error {
		if !tid.IsValid() {
			_, err := conn.WriteToUDPAddrPort(request, netip.AddrPortFrom(l.Server, 69))
			return err
		}
		unacked = 0
		_, err := conn.WriteToUDPAddrPort([]byte{0, 4, byte((next - 1) >> 8), byte(next - 1)}, tid)
		return err
	}
	if err := send(); err != nil {
		return 0, err
	}
	buf := make([]byte, 2048)
	for end := time.Now().Add(tftpPatient); ; {
		_ = conn.SetReadDeadline(time.Now().Add(tftpWait))
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
				return again, err
			}
			again++
			if err := send(); err != nil {
				return again, err
			}
			continue
		}
		if n < 4 || tid.IsValid() && from != tid {
			continue
		}
		tid = from
		switch p := buf[:n]; p[1] {
		case 6: // OACK
			if bytes.Contains(p, []byte("windowsize\x00"+strconv.Itoa(l.Window)+"\x00")) {
				window = l.Window
			}
			if !bytes.Contains(p, []byte("blksize\x00"+strconv.Itoa(tftpBlock)+"\x00")) {
				return again, fmt.Errorf("blksize was not accepted: %q", p)
			}
			if next > 1 {
				continue
			}
			if err := send(); err != nil {
				return again, err
			}
		case 3: // DATA
			if binary.BigEndian.Uint16(p[2:]) != uint16(next) {
				if window > 1 && !gap { // with window 1 it is a copy
					gap = true
					if err := send(); err != nil {
						return again, err
					}
				}
				continue
			}
			gap = false
			part := want[min(len(want), (next-1)*tftpBlock):min(len(want), next*tftpBlock)]
			if !bytes.Equal(p[4:], part) {
				return again, fmt.Errorf("block %d differs", next)
			}
			next++
			unacked++
			last := len(part) < tftpBlock
			if last || unacked == window {
				if err := send(); err != nil {
					return again, err
				}
			}
			if last {
				return again, nil
			}
		default:
			return again, fmt.Errorf("got %q", p)
		}
	}
}

func tftpRequest(name string, options ...string) []byte {
	p := []byte("\x00\x01" + name + "\x00octet\x00")
	for _, o := range options {
		p = append(append(p, o...), 0)
	}
	return p
}

// tftpSpoofed asks in the name of machines that did not, and never answer.
func tftpSpoofed(ctx context.Context, l *lab) (worst float64, what string, err error) {
	for _, r := range [][]byte{
		tftpRequest("x"), // no request is shorter
		tftpRequest("1M"),
		tftpRequest("1M", "blksize", "1468"),
		tftpRequest("1M", "tsize", "0", "blksize", "65464", "timeout", "1", "windowsize", "65535"),
		tftpRequest("1M", "unknown", "and-longer-than-the-others-so-that-a-share-of-it-allows-more"),
	} {
		report, err := l.tftpLoad(ctx, tftpLoad{Server: netip.MustParseAddr(serverAddr), Clients: 50, Spoof: r})
		if err != nil {
			return 0, "", err
		}
		factor := float64(report.Out) / float64(report.In)
		say("tftp spoofed %q: %.1f bytes out for each in", r, factor)
		if factor > worst {
			worst, what = factor, fmt.Sprintf("%q", r)
		}
	}
	return worst, what, nil
}

// tftpIgnore asks and counts what comes, without any answer. It stops some
// seconds after the last.
func tftpIgnore(conn *net.UDPConn, l tftpLoad) (out int, err error) {
	if _, err := conn.WriteToUDPAddrPort(l.Spoof, netip.AddrPortFrom(l.Server, 69)); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<16)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(4 * time.Second))
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out += n
	}
}
