package config

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"smelt/inventory"
)

// Known are the words that other packages define. A nil list is not checked.
type Known struct {
	Profiles  []string // burn-in profiles
	LabOnly   []string // those of Profiles that only a lab may use
	Targets   []string // triage targets
	PDUModels []string
}

// Load reads and checks a site file. Mistakes in it are Errors.
func Load(path string, k Known) (*Site, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the site file: %w", err)
	}
	return Parse(path, data, k)
}

// Parse checks a site file; file is the name that its Errors carry.
func Parse(file string, data []byte, k Known) (*Site, error) {
	p := parser{decoder: decoder{file: file}, known: k, site: &Site{
		Classes: map[string]Class{}, StandsFor: map[inventory.NodeID][]StandIn{},
	}}
	var raw rawSite
	if doc := p.document(data); doc != nil {
		p.value(doc, reflect.ValueOf(&raw).Elem(), "")
		p.parse(raw)
	}
	if len(p.errs) > 0 {
		return nil, p.errs.sorted()
	}
	return p.site, nil
}

// parser turns raw into typed. A value that failed to decode is absent for it,
// so that one mistake is one error.
type parser struct {
	decoder
	known Known
	site  *Site
}

var word = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func (p *parser) parse(raw rawSite) {
	s := p.site
	s.Name = p.word(raw.Site)
	if s.State = raw.State.v; s.State != "" && !filepath.IsAbs(s.State) {
		p.fail(raw.State.at, "write the whole path, from /", "%q is no absolute path", s.State)
	}
	s.Store.Postgres = SecretRef(raw.Store.dsn.name)
	s.Lab = raw.Lab.v
	if !s.Lab {
		p.known.Profiles = slices.DeleteFunc(slices.Clone(p.known.Profiles), func(name string) bool { return slices.Contains(p.known.LabOnly, name) })
	}
	p.listen(raw.Listen)
	p.images(raw.Images)
	p.networks(raw.Networks)
	circuits := p.circuits(raw.Circuits)
	pdus := p.pdus(raw.PDUs)
	p.classes(raw.Classes)
	p.rules(raw.Networks)
	p.nodes(raw.Nodes, circuits, pdus)
	p.cluster(raw.Cluster)
	p.swarm(raw.Swarm)
	p.curtail(raw.Curtail)
	for _, k := range raw.Rescue.Keys {
		// Options of a key could run a command in place of the shell.
		if key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(k.v)); err != nil || len(options) > 0 || len(rest) > 0 {
			p.fail(k.at, "write the line of a .pub file: ssh-ed25519 AAAA... anna", "%q is no public ssh key", clip(k.v))
		} else if key.Type() == "ssh-dss" {
			p.fail(k.at, "make one with ssh-keygen -t ed25519", "ssh keys of type %s are not safe", key.Type())
		} else {
			s.Rescue = append(s.Rescue, k.v)
		}
	}

	s.MaxActive = 10
	if m := raw.Limits.MaxActive; m.set() {
		s.MaxActive = m.v
		if m.v < 1 {
			p.fail(m.at, "1 converts one machine at a time", "maxActive is %d", m.v)
		}
	}
	s.SlotWindow, s.PanelWindow, s.MeterStale = 2*time.Second, 10*time.Second, time.Minute
	for _, w := range []struct {
		t  text
		to *time.Duration
	}{{raw.Limits.StartWindow, &s.SlotWindow}, {raw.Limits.PanelWindow, &s.PanelWindow}, {raw.Limits.MeterStale, &s.MeterStale}} {
		if w.t.v != "" {
			*w.to = p.duration(w.t)
		}
	}
	s.BootWait = 15 * time.Minute
	if w := raw.Limits.BootWait; w.v != "" {
		s.BootWait = p.duration(w)
	}
	p.standsFor(raw)
}

// word checks a name that goes into paths, metrics and URLs.
func (p *parser) word(t text) string {
	if t.v != "" && !word.MatchString(t.v) {
		p.fail(t.at, "use a-z, 0-9, '-', '_' and '.', at most 63", "%q is no name", clip(t.v))
	}
	return t.v
}

// unique reports a value that stands twice; where maps it to its first line.
func (p *parser) unique(where map[string]int, a at, what, v string) {
	if v == "" {
		return
	}
	if line, dup := where[v]; dup {
		p.fail(a, "", "%s %q stands twice, first in line %d", what, v, line)
		return
	}
	where[v] = a.line
}

// refer checks that a name refers to something.
func (p *parser) refer(t text, what string, names []string) string {
	if t.v != "" && !slices.Contains(names, t.v) {
		p.fail(t.at, nearest(t.v, names), "there is no %s %q", what, clip(t.v))
	}
	return t.v
}

// knows is refer for words that another package defines; without a list they
// are not checked.
func (p *parser) knows(t text, what string, names []string) string {
	if names == nil {
		return t.v
	}
	return p.refer(t, what, names)
}

// shortestPull keeps a site from asking its publisher all the time.
const shortestPull = 10 * time.Second

func (p *parser) images(raw *rawImages) {
	if raw == nil {
		return
	}
	i := &Images{Remote: raw.Remote.v, Root: raw.Root.v, Channel: cmp.Or(raw.Channel.v, "stable"), Every: 15 * time.Minute,
		User: raw.User.v, Password: SecretRef(raw.Password.name)}
	if u, err := url.Parse(i.Remote); err != nil || u.User != nil {
		// It may hold a password: it is not repeated.
		p.fail(raw.Remote.at, "user and password are keys of their own", "the address holds a user, or is none")
	} else if i.Remote != "" && !filepath.IsAbs(i.Remote) && !slices.Contains([]string{"file", "http", "https", "s3", "s3+http", "oci", "oci+http"}, u.Scheme) {
		p.fail(raw.Remote.at, "write a folder from /, https://, s3:// or oci://", "%q is no address of images", clip(i.Remote))
	}
	if i.Root != "" && !filepath.IsAbs(i.Root) {
		p.fail(raw.Root.at, "write the whole path, from /", "%q is no absolute path", i.Root)
	}
	if raw.Every.v != "" {
		if i.Every = p.duration(raw.Every); i.Every < shortestPull && i.Every != 0 {
			p.fail(raw.Every.at, "15m is enough for most", "%s is less than %s", raw.Every.v, shortestPull)
		}
	}
	if (i.User == "") != (i.Password == "") {
		p.fail(raw.at, "give both, or none", "user and password belong together")
	}
	p.site.Images = i
}

func (p *parser) listen(raw rawListen) {
	seen := map[string]int{}
	p.unique(seen, raw.Boot.at, "listen address", raw.Boot.v)
	p.unique(seen, raw.Agent.at, "listen address", raw.Agent.v)
	p.unique(seen, raw.UI.at, "listen address", raw.UI.v)
	// Machines are told these two as they stand here: "every address" is none.
	p.unique(seen, raw.BootTLS.at, "listen address", raw.BootTLS.v)
	for _, t := range []text{raw.Boot, raw.BootTLS, raw.Agent} {
		if a, err := netip.ParseAddrPort(t.v); t.v != "" && (err != nil || !a.Addr().Is4() || a.Addr().IsUnspecified() || a.Port() == 0) {
			p.fail(t.at, "write this server's own address on the machines' network, for example 10.20.0.1:8443", "machines cannot be told %q", clip(t.v))
		}
	}
	if n, ok := strings.CutPrefix(raw.UI.v, "fd:"); ok {
		if fd, err := strconv.Atoi(n); err != nil || fd < 3 {
			p.fail(raw.UI.at, "inherited descriptors begin at 3", "%q names no inherited socket", raw.UI.v)
		}
	} else if raw.UI.v != "" && raw.UI.v != "systemd" {
		p.hostport(raw.UI, true)
		// Tokens travel on this listener and it has no TLS of its own.
		host, _, err := net.SplitHostPort(raw.UI.v)
		if ip := net.ParseIP(host); err == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			p.fail(raw.UI.at, "write 127.0.0.1:8480 and put a TLS proxy, a VPN or ssh -L in front", "operators' tokens would cross the network in clear on %q", clip(raw.UI.v))
		}
	}
	public := strings.TrimSuffix(raw.Public.v, "/")
	if u, err := url.Parse(public); public != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(public, " ?#") || len(public) > 100) {
		p.fail(raw.Public.at, "write it as a browser shows it, for example https://smelt.hall.example", "people cannot reach pages at %q", clip(raw.Public.v))
	}
	p.site.Listen = Listen{Boot: raw.Boot.v, BootTLS: raw.BootTLS.v, Agent: raw.Agent.v, UI: raw.UI.v, Public: public}
}

// hostport checks HOST:PORT. A listener may leave the host out and may ask for
// port 0.
func (p *parser) hostport(t text, listen bool) {
	host, port, err := net.SplitHostPort(t.v)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 && !listen || host == "" && !listen || strings.ContainsAny(host, " /@") {
		p.fail(t.at, "write HOST:PORT, for example 10.20.0.1:8443", "%q is no address with a port", clip(t.v))
	}
}

func (p *parser) addr(t text) netip.Addr {
	if t.v == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(t.v)
	if err != nil || !a.Is4() {
		p.fail(t.at, "write it like 10.20.1.1", "%q is no IPv4 address", clip(t.v))
		return netip.Addr{}
	}
	return a
}

// maxWatts is what no node takes: beyond some ten to the 15th it would not fit
// the sums of a power tree, and look like room.
const maxWatts = 1e6

// watts refuses what is no number, or the power of no node.
func (p *parser) watts(n number) {
	if n.set() && !(n.v > 0 && n.v < maxWatts) {
		p.fail(n.at, "1200 is 1.2 kW", "watts is %v; it must be above 0 and below %.0f", n.v, maxWatts)
	}
}

// needs reports keys that must stand beside a choice, refuses those that mean
// nothing beside it.
func (p *parser) needs(a at, choice string, keys map[string]at) {
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if !keys[k].set() {
			p.fail(a, "add "+k, "%s needs %q", choice, k)
		}
	}
}

func (p *parser) refuses(choice string, keys map[string]at) {
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if keys[k].set() {
			p.fail(keys[k], "remove it", "%s takes no %q", choice, k)
		}
	}
}

// systemd.unit(5): letters, digits and :-_.\@, then the type.
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]{1,250}\.(service|socket|target|mount|automount|swap|timer|path|slice|scope|device)$`)

var pciAddress = regexp.MustCompile(patterns["pci"])

func (p *parser) classes(raw []rawClass) {
	where := map[string]int{}
	for _, r := range raw {
		c := Class{
			Name: p.word(r.Name), Image: r.Image.v, Wipe: "discard", Watts: r.Watts.v,
			Profile: p.knows(r.Profile, "burn-in profile", p.known.Profiles),
			Target:  p.knows(r.Target, "triage target", p.known.Targets),
			GPUs:    r.GPUs.Count.v, GPUModel: r.GPUs.Model.v, MinLinkWidth: r.GPUs.MinLinkWidth.v,
			Disk:     inventory.DiskRule{Bus: r.Disk.Bus.v, Model: r.Disk.Model.v, Smallest: r.Disk.Pick.v == "smallest"},
			ReadBack: r.Read.v == "all",
			Slots:    map[string]string{}, Boot: r.Boot.v, ApproveRule: r.Approve.v == "rule",
			Root: rootOf(r.Root.v),
		}
		if r.Start.v == inventory.StartKexec {
			c.Start = r.Start.v
		}
		if c.Root == inventory.RootRAM && r.Start.v != "" {
			p.fail(r.Start.at, "leave start out", "a system that runs from memory is started from the network each time")
		}
		if c.Root == inventory.RootRAM && r.Wipe.v != "" {
			p.fail(r.Wipe.at, "leave wipe out", "a system that runs from memory wipes no disk")
		}
		p.unique(where, r.Name.at, "class", c.Name)
		p.watts(r.Watts)
		if r.Wipe.v != "" {
			c.Wipe = r.Wipe.v
		}
		if c.GPUs < 0 {
			p.fail(r.GPUs.Count.at, "", "%d cards", c.GPUs)
		}
		for pci, label := range r.Slots {
			if !pciAddress.MatchString(pci) {
				p.fail(label.at, "write it like 0000:00:1c.0, in quotes", "%q is no PCI address", clip(pci))
			}
			c.Slots[pci] = label.v
		}
		for _, u := range r.MayFail {
			if !unitName.MatchString(u.v) {
				p.fail(u.at, "write it whole, for example nvidia-persistenced.service", "%q is no name of a systemd unit", clip(u.v))
			}
			c.MayFail = append(c.MayFail, u.v)
		}
		p.site.Classes[c.Name] = c
	}
}

// rootOf is where a system runs from in the words of a plan, which has none for
// a disk.
func rootOf(word string) string {
	if word == inventory.RootRAM {
		return inventory.RootRAM
	}
	return ""
}

func (p *parser) nodes(raw []rawNode, circuits, pdus []string) {
	classes := slices.Sorted(maps.Keys(p.site.Classes))
	names, macs, addrs, serials, places := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	ways := map[string][]owner{}
	for _, r := range raw {
		class := p.site.Classes[p.refer(r.Class, "class", classes)]
		n := Node{Spec: inventory.Spec{
			Position: inventory.Position(r.Position.v), Class: r.Class.v, Serial: r.Serial.v,
			Circuit: p.refer(r.Circuit, "circuit", circuits), Watts: class.Watts, Protect: r.Protect.v,
			Image: class.Image, Profile: class.Profile, Target: class.Target, Root: class.Root,
		}}
		if r.Root.v != "" {
			n.Root = rootOf(r.Root.v)
		}
		if r.Name.v != "" {
			id, err := inventory.ParseNodeID(r.Name.v)
			if err != nil {
				p.fail(r.Name.at, "", "%v", err)
			}
			n.Name = id
		}
		p.unique(names, r.Name.at, "node", r.Name.v)
		p.unique(places, r.Position.at, "position", r.Position.v)
		p.unique(serials, r.Serial.at, "serial", r.Serial.v)
		for _, t := range r.MACs {
			if m, ok := p.mac(t, macs); ok {
				n.MACs = append(n.MACs, m)
			}
		}
		if m, ok := p.mac(r.BMCMAC, macs); ok {
			n.BMCMAC = &m
		}
		if r.Watts.set() {
			p.watts(r.Watts)
			n.Watts = r.Watts.v
		}
		p.onCircuit(r, n, class.Name != "")
		override := func(t text, to *string, what string, list []string) {
			if t.v != "" {
				*to = p.knows(t, what, list)
			}
		}
		override(r.Image, &n.Image, "image", nil)
		override(r.Profile, &n.Profile, "burn-in profile", p.known.Profiles)
		override(r.Target, &n.Target, "triage target", p.known.Targets)

		if n.Address = p.addr(r.Address); n.Address.IsValid() {
			p.unique(addrs, r.Address.at, "address", r.Address.v)
			p.fixedAddress(r, n)
		}
		n.Power = p.power(r, n, pdus, ways)
		p.fedTwice(r, n)
		p.site.Nodes = append(p.site.Nodes, n)
	}
	shareAccounts(p.site.Nodes)
}

func (p *parser) mac(t text, seen map[string]int) (inventory.MAC, bool) {
	if t.v == "" {
		return inventory.MAC{}, false
	}
	m, err := inventory.ParseMAC(t.v)
	if err != nil {
		p.fail(t.at, "", "%v", err)
		return m, false
	}
	p.unique(seen, t.at, "MAC address", m.String())
	return m, true
}

func (p *parser) cluster(r *rawCluster) {
	if r == nil {
		return
	}
	c := &Cluster{Kind: r.Kind.v, Name: r.Kind.v, Conf: r.Conf.v, Server: r.Server.v, MungeKey: SecretRef(r.MungeKey.name)}
	if r.Name.v != "" {
		c.Name = p.word(r.Name)
	}
	if c.Conf != "" && !filepath.IsAbs(c.Conf) {
		p.fail(r.Conf.at, "write the whole path, from /", "%q is no absolute path", c.Conf)
	}
	if c.Server != "" {
		p.hostport(r.Server, false)
	}
	p.site.Cluster = c
}

func (p *parser) duration(t text) time.Duration {
	d, err := time.ParseDuration(t.v)
	if err != nil || d <= 0 {
		p.fail(t.at, "write it like 2s, 500ms or 1m", "%q is no length of time", clip(t.v))
	}
	return d
}

var sizeText = regexp.MustCompile(patterns["size"])

func (p *parser) size(t text) int64 {
	if t.v == "" {
		return 0
	}
	if sizeText.MatchString(t.v) {
		for unit, shift := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40} {
			if n, ok := strings.CutSuffix(t.v, unit); ok {
				f, err := strconv.ParseFloat(n, 64)
				if b := f * float64(int64(1)<<shift); err == nil && b >= 1 && b < 1<<62 {
					return int64(b)
				}
			}
		}
		if n, err := strconv.ParseInt(strings.TrimSuffix(t.v, "B"), 10, 62); err == nil && n > 0 {
			return n
		}
	}
	p.fail(t.at, "write it like 24GiB", "%q is no size", clip(t.v))
	return 0
}

func (p *parser) standsFor(raw rawSite) {
	if len(raw.StandsFor) > 0 && !raw.Lab.v {
		p.fail(raw.StandsFor[0].at, "remove standsFor; only a lab site (lab: true) may show cards that are not there", "standsFor on a site that is no lab")
	}
	var names []string
	for _, n := range p.site.Nodes {
		names = append(names, string(n.Name))
	}
	seen := map[string]int{}
	for _, r := range raw.StandsFor {
		s := StandIn{PCI: r.PCI.v, Model: r.Model.v, UUID: r.UUID.v, VRAM: p.size(r.VRAM), Fault: r.Fault.v}
		p.refer(r.Node, "node", names)
		if s.PCI != "" && !pciAddress.MatchString(s.PCI) {
			p.fail(r.PCI.at, "write it like 0000:01:00.0, in quotes", "%q is no PCI address", clip(s.PCI))
		}
		p.unique(seen, r.PCI.at, "device", r.Node.v+" "+s.PCI)
		id := inventory.NodeID(r.Node.v)
		p.site.StandsFor[id] = append(p.site.StandsFor[id], s)
	}
}
