package pxe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"smelt/pxe/tftp"
)

const tftpPort = 69

// tftpServer hands out first loaders on one network.
type tftpServer struct {
	s    *Server
	n    *network
	conn *net.UDPConn
}

func openTFTP(s *Server, n *network) (*tftpServer, error) {
	// Our address and not ":69", so that answers leave from it.
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.id, tftpPort)))
	if err != nil {
		return nil, fmt.Errorf("TFTP on %s port %d: %v (is another TFTP server running? ss -ulpn 'sport = :%d')", n.id, tftpPort, err, tftpPort)
	}
	return &tftpServer{s, n, conn}, nil
}

func (t *tftpServer) run(ctx context.Context) error {
	// A spoofed request makes us send to a stranger: only our own networks.
	srv := tftp.Server{Allow: t.s.ours, Open: t.open, Done: t.done, Log: t.s.log}
	if err := srv.Serve(ctx, t.conn); err != nil {
		return fmt.Errorf("TFTP on %s: %v", t.n.id, err)
	}
	return nil
}

func (t *tftpServer) open(name string, _ netip.AddrPort) (tftp.Content, error) {
	e, ok := t.s.lookup(t.n, name)
	if !ok {
		return nil, tftp.ErrNotFound
	}
	return e.blocks(), nil
}

// done tells people how a transfer ended.
func (t *tftpServer) done(f tftp.Transfer) {
	now := time.Now()
	client := f.Client.Addr()
	mac, known := t.s.holder(client, now)
	e := Event{At: now, Machine: Machine{MAC: mac, Addr: client, Stage: AskAddress}, Kind: "tftp " + plain(f.Name, 64)}
	var refused *tftp.Error
	var aborted *tftp.ClientError
	switch {
	case f.Err == nil:
		e.Answer, e.Why = "sent", fmt.Sprintf("%d bytes in %s", f.Size, f.Took.Round(time.Millisecond))
		if f.Resent > 0 {
			e.Why += fmt.Sprintf(", %d packets sent again", f.Resent)
		}
	case errors.Is(f.Err, tftp.ErrNotFound):
		e.Answer, e.Why = "not found", "no such boot file"
	case errors.Is(f.Err, tftp.ErrAccess):
		e.Answer, e.Why = "refused", "not an address of our networks"
	case errors.As(f.Err, &refused):
		e.Answer, e.Why = "refused", refused.Text
	case errors.As(f.Err, &aborted) && f.Acked == 0:
		// EDK2 asks for the size first, and takes the answer as all it wants
		// (RFC 2349): it aborts, and comes back for the file.
		e.Answer, e.Why = "size told", fmt.Sprintf("%d bytes", f.Size)
	default:
		e.Answer, e.Why = "failed", fmt.Sprintf("after %d of %d bytes: %s", f.Acked, f.Size, plain(f.Err.Error(), 120))
	}
	stats := &t.s.recorder.stats
	stats.tftp.add(1, e.Answer)
	stats.tftpBytes.Add(uint64(f.Acked))
	stats.tftpAgain.Add(uint64(f.Resent))
	if known && !(errors.Is(f.Err, tftp.ErrNotFound) && optional(f.Name)) {
		t.s.recorder.record(e)
		return
	}
	t.s.log.Debug("boot: tftp", "addr", client, "file", plain(f.Name, 64), "answer", e.Answer, "why", e.Why)
}
