package config

import (
	"cmp"
	"slices"
	"strings"
)

func (p *parser) pdus(raw []rawPDU) []string {
	where, addresses := map[string]int{}, map[string]int{}
	var names []string
	for _, r := range raw {
		u := PDU{
			Name: p.word(r.Name), Address: r.Address.v, Model: p.pduModel(r.Model), Names: cmp.Or(r.Names.v, "check"),
			Version: "v2c", Community: SecretRef(r.Community.name), User: r.User.v, Auth: SecretRef(r.Auth.name), Priv: SecretRef(r.Priv.name),
		}
		p.unique(where, r.Name.at, "PDU", u.Name)
		names = append(names, u.Name)
		if u.Address != "" {
			if !strings.Contains(u.Address, ":") {
				u.Address += ":161"
				r.Address.v = u.Address
			}
			p.hostport(r.Address, false)
			// Under two names its outlets could have two owners.
			p.unique(addresses, r.Address.at, "PDU address", u.Address)
		}
		if r.Version.v != "" {
			u.Version = r.Version.v
		}
		if u.Version == "v3" {
			p.needs(r.at, "SNMP v3", map[string]at{"user": r.User.at, "auth": r.Auth.at, "priv": r.Priv.at})
			p.refuses("SNMP v3", map[string]at{"community": r.Community.at})
		} else {
			p.needs(r.at, "SNMP "+u.Version, map[string]at{"community": r.Community.at})
			p.refuses("SNMP "+u.Version, map[string]at{"user": r.User.at, "auth": r.Auth.at, "priv": r.Priv.at})
		}
		p.site.PDUs = append(p.site.PDUs, u)
	}
	return names
}

// pduModel checks a model; a mistake is answered with all there are.
func (p *parser) pduModel(t text) string {
	if names := p.known.PDUModels; t.v != "" && names != nil && !slices.Contains(names, t.v) {
		all := "valid are " + strings.Join(names, ", ")
		if hint := nearest(t.v, names); strings.HasPrefix(hint, "did you mean") {
			all = hint + " " + all
		}
		p.fail(t.at, all, "there is no PDU model %q", clip(t.v))
	}
	return t.v
}

// A rawOutletID is one outlet, an owner the node that hangs on it.
type (
	rawOutletID struct {
		pdu    string
		outlet int
	}
	owner struct {
		node string
		line int
	}
)

// owns reports an outlet that has a node already: the same outlet on two
// machines switches the wrong one off.
func (p *parser) owns(r rawNode, owners map[rawOutletID]owner) {
	for _, o := range r.Power.Outlets {
		id := rawOutletID{o.PDU.v, o.Outlet.v}
		switch first, taken := owners[id]; {
		case id.pdu == "" || !o.Outlet.set():
		case taken && first.node == r.Name.v:
			p.fail(o.at, "", "outlet %d of %s stands twice for node %s, first in line %d", id.outlet, clip(id.pdu), clip(r.Name.v), first.line)
		case taken:
			p.fail(o.at, "look at the cords, then correct one of the two", "outlet %d of %s feeds node %s in line %d, so node %s cannot have it", id.outlet, clip(id.pdu), clip(first.node), first.line, clip(r.Name.v))
		default:
			owners[id] = owner{r.Name.v, o.line}
		}
	}
}
