package inspect

import (
	"net"
	"net/url"
)

// Addr is the address this machine uses towards a server, "" when there is no
// way to it. Nothing is sent: connecting a datagram socket only picks a route.
func Addr(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return ""
	}
	defer c.Close()
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return a.IP.String()
	}
	return ""
}
