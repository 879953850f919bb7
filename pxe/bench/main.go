// Bench measures network boot against the programs that people use for it:
// DHCP against Kea and dnsmasq, TFTP against tftpd-hpa and dnsmasq, HTTP
// against nginx, and the boot of a BIOS machine with and without what we do
// for iPXE. Load comes from public clients (perfdhcp, atftp, curl, wrk, QEMU)
// over a veth between two network namespaces. It needs root and the packages
// of .ci/deps. The table for people is on stderr, the last line on stdout is
// JSON.
//
//	go run ./pxe/bench [-only dhcp,tftp,http,ipxe] [-rounds N]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is one number of the closing JSON line, and what it should be.
type result struct {
	key   string
	what  string // for people
	value float64
	bar   string // ">= 1", "<= 100"; empty for a number that only informs
	met   bool
}

func atLeast(key string, value, bar float64, what string, args ...any) result {
	return result{key, fmt.Sprintf(what, args...), value, fmt.Sprintf(">= %g", bar), value >= bar}
}

func atMost(key string, value, bar float64, what string, args ...any) result {
	return result{key, fmt.Sprintf(what, args...), value, fmt.Sprintf("<= %g", bar), value <= bar}
}

func inform(key string, value float64, what string, args ...any) result {
	return result{key: key, what: fmt.Sprintf(what, args...), value: value}
}

// parts are measured in this order, so that a machine that is busy for a while
// spoils one of them only.
var parts = []struct {
	name string
	run  func(context.Context, *lab) ([]result, error)
}{
	{"dhcp", benchDHCP},
	{"tftp", benchTFTP},
	{"http", benchHTTP},
	{"ipxe", benchIPXE},
}

func main() {
	// The kernel ends our children with the thread that started them.
	runtime.LockOSThread()
	if len(os.Args) > 1 && childs[os.Args[1]] != nil {
		if err := childs[os.Args[1]](os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", os.Args[1]+":", err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("only", "", "measure these parts only: dhcp, tftp, http, ipxe; separated by commas")
	rounds := flag.Int("rounds", 3, "runs of each program, in turn; the median counts")
	profile := flag.String("profile", "", "folder for CPU profiles of our server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *rounds, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// childs are what this program is instead when its first argument says so: a
// process of its own in a network namespace. Its input is what to do; it ends
// when that ends.
var childs = map[string]func(io.Reader) error{
	"serve":     serve,
	"tftp-load": runTFTPLoad,
}

func run(ctx context.Context, only string, rounds int, profile string) error {
	if os.Getuid() != 0 {
		return errors.New("it makes network namespaces: run it as root (make bench-netboot uses sudo)")
	}
	var chosen []string
	if only != "" {
		chosen = strings.Split(only, ",")
	}
	var all []result
	var errs []error
	ran := 0
	for _, p := range parts {
		if chosen != nil && !slices.Contains(chosen, p.name) {
			continue
		}
		ran++
		began := time.Now()
		results, err := inLab(ctx, rounds, profile, p.run)
		all = append(all, results...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		say("%s took %s", p.name, time.Since(began).Round(time.Second))
	}
	if ran == 0 {
		return fmt.Errorf("-only %s names no part: dhcp, tftp, http, ipxe", only)
	}
	t := tabwriter.NewWriter(os.Stderr, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nKEY\tVALUE\tBAR\t\tWHAT")
	keys := map[string]float64{}
	for _, r := range all {
		keys[r.key] = round(r.value)
		met := ""
		if r.bar != "" && !r.met {
			met = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\n", r.key, round(r.value), r.bar, met, r.what)
	}
	t.Flush()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"bench": "netboot", "results": keys}); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// round keeps three digits: more than any run repeats.
func round(f float64) float64 {
	if f == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(f))))
	return math.Round(f*scale) / scale
}

func median(f []float64) float64 {
	f = slices.Sorted(slices.Values(f))
	if len(f)%2 == 0 {
		return (f[len(f)/2-1] + f[len(f)/2]) / 2
	}
	return f[len(f)/2]
}
