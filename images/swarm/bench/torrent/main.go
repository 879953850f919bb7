// Torrent plays the server and the nodes of images/swarm/bench with BitTorrent
// (github.com/anacrolix/torrent), to compare: its own module, so that nothing
// of it enters the product.
//
//	CGO_ENABLED=0 go build -C images/swarm/bench/torrent -o /tmp/torrent-bench .
//	go run ./images/swarm/bench -exe /tmp/torrent-bench -only swarm,churn
//
// A node only gets the compressed file; ours also unpack it onto a disk.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "torrent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name string, args []string) error {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	store := fs.String("store", "", "image store")
	listen := fs.String("listen", "", "address")
	server := fs.String("server", "", "URL of the server")
	_ = fs.String("image", "", "unused")
	blob := fs.String("blob", "", "digest of the blob")
	out := fs.String("out", "", "file")
	_ = fs.String("id", "", "unused")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if name == "server" {
		return serve(ctx, *store, *listen)
	}
	return node(ctx, *server, *blob, *out)
}

func client(dir string, port int) (*torrent.Client, storage.ClientImplCloser, error) {
	c := torrent.NewDefaultClientConfig()
	c.NoDHT = true
	c.DisableUTP = true
	c.DisableIPv6 = true
	c.DisableWebtorrent = true
	c.NoDefaultPortForwarding = true
	c.Seed = true
	c.ListenPort = port
	c.AcceptPeerConnections = true
	c.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{}
	c.EstablishedConnsPerTorrent = 50
	st := storage.NewFileWithCompletion(dir, storage.NewMapPieceCompletion())
	c.DefaultStorage = st
	cl, err := torrent.NewClient(c)
	return cl, st, err
}

// serve seeds all blobs of the store and is their tracker.
func serve(ctx context.Context, store, listen string) error {
	dir := filepath.Join(store, "blobs")
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	cl, st, err := client(dir, 6881)
	if err != nil {
		return err
	}
	defer st.Close()
	defer cl.Close()
	infos := map[string][]byte{}
	for _, f := range files {
		info := metainfo.Info{PieceLength: 1 << 20}
		if err := info.BuildFromFilePath(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
		mi := metainfo.MetaInfo{Announce: "http://" + listen + "/announce"}
		if mi.InfoBytes, err = bencode.Marshal(info); err != nil {
			return err
		}
		t, err := cl.AddTorrent(&mi)
		if err != nil {
			return err
		}
		if err := t.VerifyDataContext(ctx); err != nil {
			return err
		}
		if infos[f.Name()], err = bencode.Marshal(mi); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	peers := map[string]time.Time{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /torrent/{blob}", func(w http.ResponseWriter, r *http.Request) { w.Write(infos[r.PathValue("blob")]) })
	mux.HandleFunc("GET /announce", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		q := r.URL.Query()
		me := net.JoinHostPort(host, q.Get("port"))
		mu.Lock()
		defer mu.Unlock()
		if q.Get("event") == "stopped" {
			delete(peers, me)
		} else {
			peers[me] = time.Now()
		}
		var b strings.Builder
		for p, at := range peers {
			h, port, _ := net.SplitHostPort(p)
			n, err := strconv.Atoi(port)
			if ip := net.ParseIP(h).To4(); ip != nil && err == nil && time.Since(at) < time.Minute && p != me {
				b.Write(ip)
				binary.Write(&b, binary.BigEndian, uint16(n))
			}
		}
		fmt.Fprintf(w, "d8:intervali5e12:min intervali1e5:peers%d:%se", b.Len(), b.String())
	})
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func node(ctx context.Context, server, blob, out string) error {
	resp, err := http.Get(server + "/torrent/" + blob)
	if err != nil {
		return err
	}
	mi, err := metainfo.Load(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	dir := out + ".d"
	defer os.RemoveAll(dir)
	cl, st, err := client(dir, 6881)
	if err != nil {
		return err
	}
	defer st.Close()
	defer cl.Close()
	t, err := cl.AddTorrent(mi)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, blob)); err == nil {
		if err := t.VerifyDataContext(ctx); err != nil { // it was killed before
			return err
		}
	}
	host := strings.TrimSuffix(strings.TrimPrefix(server, "http://"), ":80")
	t.AddPeers([]torrent.PeerInfo{{Addr: &net.TCPAddr{IP: net.ParseIP(host), Port: 6881}, Trusted: true}})
	t.DownloadAll()
	for !t.Complete().Bool() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.Complete().On():
		case <-time.After(50 * time.Millisecond):
		}
	}
	s := t.Stats()
	fmt.Fprintf(os.Stderr, "read %d, wrote %d, peers %d\n", s.BytesReadData.Int64(), s.BytesWrittenData.Int64(), s.ActivePeers)
	f, err := os.Open(filepath.Join(dir, blob))
	if err != nil {
		f, err = os.Open(filepath.Join(dir, blob+".part"))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	o, err := os.Create(out)
	if err != nil {
		return err
	}
	defer o.Close()
	_, err = io.Copy(o, f)
	return err
}
