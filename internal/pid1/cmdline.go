package pid1

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// Modes of the RAM system.
const (
	Inspect = "inspect" // look and report: no disk can be written
	Convert = "convert" // an approved machine
	RAM     = "ram"     // a machine that runs its image from memory: no disk can be written
	Rescue  = "rescue"  // an operator's
)

// CmdLine is what the conductor says to a RAM system on the kernel's command
// line. It holds no secret: whoever reads the boot script has it too. A command
// line that is the same for every boot, because it is signed (UKI) or part of a
// menu (GRUB), has no Nonce but says where to ask for the rest: see Asker.
type CmdLine struct {
	Server string           // smelt.server=
	Nonce  string           // smelt.nonce=
	Mode   string           // smelt.mode=
	Boot   string           // smelt.boot=http://..: boot HTTP, to be asked when there is no nonce
	Via    string           // smelt.via=: how the machine came here, for the record
	Node   string           // smelt.node=: for the screen
	Code   string           // smelt.code=: its short name
	Page   string           // smelt.page=: URL of its page, "" where the site has none
	BootIF net.HardwareAddr // BOOTIF=01-52-54-..: the card it booted from, nil when not said
}

// ReadCmdLine reads the running kernel's command line.
func ReadCmdLine() (CmdLine, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return CmdLine{}, err
	}
	return ParseCmdLine(string(b))
}

// ParseCmdLine takes a command line apart. A mode that is not exactly one of
// the others is inspect: the harmless one. So is a mode without a nonce.
func ParseCmdLine(s string) (CmdLine, error) {
	c := CmdLine{Mode: Inspect}
	for w := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "smelt.server":
			c.Server = strings.TrimSuffix(v, "/")
		case "smelt.nonce":
			c.Nonce = v
		case "smelt.mode":
			switch v {
			case Convert, RAM, Rescue:
				c.Mode = v
			default:
				c.Mode = Inspect
			}
		case "smelt.boot":
			c.Boot = strings.TrimSuffix(v, "/")
		case "smelt.via":
			c.Via = v
		case "smelt.node":
			c.Node = printable(v)
		case "smelt.code":
			c.Code = printable(v)
		case "smelt.page":
			c.Page = printable(v)
		case "BOOTIF":
			// PXELINUX's form: hardware type, then the address, with dashes.
			hw, err := net.ParseMAC(strings.ReplaceAll(v, "-", ":"))
			if err != nil && len(v) > 3 {
				hw, err = net.ParseMAC(strings.ReplaceAll(v[3:], "-", ":"))
			}
			if err == nil && len(hw) == 6 {
				c.BootIF = hw
			}
		}
	}
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return c, fmt.Errorf("kernel command line: smelt.server=%q is no https URL", c.Server)
	}
	if c.Nonce != "" {
		return c, nil
	}
	c.Mode = Inspect
	if u, err := url.Parse(c.Boot); err != nil || u.Scheme != "http" || u.Host == "" {
		return c, fmt.Errorf("kernel command line: smelt.nonce is missing, and smelt.boot=%q is no http URL to ask for one", c.Boot)
	}
	return c, nil
}
