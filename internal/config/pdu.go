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
