package pxe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
)

const (
	workers = 64  // messages decided at once on one interface; most wait for disk or Booter
	backlog = 512 // messages waiting for a worker; clients repeat what is dropped
)

// packet is a datagram that waits for a worker.
type packet struct {
	data    []byte
	unicast bool
}

// serveDHCP reads from l and lets a bounded number of workers decide.
func (s *Server) serveDHCP(ctx context.Context, n *network, l *link) error {
	queue := make(chan packet, backlog)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for p := range queue {
				s.handle(ctx, n, l, p)
			}
		})
	}
	defer l.close() // after the workers, which send on it
	defer wg.Wait()
	defer close(queue)
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		size, cm, _, err := l.conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("DHCP on %s: %v", n.Interface, err)
		}
		p := packet{data: append([]byte(nil), buf[:size]...), unicast: toUs(cm, n.id)}
		select {
		case queue <- p:
		default:
			s.log.Debug("boot: DHCP message dropped, too many wait", "interface", n.Interface)
		}
	}
}

func toUs(cm *ipv4.ControlMessage, id netip.Addr) bool {
	return cm != nil && cm.Dst.Equal(net.IP(id.AsSlice()))
}

// handle decides on one datagram and sends the answer. The library can panic
// on input nobody thought of; such a datagram is dropped, the server stays.
func (s *Server) handle(ctx context.Context, n *network, l *link, p packet) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("boot: DHCP message dropped after a panic", "interface", n.Interface, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r, err := parseRequest(p.data)
	if err != nil {
		s.log.Debug("boot: DHCP message dropped", "interface", n.Interface, "why", err)
		return
	}
	if isProbe(r.machine.MAC) {
		return // a Smelt that looks for rivals, and no machine
	}
	if n.rivals != nil && r.kind == dhcpv4.MessageTypeRequest && r.server.IsValid() && r.server != n.id {
		n.rivals.named(r.server, time.Now())
	}
	r.unicast = p.unicast && !r.giaddr.IsValid() // a relay sends on by unicast what it heard by broadcast
	a, e := s.respond(ctx, n, r, time.Now())
	s.recorder.record(e)
	if a == nil {
		return
	}
	if err := l.send(a.msg.ToBytes(), a.to); err != nil {
		s.log.Warn("boot: DHCP answer not sent", "interface", n.Interface, "mac", e.Machine.MAC, "to", a.to.addr, "err", err)
	}
}
