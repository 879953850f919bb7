package main

import (
	"context"
	"errors"

	"smelt/internal/config"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/bmc"
	"smelt/power/care"
)

// vault keeps the passwords of BMCs among the secrets of the site.
type vault struct{ *config.Secrets }

func (v vault) Get(name string) (string, error) {
	s, err := v.Secrets.Get(name)
	if errors.Is(err, config.ErrNoSecret) {
		return "", nil
	}
	return string(s.Reveal()), err
}

func (v vault) Set(name, value string) error {
	return v.Secrets.Set(name, config.NewSecret([]byte(value)))
}

// devices are the BMCs of the site whose passwords are ours to change.
func devices(site *config.Site, secrets *config.Secrets) map[inventory.NodeID]care.Device {
	out := map[inventory.NodeID]care.Device{}
	for _, n := range site.Nodes {
		if d, ok := device(n, secrets, bmcJournal(site)); ok {
			out[n.Name] = d
		}
	}
	return out
}

// device is the first BMC of a node.
func device(n config.Node, secrets *config.Secrets, sessions string) (care.Device, bool) {
	for _, p := range n.Power {
		if p.Driver == "ipmi" || p.Driver == "redfish" {
			return deviceOf(n, p, secrets, sessions), true
		}
	}
	return care.Device{}, false
}

func deviceOf(n config.Node, p config.Power, secrets *config.Secrets, sessions string) care.Device {
	return care.Device{
		Node: n.Name, Kept: p.Kept, User: p.User, Given: reveal(secrets, p.Password), Vault: vault{secrets},
		With: func(user, password string) (power.Controller, error) {
			return bmc.New(bmc.Config{Kind: p.Driver, Address: p.Address, User: user, CipherSuite: p.CipherSuite, Pin: p.Pin, SystemID: p.System, Sessions: sessions,
				Password: func(context.Context) (string, error) { return password, nil }})
		},
	}
}
