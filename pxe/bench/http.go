package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// httpServers serve the folder www of the lab. nginx has what its manual
// advises for large files, and no log.
var httpServers = []struct {
	name  string
	start func(context.Context, *lab) (*server, error)
	url   string
}{
	{"smelt", func(ctx context.Context, l *lab) (*server, error) {
		s := l.spec()
		s.NoDHCP = true
		for _, name := range []string{"100M", "1M"} {
			s.Files[name] = filepath.Join(l.dir, "www", name)
		}
		return l.serve(ctx, s)
	}, "http://" + serverAddr + "/boot/file/"},
	{"nginx", func(ctx context.Context, l *lab) (*server, error) {
		conf, err := l.file("nginx.conf", []byte(`
user root;
daemon off;
worker_processes 2;
pid `+l.dir+`/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	client_body_temp_path `+l.dir+`/nginx-body;
	proxy_temp_path `+l.dir+`/nginx-proxy;
	fastcgi_temp_path `+l.dir+`/nginx-fastcgi;
	uwsgi_temp_path `+l.dir+`/nginx-uwsgi;
	scgi_temp_path `+l.dir+`/nginx-scgi;
	server { listen 8080; root `+l.dir+`/www; }
}
`))
		if err != nil {
			return nil, err
		}
		return l.start(ctx, l.tcpOpen(8080), nil, "nginx", "-c", conf, "-e", "stderr")
	}, "http://" + serverAddr + ":8080/"},
}

func benchHTTP(ctx context.Context, l *lab) ([]result, error) {
	if err := os.Mkdir(filepath.Join(l.dir, "www"), 0o755); err != nil {
		return nil, err
	}
	for name, size := range map[string]int{"100M": 100 << 20, "1M": 1 << 20} {
		if _, err := l.file("www/"+name, bytes.Repeat([]byte("0123456789abcdef"), size/16)); err != nil {
			return nil, err
		}
	}
	for _, s := range httpServers {
		server, err := s.start(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		defer server.stop()
	}
	one, many := map[string][]float64{}, map[string][]float64{}
	measure := func(into map[string][]float64, how func(context.Context, *lab, string) (float64, error), file string) error {
		for _, s := range httpServers {
			speed, err := how(ctx, l, s.url+file)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			into[s.name] = append(into[s.name], speed)
		}
		return nil
	}
	for i := range l.rounds {
		// In turn after each download: a busy moment of the machine is longer.
		for range 10 {
			if err := measure(one, curl, "100M"); err != nil {
				return nil, err
			}
		}
		if err := measure(many, wrk, "1M"); err != nil {
			return nil, err
		}
		for _, s := range httpServers {
			say("http round %d: %-5s 100 MiB by curl %5.0f MB/s, 1 MiB on 50 connections by wrk %5.0f MB/s", i+1, s.name,
				median(one[s.name][10*i:])/1e6, many[s.name][i]/1e6)
		}
	}
	return []result{
		atLeast("http_vs_nginx", median(one["smelt"])/median(one["nginx"]), 0.9, "a file of 100 MiB by curl: %.0f MB/s, nginx %.0f", median(one["smelt"])/1e6, median(one["nginx"])/1e6),
		inform("http_vs_nginx_50_clients", median(many["smelt"])/median(many["nginx"]), "a file of 1 MiB by wrk -c50: %.0f MB/s, nginx %.0f", median(many["smelt"])/1e6, median(many["nginx"])/1e6),
	}, nil
}

// curl returns the speed of one download, in bytes per second.
func curl(ctx context.Context, l *lab, url string) (float64, error) {
	out, err := l.command(ctx, l.client, "curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{speed_download}", url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("curl %s: %v: %s", url, err, out)
	}
	f, err := strconv.ParseFloat(string(out), 64)
	if err != nil {
		return 0, fmt.Errorf("curl says %q", out)
	}
	return f, nil
}

var transferred = regexp.MustCompile(`Transfer/sec: +([0-9.]+)([KMG]?)B`)

// wrk returns the speed of 50 connections together, in bytes per second.
func wrk(ctx context.Context, l *lab, url string) (float64, error) {
	out, err := l.command(ctx, l.client, "wrk", "-t1", "-c50", "-d3s", url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk %s: %v: %s", url, err, out)
	}
	m := transferred.FindStringSubmatch(string(out))
	if m == nil || strings.Contains(string(out), "Non-2xx") {
		return 0, fmt.Errorf("wrk %s: %s", url, out)
	}
	f, err := strconv.ParseFloat(m[1], 64)
	return f * map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[m[2]], err
}
