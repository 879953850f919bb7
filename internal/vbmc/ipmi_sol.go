package vbmc

import (
	"fmt"
	"net"
)

// A serialServer is a Power with a serial port: Machine is one.
type serialServer interface{ ServeSerial(net.Listener) }

// listenSOL offers the machine's serial port to ipmi_sim and returns the line
// of lan.conf that makes it the console over LAN (ipmi_lan(5)), "" for a
// machine without one. ipmi_sim keeps the connection, so the port has its
// carrier whether or not a session is open.
func (b *IPMI) listenSOL() (line string, err error) {
	s, ok := b.power.(serialServer)
	if !ok {
		return "", nil
	}
	if b.sol, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return "", err
	}
	b.wait.Go(func() { s.ServeSerial(b.sol) })
	_, port, err := net.SplitHostPort(b.sol.Addr().String())
	return fmt.Sprintf("  sol \"tcp:127.0.0.1:%s\" 115200\n", port), err
}
