package pxe

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// requirement is one thing that a document asks of a boot server. Tests are
// named as "TestX", or "TestX: row" where the test is a table, with "tftp." in
// front where it is in that package. What has no test has a reason.
type requirement struct {
	source string
	asks   string
	tests  []string
	reason string
}

// requirements is the conformance table. TestConformance holds it against the
// tests that there are.
var requirements = []requirement{
	// DHCP
	{"RFC 2131 4.1", "with giaddr the answer goes there, port 67", []string{"TestWire: relay", "TestWire: relay before ciaddr", "TestForeignRelay"}, ""},
	{"RFC 2131 4.1", "else with ciaddr there", []string{"TestWire: ciaddr", "TestWire: inform"}, ""},
	{"RFC 2131 4.1", "else with the broadcast flag to all", []string{"TestWire: broadcast flag", "TestFirmware"}, ""},
	{"RFC 2131 4.1", "else to yiaddr at chaddr, without ARP", []string{"TestWire: no address, no flag", "TestWire: ack, no flag", "TestFirmware: bios-ipxe-rom"}, ""},
	{"RFC 2131 4.1", "a NAK is broadcast; through a relay with the broadcast flag set", []string{"TestWire: nak is broadcast", "TestWire: nak through a relay", "TestModes: relay: refused", "TestAnswerForm"}, ""},
	{"RFC 2131 4.1, table 3", "xid, chaddr, flags, giaddr, htype are copied; each option once; END; 300 bytes at least", []string{"TestAnswerForm"}, ""},
	{"RFC 2131 4.1, RFC 2132 9.3", "options in sname and file are read (overload); answers have none there", []string{"TestOverloaded", "TestAnswerForm"}, ""},
	{"RFC 2131 4.3.1", "a client gets the address it had; the oldest is reused first", []string{"TestPool", "TestSeenOnce", "TestLeasesOrder", "TestRelease"}, ""},
	{"RFC 2131 4.3.1", "an address is probed before it is offered for the first time", []string{"TestSquatter"}, ""},
	{"RFC 2131 2.2", "an address behind a relay is probed (ICMP)", nil, "not done: most clients ask by ARP themselves and decline (4.3.3); a wait on every first offer would cost a ROM its first try"},
	{"RFC 2131 4.3.2", "SELECTING, INIT-REBOOT, RENEWING and REBINDING are told apart", []string{"TestRequestStates", "TestDecisions", "TestForeignDHCPCD", "TestForeignRelay"}, ""},
	{"RFC 2131 4.3.3", "a declined address is not given out, and people are told", []string{"TestDeclined", "TestDecisions: DECLINE, its address"}, ""},
	{"RFC 2131 4.3.4", "RELEASE frees the address and keeps the record", []string{"TestRelease", "TestForeignDHCPClients"}, ""},
	{"RFC 2131 4.3.5", "INFORM: settings, no yiaddr, no lease time", []string{"TestInform", "TestWire: inform"}, ""},
	{"RFC 2131 2.1", "leases survive a crash: no ACK before it is durable", []string{"TestKill", "TestJournal", "TestJournalFails"}, ""},
	{"RFC 2131 3.5, 4.3.1", "the parameters asked for (55) come first", nil, "not ordered by 55: no client is known to need it, and one that does not list an option may still get it"},
	{"RFC 2132 9.10", "answers are no larger than the client takes (57)", []string{"TestMessageSize", "TestMaxMessageSize"}, ""},
	{"RFC 2132 9.14", "61 tells clients apart", nil, "on purpose not: the stages of one boot send different ones and must keep one address; see lease"},
	{"RFC 6842", "the client identifier comes back", []string{"TestAnswerForm"}, ""},
	{"RFC 3396", "long options are joined and split", []string{"TestLongOptions", "TestOverloaded"}, ""},
	{"RFC 3046 2.2", "option 82 comes back as it was, last", []string{"TestAnswerForm", "TestForeignRelay", "TestFirmware: relay-bios-ipxe-rom"}, ""},
	{"RFC 3046 2.1", "option 82 is believed of listed relays only, and of nobody without giaddr", []string{"TestModes: relay: not listed", "TestDecisions: option 82 without a relay", "TestAnswerForm"}, ""},
	{"RFC 3527", "link selection names the subnet", []string{"TestModes: relay: link selection", "TestModes: relay: link selection of a foreign subnet"}, ""},
	{"RFC 5107", "the relay names the server", []string{"TestModes: relay: server identifier override", "TestModes: relay: override chosen", "TestModes: relay: another server chosen"}, ""},
	{"RFC 3942", "175 to iPXE only, 43 and files to boot clients only, 128 to 135 to nobody", []string{"TestSiteOptions", "TestPXEOptions", "FuzzDHCP", "FuzzModes"}, ""},
	{"RFC 3004", "77 in counted strings and bare", []string{"TestUserClass"}, ""},
	{"RFC 4578", "93 is a list; 94 may be anything; 97 comes back and may be missing", []string{"TestPXEOptions", "TestChoices", "TestFirmware: arm64-pxe-script"}, ""},
	{"RFC 5071", "208 to 211 only to who asks", []string{"TestPXEOptions: asks for PXELINUX's options"}, ""},
	{"RFC 5970", "59 holds the URL, 16 says HTTPClient back, 61 chooses the loader", []string{"TestFirmware6", "TestFirmware6TFTP", "TestBootUEFIv6"}, ""},
	{"RFC 8415", "RELEASE is answered, what is not for us is not, the DUID stays", []string{"TestMessages6", "TestRefused6", "TestServerDUID", "TestForeignDHCPv6Clients"}, ""},
	// PXE and UEFI
	{"PXE 2.1 2.2", "ProxyDHCP gives no address and no lease time, says PXEClient, and answers boot clients only", []string{"TestProxyBesideDnsmasq", "TestModes: proxy: UEFI PXE", "TestModes: proxy: plain client", "TestFirmware: proxy-bios-ipxe-rom", "TestFirmware: proxy-uefi-pxe-snponly", "TestFirmware: proxy-uefi-http-snponly", "FuzzModes"}, ""},
	{"PXE 2.1 table 2-1", "43.6 tells firmware to ask no boot server", []string{"TestProxyBesideDnsmasq", "TestFirmware: uefi-pxe-snponly"}, ""},
	{"PXE 2.1 2.2.5", "port 4011 answers by unicast from there, 43.71 comes back", []string{"TestProxyBesideDnsmasq: boot server", "TestModes: 4011: INFORM of a menu's item"}, ""},
	{"PXE 2.1 2.2.3", "the first DISCOVER after a cold start is answered", []string{"TestColdStart"}, ""},
	{"UEFI 2.10 24.7", "HTTPClient both ways, URL in 67; HEAD, Content-Length, no redirect", []string{"TestFileHTTP", "TestFirmware: uefi-http-snponly", "TestDecisions: UEFI HTTP"}, ""},
	{"UEFI 2.10 24.7", "a name in the URL needs a DNS server (6)", nil, "URLs hold addresses, never names"},
	{"UEFI 2.10 24.7.5", "HTTPS with the suites that firmware has; without the authority it fails", []string{"TestFirmwareTLS", "TestFirmwareTLS: no authority", "TestHTTPSNetwork", "TestFirmware: uefi-https-uki", "TestFirmware: uefi-https-no-authority"}, ""},
	{"UEFI 2.10 32", "Secure Boot: what is signed runs, what was changed or is signed by another does not", []string{"TestFirmware: secureboot-pxe-shim-grub", "TestFirmware: secureboot-http-shim-grub", "TestFirmware: secureboot-refuses-ipxe", "TestFirmware: secureboot-refuses-uki-of-another-key", "TestFirmware: secureboot-refuses-grub", "TestFirmware: secureboot-refuses-kernel"}, ""},
	{"RFC 4861 4.2", "an advertisement of nothing, with hop limit 255", []string{"TestAdvertisement"}, ""},
	// TFTP
	{"RFC 1350", "an identifier (port) for each transfer; another's packet is an error and ends nothing", []string{"tftp.TestFirstAnswer", "tftp.TestLockStep"}, ""},
	{"RFC 1350, RFC 1123 4.2.3.1", "a repeated ACK sends nothing again (Sorcerer's Apprentice)", []string{"tftp.TestLockStep"}, ""},
	{"RFC 1350", "the last block is shorter, and empty after a multiple", []string{"tftp.TestContent", "TestForeignTFTPClients: tftp-hpa even"}, ""},
	{"RFC 1350", "errors 1, 2, 4 say what is true", []string{"tftp.TestFirstAnswer: no such file", "tftp.TestFirstAnswer: write", "tftp.TestFirstAnswer: opcode 7"}, ""},
	{"RFC 2347", "unknown options are ignored, names in any case, OACK has only what was asked", []string{"tftp.TestFirstAnswer: option in other case", "tftp.TestFirstAnswer: unknown option alone", "tftp.TestFirstAnswer: order as asked"}, ""},
	{"RFC 2347", "ERROR 8 of a client is an end, and no failure", []string{"tftp.TestClientEnds", "TestFirmware: uefi-pxe-snponly"}, ""},
	{"RFC 2348", "8 to 65464, never more than asked or than the path takes", []string{"tftp.TestFirstAnswer: blksize 8", "tftp.TestFirstAnswer: blksize 65464", "tftp.TestFirstAnswer: blksize in words", "TestForeignTFTPClients"}, ""},
	{"RFC 2349", "timeout comes back as asked and is kept; tsize is right", []string{"tftp.TestTimeout", "tftp.TestFirstAnswer: tsize"}, ""},
	{"RFC 7440", "ACK for each window only; a gap is filled from the gap; the last window may be short", []string{"tftp.TestWindow", "tftp.TestFirstOfWindowLost", "tftp.TestLoss", "TestForeignTFTPClients: atftp windowsize"}, ""},
	{"rollover", "beyond 65,535 blocks the number goes on at 0", []string{"tftp.TestRollover"}, ""},
	// Attacks
	{"rogue server", "other DHCP servers are named and alarmed about", []string{"TestRivalAlarm", "TestRivalsAreNamed"}, ""},
	{"second copy", "the port and the leases are one server's", []string{"TestStartRefuses"}, ""},
	{"starvation", "made-up machines take a share of the pool, of the queue and of the rates", []string{"TestFlood", "TestShare", "TestAdmit", "TestThrottle"}, ""},
	{"reflection, forged 82 and giaddr", "no address in a message is answered unless it is ours to answer", []string{"TestNoReflection", "FuzzModes", "TestModes: relay: not listed"}, ""},
	{"TFTP amplification and floods", "what one spoofed packet causes is bounded, and so is what all cause", []string{"tftp.TestAmplification", "tftp.TestFlood", "tftp.TestLimits", "tftp.TestRepeatedRequest"}, ""},
	{"TFTP traversal, WRQ", "names are keys of a table; nothing is written", []string{"TestFiles", "FuzzCleanName", "tftp.TestFirstAnswer: write"}, ""},
	{"malformed messages", "are dropped, counted by reason, and survived", []string{"TestMalformed", "TestWire", "FuzzDHCP", "FuzzModes"}, ""},
	{"injection by names", "what machines say is bounded and printable", []string{"TestMalformed", "TestScriptArgs", "FuzzScriptQuery", "FuzzGRUB"}, ""},
	{"slowloris", "a client of boot HTTP holds little, and not for long", []string{"TestSlowloris", "TestManyClients", "TestSlowReader"}, ""},
	{"restart", "of the server in the middle of boots", []string{"TestKill", "TestKillMidBoot"}, ""},
	{"slow switch", "that passes nothing for half a minute", []string{"TestSwitchMidBoot", "TestLateStarts"}, ""},
	{"configuration errors", "overlapping pools, foreign routers, missing addresses are refused", []string{"TestNewRefuses", "TestStartRefuses"}, ""},
}

// TestConformance: every requirement has a test that there is, or a reason.
func TestConformance(t *testing.T) {
	known := make(map[string]map[string]bool) // test: the texts in it
	for dir, prefix := range map[string]string{".": "", "tftp": "tftp."} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no tests in %s: %v", dir, err)
		}
		for _, f := range files {
			file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
					known[prefix+f.Name.Name] = texts(f)
				}
			}
		}
	}
	for _, r := range requirements {
		name := r.source + ": " + r.asks
		if len(r.tests) == 0 && r.reason == "" {
			t.Errorf("%s: no test and no reason", name)
		}
		for _, ref := range r.tests {
			test, row, isRow := strings.Cut(ref, ": ")
			words, ok := known[test]
			switch {
			case !ok:
				t.Errorf("%s: there is no test %s", name, test)
			case isRow && !words[row]:
				t.Errorf("%s: %s has no row %q", name, test, row)
			}
		}
	}
}

// texts are the string literals in f.
func texts(f *ast.FuncDecl) map[string]bool {
	out := make(map[string]bool)
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if s, err := strconv.Unquote(l.Value); err == nil {
				out[s] = true
			}
		}
		return true
	})
	return out
}
