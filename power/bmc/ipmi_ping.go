package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// What a BMC answers without a session: whether it is there at all, which
// ipmitool's silence does not tell, and what it thinks of anonymous users.

// askCapabilities is Get Channel Authentication Capabilities (IPMI 2.0,
// section 22.13) for this channel and ADMINISTRATOR, as an IPMI 1.5 message
// outside a session (section 13.6): every BMC answers it, and a login begins
// with it.
var askCapabilities = []byte{
	0x06, 0x00, 0xff, 0x07, // RMCP, class IPMI
	0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, // no authentication, sequence, session, 9 bytes
	0x20, 0x18, 0xc8, 0x81, 0x00, 0x38, 0x8e, 0x04, 0xb5,
}

// capabilities are the parts of the answer that matter.
type capabilities struct {
	rmcpPlus  bool // it speaks IPMI 2.0 over LAN
	nullNames bool // there are users without a name that have a password
	anonymous bool // there are users with neither
}

// parseCapabilities reads the answer to askCapabilities (table 22-15).
func parseCapabilities(b []byte) (capabilities, error) {
	const head = 4 + 10 // RMCP, and a session header without authentication
	if len(b) < head+7+9 || b[0] != 0x06 || b[3]&0x1f != 0x07 || b[4] != 0x00 {
		return capabilities{}, errors.New("no IPMI")
	}
	m := b[head:]
	if m[1]>>2 != 0x07 || m[5] != 0x38 {
		return capabilities{}, errors.New("an answer to another question")
	}
	if m[6] != 0 {
		return capabilities{}, completion(m[6])
	}
	d := m[7:]
	c := capabilities{nullNames: d[2]&0x02 != 0, anonymous: d[2]&0x01 != 0}
	c.rmcpPlus = d[1]&0x80 != 0 && d[3]&0x02 != 0
	return c, nil
}

// Until when each asking is waited for: UDP loses packets, and BMCs sleep.
var asking = []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second, patience}

const patience = 5 * time.Second

// capabilities asks. An error means that nobody is there.
func (i *ipmi) capabilities(ctx context.Context) (capabilities, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(i.host, i.port))
	if err != nil {
		return capabilities{}, fmt.Errorf("no way to the BMC: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	began := time.Now()
	buf := make([]byte, 256)
	for _, until := range asking {
		if _, err := c.Write(askCapabilities); err != nil && ctx.Err() == nil {
			return capabilities{}, fmt.Errorf("no way to the BMC: %w", err)
		}
		c.SetReadDeadline(began.Add(until))
		for ctx.Err() == nil { // its end sets the deadline too, before or after
			n, err := c.Read(buf)
			if err == nil {
				if got, err := parseCapabilities(buf[:n]); err == nil {
					return got, nil
				}
				continue // a stray packet
			}
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				break
			}
			return capabilities{}, fmt.Errorf("nothing speaks IPMI there: %w", err) // "connection refused"
		}
	}
	if err := ctx.Err(); err != nil {
		return capabilities{}, fmt.Errorf("the BMC does not answer IPMI: %w", err)
	}
	return capabilities{}, fmt.Errorf("the BMC does not answer IPMI within %v: is it connected, is IPMI over LAN switched on?", patience)
}
