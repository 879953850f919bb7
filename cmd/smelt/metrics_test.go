package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"smelt/pxe"
)

type holding struct{}

func (holding) Boot(context.Context, pxe.Machine) (pxe.Boot, error) {
	return pxe.Boot{Action: pxe.Hold, Why: "test"}, nil
}

// What the boot service counts comes out as Prometheus wants it.
func TestBootMetrics(t *testing.T) {
	files := new(pxe.Files)
	if err := files.Add("vmlinuz", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	s, err := pxe.New(pxe.Config{
		Networks: []pxe.Network{{Name: "hall", Interface: "lo", Address: netip.MustParsePrefix("127.0.0.1/8"),
			Pool: pxe.Range{From: netip.MustParseAddr("127.0.1.1"), To: netip.MustParseAddr("127.0.1.9")}}},
		Files: files, Booter: holding{}, Log: slog.New(slog.DiscardHandler), Leases: filepath.Join(t.TempDir(), "leases"), HTTP: netip.MustParseAddrPort("127.0.0.1:80"),
	})
	if err != nil {
		t.Fatal(err)
	}
	boot := httptest.NewServer(s.Handler())
	defer boot.Close()
	for _, p := range []string{"/boot/script?mac=52:54:00:00:00:01", "/boot/file/vmlinuz", "/boot/file/nothing"} {
		resp, err := http.Get(boot.URL + p)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	boot.Close() // what counts a request may run after its answer has left
	reg := prometheus.NewRegistry()
	reg.MustRegister(bootMetrics{s})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	for _, want := range []string{
		`smelt_boot_scripts_total{action="hold"} 1`, `smelt_boot_http_files_total{result="sent"} 1`, `smelt_boot_http_files_total{result="not found"} 1`,
		"smelt_boot_http_bytes_total 1000", `smelt_boot_pool_size{network="hall"} 9`, `smelt_boot_pool_used{network="hall"} 0`,
		`smelt_boot_rivals{alarm="yes",network="hall"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v\n%s", problems, err, text)
	}
}
