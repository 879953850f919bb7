package tftp

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pin "github.com/pin/tftp/v3"
)

// TestForeignClients: programs that others wrote get every byte, over a good
// wire and over lossy ones.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	const size = 100*1428 + 77
	want := make([]byte, size)
	_, _ = pattern(size).ReadAt(want, 0)
	s := serveAs(t, &site{Server: Server{PerClient: 100}, files: map[string]Content{"snponly.efi": pattern(size)}})
	clients := []struct {
		name, program string
		args          []string
		quick         bool // over a lossy wire without SMELT_TEST_E2E too: the others can take 5 s for a loss
	}{
		{"tftp-hpa", "tftp", []string{"-m", "binary", "HOST", "PORT", "-c", "get", "snponly.efi", "OUT"}, false},
		{"busybox", "busybox", []string{"tftp", "-g", "-r", "snponly.efi", "-l", "OUT", "HOST", "PORT"}, false},
		{"busybox blksize", "busybox", []string{"tftp", "-b", "1428", "-g", "-r", "snponly.efi", "-l", "OUT", "HOST", "PORT"}, false},
		{"curl", "curl", []string{"-sS", "-o", "OUT", "tftp://HOST:PORT/snponly.efi"}, false},
		{"curl blksize", "curl", []string{"-sS", "--tftp-blksize", "1428", "-o", "OUT", "tftp://HOST:PORT/snponly.efi"}, false},
		{"curl no options", "curl", []string{"-sS", "--tftp-no-options", "-o", "OUT", "tftp://HOST:PORT/snponly.efi"}, false},
		{"atftp timeout", "atftp", []string{"--option", "timeout 1", "-g", "-r", "snponly.efi", "-l", "OUT", "HOST", "PORT"}, false},
		{"atftp", "atftp", []string{"-g", "-r", "snponly.efi", "-l", "OUT", "HOST", "PORT"}, false},
	}
	atftp := clients[len(clients)-1]
	for _, w := range []int{1, 4, 16, 64} {
		c := atftp
		c.name = fmt.Sprintf("atftp window %d", w)
		c.args = append([]string{"--option", "blksize 1428", "--option", "tsize 0", "--option", fmt.Sprintf("windowsize %d", w)}, c.args...)
		c.quick = true
		clients = append(clients, c)
	}
	for _, share := range []float64{0, 0.01, 0.05} {
		wire := s.addr
		if share > 0 {
			wire = lossy(t, s.addr, share)
		}
		for _, c := range clients {
			if share > 0 && !(c.quick && share < 0.05) && os.Getenv("SMELT_TEST_E2E") != "1" {
				continue
			}
			if share > 0 && (c.program == "curl" || c.name == "atftp timeout") {
				continue // these ask, by the option timeout, to be sent again only after seconds
			}
			t.Run(fmt.Sprintf("%s loss %g", c.name, share), func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "out")
				err := fetch(t, c.program, c.args, wire, out)
				for range 3 {
					if err == nil || share == 0 || !strings.Contains(err.Error(), "unexpected OACK") {
						break
					}
					err = fetch(t, c.program, c.args, wire, out) // atftp wants its ACK of the OACK never lost
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes that differ, %v", len(got), err)
				}
			})
		}
		if share > 0.01 && os.Getenv("SMELT_TEST_E2E") != "1" {
			continue
		}
		t.Run(fmt.Sprintf("pin loss %g", share), func(t *testing.T) {
			c, err := pin.NewClient(wire.String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetTimeout(time.Second)
			c.SetBackoff(func(int) time.Duration { return 0 })
			c.SetRetries(20)
			c.SetBlockSize(1428)
			c.RequestTSize(true)
			r, err := c.Receive("snponly.efi", "octet")
			if err != nil {
				t.Fatal(err)
			}
			if n, ok := r.(pin.IncomingTransfer).Size(); !ok || n != size {
				t.Errorf("it was told a size of %d (%v)", n, ok)
			}
			var got bytes.Buffer
			if _, err := r.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got %d bytes that differ, %v", got.Len(), err)
			}
		})
	}
}

func fetch(t *testing.T, program string, args []string, from netip.AddrPort, out string) error {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("needs the program %s", program)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var a []string
	for _, s := range args {
		for old, new := range map[string]string{"HOST": from.Addr().String(), "PORT": fmt.Sprint(from.Port()), "OUT": out} {
			s = strings.ReplaceAll(s, old, new)
		}
		a = append(a, s)
	}
	if said, err := exec.CommandContext(ctx, program, a...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %v: %s", program, err, said)
	}
	return nil
}
