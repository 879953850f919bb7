package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/inventory"
)

const example = "../../site.yaml"

func TestExample(t *testing.T) {
	s, err := Load(example, Known{Profiles: []string{"standard"}, Targets: []string{"slurm-batch"}, PDUModels: []string{"apc-rpdu2"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "hall-a" || len(s.Nodes) != 3 || s.Lab {
		t.Fatalf("read %+v", s)
	}
	n := s.Nodes[1]
	if n.Name != "srv-02" || n.Watts != 1200 || n.Target != "slurm-batch" || len(n.Power) != 1 || n.Power[0].Driver != "ipmi" || n.Power[0].Password != "bmc-srv-02" {
		t.Errorf("srv-02 is %+v", n)
	}
	if n.Address != netip.MustParseAddr("10.20.1.2") || n.MACs[0].String() != "52:54:00:00:00:02" {
		t.Errorf("srv-02 is at %s, %s", n.Address, n.MACs)
	}
	if got := s.Classes["rig-6x3080"].Slots["0000:00:1c.1"]; got != "riser 2" {
		t.Errorf("slot label %q", got)
	}
	if s.SlotWindow != 2*time.Second || s.PanelWindow != 10*time.Second || s.MeterStale != time.Minute || s.MaxActive != 25 {
		t.Errorf("limits %v %v %v %d", s.SlotWindow, s.PanelWindow, s.MeterStale, s.MaxActive)
	}
	if c := s.Circuits[1]; c.Name != "pdu-a1" || c.Lines != "L1" || len(s.Hints) > 0 {
		t.Errorf("circuit %+v, hints %v", c, s.Hints)
	}
	if got := fmt.Sprint(s.Secrets()); got != "[pdu-community bmc-srv-01 bmc-srv-02 munge-key]" {
		t.Errorf("secrets %s", got)
	}
}

// edit replaces one text of the example.
func edit(t *testing.T, from, to string) string {
	t.Helper()
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), from) == 0 {
		t.Fatalf("the example does not hold %q", from)
	}
	return strings.Replace(string(b), from, to, 1)
}

// place of the nth mark in a text, as line:column.
func lineOf(text, mark string) string {
	i := strings.Index(text, mark)
	return fmt.Sprintf("%d:%d", 1+strings.Count(text[:i], "\n"), i-strings.LastIndex(text[:i], "\n"))
}

const netKey, modeKey, secondNet = "    interface: eno2\n", "    mode: authoritative ", "\n# The power tree."

// TestModes reads one network of each mode, and whom they answer.
// TestImages reads the section that stands in the example as a comment.
func TestImages(t *testing.T) {
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "# images:")
	section, _, _ = strings.Cut(section, "\nlisten:")
	text := edit(t, "\nlisten:", "\nimages:"+strings.ReplaceAll(section, "\n#", "\n")+"\nlisten:")
	s, err := Parse(example, []byte(text), Known{})
	if err != nil {
		t.Fatal(err)
	}
	want := Images{Remote: "https://images.example/smelt", Root: "/etc/smelt/release-root.json", Channel: "stable", Every: 15 * time.Minute, User: "hall-a", Password: "images"}
	if s.Images == nil || *s.Images != want || !slices.Contains(s.Secrets(), "images") {
		t.Errorf("%+v, secrets %v", s.Images, s.Secrets())
	}
}

func TestModes(t *testing.T) {
	s, err := Parse("s", []byte(edit(t, secondNet, `
  - {name: row-b, mode: relay, interface: eno2, address: 10.20.0.1/16, subnet: 10.21.0.0/16, relays: [10.21.0.1], pool: 10.21.200.1-10.21.200.250, router: 10.21.0.1}
  - {name: row-c, mode: relay, interface: eno2, address: 10.20.0.1/16, subnet: 10.22.0.0/16, relays: [10.21.0.1]}
  - name: office
    mode: proxy
    interface: eno3
    address: 10.30.0.5/16
    dhcpServers: [10.30.0.1]
    allow: {macs: ["52:54:00:00:00:01"], ouis: ["B4-2E-99"], vendorClasses: ["PXEClient*"], classes: [rig-6x3080]}
    deny: {vendorClasses: ["anthillOS"]}
  - {name: store, mode: proxy, interface: eno3, address: 10.30.0.5/16, subnet: 10.31.0.0/16, relays: [10.31.0.1]}
  - {name: uplink, mode: observe, interface: eno4, address: 10.40.0.5/16}
`+secondNet)), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Networks[0]; n.Mode != "authoritative" || n.Machines().String() != "10.20.0.0/16" || !n.GivesAddresses() {
		t.Errorf("read %+v", n)
	}
	if n := s.Networks[0]; n.IPv6.IsValid() {
		t.Errorf("IPv6 is on and nobody asked for it: %s", n.IPv6)
	}
	if s, err := Parse("s", []byte(edit(t, netKey, "    ipv6: FD00:10:20:0::1/64\n"+netKey)), Known{}); err != nil || s.Networks[0].IPv6.String() != "fd00:10:20::1/64" {
		t.Errorf("read %v, %v", s, err)
	}
	if n := s.Networks[1]; n.Machines().String() != "10.21.0.0/16" || fmt.Sprint(n.Relays) != "[10.21.0.1]" || !n.GivesAddresses() || n.Pool.First.String() != "10.21.200.1" {
		t.Errorf("read %+v", n)
	}
	n := s.Networks[3]
	if got := fmt.Sprint(n.Servers, n.Allow, n.Deny); got != "[10.30.0.1] {[52:54:00:00:00:01] [[180 46 153]] [PXEClient*] [rig-6x3080]} {[] [] [anthillOS] []}" {
		t.Errorf("read %s", got)
	}
	if n := s.Networks[4]; n.Machines().String() != "10.31.0.0/16" || n.GivesAddresses() {
		t.Errorf("read %+v", n)
	}
	if n := s.Networks[5]; n.Mode != "observe" || n.GivesAddresses() {
		t.Errorf("read %+v", n)
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct{ name, from, to, mark, want string }{
		{"unknown key", "circuit: pdu-a1\n", "circiut: pdu-a1\n", "circiut", `unknown key "circiut"; did you mean "circuit"?`},
		{"unknown top key", "limits:", "limts:", "limts", `unknown key "limts"; did you mean "limits"?`},
		{"duplicate key", "site: hall-a", "site: hall-a\nsite: hall-b", "site: hall-b", `key "site" stands twice, first in line 4`},
		{"number for text", "site: hall-a", "site: 17", "17", `want text, got the number 17; put it in quotes: "17"`},
		{"text for number", "watts: 1200 ", `watts: "1200" `, `"1200"`, `want a number, got "1200"`},
		{"text for truth", "routerAdvertisement: true ", `routerAdvertisement: "yes" `, `"yes"`, `want true or false, got "yes"`},
		{"nothing", "target: slurm-batch  ", "target:   ", "", "want text, got nothing"},
		{"scalar for list", "dns: [10.20.0.1]", "dns: 10.20.0.1", "10.20.0.1\n    routerA", "want a list"},
		{"bad CIDR", "10.20.0.1/16 ", "10.20.0.1/99 ", "10.20.0.1/99", `"10.20.0.1/99" is no IPv4 address with a prefix length`},
		{"network not address", "10.20.0.1/16 ", "10.20.0.0/16 ", "10.20.0.0/16", "is the network, not an address in it"},
		{"bad MAC", "52:54:00:00:00:02", "52:54:00:00:00", `"52:54:00:00:00"]`, "want six hexadecimal bytes"},
		{"multicast MAC", "52:54:00:00:00:02", "53:54:00:00:00:02", `"53:54`, "names no single machine"},
		{"duplicate MAC", "52:54:00:00:00:02", "52-54-00-00-00-01", `"52-54`, `MAC address "52:54:00:00:00:01" stands twice`},
		{"duplicate name", "name: srv-02", "name: srv-01", "", `node "srv-01" stands twice`},
		{"duplicate address", "address: 10.20.1.2\n", "address: 10.20.1.1\n", "", `address "10.20.1.1" stands twice`},
		{"duplicate position", "position: A1-U14", "position: A1-U10", "", `position "A1-U10" stands twice`},
		{"bad node name", "name: srv-02", "name: Srv_02", "Srv_02", "is not allowed"},
		{"unknown class", "class: rig-6x3080", "class: rig-6x3081", "rig-6x3081", `there is no class "rig-6x3081"; did you mean "rig-6x3080"?`},
		{"unknown circuit", "circuit: pdu-a1\n", "circuit: pdu-a2\n", "pdu-a2", `there is no circuit "pdu-a2"; did you mean "pdu-a1"?`},
		{"unknown PDU", "{pdu: pdu-a1,", "{pdu: pdu-b1,", "pdu-b1", `there is no PDU "pdu-b1"`},
		{"unknown profile", "profile: standard", "profile: standart", "standart", `there is no burn-in profile "standart"; did you mean "standard"?`},
		{"unknown target", "target: slurm-batch", "target: slurm-bach", "slurm-bach ", `there is no triage target "slurm-bach"; did you mean "slurm-batch"?`},
		{"unknown model", "model: apc-rpdu2", "model: apc-rpdu3", "apc-rpdu3", `there is no PDU model "apc-rpdu3"; did you mean "apc-rpdu2"? valid are apc-rpdu2, raritan-px`},
		{"model of nobody", "model: apc-rpdu2", "model: ups", "ups", `there is no PDU model "ups"; valid are apc-rpdu2, raritan-px`},
		{"PDU twice", "\nclasses:", "  - {name: pdu-b, address: \"10.30.0.11\", community: {secret: x}}\n\nclasses:", `"10.30.0.11", comm`, `PDU address "10.30.0.11:161" stands twice`},
		{"PDU names", "model: apc-rpdu2", "names: never, model: apc-rpdu2", "never,", `"never" is not allowed here; valid are check, ignore`},
		{"unknown driver", "driver: redfish", "driver: redfsh", "redfsh", `"redfsh" is not allowed here; did you mean "redfish"?`},
		{"key of another driver", "{driver: pdu, outlets", "{driver: pdu, cipherSuite: 17, outlets", "{driver: pdu", `power driver pdu takes no "cipherSuite"`},
		{"key a driver needs", ", user: admin, password: {secret: bmc-srv-02}", "", "", `power driver ipmi needs "password"`},
		{"cipher suite 0", "cipherSuite: 17", "cipherSuite: 0", "0}", "0 is not allowed here; valid are 3, 17"},
		{"pool outside", "pool: 10.20.200.1-10.20.200.250", "pool: 10.21.0.1-10.21.0.9", "10.21.0.1", "is outside 10.20.0.0/16"},
		{"pool backwards", "pool: 10.20.200.1-10.20.200.250", "pool: 10.20.200.9-10.20.200.1", "10.20.200.9", "is empty"},
		{"fixed in pool", "address: 10.20.1.2\n", "address: 10.20.200.7\n", "10.20.200.7", "is inside the pool 10.20.200.1-10.20.200.250"},
		{"fixed is ours", "address: 10.20.1.2\n", "address: 10.20.0.1\n", "", "is this server's own address"},
		{"fixed elsewhere", "address: 10.20.1.2\n", "address: 10.99.1.2\n", "10.99.1.2", "is in no network; networks are 10.20.0.0/16"},
		{"circuit cycle", "{name: feed-a, kind: feed,", "{name: feed-a, kind: feed, parent: pdu-a1,", "pdu-a1, volts: 400", "circuits feed each other: feed-a <- pdu-a1 <- feed-a"},
		{"own parent", "{name: feed-a, kind: feed,", "{name: feed-a, kind: feed, parent: feed-a,", "feed-a, volts", "circuits feed each other"},
		{"zero amps", "amps: 63", "amps: 0", "0, phases", "amps is 0; it must be above 0"},
		{"not a number", "amps: 63", "amps: .nan", ".nan", "amps is NaN"},
		{"derate", "derate: 0.8}\n\npdus", "derate: 80}\n\npdus", "80}", "derate 80 is not above 0 and at most 1"},
		{"negative rating", "amps: 63", "amps: -63", "-63", "amps is -63; it must be above 0; write what stands on its breaker"},
		{"no breaker", "amps: 63, ", "", "{name: feed-a", `"amps" is missing; add amps: breaker rating`},
		{"breaker left out", "parent: feed-a, ", "", "pdu-a1, kind", "pdu pdu-a1 has no parent, and the tree has feeds; add parent"},
		{"upside down", "kind: feed, volts: 400", "kind: bank, volts: 400", "feed-a, volts: 230", "pdu pdu-a1 is fed by a bank, feed-a"},
		{"three from one", "amps: 63, phases: 3", "amps: 63", "L1, derate", "feed-a has one phase and no line L1"},
		{"lines of three", "phases: 1, lines: L1", "phases: 3, lines: L1", "L1, derate", "pdu-a1 has three phases: it is on every line of feed-a"},
		{"neutral volts", "lines: L1,", "lines: L1-L2,", "L1-L2, derate", "between the lines L1-L2 of feed-a are 400 V, pdu-a1 has 230 V; between a line and neutral write L1"},
		{"line volts", "volts: 400", "volts: 230", "L1, derate", "between L1 and neutral of feed-a are 133 V, pdu-a1 has 230 V; volts of three phases are line to line"},
		{"no such line", "lines: L1,", "lines: L4,", "L4, derate", `"L4" is not allowed here`},
		{"all reserved", "phases: 3, derate: 0.8}", "phases: 3, derate: 0.8, reserve: 12000}", "12000", "reserve on feed-a and below it is 12000 W on a line, of 11639 W; reserve is in watts"},
		{"negative reserve", "phases: 3, derate: 0.8}", "phases: 3, derate: 0.8, reserve: -1}", "-1}", "reserve is -1; it must not be below 0"},
		{"watts beyond all sums", "watts: 1800", "watts: 1e17", "1e17", "watts is 1e+17; it must be above 0 and below 1000000; 1200 is 1.2 kW"},
		{"watts that are none", "watts: 1800", "watts: .nan", ".nan", "watts is NaN; it must be above 0"},
		{"node above its breaker", "watts: 1800", "watts: 6000", "pdu-a1\n    power: {driver: pdu", "node rig-01 takes 6000 W, more than pdu pdu-a1 can carry for long (5888 W on a line); correct its watts"},
		{"node above a breaker further up", "amps: 63", "amps: 7", "pdu-a1\n    power: {driver: pdu", "node rig-01 takes 1800 W, more than feed feed-a can carry for long (1293 W on a line)"},
		{"secret in clear", "{secret: bmc-srv-01}", "hunter2", "hunter2", "a secret stands here in clear; store it with: smelt secret set"},
		{"dsn in clear", "store: sqlite", "store: postgres://u:hunter2@db/x", "postgres://", "unknown store; write sqlite"},
		{"secret with two keys", "{secret: bmc-srv-01}", "{secret: bmc-srv-01, value: hunter2}", "value", `unknown key "value"`},
		{"clear BMC", "https://10.30.0.21", "http://10.30.0.21", `"http:`, "is no https URL of a BMC"},
		{"alias", "site: hall-a", "site: &a hall-a", "&a", "anchors and aliases are not used"},
		{"tab", "  maxActive: 25", "\tmaxActive: 25", "", "not YAML"},
		{"second document", "limits:", "---\nlimits:", "---\n", "a second YAML document begins here"},
		{"missing key", "site: hall-a\n", "", "apiVersion", `"site" is missing; add site: name of the site`},
		{"stand-in outside a lab", "# standsFor:\n#   -", "standsFor:\n  -", "{node: srv-01, pci", "standsFor on a site that is no lab"},
		{"shared outlet", "outlets: [{pdu: pdu-a1, outlet: 3}]", "outlets: [{pdu: pdu-a1, outlet: 3}, {pdu: pdu-a1, outlet: 3}]", "{pdu: pdu-a1, outlet: 3}]", `outlet 3 of pdu-a1 stands twice for node rig-01, first in line`},
		{"outlet of another node", "power: {driver: ipmi, address: \"10.30.0.22\", user: admin, password: {secret: bmc-srv-02}, cipherSuite: 17}", "power: {driver: pdu, outlets: [{pdu: pdu-a1, outlet: 3}]} #", "{pdu: pdu-a1, outlet: 3}]}\n", `outlet 3 of pdu-a1 feeds node srv-02 in line`},
		{"negative outlet", "outlet: 3}", "outlet: -3}", "-3}", `outlet -3; outlets are counted from 1`},
		{"no watts", "    watts: 1800\n", "", "", "without a nameplate power"},
		{"version", "apiVersion: smelt/v1", "apiVersion: smelt/v2", "smelt/v2", `"smelt/v2" is not allowed here; did you mean "smelt/v1"?`},
		{"images from nowhere", "listen:\n", "images: {remote: ftp://x/y, root: /r}\nlisten:\n", "ftp://", `"ftp://x/y" is no address of images`},
		{"images with a password", "listen:\n", "images: {remote: https://a:hunter2@x/y, root: /r}\nlisten:\n", "https://a", "the address holds a user"},
		{"images by nobody's word", "listen:\n", "images: {remote: /srv}\nlisten:\n", "{remote", `"root" is missing`},
		{"images by a lost word", "listen:\n", "images: {remote: /srv, root: next.json}\nlisten:\n", "next.json", `"next.json" is no absolute path`},
		{"images all the time", "listen:\n", "images: {remote: /srv, root: /r, every: 1s}\nlisten:\n", "1s}", "1s is less than 10s"},
		{"images' channel", "listen:\n", "images: {remote: /srv, root: /r, channel: stabel}\nlisten:\n", "stabel", `did you mean "stable"?`},
		{"half of an account", "listen:\n", "images: {remote: /srv, root: /r, user: me}\nlisten:\n", "{remote", "user and password belong together"},
		{"pages nowhere", "  ui: 127.0.0.1:8480", "  public: smelt.example\n  ui: 127.0.0.1:8480", "smelt.example", `people cannot reach pages at "smelt.example"`},
		{"pages with a password", "  ui: 127.0.0.1:8480", "  public: https://a:b@smelt.example\n  ui: 127.0.0.1:8480", "https://a:b@smelt.example", `people cannot reach pages at`},
		{"listen everywhere", "agent: 10.20.0.1:8443", "agent: 0.0.0.0:8443", "0.0.0.0:8443", `machines cannot be told "0.0.0.0:8443"`},
		{"pages for everybody", "ui: 127.0.0.1:8480", "ui: 10.20.0.1:8480", "10.20.0.1:8480", `tokens would cross the network in clear on "10.20.0.1:8480"`},
		{"pages on every address", "ui: 127.0.0.1:8480", "ui: :8480", ":8480", `tokens would cross the network in clear on ":8480"`},
		{"listen twice", "agent: 10.20.0.1:8443", "agent: 10.20.0.1:80", "", `listen address "10.20.0.1:80" stands twice`},
		{"low descriptor", "ui: 127.0.0.1:8480", "ui: fd:1", "fd:1", `"fd:1" names no inherited socket`},
		{"unknown mode", modeKey, "    mode: prxy #", "prxy", `"prxy" is not allowed here; did you mean "proxy"?`},
		{"proxy with a pool", modeKey, "    mode: proxy #", "10.20.200.1", `mode proxy, where the hall's DHCP server gives the addresses, takes no "pool"; remove it`},
		{"observe with a pool", modeKey, "    mode: observe #", "10.20.200.1", `mode observe, where nobody is answered, takes no "pool"`},
		{"observe with rules", modeKey, "    deny: {ouis: [\"b4:2e:99\"]}\n    mode: observe #", "{ouis", `takes no "deny"`},
		{"relay without relays", modeKey, "    subnet: 10.21.0.0/16\n    mode: relay #", "", `mode relay needs "relays"; add relays`},
		{"proxy with half a relay", modeKey, "    relays: [10.20.0.9]\n    mode: proxy #", "", `a network behind relays needs "subnet"; add subnet`},
		{"relay on the wire", modeKey, "    relays: [10.20.0.9]\n    subnet: 10.20.8.0/24\n    mode: relay #", "10.20.8.0/24", "overlaps 10.20.0.0/16, which is on the wire"},
		{"subnet with host bits", modeKey, "    relays: [10.21.0.1]\n    subnet: 10.21.0.1/16\n    mode: relay #", "10.21.0.1/16", "is an address, not a network; write 10.21.0.0/16"},
		{"relay elsewhere", netKey, "    relays: [10.21.0.1]\n" + netKey, "10.21.0.1]", "relay 10.21.0.1 is outside 10.20.0.0/16"},
		{"relay is us", netKey, "    relays: [10.20.0.1]\n" + netKey, "10.20.0.1]\n    interface", "is this server's own address"},
		{"relay in the pool", netKey, "    relays: [10.20.200.9]\n" + netKey, "10.20.200.9", "the pool holds the relay"},
		{"rival is us", netKey, "    dhcpServers: [10.20.0.1]\n" + netKey, "10.20.0.1]\n    interface", "is this server's own address"},
		{"two networks on a wire", secondNet, "  - {name: b, interface: eno2, address: 10.30.0.1/16}\n" + secondNet, "eno2, address", `interface "eno2" has network provisioning already; a second subnet there has mode: relay`},
		{"subnet of another", secondNet, "  - {name: b, mode: relay, interface: eno2, address: 10.22.0.1/24, subnet: 10.20.0.0/24, relays: [10.22.0.9]}\n" + secondNet, "10.20.0.0/24", "network 10.20.0.0/24 overlaps provisioning (10.20.0.0/16)"},
		{"wire of another", secondNet, "  - {name: b, mode: relay, interface: eno3, address: 10.20.0.7/16, subnet: 10.21.0.0/24, relays: [10.21.0.9]}\n" + secondNet, "10.20.0.7/16", "is on interface eno2 (provisioning)"},
		{"pool of another subnet", secondNet, "  - {name: b, mode: relay, interface: eno2, address: 10.20.0.1/16, subnet: 10.21.0.0/24, relays: [10.21.0.9], pool: 10.20.0.8-10.20.0.9}\n" + secondNet, "10.20.0.8-", "is outside 10.21.0.0/24"},
		{"bad OUI", netKey, "    deny: {ouis: [\"b4:2e\"]}\n" + netKey, `"b4:2e"`, `"b4:2e" is no OUI`},
		{"class of no node", netKey, "    allow: {classes: [rig-6x3081]}\n" + netKey, "rig-6x3081", `there is no class "rig-6x3081"; did you mean "rig-6x3080"?`},
		{"empty rule", netKey, "    allow: {}\n" + netKey, "{}", "the rule names no machine"},
		{"rule for everybody", netKey, "    deny: {vendorClasses: [\"*\"]}\n" + netKey, `"*"`, `"*" is no vendor class`},
		{"fixed in a proxy network", modeKey, "    mode: proxy #", "10.20.1.1", "whose addresses are not ours to give (mode proxy); reserve it in the DHCP server"},
		{"IPv6 behind a relay", secondNet, "  - {name: b, mode: relay, interface: eno2, address: 10.20.0.1/16, subnet: 10.21.0.0/24, relays: [10.21.0.9], ipv6: \"fd00:10:21::1/64\"}\n" + secondNet, `"fd00:10:21::1/64"`, `mode relay, which is for IPv4 alone, takes no "ipv6"; remove it`},
		{"IPv6 beside a server", secondNet, "  - {name: b, mode: proxy, interface: eno3, address: 10.30.0.1/16, ipv6: \"fd00:10:30::1/64\"}\n" + secondNet, `"fd00:10:30::1/64"`, `gives the addresses, takes no "ipv6"`},
		{"IPv6 unanswered", secondNet, "  - {name: b, mode: observe, interface: eno3, address: 10.30.0.1/16, ipv6: \"fd00:10:30::1/64\"}\n" + secondNet, `"fd00:10:30::1/64"`, `nobody is answered, takes no "ipv6"`},
		{"IPv6 with another length", netKey, "    ipv6: \"fd00:10:20::1/48\"\n" + netKey, `"fd00:10:20::1/48"`, "is no IPv6 address with the prefix length 64; write it like fd00:10:20::1/64"},
		{"IPv6 that is none", netKey, "    ipv6: 10.20.0.1/64\n" + netKey, "10.20.0.1/64", "is no IPv6 address"},
		{"IPv6 of the link", netKey, "    ipv6: \"fe80::1/64\"\n" + netKey, `"fe80::1/64"`, "machines cannot boot from fe80::1"},
		{"IPv6 network", netKey, "    ipv6: \"fd00:10:20::/64\"\n" + netKey, `"fd00:10:20::/64"`, "is the network, not an address in it"},
		{"IPv6 with HTTPS", netKey, "    ipv6: \"fd00:10:20::1/64\"\n    https: true\n" + netKey, `"fd00:10:20::1/64"`, "has https, and over IPv6 loaders are sent in clear"},
		{"IPv6 twice", secondNet, "    ipv6: \"fd00:10:20::1/64\"\n  - {name: b, interface: eno3, address: 10.30.0.1/16, ipv6: \"fd00:10:20::2/64\"}\n" + secondNet, `"fd00:10:20::2/64"`, "fd00:10:20::/64 is network provisioning already; each network has its own"},
		{"swarm size", "# node: 50MiB   ", "  node: 50 MB   #", "50 MB", "is no"},
		{"swarm cache", "# caches:      ", "  caches: [{url: \"https://10.20.3.1\", racks: [A3]}] #", `"https://10.20.3.1"`, "nodes cannot fetch from"},
		{"swarm rack", "# caches:      ", "  caches: [{url: \"http://10.20.3.1\", racks: [A3, B9]}] #", "B9", `no node of this site stands in rack "B9"`},
		{"window", "startWindow: 2s", "startWindow: 2 sec", "2 sec", "is no length of time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := edit(t, c.from, c.to)
			s, err := Parse("site.yaml", []byte(text), Known{Profiles: []string{"standard", "quick"}, Targets: []string{"slurm-batch"}, PDUModels: []string{"apc-rpdu2", "raritan-px"}})
			var errs Errors
			if !errors.As(err, &errs) || s != nil {
				t.Fatalf("got %v, %v; want Errors and no site", s, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got\n%v\nwant %q", err, c.want)
			}
			if c.mark != "" && c.want != "" {
				if where := "site.yaml:" + lineOf(text, c.mark) + ":"; !strings.Contains(err.Error(), where) {
					t.Errorf("got\n%v\nwant it at %s", err, where)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats a secret:\n%v", err)
			}
		})
	}
}

// What is no mistake and makes the sums larger than they need be, or too small.
func TestCircuitHints(t *testing.T) {
	text := edit(t, "lines: L1, ", "")
	text = strings.Replace(text, "    circuit: pdu-a1\n    power: {driver: pdu", "    power: {driver: pdu", 1)
	s, err := Parse("s", []byte(text), Known{})
	if err != nil {
		t.Fatal(err)
	}
	want := "s:" + lineOf(text, "pdu-a1, kind") + ": circuits[1].name: pdu-a1 is on a line of feed-a that is not named, so it counts in full on all three; add lines: L1, L2 or L3, or L1-L2, L2-L3 or L3-L1 between two\n" +
		"s:" + lineOf(text, "name: rig-01") + ": nodes[2]: node rig-01 is on no circuit: what it draws is missing in every sum; add circuit: the one its power supplies are plugged in"
	if s.Hints.Error() != want {
		t.Errorf("hints\n%v, want\n%s", s.Hints, want)
	}
}

// A machine with two supplies counts on the circuit that it names, and draws from
// both: who reads the site file is told.
func TestFedTwice(t *testing.T) {
	text := edit(t, "outlets: [{pdu: pdu-a1, outlet: 3}]", "outlets: [{pdu: pdu-a1, outlet: 3}, {pdu: pdu-b1, outlet: 3}]")
	text = strings.Replace(text, "\npdus:\n", "\npdus:\n  - {name: pdu-b1, address: 10.30.0.99, community: {secret: pdu-community}}\n", 1)
	text = strings.Replace(text, "\ncircuits:\n", "\ncircuits:\n  - {name: pdu-b1, kind: pdu, parent: feed-a, lines: L2, volts: 230, amps: 32}\n", 1)
	s, err := Parse("s", []byte(text), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Hints.Error(); !strings.Contains(got, "node rig-01 has an outlet on pdu-b1 too, and counts on circuit pdu-a1 alone") || len(s.Hints) != 1 {
		t.Errorf("hints\n%v", got)
	}
}

// Every mistake is reported in one go, in the order of the lines.
func TestAllAtOnce(t *testing.T) {
	text := edit(t, "position: A1-U14", "positon: A1-U14")
	text = strings.Replace(text, "52:54:00:00:00:03", "nonsense", 1)
	text = strings.Replace(text, "{secret: munge-key}", "hunter2", 1)
	_, err := Parse("s", []byte(text), Known{})
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 4 { // the typo is an unknown and a missing key
		t.Fatalf("got %v", err)
	}
	for i := 1; i < len(errs); i++ {
		if errs[i].Line < errs[i-1].Line {
			t.Errorf("out of order: %v", err)
		}
	}
}

func TestLab(t *testing.T) {
	text := edit(t, "# lab: true   ", "lab: true\n#")
	text = strings.Replace(text, "# standsFor:\n#   -", "standsFor:\n  -", 1)
	text = strings.Replace(text, "ui: 127.0.0.1:8480", "ui: fd:3", 1)
	s, err := Parse("s", []byte(text), Known{})
	if err != nil {
		t.Fatal(err)
	}
	got := s.StandsFor[inventory.NodeID("srv-01")]
	if !s.Lab || len(got) != 1 || got[0].VRAM != 24<<30 || s.Listen.UI != "fd:3" {
		t.Errorf("read %+v", s)
	}
}

func TestSchema(t *testing.T) {
	b, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"additionalProperties":false`, `"routerAdvertisement"`, `"ipv6"`, `"enum":["redfish","ipmi","pdu","wol","plug","amt","inband","manual"]`, `"enum":[1,3]`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the schema lacks %s", want)
		}
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("munge-key"); !errors.Is(err, ErrNoSecret) {
		t.Errorf("got %v, want ErrNoSecret", err)
	}
	const canary = "correct horse battery"
	if err := s.Set("munge-key", NewSecret([]byte(canary))); err != nil {
		t.Fatal(err)
	}
	s, err = OpenSecrets(dir) // the identity is read again
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Get("munge-key")
	if err != nil || string(v.Reveal()) != canary {
		t.Fatalf("got %q, %v", v.Reveal(), err)
	}
	js, _ := json.Marshal(map[string]any{"v": v})
	for _, out := range []string{fmt.Sprintf("%v %s %+v %#v %q %x %d", v, v, v, v, v, v, v), string(js), fmt.Sprint(struct{ S Secret }{v}), v.LogValue().String()} {
		if strings.Contains(out, "horse") || strings.Contains(out, "686f727365") || strings.Contains(out, "104 111") {
			t.Errorf("the secret shows in %s", out)
		}
	}
	err = filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			if fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %o", p, fi.Mode().Perm())
			}
			if b, _ := os.ReadFile(p); strings.Contains(string(b), canary) {
				t.Errorf("%s holds the value in clear", p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../x", "", "a/b", ".x", "X"} {
		if err := s.Set(bad, NewSecret([]byte("v"))); err == nil {
			t.Errorf("name %q was accepted", bad)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "secrets", "identity"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSecrets(dir); err == nil {
		t.Error("an identity that others can read was accepted")
	}
}

// Whatever the bytes, Parse returns a site or located errors and never both.
func FuzzParse(f *testing.F) {
	b, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{"", "a", "{}", "[]", "site: {}", "networks: [{}]", "nodes: [{power: {driver: pdu, outlets: [{}]}}]", "&a [*a]", "? [a]\n: b", "circuits: [{name: a, parent: a}]", "store: {postgres: 1}", "- \x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f", data, Known{})
		if (s == nil) == (err == nil) {
			t.Fatalf("site %v and error %v", s, err)
		}
		var errs Errors
		if err != nil && (!errors.As(err, &errs) || len(errs) == 0 || errs[0].Line < 1) {
			t.Fatalf("error without a place: %v", err)
		}
	})
}

// TestClassMayFail: a class names whole units.
func TestClassMayFail(t *testing.T) {
	s, err := Parse("s", []byte(edit(t, "    # mayFail: [atd.service] ", "    mayFail: [atd.service, x@1.timer] ")), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Classes["gpu-server-2x3090"].MayFail, " "); got != "atd.service x@1.timer" {
		t.Errorf("units %q", got)
	}
	for _, bad := range []string{"atd", "*.service", "a b.service", "../x.service"} {
		if _, err := Parse("s", []byte(edit(t, "    # mayFail: [atd.service] ", "    mayFail: ['"+bad+"'] ")), Known{}); err == nil || !strings.Contains(err.Error(), "no name of a systemd unit") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestClassDisk: a class says which disk its image goes to, and how much of it
// is read again.
func TestClassDisk(t *testing.T) {
	const here = "    # disk: {bus: nvme, pick: smallest} "
	s, err := Parse("s", []byte(edit(t, here, "    readBack: all\n    disk: {bus: usb, model: DataTraveler, pick: smallest} ")), Known{})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Classes["gpu-server-2x3090"]
	if want := (inventory.DiskRule{Bus: "usb", Model: "DataTraveler", Smallest: true}); c.Disk != want || !c.ReadBack {
		t.Errorf("%+v, read back %v", c.Disk, c.ReadBack)
	}
	if c := s.Classes["rig-6x3080"]; c.Disk != (inventory.DiskRule{}) || c.ReadBack {
		t.Errorf("a class that says nothing has %+v", c)
	}
	for _, bad := range []string{"disk: {bus: ide} ", "disk: {pick: first} ", "disk: nvme ", "readBack: none "} {
		if _, err := Parse("s", []byte(edit(t, here, "    "+bad)), Known{}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestLabProfile: a profile that proves nothing about the machine is for labs.
func TestLabProfile(t *testing.T) {
	known := Known{Profiles: []string{"image", "standard"}, LabOnly: []string{"image"}}
	text := edit(t, "    profile: standard", "    profile: image")
	if _, err := Parse("s", []byte(text), known); err == nil || !strings.Contains(err.Error(), `there is no burn-in profile "image"`) {
		t.Errorf("a site that is no lab: %v", err)
	}
	if _, err := Parse("s", []byte(strings.Replace(text, "\nsite: ", "\nlab: true\nsite: ", 1)), known); err != nil {
		t.Errorf("a lab: %v", err)
	}
}

// TestClassBoot: a class may say how its firmware is to boot.
func TestClassBoot(t *testing.T) {
	s, err := Parse("s", []byte(edit(t, "    # boot: uki ", "    boot: shim # ")), Known{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Classes["gpu-server-2x3090"].Boot + s.Classes["rig-6x3080"].Boot; got != "shim" {
		t.Errorf("boot is %q", got)
	}
	if _, err := Parse("s", []byte(edit(t, "    # boot: uki ", "    boot: pxelinux # ")), Known{}); err == nil || !strings.Contains(err.Error(), "uki, shim or ipxe") && !strings.Contains(err.Error(), "pxelinux") {
		t.Errorf("an unknown way: %v", err)
	}
}

// TestStarts: what a class says of where and how its system starts, and who may
// log in to a machine in rescue.
func TestStarts(t *testing.T) {
	load := func(text string) (*Site, error) {
		file := filepath.Join(t.TempDir(), "site.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(file, Known{})
	}
	const from = "    approve: operator "
	s, err := load(strings.Replace(edit(t, from, "    root: ram\n"+from), "    wipe: discard                # metadata, discard, overwrite, secure, purge\n", "", 1))
	if err != nil {
		t.Fatal(err)
	}
	if s.Classes["gpu-server-2x3090"].Root != inventory.RootRAM || s.Nodes[0].Root != inventory.RootRAM || s.Nodes[2].Root != "" {
		t.Errorf("they run from %+v", s.Nodes)
	}
	if len(s.Rescue) != 1 || !strings.HasSuffix(s.Rescue[0], " anna") {
		t.Errorf("who may log in: %q", s.Rescue)
	}
	if s, err = load(edit(t, from, "    start: kexec\n"+from)); err != nil || s.Classes["gpu-server-2x3090"].Start != inventory.StartKexec {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]string{
		edit(t, from, "    root: ram\n"+from):                   "wipes no disk",
		edit(t, from, "    root: usb\n"+from):                   "usb",
		edit(t, from, "    start: warm\n"+from):                 "warm",
		edit(t, "keys: [\"ssh-ed25519 ", "keys: [\"ssh-dss "):   "no public ssh key",
		edit(t, "keys: [\"ssh-ed", "keys: [\"command=x ssh-ed"): "no public ssh key",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that says %q, got %v", want, err)
		}
	}
}
