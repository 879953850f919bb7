package config

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"smelt/inventory"
)

// driverKeys says which keys beside driver a power driver needs and takes. A
// plug is one driver for each kind.
var driverKeys = map[string]struct{ needs, takes []string }{
	"redfish":            {[]string{"address", "user", "password"}, []string{"pin", "system"}},
	"ipmi":               {[]string{"address", "user", "password"}, []string{"cipherSuite"}},
	"pdu":                {[]string{"outlets"}, nil},
	"amt":                {[]string{"address", "user", "password"}, []string{"pin"}},
	"wol":                {nil, []string{"network", "password"}},
	"plug":               {[]string{"kind", "address"}, nil},
	"plug shelly":        {[]string{"kind", "address"}, []string{"password", "channel"}},
	"plug tasmota":       {[]string{"kind", "address"}, []string{"user", "password", "channel"}},
	"plug homeassistant": {[]string{"kind", "address", "token", "entity"}, []string{"meter"}},
	"inband":             {},
	"manual":             {},
}

// An owner is the node that a BMC or an outlet switches, and where site.yaml
// says so.
type owner struct {
	node   inventory.NodeID
	line   int
	system string // of a BMC with several
}

// power reads the ways to switch n.
func (p *parser) power(r rawNode, n Node, pdus []string, ways map[string][]owner) []Power {
	if !r.Power.set() {
		return []Power{{Driver: "manual"}}
	}
	var out []Power
	seen := map[string]bool{}
	for i, w := range r.Power.links {
		name := strings.TrimSpace(w.Driver.v + " " + w.Kind.v)
		rule, ok := driverKeys[name]
		if !ok {
			if rule, ok = driverKeys[w.Driver.v]; !ok {
				continue // the decoder said so
			}
		}
		p.driver(w, name, rule.needs, rule.takes)
		one := Power{
			Driver: w.Driver.v, Kind: w.Kind.v, Address: w.Address.v, User: w.User.v, Password: SecretRef(w.Password.name), Token: SecretRef(w.Token.name),
			Pin: w.Pin.v, System: w.System.v, Entity: w.Entity.v, Meter: w.Meter.v,
		}
		switch one.Driver {
		case "redfish", "amt":
			p.https(w, one.Driver)
		case "ipmi":
			p.ipmi(w)
			one.CipherSuite = 17 // RAKP-HMAC-SHA256; suite 0 would check no password (IPMI 2.0 table 22-20)
			if w.CipherSuite.set() {
				one.CipherSuite = w.CipherSuite.v
			}
		case "pdu":
			for _, o := range w.Outlets {
				p.refer(o.PDU, "PDU", pdus)
				if o.Outlet.set() && o.Outlet.v < 1 {
					p.fail(o.Outlet.at, "outlets are counted from 1", "outlet %d", o.Outlet.v)
				}
				one.Outlets = append(one.Outlets, Outlet{o.PDU.v, o.Outlet.v})
			}
		case "wol":
			one.Network = p.wakes(w, n)
		case "plug":
			one.Channel = p.plug(w)
		case "manual":
			if i != len(r.Power.links)-1 {
				p.fail(w.at, "write it last", "a person is asked when nothing else helps: nothing comes after driver manual")
			}
		}
		if seen[name] && one.Driver != "plug" { // two power supplies, two plugs
			p.fail(w.at, "remove one of them", "driver %s stands twice in this list", name)
		}
		seen[name] = true
		p.owns(n.Name, w, one, ways)
		out = append(out, one)
	}
	if len(out) == 0 {
		return []Power{{Driver: "manual"}}
	}
	return out
}

// driver holds the keys of w against what its driver needs and takes.
func (p *parser) driver(w rawPower, name string, needs, takes []string) {
	v := reflect.ValueOf(w)
	for i := range v.NumField() {
		k := v.Type().Field(i).Tag.Get("yaml")
		if k == "" || k == "driver" {
			continue
		}
		there := len(w.Outlets) > 0
		if k != "outlets" {
			there = v.Field(i).FieldByName("line").Int() > 0
		}
		switch {
		case there && !slices.Contains(needs, k) && !slices.Contains(takes, k):
			p.fail(w.at, "remove it, or choose another driver", "power driver %s takes no %q", name, k)
		case !there && slices.Contains(needs, k):
			p.fail(w.at, "add "+k, "power driver %s needs %q", name, k)
		}
	}
}

// https checks the address and the pin of a BMC that speaks TLS.
func (p *parser) https(w rawPower, driver string) {
	address, schemes := w.Address.v, []string{"https"}
	if driver == "amt" {
		schemes = []string{"https", "http"}
		if !strings.Contains(address, "://") {
			address = "https://" + address
		}
	}
	u, err := url.Parse(address)
	if w.Address.v != "" && (err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" || strings.Trim(u.Path, "/") != "" || private(u)) {
		p.fail(w.Address.at, "write https://HOST; account and password have keys of their own", "%q is no https URL of a BMC", clip(redactURL(w.Address.v)))
	}
	if sum, err := base64.StdEncoding.DecodeString(w.Pin.v); w.Pin.v != "" && (err != nil || len(sum) != 32) {
		p.fail(w.Pin.at, "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64", "pin: want a SHA-256 in base64")
	}
}

// private tells whether u has a part that may hold a password.
func private(u *url.URL) bool { return u.User != nil || u.RawQuery != "" || u.Fragment != "" }

// redactURL is an address without what may be a password in it.
func redactURL(s string) string {
	u, err := url.Parse(s)
	switch {
	case err == nil && u.Host != "" && private(u):
		s = u.Scheme + "://" + u.Host + u.EscapedPath()
		if u.User != nil {
			s = "...@" + u.Host
		}
		if u.RawQuery != "" || u.Fragment != "" {
			s += "?..."
		}
	case strings.ContainsAny(s, "@?#"):
		s = "..."
	}
	return s
}

// ipmi checks what becomes the command line of ipmitool, which everybody on
// this machine can read.
func (p *parser) ipmi(w rawPower) {
	host, port, err := net.SplitHostPort(w.Address.v)
	if err != nil {
		host, port = w.Address.v, "623"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if w.Address.v != "" && (err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ ") || strings.HasPrefix(host, "-")) {
		p.fail(w.Address.at, "write HOST or HOST:PORT; account and password have keys of their own", "%q is no address of a BMC", clip(redactURL(w.Address.v)))
	}
	if u := w.User.v; len(u) > 16 || strings.ContainsFunc(u, func(r rune) bool { return r < ' ' || r > '~' }) { // IPMI 2.0, section 22.28
		p.fail(w.User.at, "name another account of the BMC, or use redfish", "user %q: IPMI takes up to 16 printable bytes", clip(u))
	}
}

// entityName is a name of Home Assistant: a domain and an object.
var entityName = regexp.MustCompile(`^[a-z0-9_]+\.[a-z0-9_]+$`)

// plug checks a plug and returns its channel.
func (p *parser) plug(w rawPower) int {
	u, err := url.Parse(w.Address.v)
	if w.Address.v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || private(u)) {
		p.fail(w.Address.at, "write http://HOST; account and password have keys of their own", "%q is no URL of a plug", clip(redactURL(w.Address.v)))
	}
	first := 0
	if w.Kind.v == "tasmota" {
		first = 1
	}
	channel := first
	if w.Channel.set() {
		if channel = w.Channel.v; channel < first || channel > 99 {
			p.fail(w.Channel.at, fmt.Sprintf("a %s counts from %d", w.Kind.v, first), "channel %d", channel)
		}
	}
	if w.Entity.v != "" && (!entityName.MatchString(w.Entity.v) || !strings.HasPrefix(w.Entity.v, "switch.")) {
		p.fail(w.Entity.at, "write it as Home Assistant shows it, for example switch.rig_01", "%q is no switch of Home Assistant", clip(w.Entity.v))
	}
	if w.Meter.v != "" && (!entityName.MatchString(w.Meter.v) || !strings.HasPrefix(w.Meter.v, "sensor.")) {
		p.fail(w.Meter.at, "write it as Home Assistant shows it, for example sensor.rig_01_power", "%q is no sensor of Home Assistant", clip(w.Meter.v))
	}
	return channel
}

// wakes finds the network that a magic packet for n is sent on: a packet on
// another one wakes nobody, and nobody says so.
func (p *parser) wakes(w rawPower, n Node) string {
	if len(n.MACs) == 0 {
		p.fail(w.at, "add macs to the node", "a magic packet needs the hardware address of node %s", n.Name)
	}
	var names []string
	for _, net := range p.site.Networks {
		names = append(names, net.Name)
	}
	if w.Network.v != "" {
		return p.refer(w.Network, "network", names)
	}
	for _, net := range p.site.Networks {
		if n.Address.IsValid() && net.Machines().Contains(n.Address) {
			return net.Name
		}
	}
	if len(names) != 1 {
		p.fail(w.at, "add network: NAME", "on which network node %s is woken is not known", n.Name)
		return ""
	}
	return names[0]
}

// owns reports a BMC or an outlet that switches another node already: whoever
// switches one of the two switches the wrong one.
func (p *parser) owns(node inventory.NodeID, w rawPower, one Power, ways map[string][]owner) {
	take := func(a at, what, does, key string) {
		if i := slices.IndexFunc(ways[key], func(o owner) bool {
			return o.node != node && (o.system == "" || one.System == "" || o.system == one.System)
		}); i >= 0 {
			o := ways[key][i]
			p.fail(a, "look at the machines, then correct one of the two", "%s %s node %s in line %d, so node %s cannot have it", what, does, o.node, o.line, node)
			return
		}
		ways[key] = append(ways[key], owner{node, a.line, one.System})
	}
	switch one.Driver {
	case "pdu":
		for _, o := range w.Outlets {
			if o.PDU.v == "" || !o.Outlet.set() {
				continue
			}
			what := fmt.Sprintf("outlet %d of %s", o.Outlet.v, clip(o.PDU.v))
			if i := slices.IndexFunc(ways[what], func(x owner) bool { return x.node == node }); i >= 0 {
				p.fail(o.at, "remove one of the two", "%s stands twice for node %s, first in line %d", what, node, ways[what][i].line)
				continue
			}
			take(o.at, what, "feeds", what)
		}
	case "redfish", "ipmi", "amt":
		if h := BMCHost(one.Address); h != "" {
			take(w.Address.at, "the BMC "+h, "switches", "bmc "+h)
		}
	case "plug":
		what := fmt.Sprintf("channel %d of plug %s", one.Channel, redactURL(one.Address))
		if one.Kind == "homeassistant" {
			what = one.Entity + " of " + redactURL(one.Address)
		}
		take(w.Address.at, what, "switches", strings.ToLower(strings.TrimSuffix(what, "/")))
	}
}

// shareAccounts finds nodes that log in to one BMC by one account: when it gets
// another password, they all do.
func shareAccounts(nodes []Node) {
	first := map[string]inventory.NodeID{}
	each := func(do func(account string, n Node, p *Power)) {
		for _, n := range nodes {
			for i := range n.Power {
				if p := &n.Power[i]; p.Driver == "redfish" || p.Driver == "ipmi" {
					do(p.User+" at "+BMCHost(p.Address), n, p)
				}
			}
		}
	}
	each(func(account string, n Node, _ *Power) {
		if was, ok := first[account]; !ok || n.Name < was {
			first[account] = n.Name
		}
	})
	each(func(account string, _ Node, p *Power) { p.Kept = first[account] })
}

// BMCHost is what tells BMCs and plugs apart: their host, and their port where it is none
// of the usual ones. One BMC may speak several protocols, for one node.
func BMCHost(address string) string {
	if i := strings.Index(address, "://"); i >= 0 {
		address = address[i+3:]
	}
	address, _, _ = strings.Cut(address, "/")
	address = strings.ToLower(address[strings.LastIndex(address, "@")+1:])
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return strings.Trim(address, "[]")
	}
	switch port {
	case "443", "623", "16992", "16993":
		return host
	}
	return net.JoinHostPort(host, port)
}
