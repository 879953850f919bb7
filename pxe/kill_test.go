package pxe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// hall is many machines on the client's end of the cable.
type hall struct {
	w *wire

	mu      sync.Mutex
	xid     uint32
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
	holder  map[netip.Addr]int // who was acknowledged what
	acked   map[int]netip.Addr
}

func (l *lab) hall() *hall {
	h := &hall{w: l.wire(), waiting: make(map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4), holder: make(map[netip.Addr]int), acked: make(map[int]netip.Addr)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { h.listen(stop) })
	l.t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
	return h
}

func hallMAC(i int) MAC { return MAC{2, 0, 0, 1, byte(i >> 8), byte(i)} }

// listen hands answers to whoever waits for them, until stop.
func (h *hall) listen(stop <-chan struct{}) {
	buf := make([]byte, 65536)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(h.w.fd, buf, 0) // for at most 100 ms
		f := buf[:max(n, 0)]
		if err != nil || len(f) < 14+28+240 || f[12] != 8 || f[13] != 0 || f[23] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(f[34:]) != serverPort {
			continue
		}
		m, err := dhcpv4.FromBytes(append([]byte(nil), f[42:]...))
		if err != nil {
			continue
		}
		h.mu.Lock()
		c := h.waiting[m.TransactionID]
		h.mu.Unlock()
		if c != nil {
			select {
			case c <- m:
			default:
			}
		}
	}
}

// ask sends m as machine i would and returns the answer, or nil after a second
// or so, when a machine asks again.
func (h *hall) ask(t *testing.T, i int, m message, src, dst string) *dhcpv4.DHCPv4 {
	m.mac = hallMAC(i)
	m.broadcast = m.ciaddr == ""
	data := m.bytes(t)
	c := make(chan *dhcpv4.DHCPv4, 1)
	h.mu.Lock()
	h.xid++
	id := dhcpv4.TransactionID{9, byte(h.xid >> 16), byte(h.xid >> 8), byte(h.xid)}
	h.waiting[id] = c
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, id)
		h.mu.Unlock()
	}()
	copy(data[4:], id[:])
	h.w.send(m.mac, src, dst, clientPort, data)
	select {
	case a := <-c:
		return a
	case <-time.After(time.Second + time.Duration(rand.IntN(300))*time.Millisecond):
		return nil
	}
}

// boot is DISCOVER, OFFER, REQUEST, ACK, with the patience of firmware: what
// is not answered is sent again, and the whole begins anew after a few times.
func (h *hall) boot(t *testing.T, i int, deadline time.Time) error {
	for time.Now().Before(deadline) {
		offer := h.ask(t, i, message{kind: dhcpv4.MessageTypeDiscover}, "0.0.0.0", "255.255.255.255")
		if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer {
			continue
		}
		for range 3 {
			a := h.ask(t, i, message{kind: dhcpv4.MessageTypeRequest, want: offer.YourIPAddr.String(), server: "10.77.0.1"}, "0.0.0.0", "255.255.255.255")
			if a == nil {
				continue
			}
			if a.MessageType() != dhcpv4.MessageTypeAck {
				break // an offer that the server forgot by its death was given to another one
			}
			addr, _ := netip.AddrFromSlice(a.YourIPAddr.To4())
			h.mu.Lock()
			defer h.mu.Unlock()
			if other, ok := h.holder[addr]; ok {
				return fmt.Errorf("machine %d was given %s, which machine %d has", i, addr, other)
			}
			h.holder[addr], h.acked[i] = i, addr
			return nil
		}
	}
	return fmt.Errorf("machine %d got no address", i)
}

// keeps checks that the server knows machine i by its address, in the way that
// m, a REQUEST, asks.
func (h *hall) keeps(t *testing.T, i int, how string, m message, src, dst string) error {
	for range 10 {
		a := h.ask(t, i, m, src, dst)
		if a == nil {
			continue
		}
		if got := a.YourIPAddr.String(); a.MessageType() != dhcpv4.MessageTypeAck || got != h.address(i).String() {
			return fmt.Errorf("machine %d has %s and after the restart, %s, got %s of %s: %s", i, h.address(i), how, a.MessageType(), got, a.Message())
		}
		return nil
	}
	return fmt.Errorf("machine %d was not answered after the restart, %s", i, how)
}

func (h *hall) address(i int) netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked[i]
}

// reboots asks as a machine that was switched off and on (INIT-REBOOT): a
// server that forgot is silent or refuses.
func (h *hall) reboots(t *testing.T, i int) error {
	return h.keeps(t, i, "rebooting", message{kind: dhcpv4.MessageTypeRequest, want: h.address(i).String()}, "0.0.0.0", "255.255.255.255")
}

// renews asks as a machine whose lease is half over (RENEWING).
func (h *hall) renews(t *testing.T, i int) error {
	a := h.address(i).String()
	return h.keeps(t, i, "renewing", message{kind: dhcpv4.MessageTypeRequest, ciaddr: a, unicast: true}, a, "10.77.0.1")
}

// each runs f for each machine that has an address, a few at a time.
func (h *hall) each(t *testing.T, f func(*testing.T, int) error) {
	t.Helper()
	h.mu.Lock()
	var who []int
	for i := range h.acked {
		who = append(who, i)
	}
	h.mu.Unlock()
	queue := make(chan int)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for i := range queue {
				if err := f(t, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, i := range who {
		queue <- i
	}
	close(queue)
	wg.Wait()
}

// TestKill: the server is killed and started again while machines get their
// addresses, over and over. Who was acknowledged one keeps it, and nobody else
// gets it.
func TestKill(t *testing.T) {
	needs(t)
	machines, kills := 60, 2
	if os.Getenv("SMELT_TEST_E2E") == "1" {
		machines, kills = 1000, 5
	}
	l := newLab(t)
	for _, line := range []string{"addr flush dev " + bridge + " scope global", "addr add 10.77.0.1/16 dev " + bridge} {
		if out, err := exec.Command("ip", append([]string{"-n", l.server}, strings.Fields(line)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	l.spec.Network.Address = netip.MustParsePrefix("10.77.0.1/16")
	l.spec.Network.Pool = Range{netip.MustParseAddr("10.77.16.0"), netip.MustParseAddr("10.77.31.255")}
	l.start()
	h := l.hall()
	deadline := time.Now().Add(2 * time.Minute)
	var wg sync.WaitGroup
	for i := range machines {
		wg.Go(func() {
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			if err := h.boot(t, i, deadline); err != nil {
				t.Error(err)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	had := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.acked)
	}
	for k := range kills {
		l.wait("machines with an address", time.Minute, func() bool { return had() >= machines*(k+1)/(kills+1) || t.Failed() })
		before := had()
		l.stop()
		if k == 0 {
			// A power cut leaves half a line, too.
			f, err := os.OpenFile(l.spec.Leases, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, `{"mac":"02:00:00`)
			f.Close()
		}
		l.start()
		t.Logf("killed with %d of %d machines served", before, machines)
		if before == machines {
			t.Error("it was killed too late to matter")
		}
		h.each(t, h.reboots) // while the others go on
	}
	<-done
	if had() != machines {
		t.Fatalf("%d of %d machines have an address", had(), machines)
	}
	l.stop()
	l.start()
	h.each(t, h.renews)
	h.each(t, h.reboots)
}

// TestKillMidBoot: the server dies while a machine loads its kernel. The script
// it has makes it come back.
func TestKillMidBoot(t *testing.T) {
	l := newBootLab(t)
	l.start()
	took := l.bootThrough(func() error {
		l.stop()
		time.Sleep(2 * time.Second) // as long as a restart takes
		return l.tryStart()
	})
	t.Logf("BIOS with iPXE ROM, server killed while the kernel was on its way: %s to userland", took)
}

// TestSwitchMidBoot: the switch port goes dark for as long as spanning tree
// takes (IEEE 802.1D: 15 s listening, 15 s learning) while a machine loads its
// kernel. A port that is dark at power-on is for the machine's own firmware to
// bear: iPXE's ROM gives up after 17 s, and the next round of the boot order
// finds us.
func TestSwitchMidBoot(t *testing.T) {
	l := newBootLab(t)
	l.start()
	port := func(args ...string) error {
		return exec.Command("ip", append([]string{"-n", l.server, "link", "set", "tap0"}, args...)...).Run()
	}
	took := l.bootThrough(func() error {
		err := port("nomaster")
		time.Sleep(35 * time.Second)
		return errors.Join(err, port("master", bridge))
	})
	t.Logf("BIOS with iPXE ROM, port dark for 35 s while the kernel was on its way: %s to userland", took)
}

// bootThrough boots a machine that trouble befalls once it has its script. Its
// wire is slow, 8 s for the kernel, so that a busy machine is not too late.
func (l *lab) bootThrough(trouble func() error) time.Duration {
	l.t.Helper()
	if out, err := exec.Command("tc", "-n", l.server, "qdisc", "add", "dev", "tap0", "root", "tbf",
		"rate", "8mbit", "burst", "64kb", "latency", "100ms").CombinedOutput(); err != nil {
		l.t.Fatalf("tc: %v: %s", err, out)
	}
	over := make(chan error, 1)
	go func() {
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			l.mu.Lock()
			asked := slices.ContainsFunc(l.events, func(e Event) bool { return e.Kind == "script" })
			l.mu.Unlock()
			if asked {
				over <- trouble()
				return
			}
		}
		over <- errors.New("no machine asked for a script")
	}()
	serial, took := l.boot(4*time.Minute, "BOOT-OK", bios(l)...)
	if err := <-over; err != nil {
		l.t.Fatal(err)
	}
	l.booted(serial, "script", "10.77.0.11")
	if !strings.Contains(serial, "asking again") {
		l.t.Errorf("the machine did not wait and ask again: the trouble came too late to matter:\n%s", serial)
	}
	return took
}
