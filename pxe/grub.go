package pxe

import (
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names that are made for each network instead of being files of the site.
const (
	grubConfig = "grub/grub.cfg" // built into Debian's signed GRUB: prefix=/grub, on the server that GRUB came from
	autoexec   = "autoexec.ipxe" // iPXE since 2021 runs it from beside itself
)

// grubPath is where grub.cfg asks what a machine is to do.
const grubPath = "/boot/grub/"

// lookup finds what a machine of n asked for: a file, or a text made for its
// network.
func (s *Server) lookup(n *network, name string) (*entry, bool) {
	if f, ok := s.files.lookup(name); ok {
		return f, true
	}
	key, err := cleanName(name)
	if err != nil {
		return nil, false
	}
	var text string
	switch key {
	case grubConfig:
		text = grubStart(s.base(n))
	case autoexec:
		text = autoexecScript(s.base(n))
	default:
		return nil, false
	}
	return &entry{name: key, size: int64(len(text)), data: []byte(text), when: s.since}, true
}

// optional are files that shim and GRUB ask for and do without: that they are
// not found is no news.
func optional(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, "revocations_") || strings.HasPrefix(base, "shim_certificate_") || strings.HasSuffix(base, ".lst")
}

// grubStart is grub.cfg: it asks what this machine is to do and does it, and
// when that leads nowhere it asks again. A configuration that ends leaves GRUB
// at a prompt, where a machine stands until somebody walks there.
//
// Under shim GRUB verifies the kernel that it starts and any EFI program, with
// Debian's key, and nothing else: not this text, not the initrd. So whoever
// owns the wire can start Debian's kernel with an initrd of his own. What he
// cannot have is a permit: the site's key signs those, for agents whose own
// initrd carries that key. The UKI is the path that has no such gap
// (docs/decisions: trust behind shim).
func grubStart(base string) string {
	g := &grubScript{}
	g.line("set smelt=" + grubQuote(grubDevice(base)))
	g.line("set mac=_")
	// Empty or unset in a GRUB that took its network from the firmware: the
	// server then goes by the address that asks.
	g.line(`if [ -n "$net_default_mac" ]; then set mac="$net_default_mac"; fi`)
	g.line("while true; do")
	g.line(`  source "$smelt` + grubPath + `$mac"`)
	g.line("  echo " + grubQuote(fmt.Sprintf("asking again in %d seconds", retryAfter)))
	g.line(fmt.Sprintf("  sleep %d", retryAfter))
	g.line("done")
	return g.String()
}

// grubDevice is the URL of a server as GRUB writes it: (http,ADDRESS:PORT).
func grubDevice(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	return "(" + scheme + "," + rest + ")"
}

// grubScript builds a script of GRUB, whose shell knows quotes: between single
// ones no byte means anything.
type grubScript struct{ b strings.Builder }

func (g *grubScript) String() string { return g.b.String() }

func (g *grubScript) line(text string) { g.b.WriteString(text + "\n") }

func (g *grubScript) echo(text string) { g.line("echo " + grubQuote("| "+plain(text, maxText))) }

// grubQuote is text as one word of GRUB's shell, whatever it holds.
func grubQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// grubFor is what a machine in GRUB does for b: the same as scriptFor in iPXE.
// It ends where grub.cfg asks again. orders are kernel arguments of ours by
// which the RAM system asks what its boot is for.
func grubFor(b Boot, base string, orders []string) (string, error) {
	g := &grubScript{}
	g.line("echo")
	g.line("echo 'S m e l t'")
	for i, text := range b.Screen {
		if i == maxScreen {
			break
		}
		g.echo(text)
	}
	if text := codeLine(b); text != "" {
		g.echo(text)
	}
	g.echo(fmt.Sprintf("%s: %s", b.Action, b.Why))
	file := func(name string) string { return grubQuote(grubDevice(base) + filePath + escapePath(name)) }
	switch b.Action {
	case Kernel:
		if b.Kernel == "" {
			return "", fmt.Errorf("a kernel boot that names no kernel")
		}
		linux, length := "linux "+file(b.Kernel), 0
		for _, a := range append(slices.Clone(b.Args), orders...) {
			if a != "" {
				word := value(a).token()
				linux += " " + grubQuote(word)
				length += len(word) + 1
			}
		}
		if length > maxArgs {
			return "", fmt.Errorf("kernel arguments of %d bytes: a kernel takes %d", length, maxArgs)
		}
		initrd := "true"
		if len(b.Initrd) > 0 {
			initrd = "initrd"
		}
		for _, name := range b.Initrd {
			initrd += " " + file(name)
		}
		g.line("if " + linux + "; then if " + initrd + "; then boot; fi; fi")
		g.echo("loading failed")
	case Local:
		// The file that firmware itself starts from a disk that no boot entry
		// names; shim verifies it. Only then exit, which leaves the choice to
		// the firmware: that may stop at its menu, or try every other card.
		g.line("if search --no-floppy --file --set=root /EFI/BOOT/BOOTX64.EFI; then if chainloader /EFI/BOOT/BOOTX64.EFI; then boot; fi; fi")
		g.line("exit")
	case Program:
		// Only where firmware or shim vouches for it.
		args := ""
		for _, a := range b.Args {
			args += " " + grubQuote(value(a).token())
		}
		g.line("if chainloader " + file(b.EFI) + args + "; then boot; fi")
		g.echo("this machine's Secure Boot may know no key of the program: switch it off for it, or enrol the site's")
	case Hold:
		if more := b.wait() - retryAfter; more > 0 { // beyond what grub.cfg waits
			g.line(fmt.Sprintf("sleep %d", more))
		}
	default:
		return "", fmt.Errorf("no GRUB script for action %v", b.Action)
	}
	return g.String(), nil
}

// serveGRUB answers grub.cfg as serveScript answers iPXE. The machine is named
// by its MAC in the path; a GRUB that does not know it sends none, and is known
// by the lease of the address it has.
//
// EDK2's HTTP, which GRUB uses when it came by it, asks each thing twice, HEAD
// and GET, and both must agree. So nothing here belongs to one boot: the RAM
// system asks for its orders at nextPath, and the Booter is asked what it is
// asked by DHCP.
func (s *Server) serveGRUB(w http.ResponseWriter, r *http.Request, name string) {
	now := time.Now()
	client := remote(r)
	n := s.networkFor(r, client)
	mac, err := ParseMAC(name)
	if err != nil {
		if held, ok := s.holder(client, now); ok {
			mac, err = held, nil
		}
	}
	e := Event{At: now, Machine: Machine{MAC: mac, Network: n.Name, Stage: AskMenu, Arch: UEFIx64, Addr: client}, Kind: "grub"}
	var b Boot
	if err == nil {
		b, err = s.askFor(r.Context(), &e.Machine, now)
	}
	if err == nil && b.Action == Ignore {
		b = Boot{Action: Hold, Why: b.Why, Screen: b.Screen}
	}
	if err == nil {
		err = s.complete(b)
	}
	text := ""
	if err == nil {
		system := s.base(&network{id: n.Address.Addr()}) // the RAM system uses IPv4, whatever brought it
		text, err = grubFor(b, s.base(n), []string{"smelt.boot=" + system, "smelt.via=" + string(Shim), "BOOTIF=01-" + strings.ReplaceAll(mac.String(), ":", "-")})
	}
	if err != nil {
		b = Boot{Action: Hold, Why: "not decided: " + plain(err.Error(), 200), Screen: b.Screen}
		s.log.Log(r.Context(), s.recorder.level(slog.LevelError, now), "boot: nothing for GRUB, the machine waits and asks again", "mac", mac, "addr", client, "err", err)
		if text, err = grubFor(b, s.base(n), nil); err != nil {
			panic(err) // a hold cannot fail
		}
	}
	e.Answer, e.Why = b.Action.String(), b.Why
	if mac != (MAC{}) && r.Method == http.MethodGet {
		s.recorder.record(e)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	if r.Method == http.MethodGet {
		_, _ = w.Write([]byte(text))
	}
}

// autoexecScript is what iPXE runs when it finds it beside itself: the address
// first, for which it then waits for no IPv6 router, then the script.
func autoexecScript(base string) string {
	s := newScript()
	s.line(":start")
	s.line("ifconf -c dhcp || dhcp || goto wait")
	s.line("set arch 0")
	s.line("iseq ${platform} efi && set arch 7 ||")
	s.line("iseq ${buildarch} arm64 && set arch 11 ||")
	s.line("chain --autofree", base+scriptPath+"?mac=${netX/mac}&arch=${arch}&uuid=${uuid}&serial=${serial:uristring}", "||")
	s.line(":wait")
	s.echo("no answer; asking again in 5 seconds")
	s.line("sleep 5 ||")
	s.line("goto start")
	return s.String()
}
