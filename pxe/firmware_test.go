package pxe

import (
	"crypto/rand"
	"crypto/rsa"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/images/build"
	"smelt/internal/secureboot"
	"smelt/internal/uki"
)

// signedLoaders serves Debian's shim, GRUB and iPXE of Debian 13.
func signedLoaders(t *testing.T) build.LoaderFiles {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	f, err := build.Loaders(t.Context(), filepath.Join(dir, "smelt", "test-loaders"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// secure are the flags of a machine with OVMF and Secure Boot on, with the keys
// that vendors ship.
func secure(l *lab) []string {
	return ovmf(l, "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
		"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on")
}

// onlyHTTP makes OVMF go by HTTP at once: it would try PXE for a minute.
func onlyHTTP(flags []string) []string {
	return append(flags, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
}

func onlyPXE(flags []string) []string {
	return append(flags, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
}

// flipped is a copy of a file with one bit in its middle turned over.
func (l *lab) flipped(path string) string {
	l.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	out := filepath.Join(l.dir, filepath.Base(path)+".flipped")
	if err := os.WriteFile(out, b, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return out
}

// arm are the flags of a 64-bit ARM machine with AAVMF.
func arm(l *lab) []string {
	return ovmf(l, "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", "-machine", "virt,gic-version=2", "-cpu", "cortex-a57")
}

// trusting are the flags that make OVMF trust an authority for HTTPS.
func (l *lab) trusting(ca []byte, flags []string) []string {
	p := filepath.Join(l.dir, "ca.esl")
	if err := os.WriteFile(p, secureboot.List(ca), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return append(flags, "-fw_cfg", "name=etc/edk2/https/cacerts,file="+p)
}

// program serves kernel, initrds and arguments of the lab as one EFI program,
// signed with a key that no firmware knows.
func (l *lab) program() {
	l.t.Helper()
	read := func(p string) []byte {
		b, err := os.ReadFile(p)
		if err != nil {
			l.t.Fatal(err)
		}
		return b
	}
	p, err := uki.Build(uki.Parts{
		Stub: read(uki.Stub), OSRelease: "ID=test\n", Release: "test", Kernel: read(l.spec.Files["vmlinuz"]),
		Initrd:  append(read(l.spec.Files["initrd-1"]), read(l.spec.Files["initrd-2"])...),
		CmdLine: "console=ttyS0 smelt.name=two%20words%20||%20reboot smelt.end",
	})
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, secureboot.Bits)
	if err != nil {
		l.t.Fatal(err)
	}
	cert, err := secureboot.NewCertificate(key, "test")
	if err != nil {
		l.t.Fatal(err)
	}
	signer, err := secureboot.NewKey(key, cert)
	if err == nil {
		p, err = signer.Sign(p)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.file(LoaderUKI, p)
}

// beside starts a DHCP server of the hall, dnsmasq, on the clients' side of the
// wire, and makes ours one that adds what to boot.
func (l *lab) beside() {
	l.t.Helper()
	needs(l.t, "dnsmasq")
	n := &l.spec.Network
	n.Mode, n.Pool, n.Fixed, n.Router, n.DNS = Proxy, Range{}, nil, netip.Addr{}, nil
	n.Servers = []netip.Addr{netip.MustParseAddr("10.77.0.2")}
	l.ip("-n " + l.client + " addr add 10.77.0.2/24 dev c0")
	l.daemon(l.client, "DHCP, IP range", "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--port=0", "--interface=c0", "--bind-interfaces", "--no-ping",
		"--dhcp-range=10.77.0.50,10.77.0.90,255.255.255.0,1h", "--dhcp-host="+guestMAC+",10.77.0.11", "--dhcp-leasefile="+filepath.Join(l.dir, "dnsmasq.leases"), "--user=root", "--pid-file=")
}

// relayed puts the machine's wire behind a router with Debian's relay agent,
// which says in option 82 where the request came in.
func (l *lab) relayed() {
	l.t.Helper()
	needs(l.t, "dhcrelay")
	n := &l.spec.Network
	n.Mode, n.Subnet, n.Relays = Relay, netip.MustParsePrefix("10.78.0.0/24"), []netip.Addr{netip.MustParseAddr("10.78.0.1")}
	n.Pool, n.Router, n.DNS, n.RouterAdvertisement = Range{}, netip.MustParseAddr("10.78.0.1"), nil, false
	n.Fixed = map[MAC]netip.Addr{MAC(guestHW): netip.MustParseAddr("10.78.0.11")}
	l.ip("-n "+l.server+" link del tap0",
		"-n "+l.server+" route add 10.78.0.0/24 via 10.77.0.9",
		"-n "+l.client+" addr add 10.77.0.9/24 dev c0",
		"-n "+l.client+" link add row0 type bridge forward_delay 0 mcast_snooping 0",
		"-n "+l.client+" addr add 10.78.0.1/24 dev row0",
		"-n "+l.client+" link set row0 up",
		"-n "+l.client+" tuntap add tap0 mode tap",
		"-n "+l.client+" link set tap0 master row0 up",
		"netns exec "+l.client+" sysctl -qw net.ipv4.ip_forward=1")
	l.daemon(l.client, "Sending on   Socket", "dhcrelay", "-4", "-d", "--no-pid", "-a", "-m", "append", "-id", "row0", "-iu", "c0", "10.77.0.1")
}

var guestHW = [6]byte{0x52, 0x54, 0, 0, 0, 1}

// TestFirmware boots every kind of firmware that QEMU has to our userland, or
// to the words with which it refuses what somebody changed on the way. A row
// prints how long its machine took from power on.
func TestFirmware(t *testing.T) {
	e2e(t)
	needs(t, "qemu-system-aarch64")
	loaders := signedLoaders(t)
	newer := func(name string) string { // iPXE of Debian 13
		return filepath.Join(filepath.Dir(loaders.ARM64), name)
	}
	plain := func(*lab) {}
	vendorKeys := func(l *lab) { l.spec.Files[LoaderShim], l.spec.Files[LoaderGRUB] = loaders.Shim, loaders.GRUB }
	pin := func(l *lab, p Path) {
		b := l.spec.Boots[guestMAC]
		b.Path = p
		l.spec.Boots[guestMAC] = b
	}
	pinned := func(l *lab) { vendorKeys(l); pin(l, Shim) }
	sent := func(l *lab, kind string) {
		l.t.Helper()
		l.event(kind, func(e Event) bool { return e.Kind == kind && e.Answer == "sent" })
	}
	noTFTP := func(l *lab) {
		l.t.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, e := range l.events {
			if strings.HasPrefix(e.Kind, "tftp") {
				l.t.Errorf("TFTP was used: %+v", e)
			}
		}
	}
	ca, server := bootCA(t)
	withTLS := func(l *lab) {
		l.spec.TLS = filepath.Join(l.dir, "server.pem")
		if err := os.WriteFile(l.spec.TLS, server, 0o600); err != nil {
			l.t.Fatal(err)
		}
		l.spec.Network.HTTPS = netip.MustParseAddrPort("10.77.0.1:443")
	}
	for _, row := range []struct {
		name  string
		setup func(*lab)
		flags func(*lab) []string
		mark  string // on the serial line; userland when empty
		stage string // what the machine asks beyond its first loader; "" where it is refused before
		check func(*lab)
	}{
		{"bios-ipxe-rom", plain, bios, "", "script", nil},
		// QEMU has no network ROM but iPXE, so that one loads undionly as if it
		// were a kernel; it then asks DHCP itself, with the broadcast flag set.
		{"bios-undionly", func(l *lab) {
			l.spec.Then = l.spec.Boots[guestMAC]
			l.spec.Boots[guestMAC] = Boot{Action: Kernel, Kernel: LoaderBIOS, Why: "the loader first"}
		}, bios, "", "script", nil},
		{"uefi-pxe-snponly", plain, func(l *lab) []string { return onlyPXE(uefi(l)) }, "", "script", func(l *lab) { sent(l, "tftp snponly.efi") }},
		{"uefi-pxe-snponly-autoexec", func(l *lab) { l.spec.Files[LoaderUEFI] = newer("snponly.efi") },
			func(l *lab) []string { return onlyPXE(uefi(l)) }, "", "script", func(l *lab) { sent(l, "tftp autoexec.ipxe") }},
		{"uefi-http-snponly", plain, func(l *lab) []string { return onlyHTTP(uefi(l)) }, "", "script", noTFTP},
		{"uefi-http-snponly-autoexec", func(l *lab) { l.spec.Files[LoaderUEFI] = newer("snponly.efi") },
			func(l *lab) []string { return onlyHTTP(uefi(l)) }, "", "script", func(l *lab) { sent(l, "file autoexec.ipxe"); noTFTP(l) }},
		{"uefi-http-uki", func(l *lab) { l.program() }, func(l *lab) []string { return onlyHTTP(uefi(l)) }, "", "orders", noTFTP},
		{"uefi-https-uki", func(l *lab) { l.program(); withTLS(l) }, func(l *lab) []string { return l.trusting(ca, onlyHTTP(uefi(l))) }, "", "orders",
			func(l *lab) { sent(l, "file smelt.efi"); noTFTP(l) }},
		{"uefi-https-no-authority", withTLS, func(l *lab) []string { return onlyHTTP(uefi(l)) }, "BdsDxe: failed to load Boot0001", "", func(l *lab) {
			for _, e := range l.events {
				if strings.HasPrefix(e.Kind, "file") {
					l.t.Errorf("a file was fetched: %+v", e)
				}
			}
		}},
		{"secureboot-pxe-shim-grub", pinned, func(l *lab) []string { return onlyPXE(secure(l)) }, "", "grub", nil},
		{"secureboot-http-shim-grub", pinned, func(l *lab) []string { return onlyHTTP(secure(l)) }, "", "grub", noTFTP},
		{"secureboot-https-shim-grub", func(l *lab) { pinned(l); withTLS(l) }, func(l *lab) []string { return l.trusting(ca, onlyHTTP(secure(l))) }, "", "grub", noTFTP},
		{"secureboot-refuses-ipxe", plain, func(l *lab) []string { return onlyHTTP(secure(l)) }, "Access Denied", "", nil},
		{"secureboot-refuses-uki-of-another-key", func(l *lab) { l.program() }, func(l *lab) []string { return onlyHTTP(secure(l)) }, "Access Denied", "", nil},
		{"secureboot-refuses-grub", func(l *lab) { pinned(l); l.spec.Files[LoaderGRUB] = l.flipped(loaders.GRUB) },
			func(l *lab) []string { return onlyHTTP(secure(l)) }, "Security Violation", "", nil},
		{"secureboot-refuses-kernel", func(l *lab) { pinned(l); l.spec.Files["vmlinuz"] = l.flipped(l.spec.Files["vmlinuz"]) },
			func(l *lab) []string { return onlyHTTP(secure(l)) }, "bad shim signature", "", nil},
		{"proxy-bios-ipxe-rom", func(l *lab) { l.beside() }, bios, "", "script", nil},
		{"proxy-uefi-pxe-snponly", func(l *lab) { l.beside() }, func(l *lab) []string { return onlyPXE(uefi(l)) }, "", "script", nil},
		{"proxy-uefi-http-snponly", func(l *lab) { l.beside() }, func(l *lab) []string { return onlyHTTP(uefi(l)) }, "", "script", noTFTP},
		{"relay-bios-ipxe-rom", func(l *lab) { l.relayed() }, bios, "", "script", nil},
		{"relay-uefi-pxe-snponly-autoexec", func(l *lab) { l.relayed(); l.spec.Files[LoaderUEFI] = newer("snponly.efi") },
			func(l *lab) []string { return onlyPXE(uefi(l)) }, "", "script", nil},
		// The script is as far as it goes: there is no RAM system for it.
		{"arm64-pxe-script", func(l *lab) {
			l.spec.Files[LoaderARM64] = loaders.ARM64
			l.spec.Boots[guestMAC] = Boot{Action: Hold, Why: "no RAM system", Screen: []string{"machine rig-01, rack A3"}}
		}, arm, "| hold: no RAM system", "script", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newBootLab(t)
			row.setup(l)
			l.start()
			mark, namespace, addr, qemu := row.mark, l.server, "10.77.0.11", "qemu-system-x86_64"
			if mark == "" {
				mark = "BOOT-OK"
			}
			if l.spec.Network.Mode == Relay {
				namespace, addr = l.client, "10.78.0.11"
			}
			if strings.HasPrefix(row.name, "arm64") {
				qemu = "qemu-system-aarch64"
			}
			serial, took := l.bootIn(namespace, qemu, 4*time.Minute, mark, row.flags(l)...)
			switch {
			case row.mark == "":
				l.booted(serial, row.stage, addr)
			case strings.Contains(serial, "BOOT-OK"):
				t.Errorf("it booted:\n%s", serial)
			}
			if l.spec.Network.Mode == Relay {
				if e := l.event("relayed", func(e Event) bool { return e.Machine.Relay.IsValid() }); e.Machine.Circuit != "row0" {
					t.Errorf("option 82 said %+v", e.Machine)
				}
			}
			if row.check != nil {
				row.check(l)
			}
			t.Logf("boot time: %s %.1f", row.name, took.Seconds())
		})
	}
}
