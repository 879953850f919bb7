package bmc

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"smelt/power"
)

// A bootOption is a BootOption: what an entry of Boot.BootOrder means.
type bootOption struct {
	Reference                   string `json:"BootOptionReference"`
	DisplayName, UefiDevicePath string
	Alias                       string
}

func (o bootOption) name(ref string) string {
	if o.DisplayName == "" || o.DisplayName == ref {
		return ref
	}
	return ref + " " + o.DisplayName
}

// network tells whether it boots from a network card: a UEFI device path with
// a MAC and an address (UEFI 2.10, 10.3.4), the alias, or a name that firmware
// gives nothing else.
func (o bootOption) network() bool {
	name := strings.ToUpper(o.DisplayName)
	return o.Alias == "Pxe" || o.Alias == "UefiHttp" || strings.Contains(o.UefiDevicePath, "MAC(") ||
		strings.Contains(name, "PXE") || strings.Contains(name, "IPV4") || strings.Contains(name, "NETWORK")
}

func (o bootOption) disk() bool {
	return o.Alias == "Hdd" || strings.Contains(o.UefiDevicePath, "HD(") || strings.Contains(o.UefiDevicePath, "NVMe(") || strings.Contains(o.UefiDevicePath, "Sata(")
}

func (s *session) options(ctx context.Context, sys system) (map[string]bootOption, error) {
	members, err := s.members(ctx, sys.Boot.Options)
	if err != nil {
		return nil, err
	}
	out := map[string]bootOption{}
	for _, b := range members {
		var o bootOption
		_ = json.Unmarshal(b, &o) // what does not fit stays empty
		if o.Reference != "" {
			out[o.Reference] = o
		}
	}
	return out, nil
}

// SetBootOrder puts what boots from d first and leaves the rest as it is.
// Where the system has a settings resource (AMI, Supermicro; unverified) the
// order is written there and comes into force at the next start: then what is
// read back is what is pending.
func (r *redfish) SetBootOrder(ctx context.Context, d power.Device) ([]string, error) {
	var out []string
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if len(sys.Boot.Order) == 0 {
			return fmt.Errorf("boot order: the BMC shows none: %w", power.ErrUnsupported)
		}
		options, err := s.options(ctx, sys)
		if err != nil {
			return err
		}
		want, err := order(sys.Boot.Order, options, d)
		if err != nil {
			return err
		}
		if slices.Equal(want, sys.Boot.Order) {
			out = want
			return nil
		}
		at, tags := sys.ID, sys.etags
		if ref := sys.Settings.Object.ID; ref != "" {
			if sys.part(ref) == "" { // it would be another machine's
				return fmt.Errorf("boot order: the settings of system %s are said to be at %q, which is not part of it: nothing was changed", path.Base(sys.ID), ref)
			}
			set, err := s.readSystem(ctx, ref)
			if err != nil {
				return err
			}
			at, tags = set.ID, set.etags
		}
		if err := s.patch(ctx, at, tags, map[string]any{"Boot": map[string]any{"BootOrder": want}}); err != nil {
			return fmt.Errorf("boot order: %w", err)
		}
		for _, wait := range readBacks {
			if err := pause(ctx, wait); err != nil {
				return fmt.Errorf("boot order: read back: %w", err)
			}
			back, err := s.readSystem(ctx, at)
			if err != nil {
				return fmt.Errorf("boot order: read back: %w", err)
			}
			if out = back.Boot.Order; slices.Equal(out, want) {
				return nil
			}
		}
		return fmt.Errorf("boot order: the BMC accepted %q, but reads back %q", want, out)
	})
	return out, err
}

// order moves what boots from d to the front, without changing the order
// within either part.
func order(now []string, options map[string]bootOption, d power.Device) ([]string, error) {
	is := bootOption.network
	switch d {
	case power.Network:
	case power.Disk:
		is = bootOption.disk
	default:
		return nil, fmt.Errorf("boot order: %s first: %w", d, power.ErrUnsupported)
	}
	var front, rest []string
	for _, ref := range now {
		if is(options[ref]) {
			front = append(front, ref)
		} else {
			rest = append(rest, ref)
		}
	}
	if len(front) == 0 {
		return nil, fmt.Errorf("boot order: none of %q is known to boot from the %s; nothing was changed", now, d)
	}
	return append(front, rest...), nil
}
