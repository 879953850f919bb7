// Package pxe answers machines that boot from the network: DHCP, TFTP for the
// first loader, HTTP for everything larger. It knows nothing of nodes: it asks
// one Booter what a machine gets, and explains each answer.
package pxe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// MAC is the hardware address a machine asked with.
type MAC [6]byte

// ParseMAC accepts the forms of net.ParseMAC that have six bytes and name a
// single machine.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC address %q: want six hexadecimal bytes such as 52:54:00:12:34:56", s)
	}
	m := MAC(hw)
	if m == (MAC{}) || m[0]&1 == 1 {
		return MAC{}, fmt.Errorf("MAC address %q: names no single machine (zero or multicast)", s)
	}
	return m, nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	hw, err := net.ParseMAC(string(b))
	if err != nil || len(hw) != 6 {
		return fmt.Errorf("MAC address %q: want six hexadecimal bytes", b)
	}
	*m = MAC(hw)
	return nil
}

// Arch is a client system architecture (RFC 4578 section 2.1, option 93).
type Arch uint16

// The architectures that are answered.
const (
	BIOS      Arch = 0
	UEFIx64   Arch = 7
	UEFIx64v9 Arch = 9 // some firmware says 9 for x64
	ARM64     Arch = 11
	HTTPx64   Arch = 16
	HTTPARM64 Arch = 19
)

// Stage is what a machine is doing when it asks.
type Stage int

// The stages.
const (
	_          Stage = iota
	AskAddress       // DHCP DISCOVER or REQUEST of a boot client
	AskScript        // iPXE asks for its script, or our RAM system for its orders
	AskMenu          // GRUB asks what to do; the RAM system that it starts asks for its orders
)

func (s Stage) String() string {
	switch s {
	case AskAddress:
		return "dhcp"
	case AskScript:
		return "script"
	case AskMenu:
		return "menu"
	}
	return fmt.Sprintf("stage(%d)", int(s))
}

// Mode says how a network is served.
type Mode int

// The modes.
const (
	Authoritative Mode = iota // we give the addresses
	Proxy                     // the hall's DHCP server gives the addresses, we add what to boot (PXE 2.1 section 2.2.5)
	Relay                     // a subnet that we reach through its relay agents (giaddr)
	Observe                   // nobody is answered; who asks is noted
)

func (m Mode) String() string {
	switch m {
	case Authoritative:
		return "authoritative"
	case Proxy:
		return "proxy"
	case Relay:
		return "relay"
	case Observe:
		return "observe"
	}
	return fmt.Sprintf("mode(%d)", int(m))
}

// Machine is what is known about a machine from its own request: labels, no
// proof.
type Machine struct {
	MAC      MAC
	Network  string // name of the network it asked on
	Stage    Stage
	Arch     Arch
	UUID     string // option 97 or iPXE ${uuid}; may be junk
	Serial   string // iPXE ${serial}; may be junk
	Vendor   string // option 60
	Hostname string // option 12, bounded and printable
	IPXE     bool   // asks from within iPXE
	Addr     netip.Addr
	Leased   bool       // when it asks by HTTP: it asks from the address that this MAC has by DHCP, and over TCP; who only says a MAC does not
	Relay    netip.Addr // giaddr, when a relay passed the request on
	Circuit  string     // option 82 circuit id, printable
	Remote   string     // option 82 remote id, printable
	Starts   int        // starts of its firmware since it last got beyond a first loader; 0 unless it asks for an address
}

// Action is what a machine is told to do.
type Action int

// The actions. The zero value is none of them.
const (
	_       Action = iota
	Ignore         // no answer at all
	Local          // boot from its own disk
	Kernel         // load kernel and initrd
	Hold           // show Why, wait, ask again
	Program        // start one program that is no operating system
)

func (a Action) String() string {
	switch a {
	case Ignore:
		return "ignore"
	case Local:
		return "local disk"
	case Kernel:
		return "kernel"
	case Hold:
		return "hold"
	case Program:
		return "program"
	}
	return fmt.Sprintf("action(%d)", int(a))
}

// Boot is the answer for one machine.
type Boot struct {
	Action Action
	Kernel string        // name in Server.Files
	Initrd []string      // names in Server.Files, concatenated in order
	BIOS   string        // Program: name in Server.Files, started as a Linux kernel is
	EFI    string        // Program: name in Server.Files
	Args   []string      // kernel arguments: one value is one token, whatever it holds
	Why    string        // one line for logs, for the machine's screen, for the technician
	Screen []string      // more lines for the screen
	Wait   time.Duration // until a machine on Hold asks again; 0: ten seconds
	Code   string        // short name of the machine, for its screen and for people; may be empty
	Page   string        // URL that its screen shows as a QR code; may be empty
	Path   Path          // how its firmware is to come to the RAM system; the zero Path tries what fits
}

// Path is a way from firmware to the RAM system.
type Path string

// The paths. Of the first two the RAM system asks for its orders itself.
const (
	UKI  Path = "uki"  // one signed EFI program: kernel, initrd and arguments; Secure Boot with the site's key
	Shim Path = "shim" // Debian's signed shim, GRUB and kernel: Secure Boot with the keys that vendors ship
	IPXE Path = "ipxe" // our script in iPXE; no Secure Boot
)

// A Booter decides. It is called several times for one boot, because DHCP,
// TFTP and HTTP know nothing of each other, and must answer quickly and the
// same each time until something changed: at AskAddress only whether to answer
// at all matters, and at AskMenu nothing may belong to one boot; side effects such as a nonce belong to AskScript. An error
// makes the machine wait and ask again; it never lets it fall through.
type Booter interface {
	Boot(ctx context.Context, m Machine) (Boot, error)
}
