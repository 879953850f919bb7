package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const rigPower = "    power: {driver: pdu, outlets: [{pdu: pdu-a1, outlet: 3}]}\n"

// ways are the lines of the example that show another power: of a node.
func ways(t *testing.T) []string {
	t.Helper()
	_, section, ok := strings.Cut(edit(t, rigPower, ""), "# Other ways to switch a machine")
	if !ok {
		t.Fatal("the example shows no other ways")
	}
	var out []string
	for line := range strings.SplitSeq(section, "\n") {
		if l, ok := strings.CutPrefix(line, "#   power: "); ok {
			out = append(out, l)
		}
	}
	return out
}

// TestWays reads each way to switch a machine that stands in the example as a
// comment: one of each driver, and a list.
func TestWays(t *testing.T) {
	var drivers, secrets []string
	for _, way := range ways(t) {
		s, err := Parse("s", []byte(edit(t, rigPower, "    power: "+way+"\n")), Known{})
		if err != nil {
			t.Errorf("%s\n%v", way, err)
			continue
		}
		for _, w := range s.Nodes[2].Power {
			drivers = append(drivers, strings.TrimSpace(w.Driver+" "+w.Kind))
			for _, ref := range []SecretRef{w.Password, w.Token} {
				if ref != "" && !slices.Contains(s.Secrets(), ref) {
					t.Errorf("%s: secret %s is not listed", way, ref)
				}
				secrets = append(secrets, string(ref))
			}
		}
	}
	want := "wol|wol|plug shelly|plug tasmota|plug homeassistant|amt|inband|manual|inband|redfish|pdu"
	if got := strings.Join(drivers, "|"); got != want {
		t.Errorf("drivers %s, want %s", got, want)
	}
	if got := strings.Join(slices.Compact(slices.DeleteFunc(secrets, func(s string) bool { return s == "" })), " "); got != "secureon-rig-02 plug-rig-02 plug-rig-03 ha amt-rig-05 bmc-rig-06" {
		t.Errorf("secrets %s", got)
	}
}

func TestPowerDefaults(t *testing.T) {
	read := func(way string) Power {
		t.Helper()
		s, err := Parse("s", []byte(edit(t, rigPower, way)), Known{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Nodes[2].Power[0]
	}
	if w := read(""); w.Driver != "manual" {
		t.Errorf("left out: %+v", w)
	}
	if w := read("    power: {driver: wol}\n"); w.Network != "provisioning" {
		t.Errorf("wol: %+v", w)
	}
	if w := read("    power: {driver: plug, kind: tasmota, address: \"http://10.0.0.1\"}\n"); w.Channel != 1 {
		t.Errorf("tasmota: %+v", w)
	}
	if w := read("    power: {driver: plug, kind: shelly, address: \"http://10.0.0.1\", channel: 2}\n"); w.Channel != 2 {
		t.Errorf("shelly: %+v", w)
	}
}

func TestPowerMistakes(t *testing.T) {
	const bmc = `{driver: redfish, address: "https://10.30.0.99", user: admin, password: {secret: x}}`
	for _, c := range []struct{ name, way, want string }{
		{"no list, no mapping", "redfish", `want keys and values, got "redfish"`},
		{"empty list", "[]", "the list is empty; leave power out where a person switches the machine"},
		{"unknown driver", "[{driver: redfsh}]", `"redfsh" is not allowed here; did you mean "redfish"?`},
		{"unknown key in a list", "[{driver: inband}, {driver: manual, pin: x}]", `power driver manual takes no "pin"`},
		{"plug without a kind", `{driver: plug, address: "http://10.0.0.1"}`, `power driver plug needs "kind"`},
		{"token of a tasmota", `{driver: plug, kind: tasmota, address: "http://10.0.0.1", token: {secret: x}}`, `power driver plug tasmota takes no "token"`},
		{"home assistant without a switch", `{driver: plug, kind: homeassistant, address: "http://10.0.0.1", token: {secret: x}}`, `needs "entity"`},
		{"entity that is a light", `{driver: plug, kind: homeassistant, address: "http://10.0.0.1", token: {secret: x}, entity: light.x}`, `"light.x" is no switch`},
		{"meter that is a switch", `{driver: plug, kind: homeassistant, address: "http://10.0.0.1", token: {secret: x}, entity: switch.x, meter: switch.x}`, `"switch.x" is no sensor`},
		{"password in a URL", `{driver: plug, kind: tasmota, address: "http://admin:hunter2@10.0.0.1"}`, "is no URL of a plug"},
		{"password in clear", `{driver: plug, kind: tasmota, address: "http://10.0.0.1", password: hunter2}`, "a secret stands here in clear"},
		{"password in a query", `{driver: plug, kind: tasmota, address: "http://10.0.0.1/cm?user=admin&password=hunter2"}`, `"http://10.0.0.1/cm?..." is no URL of a plug`},
		{"password with a question mark", `{driver: plug, kind: tasmota, address: "http://admin:a?hunter2@10.0.0.1"}`, "is no URL of a plug"},
		{"password in a BMC's query", `{driver: redfish, address: "https://10.0.0.1?password=a@hunter2", user: a, password: {secret: x}}`, `"https://10.0.0.1?..." is no https URL of a BMC`},
		{"password in a BMC's fragment", `{driver: redfish, address: "https://10.0.0.1#hunter2", user: a, password: {secret: x}}`, "is no https URL of a BMC"},
		{"path of a BMC", `{driver: redfish, address: "https://10.0.0.1/redfish/v1", user: a, password: {secret: x}}`, `"https://10.0.0.1/redfish/v1" is no https URL of a BMC`},
		{"path of an AMT", `{driver: amt, address: "10.0.0.1/wsman", user: a, password: {secret: x}}`, `"10.0.0.1/wsman" is no https URL of a BMC`},
		{"password in an address of IPMI", `{driver: ipmi, address: "admin:hunter2@10.0.0.1", user: a, password: {secret: x}}`, "is no address of a BMC"},
		{"the same with a port", `{driver: ipmi, address: "admin:hunter2@10.0.0.1:623", user: a, password: {secret: x}}`, "is no address of a BMC"},
		{"URL of IPMI", `{driver: ipmi, address: "https://10.0.0.1", user: a, password: {secret: x}}`, `"https://10.0.0.1" is no address of a BMC; write HOST or HOST:PORT`},
		{"port of IPMI", `{driver: ipmi, address: "10.0.0.1:99999", user: a, password: {secret: x}}`, `"10.0.0.1:99999" is no address of a BMC`},
		{"option of ipmitool", `{driver: ipmi, address: "-vv", user: a, password: {secret: x}}`, `"-vv" is no address of a BMC`},
		{"long user of IPMI", `{driver: ipmi, address: "10.0.0.1", user: administrator-of-it, password: {secret: x}}`, `user "administrator-of-it": IPMI takes up to 16 printable bytes`},
		{"relay 0", `{driver: plug, kind: tasmota, address: "http://10.0.0.1", channel: 0}`, "channel 0; a tasmota counts from 1"},
		{"amt by telnet", `{driver: amt, address: "telnet://10.0.0.1", user: a, password: {secret: x}}`, "is no https URL of a BMC"},
		{"wol on another network", "{driver: wol, network: provisionin}", `there is no network "provisionin"; did you mean "provisioning"?`},
		{"person first", "[{driver: manual}, {driver: inband}]", "nothing comes after driver manual"},
		{"twice", "[{driver: inband}, {driver: inband}]", "driver inband stands twice in this list"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := edit(t, rigPower, "    power: "+c.way+"\n")
			_, err := Parse("site.yaml", []byte(text), Known{})
			var errs Errors
			if !errors.As(err, &errs) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got\n%v\nwant %q", err, c.want)
			}
			_, at, _ := strings.Cut(text, "    power: "+c.way)
			line := fmt.Sprintf("site.yaml:%d:", 1+strings.Count(text[:len(text)-len(at)], "\n"))
			if !strings.Contains(err.Error(), line) {
				t.Errorf("got\n%v\nwant it in line %s", err, line)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats a secret:\n%v", err)
			}
		})
	}
	for name, c := range map[string]struct{ first, second, want string }{
		"outlet":              {"{driver: pdu, outlets: [{pdu: pdu-a1, outlet: 7}]}", "[{driver: inband}, {driver: pdu, outlets: [{pdu: pdu-a1, outlet: 7}]}]", "outlet 7 of pdu-a1 feeds node srv-01 in line "},
		"BMC":                 {bmc, `{driver: ipmi, address: "10.30.0.99", user: admin, password: {secret: x}}`, "the BMC 10.30.0.99 switches node srv-01 in line "},
		"BMC, by another way": {bmc, `{driver: redfish, address: "https://10.30.0.99:443/", user: admin, password: {secret: x}}`, "so node rig-01 cannot have it"},
		"plug":                {`{driver: plug, kind: shelly, address: "http://10.0.0.1"}`, `{driver: plug, kind: shelly, address: "http://10.0.0.1/", channel: 0}`, "channel 0 of plug http://10.0.0.1/ switches node srv-01 in line "},
		"switch": {`{driver: plug, kind: homeassistant, address: "http://10.0.0.1", token: {secret: x}, entity: switch.x}`,
			`{driver: plug, kind: homeassistant, address: "http://10.0.0.1", token: {secret: x}, entity: switch.x}`, "switch.x of http://10.0.0.1 switches node srv-01 in line "},
		"two systems of one BMC":  {strings.Replace(bmc, "}}", "}, system: HGX_0}", 1), strings.Replace(bmc, "}}", "}, system: HGX_1}", 1), ""},
		"one system, named twice": {strings.Replace(bmc, "}}", "}, system: HGX_0}", 1), strings.Replace(bmc, "}}", "}, system: HGX_0}", 1), "switches node srv-01 in line "},
		"another port":            {`{driver: ipmi, address: "10.30.0.99:1623", user: a, password: {secret: x}}`, `{driver: ipmi, address: "10.30.0.99:1624", user: a, password: {secret: x}}`, ""},
		"one BMC, two protocols":  {"{driver: manual}", "[" + bmc + `, {driver: ipmi, address: "10.30.0.99", user: admin, password: {secret: x}}]`, ""},
		"two plugs":               {"{driver: manual}", `[{driver: plug, kind: shelly, address: "http://10.0.0.1"}, {driver: plug, kind: shelly, address: "http://10.0.0.2"}]`, ""},
	} {
		text := edit(t, rigPower, "    power: "+c.second+"\n")
		text = strings.Replace(text, `{driver: redfish, address: "https://10.30.0.21", user: admin, password: {secret: bmc-srv-01}}`, c.first, 1)
		_, err := Parse("site.yaml", []byte(text), Known{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "rig-01")) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
