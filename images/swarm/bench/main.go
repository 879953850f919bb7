// Bench measures how an image spreads over the nodes of a site: 20 nodes, each
// in a network namespace of its own behind a link with a cap, a server behind a
// link of the same kind, the tracker and clients of package swarm, disk.Write
// onto a file each. First all fetch from the server alone, then from each
// other, then with peers that send wrong bytes and nodes that are killed and
// start again. Its last line is JSON. It needs root.
//
//	go run ./images/swarm/bench [-nodes N] [-data MiB] [-mbit N] [-only unicast,swarm,bad]
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"smelt/images/swarm/bench/hall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		err = role(ctx, os.Args[1], os.Args[2:])
	} else {
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	nodes := flag.Int("nodes", 20, "nodes")
	data := flag.Int64("data", 192, "data of the image, MiB; about two fifths of it after compression")
	mbit := flag.Int("mbit", 100, "cap of each link and direction, Mbit/s")
	loss := flag.Float64("loss", 0, "packets lost on the way to each node, per cent")
	only := flag.String("only", "unicast,swarm,bad", "which of unicast, swarm, bad, churn to run")
	dir := flag.String("dir", "", "folder for image and disks (default: a temporary one)")
	exe := flag.String("exe", "", "another program that plays server and node (default: this one)")
	flag.Parse()

	dir2, err := os.MkdirTemp(*dir, "smelt-swarm-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir2)
	img, err := newImage(ctx, dir2, *data<<20)
	if err != nil {
		return err
	}
	fmt.Printf("image: %d MiB of data in %d chunks, %.1f MB compressed; %d nodes, links of %d Mbit/s, %.1f%% loss\n", *data, len(img.m.Chunks), float64(img.m.BlobLen)/1e6, *nodes, *mbit, *loss)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h, err := hall.New(hall.Config{Nodes: *nodes + liars, Mbit: *mbit, Loss: *loss, Dir: dir2, Exe: cmp.Or(*exe, self), Helper: self})
	if err != nil {
		return err
	}
	defer h.Close()
	got := map[string]hall.Result{}
	for _, what := range strings.Split(*only, ",") {
		r, err := scenario(ctx, h, img, what, *nodes)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		got[what] = r
		fmt.Printf("%-8s %6.1f s, the server sent %5.2f images (%.1f MB), %d of %d verified, CPU %.1f s, peak memory of a node %d MiB\n", what, r.Took.Seconds(),
			float64(r.ServerSent)/float64(img.m.BlobLen), float64(r.ServerSent)/1e6, r.Verified, *nodes, r.CPU.Seconds(), r.PeakMiB)
	}
	out := map[string]float64{}
	if s, ok := got["swarm"]; ok {
		out["swarm_egress_x"] = round(float64(s.ServerSent) / float64(img.m.BlobLen))
		if u, ok := got["unicast"]; ok {
			// Above 1: faster than 20 downloads from the server.
			out["swarm_time_vs_unicast"] = round(u.Took.Seconds() / s.Took.Seconds())
		}
	}
	if b, ok := got["bad"]; ok {
		out["swarm_bad_peers_verified"] = float64(b.Verified)
		out["swarm_bad_peers_egress_x"] = round(float64(b.ServerSent) / float64(img.m.BlobLen))
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"bench": "swarm", "results": out})
}

func round(f float64) float64 { return float64(int64(f*100+0.5)) / 100 }

// liars are the peers that send wrong bytes, and as many nodes die.
const liars = 3

// scenario lets all nodes write the image and checks every disk.
func scenario(ctx context.Context, h *hall.Hall, img *image, what string, nodes int) (hall.Result, error) {
	server := []string{"server", "-store", img.store, "-listen", h.ServerAddr()}
	if err := h.StartServer(ctx, server...); err != nil {
		return hall.Result{}, err
	}
	defer h.StopServer()
	var jobs []hall.Job
	for i := range nodes {
		out := filepath.Join(h.Dir(), fmt.Sprintf("disk-%02d", i))
		if err := dirty(out, img.m.Size); err != nil {
			return hall.Result{}, err
		}
		defer os.Remove(out)
		defer os.Remove(out + ".map")
		j := hall.Job{Node: i, Args: []string{"node", "-server", "http://" + h.ServerAddr(), "-image", img.d.String(), "-blob", img.m.Blob.String(), "-out", out, "-id", fmt.Sprint("n", i)}}
		if what == "unicast" {
			j.Args = append(j.Args, "-unicast")
		}
		if (what == "bad" || what == "churn") && i%(nodes/liars) == 1 && i/(nodes/liars) < liars {
			j.DieAfter = 0.6 // of what it takes without swarm and company
		}
		if what == "churn" {
			j.Delay = 0.05 * float64(i) // they come one after the other
		}
		jobs = append(jobs, j)
	}
	if what == "bad" {
		for i := range liars {
			jobs = append(jobs, hall.Job{Node: nodes + i, Helper: true, Args: []string{"liar", "-server", "http://" + h.ServerAddr(), "-image", img.d.String(), "-id", fmt.Sprint("liar", i)}})
		}
	}
	r, err := h.Run(ctx, jobs, img.m.BlobLen)
	if err != nil {
		return r, err
	}
	for _, j := range jobs[:nodes] {
		out := j.Args[8]
		sum, err := img.check(out)
		if err != nil {
			return r, err
		}
		if sum {
			r.Verified++
		} else {
			fmt.Fprintf(os.Stderr, "%s is not the image\n", out)
		}
	}
	return r, nil
}

// dirty makes a disk that is full of something else.
func dirty(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 0xa5
	}
	for off := int64(0); off < size+2<<20; off += int64(len(b)) {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// check holds a disk, or the compressed file that another program left in its
// place, against the image.
func (img *image) check(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, img.m.Size)); err != nil {
		return false, err
	}
	if [32]byte(sum.Sum(nil)) == img.raw {
		return true, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	sum.Reset()
	if _, err := io.Copy(sum, io.LimitReader(f, img.m.BlobLen)); err != nil {
		return false, err
	}
	return [32]byte(sum.Sum(nil)) == img.m.Blob, nil
}
