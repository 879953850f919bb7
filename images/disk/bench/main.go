// Bench measures how an image gets onto a disk: from the published file over
// HTTP to the same dirty device, which is compared with the image afterwards,
// by Smelt and by what people use instead, each as a process of its own. The
// limit is what fio writes in sequence to that device right before. Its last
// line is JSON. Root; fio, bmap-tools, qemu-utils, qemu-block-extra, zstd, curl
// and e2fsprogs from Debian.
//
//	go run ./images/disk/bench [-mib 4096,16384] [-kinds incompressible,sparse] [-rounds 3] [-slow 500,1500] [-dir DIR]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "-as" {
		if err := child(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	mib := flag.String("mib", "4096,16384", "sizes of the images, MiB")
	kinds := flag.String("kinds", "incompressible,sparse", "what is in them")
	dir := flag.String("dir", "", "folder for images and disk (default: a temporary one); twice the largest image must fit")
	rounds := flag.Int("rounds", 3, "runs of each tool; images above 4 GiB get one")
	slow := flag.String("slow", "500,1500", "the first of the sizes once more, incompressible, on disks of so many MB/s: a SATA drive, a small NVMe; empty: not")
	only := flag.String("only", "", "tools, by the beginning of their names; all without it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	speeds, err := numbers(*slow)
	if err == nil {
		err = run(ctx, *dir, *mib, *kinds, *only, *rounds, speeds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// numbers reads a list such as 500,1500.
func numbers(list string) (all []int64, err error) {
	if list == "" {
		return nil, nil
	}
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%q of %q is no number above 0", s, list)
		}
		all = append(all, n)
	}
	return all, nil
}

func run(ctx context.Context, dir, sizes, kinds, only string, rounds int, slow []int64) (err error) {
	mibs, err := numbers(sizes)
	if err != nil {
		return err
	}
	if dir, err = os.MkdirTemp(dir, "smelt-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all []outcome
	for i, mib := range mibs {
		speeds := []int64{0}
		if _, err := os.Stat(throttle); i == 0 && len(slow) > 0 && err == nil {
			speeds = append(speeds, slow...)
		} else if i == 0 && len(slow) > 0 {
			fmt.Fprintf(os.Stderr, "disks of %d MB/s are left out: %v\n", slow, err)
		}
		for _, kind := range strings.Split(kinds, ",") {
			if err := fits(dir, 2*mib<<20); err != nil {
				fmt.Fprintf(os.Stderr, "%s, %d MiB is left out: %v\n", kind, mib, err)
				continue
			}
			for _, mbs := range speeds {
				if mbs > 0 && kind != "incompressible" {
					continue // the kernel counts a punched hole as if its bytes were written
				}
				n := rounds
				if mib > 4096 {
					n = 1
				}
				o, err := measure(ctx, dir, mib<<20, kind, only, n, mbs)
				if err != nil {
					return fmt.Errorf("%s, %d MiB: %w", kind, mib, err)
				}
				o.print(os.Stdout)
				all = append(all, o)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"bench": "images", "results": results(all)})
}

// fits says why so many bytes do not fit in dir.
func fits(dir string, n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < n {
		return fmt.Errorf("%s has %d MiB free, and %d MiB are needed", dir, free>>20, n>>20)
	}
	return nil
}

// sample is one run of one tool.
type sample struct {
	took  time.Duration
	limit time.Duration // fio's, right before
	cpu   time.Duration
	peak  int64 // KiB resident, the sum of a pipeline's processes
}

// row is one tool on one image.
type row struct {
	tool
	samples []sample
	same    bool   // the disk was the image afterwards, every time
	failed  string // why it did not run
}

func (r row) best() sample {
	return slices.MinFunc(r.samples, func(a, b sample) int { return int(a.took - b.took) })
}

func (r row) median() time.Duration {
	d := make([]time.Duration, len(r.samples))
	for i, s := range r.samples {
		d[i] = s.took
	}
	slices.Sort(d)
	return d[len(d)/2]
}

// outcome is all tools on one image.
type outcome struct {
	kind       string
	size, data int64
	blob       int64
	mbs        int64 // what the disk was slowed down to; 0: it was not
	rows       []row
}

func (o outcome) String() string {
	s := fmt.Sprintf("%s, %d MiB", o.kind, o.size>>20)
	if o.mbs > 0 {
		s += fmt.Sprintf(", disk of %d MB/s", o.mbs)
	}
	return s
}

func (o outcome) find(name string) *row {
	for i := range o.rows {
		if o.rows[i].name == name && len(o.rows[i].samples) > 0 {
			return &o.rows[i]
		}
	}
	return nil
}

func (o outcome) print(w *os.File) {
	fmt.Fprintf(w, "\n%s: %d MiB of data, published in %d MiB\n", o, o.data>>20, o.blob>>20)
	fmt.Fprintf(w, "%-40s %8s %8s %8s %8s %8s %8s  %s\n", "from HTTP to the device", "best s", "median", "MB/s", "x smelt", "CPU s", "MiB", "the disk is the image")
	smelt := o.find(smeltName)
	for _, r := range o.rows {
		if r.failed != "" {
			fmt.Fprintf(w, "%-40s %s\n", r.name, r.failed)
			continue
		}
		b := r.best()
		x := "-"
		if smelt != nil {
			x = fmt.Sprintf("%.2f", b.took.Seconds()/smelt.best().took.Seconds())
		}
		same := "yes"
		if !r.same {
			same = "no"
		}
		if !r.http {
			same += " (local file)"
		}
		fmt.Fprintf(w, "%-40s %8.2f %8.2f %8.0f %8s %8.2f %8d  %s\n", r.name, b.took.Seconds(), r.median().Seconds(),
			float64(o.size)/1e6/b.took.Seconds(), x, b.cpu.Seconds(), b.peak>>10, same)
	}
	if smelt != nil {
		for _, s := range smelt.samples {
			fmt.Fprintf(w, "fio %.2f s, smelt %.2f s: %.2f of the limit\n", s.limit.Seconds(), s.took.Seconds(), s.limit.Seconds()/s.took.Seconds())
		}
	}
}

// results are the worst of the sizes: a number that holds for each of them.
// Those of a slowed disk have names of their own.
func results(all []outcome) map[string]float64 {
	out := map[string]float64{}
	suffix := ""
	least := func(key string, v float64) {
		v = float64(int64(v*100+0.5)) / 100
		key += suffix
		if old, ok := out[key]; !ok || v < old {
			out[key] = v
		}
	}
	for _, o := range all {
		smelt := o.find(smeltName)
		if smelt == nil {
			continue
		}
		ours := smelt.best().took.Seconds()
		if suffix = ""; o.mbs > 0 {
			suffix = fmt.Sprintf("_at_%d", o.mbs)
		}
		times := func(key, name string) {
			if r := o.find(name); r != nil {
				least(key, r.best().took.Seconds()/ours)
			}
		}
		switch o.kind {
		case "incompressible":
			var of []float64
			for _, s := range smelt.samples {
				of = append(of, s.limit.Seconds()/s.took.Seconds())
			}
			slices.Sort(of)
			least("write_vs_limit_incompressible", of[len(of)/2])
		case "sparse":
			times("write_vs_dd_sparse", curlDD)
			times("write_vs_dd_local_sparse", localDD)
			times("write_vs_stream_zstd", streamName)
		}
		best := 0.0
		for _, r := range o.rows {
			if r.name != smeltName && r.http && r.same && len(r.samples) > 0 {
				if t := r.best().took.Seconds(); best == 0 || t < best {
					best = t
				}
			}
		}
		if best > 0 {
			least("write_vs_best_peer", best/ours)
		}
		for _, s := range smelt.samples {
			out["write_peak_mib"] = max(out["write_peak_mib"], float64(s.peak>>10))
		}
	}
	return out
}
