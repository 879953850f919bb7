package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"smelt/images"
	"smelt/images/disk"
	"smelt/images/swarm"
)

// role is what this program does in a namespace.
func role(ctx context.Context, name string, args []string) error {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	store := fs.String("store", "", "image store")
	listen := fs.String("listen", "", "address")
	server := fs.String("server", "", "URL of the server")
	image := fs.String("image", "", "digest of the manifest")
	_ = fs.String("blob", "", "digest of the blob, for programs without manifests")
	out := fs.String("out", "", "disk")
	id := fs.String("id", "", "name")
	unicast := fs.Bool("unicast", false, "fetch from the server alone")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if name == "server" {
		return serve(ctx, *store, *listen)
	}
	d, err := images.ParseDigest(*image)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	m, err := manifest(ctx, client, *server, d)
	if err != nil {
		return err
	}
	report := func(ctx context.Context, r swarm.Report) (swarm.Plan, error) {
		return post(ctx, client, *server+"/swarm?id="+*id, r)
	}
	switch name {
	case "node":
		return node(ctx, client, *server, d, m, *out, *unicast, report)
	case "liar":
		return liar(ctx, d, m, report)
	}
	return fmt.Errorf("no role %q", name)
}

func manifest(ctx context.Context, client *http.Client, base string, d images.Digest) (images.Manifest, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/bare/"+d.String(), nil)
	if err != nil {
		return images.Manifest{}, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return images.Manifest{}, err
	}
	defer resp.Body.Close()
	var m images.Manifest
	return m, json.NewDecoder(resp.Body).Decode(&m)
}

func post(ctx context.Context, client *http.Client, url string, r swarm.Report) (swarm.Plan, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return swarm.Plan{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return swarm.Plan{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return swarm.Plan{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return swarm.Plan{}, fmt.Errorf("%s: %s", resp.Status, msg)
	}
	var p swarm.Plan
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// serve is the image store and the tracker, as smelt serve has them; nodes are
// named by themselves, for there are no sessions here.
func serve(ctx context.Context, dir, listen string) error {
	s, err := images.OpenStore(dir)
	if err != nil {
		return err
	}
	t := swarm.NewTracker(swarm.Limits{})
	mux := http.NewServeMux()
	mux.Handle("/", s.Handler())
	mux.HandleFunc("GET /bare/{digest}", func(w http.ResponseWriter, r *http.Request) {
		d, err := images.ParseDigest(r.PathValue("digest"))
		if err == nil {
			var m images.Manifest
			if m, err = s.Manifest(d); err == nil {
				err = json.NewEncoder(w).Encode(m)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
		}
	})
	mux.HandleFunc("POST /swarm", func(w http.ResponseWriter, r *http.Request) {
		var rep swarm.Report
		if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		p, err := t.Report(time.Now(), r.URL.Query().Get("id"), "", from.Addr(), rep, s.Manifest)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		_ = json.NewEncoder(w).Encode(p)
	})
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	err = g.Wait()
	fmt.Fprintf(os.Stderr, "tracker: %+v\n", t.Stats())
	return err
}

// node writes the image as an agent does.
func node(ctx context.Context, client *http.Client, server string, d images.Digest, m images.Manifest, out string, unicast bool, report func(context.Context, swarm.Report) (swarm.Plan, error)) error {
	fetch := disk.HTTP(client, server+"/blob/"+m.Blob.String())
	// What the server keeps for an agent is a file here.
	done := disk.NewMap(len(m.Chunks))
	if b, err := os.ReadFile(out + ".map"); err == nil {
		_ = done.UnmarshalBinary(b)
	}
	o := disk.Options{Done: done, Workers: 4, Progress: func(p disk.Progress) {
		if b, err := p.Map.MarshalBinary(); err == nil {
			_ = os.WriteFile(out+".map", b, 0o600)
		}
	}}
	leave := func() {}
	if !unicast {
		c, err := swarm.Join(swarm.Config{Image: d, Manifest: m, Report: report, Origin: fetch, Disk: out, Memory: 16 << 20,
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err != nil {
			return err
		}
		leave = func() {
			c.Close()
			fmt.Fprintf(os.Stderr, "%s %+v\n", out, c.Stats())
		}
		o.Source = c
	}
	r, err := disk.Write(ctx, out, m, fetch, o)
	leave()
	fmt.Fprintf(os.Stderr, "%s %+v\n", out, r)
	return err
}

// liar says that it has every chunk, and sends bytes that are none.
func liar(ctx context.Context, d images.Digest, m images.Manifest, report func(context.Context, swarm.Report) (swarm.Plan, error)) error {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	noise := make([]byte, 1600<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	copy(noise, []byte{0x28, 0xb5, 0x2f, 0xfd}) // it begins like a frame
	var asked int
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.Header().Set("Content-Length", fmt.Sprint(len(noise)))
		_, _ = w.Write(noise)
	})}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	rep := swarm.Report{Image: d, Port: uint16(ln.Addr().(*net.TCPAddr).Port), Map: bytes.Repeat([]byte{0xff}, (len(m.Chunks)+7)/8)}
	for ctx.Err() == nil {
		if _, err := report(ctx, rep); err == nil {
			rep.Map = nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	fmt.Fprintf(os.Stderr, "liar was asked %d times\n", asked)
	return nil
}
