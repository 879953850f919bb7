package pxe

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leaseScript is what the DHCP clients of the lab run: it says what they got,
// and configures no more than dhclient needs to give it back.
const leaseScript = `#!/bin/sh
echo "GOT reason=$reason$1 ip=$new_ip_address$ip router=$new_routers$router boot=$filename$boot_file$new_filename"
case $reason in BOUND) ip addr add $new_ip_address/24 dev c0;; esac
`

func TestForeignDHCPClients(t *testing.T) {
	needs(t, "dhclient", "busybox")
	l := newLab(t)
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte(leaseScript), 0o755); err != nil {
		t.Fatal(err)
	}
	l.file(LoaderBIOS, []byte("loader"))
	l.start()

	files := []string{"-4", "-v", "-sf", script, "-lf", filepath.Join(l.dir, "dhclient.leases"), "-pf", filepath.Join(l.dir, "dhclient.pid"), "c0"}
	out, err := l.run("dhclient", append([]string{"-1"}, files...)...) // goes to the background with the lease
	if err != nil {
		t.Fatalf("dhclient: %v: %s", err, out)
	}
	// The client's own log names the address; its script ran in between.
	_, first, _ := strings.Cut(out, "bound to ")
	first, _, _ = strings.Cut(first, " ")
	if !strings.HasPrefix(first, "10.77.0.1") {
		t.Fatalf("dhclient got %q: %s", first, out)
	}
	if out, err := l.run("dhclient", append([]string{"-r"}, files...)...); err != nil {
		t.Fatalf("dhclient -r: %v: %s", err, out)
	}
	l.event("release", func(e Event) bool { return e.Kind == "dhcp release" && e.Why == "gave back "+first })
	out, err = l.run("busybox", "udhcpc", "-i", "c0", "-f", "-q", "-n", "-s", script)
	if err != nil {
		t.Fatalf("udhcpc: %v: %s", err, out)
	}
	if got := field(out[strings.LastIndex(out, "GOT"):], "ip="); got != first {
		t.Errorf("udhcpc got %q, dhclient on the same machine got %q", got, first)
	}
	if strings.Contains(out, LoaderBIOS) {
		t.Errorf("a plain client was told a boot file: %s", out)
	}
}

func field(s, key string) string {
	_, rest, _ := strings.Cut(s, key)
	v, _, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(v)
}

func TestForeignTFTPClients(t *testing.T) {
	needs(t, "tftp", "atftp", "curl", "busybox")
	l := newLab(t)
	content := make([]byte, 300*1024+17)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	l.file("loader.bin", content)
	l.file("even.bin", content[:1024]) // a multiple of the block size ends with an empty block
	l.file("empty.bin", nil)
	l.start()
	// TFTP only talks to addresses of our networks.
	if out, err := l.run("ip", "addr", "add", "10.77.0.50/24", "dev", "c0"); err != nil {
		t.Fatal(out)
	}
	for _, c := range []struct{ name, file, command string }{
		{"tftp-hpa", "loader.bin", "tftp -m binary 10.77.0.1 -c get loader.bin OUT"},
		{"tftp-hpa odd name", "loader.bin", `tftp -m binary 10.77.0.1 -c get \\LOADER.BIN OUT`},
		{"tftp-hpa even", "even.bin", "tftp -m binary 10.77.0.1 -c get even.bin OUT"},
		{"atftp", "loader.bin", "atftp --option 'blksize 1468' --option 'tsize 0' -g -r loader.bin -l OUT 10.77.0.1"},
		{"atftp windowsize", "loader.bin", "atftp --option 'blksize 1428' --option 'windowsize 16' -g -r loader.bin -l OUT 10.77.0.1"},
		{"atftp windowsize 1", "loader.bin", "atftp --option 'blksize 1428' --option 'windowsize 1' -g -r loader.bin -l OUT 10.77.0.1"},
		{"atftp windowsize 4", "loader.bin", "atftp --option 'blksize 1428' --option 'windowsize 4' -g -r loader.bin -l OUT 10.77.0.1"},
		{"atftp windowsize 64", "loader.bin", "atftp --option 'blksize 1428' --option 'windowsize 64' -g -r loader.bin -l OUT 10.77.0.1"},
		{"curl", "loader.bin", "curl -s --tftp-blksize 1468 -o OUT tftp://10.77.0.1/loader.bin"},
		{"curl no options", "loader.bin", "curl -s --tftp-no-options -o OUT tftp://10.77.0.1/loader.bin"},
		{"curl double slash", "even.bin", "curl -s -o OUT tftp://10.77.0.1//even.bin"},
		{"busybox", "loader.bin", "busybox tftp -g -b 1468 -r loader.bin -l OUT 10.77.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(l.dir, "out")
			_ = os.Remove(path)
			if out, err := l.run("sh", "-c", strings.ReplaceAll(c.command, "OUT", path)); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(l.spec.Files[c.file])
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("got %d bytes that differ from the %d served", len(got), len(want))
			}
		})
	}
	t.Run("blksize fits the path", func(t *testing.T) {
		out, err := l.run("curl", "-v", "--tftp-blksize", "65464", "-o", filepath.Join(l.dir, "out"), "tftp://10.77.0.1/loader.bin")
		if err != nil || !strings.Contains(out, "blksize parsed from OACK (1468)") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("stop in the middle", func(t *testing.T) {
		// A client that takes its first block and is never heard of again.
		c, err := l.run("sh", "-c", "(printf '\\000\\001loader.bin\\000octet\\000'; sleep 1) | busybox nc -u -p 4000 10.77.0.1 69 | head -c 4 >/dev/null & sleep 0.3")
		if err != nil {
			t.Fatal(c)
		}
		if err := l.end(15 * time.Second); err != nil {
			t.Errorf("the server ended with %v: %s", err, l.log())
		}
		l.start()
	})
	t.Run("refusals", func(t *testing.T) {
		out, _ := l.run("sh", "-c", "curl -s -S tftp://10.77.0.1/../../etc/passwd; echo >x; tftp 10.77.0.1 -c put x loader.bin; tftp 10.77.0.1 -c get nothing")
		if bytes.Contains([]byte(out), []byte("root:")) {
			t.Fatal("TFTP served a file of the system")
		}
		for _, want := range []string{"file not found", "read only"} {
			if !strings.Contains(strings.ToLower(out), want) {
				t.Errorf("no %q in: %s", want, out)
			}
		}
		if strings.Contains(out, l.dir) {
			t.Errorf("an error names a path of the server: %s", out)
		}
	})
	t.Run("stranger", func(t *testing.T) {
		out, err := l.run("sh", "-c", fmt.Sprintf("ip addr del 10.77.0.50/24 dev c0; ip addr add 192.0.2.9/24 dev c0; ip route add 10.77.0.0/24 dev c0; ip netns exec %s ip route add 192.0.2.0/24 dev br0; tftp -m binary 10.77.0.1 -c get even.bin", l.server))
		if !strings.Contains(strings.ToLower(out), "access violation") {
			t.Errorf("served to a foreign address: %v %q", err, out)
		}
	})
}
