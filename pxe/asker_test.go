package pxe

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// askedFrom asks for target from an address.
func askedFrom(t testing.TB, s *Server, addr, target string) string {
	t.Helper()
	r := httptest.NewRequest("GET", "http://10.77.0.1"+target, nil)
	r.RemoteAddr = addr + ":1234"
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	if w.Code != 200 {
		t.Fatalf("%s from %s: status %d", target, addr, w.Code)
	}
	return w.Body.String()
}

// TestWhoAsks: a MAC in a query is believed as far as its address bears it out.
func TestWhoAsks(t *testing.T) {
	var asked Machine
	s := testServer(t, booterFunc(func(_ context.Context, m Machine) (Boot, error) {
		asked = m
		return Boot{Action: Hold, Why: "wait"}, nil
	}))
	now := time.Now()
	mine, _, err := s.networks[0].leases.offer(other, s.networks[0].Pool.From, now)
	if err != nil {
		t.Fatal(err)
	}
	if v, why, wait := s.networks[0].leases.request(claim{mac: other, addr: mine}, now, time.Hour); v != ack || wait() != nil {
		t.Fatal(why)
	}
	for _, path := range []string{"/boot/script?mac=", "/boot/next?mac=", "/boot/grub/"} {
		for _, c := range []struct {
			what, addr   string
			mac          MAC
			leased, gone bool // the ladder begins anew
		}{
			{"itself", mine.String(), other, true, true},
			{"an address of nobody", "10.77.0.250", unknown, false, true},
			{"the address of another machine", mine.String(), unknown, false, false},
		} {
			s.trail = newTrail()
			s.trail.start(c.mac, firmware, dhcpv4.TransactionID{1}, true, now)
			askedFrom(t, s, c.addr, path+c.mac.String())
			if asked.MAC != c.mac || asked.Leased != c.leased {
				t.Errorf("%s, %s: asked about %+v", path, c.what, asked)
			}
			if starts, _ := s.trail.of(c.mac, firmware); (starts == 0) != c.gone {
				t.Errorf("%s, %s: %d starts", path, c.what, starts)
			}
		}
	}
}

// TestQuestions: one address asks for so many machines and no more; a hall that
// asks at once gets an answer each.
func TestQuestions(t *testing.T) {
	var asked atomic.Int32
	b := booterFunc(func(context.Context, Machine) (Boot, error) {
		asked.Add(1)
		time.Sleep(time.Millisecond)
		return Boot{Action: Hold, Why: "decided"}, nil
	})
	s := testServer(t, b)
	last := ""
	for i := range 400 {
		last = askedFrom(t, s, "10.77.0.250", fmt.Sprintf("/boot/script?mac=02:07:00:00:00:%02x", i%256))
	}
	if n := asked.Load(); n < 200 || n > 300 || !strings.Contains(last, "too many questions from its address") || !strings.Contains(last, "chain ") {
		t.Errorf("of 400 questions from one address %d were put; the last was answered\n%s", n, last)
	}
	s = testServer(t, b) // in which nobody shares a cell with that address by chance
	var undecided atomic.Int32
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			if text := askedFrom(t, s, fmt.Sprintf("10.77.%d.%d", 8+i/250, 1+i%250), fmt.Sprintf("/boot/script?mac=02:08:00:00:%02x:%02x", i/256, i%256)); !strings.Contains(text, "decided") || strings.Contains(text, "not decided") {
				undecided.Add(1)
			}
		})
	}
	wg.Wait()
	if n := undecided.Load(); n > 0 {
		t.Errorf("%d of 2,000 machines that ask at once are put off", n)
	}
}
