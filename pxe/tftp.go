package pxe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pin/tftp/v3"
)

const (
	tftpPort = 69

	// A file is sent to whoever claims to be a client, so what one datagram can
	// cause is bounded: few resends, and few transfers at once for each address
	// and for all.
	tftpTimeout   = time.Second
	tftpRetries   = 5
	tftpTransfers = 512
	tftpPerClient = 4
)

// Errors a machine may see. The library sends their text as it is, so they say
// nothing of paths.
var (
	errNotFound = errors.New("file not found")
	errBusy     = errors.New("too many transfers, try again")
	errForeign  = errors.New("access violation")
	errReadOnly = errors.New("access violation: read only")
)

// tftpServer hands out first loaders.
type tftpServer struct {
	s    *Server
	n    *network
	conn *net.UDPConn
	srv  *tftp.Server

	stopping  atomic.Bool
	mu        sync.Mutex
	transfers map[netip.Addr]int
	total     int
}

func openTFTP(s *Server, n *network) (*tftpServer, error) {
	// An IPv4 address, not ":69": on a dual-stack socket the library takes off
	// IPv6 headers from the block size, and answers leave from another address.
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.id, tftpPort)))
	if err != nil {
		return nil, fmt.Errorf("TFTP on %s port %d: %v (is another TFTP server running? ss -ulpn 'sport = :%d')", n.id, tftpPort, err, tftpPort)
	}
	t := &tftpServer{s: s, n: n, conn: conn, transfers: make(map[netip.Addr]int)}
	t.srv = tftp.NewServer(t.read, func(string, io.WriterTo) error { return errReadOnly })
	t.srv.SetTimeout(tftpTimeout)
	t.srv.SetRetries(tftpRetries)
	t.srv.SetBackoff(func(int) time.Duration { return 0 }) // the timeout is pause enough
	return t, nil
}

func (t *tftpServer) run(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		t.stopping.Store(true)
		t.srv.Shutdown() // waits for transfers, which end at their next block
	})
	err := t.srv.Serve(t.conn)
	if stop() {
		t.conn.Close()
		return fmt.Errorf("TFTP on %s: %v", t.n.id, err)
	}
	<-stopped
	return nil
}

// read serves one transfer.
func (t *tftpServer) read(name string, rf io.ReaderFrom) (err error) {
	out, ok := rf.(tftp.OutgoingTransfer)
	if !ok {
		return errForeign
	}
	remote := out.RemoteAddr()
	client := remote.AddrPort().Addr().Unmap()
	now := time.Now()
	e := Event{At: now, Machine: Machine{Addr: client, Stage: AskAddress}, Kind: "tftp " + plain(name, 64)}
	defer func() {
		if p := recover(); p != nil {
			t.s.log.Error("boot: TFTP request failed", "from", client, "panic", p)
			err = errNotFound
		}
	}()
	mac, known := t.n.leases.holder(client, now)
	e.Machine.MAC = mac
	record := func(answer string, why any) {
		e.Answer, e.Why = answer, fmt.Sprint(why)
		if known {
			t.s.recorder.record(e)
			return
		}
		t.s.log.Debug("boot: tftp", "addr", client, "file", plain(name, 64), "answer", answer, "why", e.Why)
	}
	// A spoofed request makes us send to a stranger: only our own networks.
	if !t.s.ours(client) {
		record("refused", "not an address of our networks")
		return errForeign
	}
	f, ok := t.s.files.lookup(name)
	if !ok {
		record("not found", "no such boot file")
		return errNotFound
	}
	if !t.enter(client) {
		record("refused", "too many transfers")
		return errBusy
	}
	defer t.leave(client)
	r := f.open()
	defer r.Close()
	out.SetSize(f.size)
	n, err := rf.ReadFrom(stoppable{r, &t.stopping})
	switch {
	case err == nil:
		record("sent", fmt.Sprintf("%d bytes in %s", n, time.Since(now).Round(time.Millisecond)))
	case n == 0 && strings.Contains(err.Error(), "code="):
		// EDK2 asks for the size first, and takes the answer as all it wants
		// (RFC 2349): it aborts, and comes back for the file.
		record("size told", fmt.Sprintf("%d bytes", f.size))
	default:
		record("failed", fmt.Sprintf("after %d of %d bytes: %s", n, f.size, plain(err.Error(), 120)))
	}
	return nil // the library has told the client
}

// stoppable is a reader that fails once the server stops.
type stoppable struct {
	io.Reader
	stopping *atomic.Bool
}

func (r stoppable) Read(p []byte) (int, error) {
	if r.stopping.Load() {
		return 0, errStopped
	}
	return r.Reader.Read(p)
}

func (t *tftpServer) enter(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= tftpTransfers || t.transfers[a] >= tftpPerClient {
		return false
	}
	t.total++
	t.transfers[a]++
	return true
}

func (t *tftpServer) leave(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if t.transfers[a]--; t.transfers[a] == 0 {
		delete(t.transfers, a)
	}
}
