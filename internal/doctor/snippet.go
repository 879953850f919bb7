package doctor

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"text/template"

	"smelt/internal/config"
	"smelt/pxe"
)

//go:embed snippets
var snippets embed.FS

// Snippets lists what Snippet can write.
func Snippets() []string {
	files, err := fs.Glob(snippets, "snippets/*.tmpl")
	if err != nil {
		panic("doctor: " + err.Error()) // the pattern is a constant
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(path.Base(f), ".tmpl"))
	}
	slices.Sort(out)
	return out
}

// snippetNetwork is a network in the words of the templates.
type snippetNetwork struct {
	Name, Mode  string
	VLAN        int    // a number of ours, to be changed
	Interface   string // of the server
	Smelt       netip.Addr
	Subnet      netip.Prefix
	Net, Mask   string
	First, Last netip.Addr // for machines without a fixed address
	Pooled      bool       // these are the site's own
	Router      netip.Addr // may be invalid
	DNS         []netip.Addr
	Relay       netip.Addr // the relay agent's own address there
	HTTP        string     // http://ADDRESS:PORT of boot HTTP
	BIOS, UEFI  string     // loaders
	ARM64       string
}

// Snippet writes the configuration of what stands around Smelt: a DHCP server
// or a switch. The name of a network restricts it to that one.
func Snippet(kind string, site *config.Site, network string) (string, error) {
	t, err := template.New("").Funcs(template.FuncMap{"join": join}).ParseFS(snippets, "snippets/"+kind+".tmpl")
	if err != nil {
		return "", fmt.Errorf("there is no snippet for %q: there are %s", kind, strings.Join(Snippets(), ", "))
	}
	data := struct {
		Site     string
		Networks []snippetNetwork
		Smelt    []netip.Addr // of all networks
	}{Site: site.Name}
	var names []string
	for i, n := range site.Networks {
		names = append(names, n.Name)
		if network != "" && n.Name != network {
			continue
		}
		data.Networks = append(data.Networks, snippetOf(n, site.Listen.Boot, 20+i))
		if !slices.Contains(data.Smelt, n.Address.Addr()) {
			data.Smelt = append(data.Smelt, n.Address.Addr())
		}
	}
	if len(data.Networks) == 0 {
		return "", fmt.Errorf("the site has no network %q: it has %s", network, strings.Join(names, ", "))
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, kind+".tmpl", data); err != nil {
		return "", err
	}
	return b.String(), nil
}

func snippetOf(n config.Network, boot string, vlan int) snippetNetwork {
	m := n.Machines()
	s := snippetNetwork{
		Name: n.Name, Mode: n.Mode, VLAN: vlan, Interface: n.Interface, Smelt: n.Address.Addr(), Subnet: m, Net: m.Addr().String(), Mask: mask(m),
		First: n.Pool.First, Last: n.Pool.Last, Pooled: n.Pool.First.IsValid(), Router: n.Router, DNS: n.DNS,
		BIOS: pxe.LoaderBIOS, UEFI: pxe.LoaderUEFI, ARM64: pxe.LoaderARM64,
	}
	if !s.Pooled { // the upper half, less the broadcast address
		b := m.Addr().As4()
		half := m.Bits()
		b[half/8] |= 0x80 >> (half % 8)
		s.First, s.Last = netip.AddrFrom4(b), broadcast(m).Prev()
	}
	if len(n.Relays) > 0 {
		s.Relay = n.Relays[0]
	}
	_, port, _ := strings.Cut(boot, ":")
	s.HTTP = "http://" + s.Smelt.String()
	if port != "80" && port != "" {
		s.HTTP += ":" + port
	}
	return s
}

func mask(p netip.Prefix) string {
	var b [4]byte
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b).String()
}

// broadcast is the last address of p.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func join(list []netip.Addr, sep string) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, sep)
}
