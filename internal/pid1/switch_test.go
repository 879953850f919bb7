package pid1

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArgsRoundTrip(t *testing.T) {
	in := CmdLine{Server: "https://10.0.0.1:8443", Nonce: "c0ffee", Mode: RAM, Boot: "http://10.0.0.1", Via: "uki", Node: "rig-1", Code: "7QX2",
		Page: "https://hall.example/n/7QX2", BootIF: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}}
	out, err := ParseCmdLine(strings.Join(in.Args(), " "))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, out); d != "" {
		t.Error(d)
	}
}

// TestOthers: what another kernel is given holds nothing of this boot, which
// stands in Args, and nothing of its loader.
func TestOthers(t *testing.T) {
	got := strings.Join(Others("BOOT_IMAGE=/vmlinuz initrd=initrd0 console=ttyS0,115200 panic=30 quiet smelt.nonce=abc BOOTIF=01-52 smelt.mode=ram\n"), " ")
	if got != "console=ttyS0,115200 panic=30 quiet" {
		t.Errorf("%q", got)
	}
}

func TestModes(t *testing.T) {
	for word, want := range map[string]string{"convert": Convert, "ram": RAM, "rescue": Rescue, "RAM": Inspect, "installed": Inspect, "memtest": Inspect, "": Inspect} {
		c, err := ParseCmdLine("smelt.server=https://h smelt.nonce=n smelt.mode=" + word)
		if err != nil || c.Mode != want {
			t.Errorf("%q is mode %s, %v", word, c.Mode, err)
		}
	}
	// Without a nonce nothing was said: the harmless one.
	if c, err := ParseCmdLine("smelt.server=https://h smelt.boot=http://h smelt.mode=rescue"); err != nil || c.Mode != Inspect {
		t.Errorf("without a nonce: %s, %v", c.Mode, err)
	}
}
