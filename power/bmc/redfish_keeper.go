package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"smelt/power"
)

// A part of an audit that cannot be read is a finding, not an error: the rest
// is worth having.
func unread(a *power.Audit, what string, err error) error {
	var answer answerError
	if err == nil || !errors.As(err, &answer) {
		return err // the connection itself
	}
	a.Findings = append(a.Findings, power.Finding{Code: "not-read", What: legible(what + ": " + err.Error()),
		Fix: "give the account of Smelt the role Administrator, or accept that this is not watched"})
	return nil
}

// Audit reads what the BMC says of itself. It changes nothing.
func (r *redfish) Audit(ctx context.Context) (power.Audit, error) {
	a := power.Audit{Firmware: map[string]string{}}
	err := r.with(ctx, func(s *session) error {
		a.Vendor = legible(s.root.vendor())
		if s.expired != "" {
			a.Findings = append(a.Findings, power.Finding{Code: "default-credential",
				What: "the BMC demands a new password for " + s.cfg.User + " before anything else", Fix: "adopt the BMC, which sets one"})
			return nil // it tells nothing else
		}
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if a.Vendor == "" {
			a.Vendor = legible(sys.Manufacturer)
		}
		a.Model, a.Serial = legible(sys.Model), legible(sys.SerialNumber)
		a.Restore = power.RestorePolicy(legible(sys.RestorePolicy))
		if sys.BiosVersion != "" {
			a.Firmware["bios"] = legible(sys.BiosVersion)
		}
		for _, part := range []struct {
			what string
			read func(context.Context, system, *power.Audit) error
		}{
			{"boot order", s.auditBoot}, {"manager", s.auditManager}, {"firmware inventory", s.auditFirmware}, {"accounts", s.auditAccounts},
		} {
			if err := unread(&a, part.what, part.read(ctx, sys, &a)); err != nil {
				return err
			}
		}
		if a.Restore != "" && a.Restore != power.AlwaysOff {
			a.Findings = append(a.Findings, power.Finding{Code: "restore-policy",
				What: fmt.Sprintf("when power comes back the machine does %s: after a blackout all start at once", a.Restore),
				Fix:  "set it to AlwaysOff; Smelt starts the machines in order"})
		}
		return nil
	})
	a.At = time.Now()
	return a, err
}

func (s *session) auditBoot(ctx context.Context, sys system, a *power.Audit) error {
	options, err := s.options(ctx, sys)
	if err != nil {
		return err
	}
	for _, ref := range sys.Boot.Order {
		a.Boot = append(a.Boot, legible(options[ref].name(ref)))
	}
	return nil
}

func (s *session) auditManager(ctx context.Context, sys system, a *power.Audit) error {
	managers := sys.Links.ManagedBy
	if len(managers) == 0 && s.root.Managers.ID != "" {
		var all struct{ Members []link }
		if _, err := s.get(ctx, s.root.Managers.ID, &all); err != nil {
			return err
		}
		managers = all.Members
	}
	if len(managers) == 0 {
		return nil
	}
	var m struct {
		FirmwareVersion string
		NetworkProtocol link
	}
	if _, err := s.get(ctx, managers[0].ID, &m); err != nil {
		return err
	}
	if m.FirmwareVersion != "" {
		a.Firmware["bmc"] = legible(m.FirmwareVersion)
	}
	if m.NetworkProtocol.ID == "" {
		return nil
	}
	var p struct {
		IPMI, Telnet struct{ ProtocolEnabled bool }
	}
	if _, err := s.get(ctx, m.NetworkProtocol.ID, &p); err != nil {
		return err
	}
	if p.IPMI.ProtocolEnabled {
		a.Findings = append(a.Findings, power.Finding{Code: "ipmi-over-lan",
			What: "IPMI over LAN is enabled: it gives a salted hash of the password to anybody who asks (CVE-2013-4786)",
			Fix:  "disable it where Redfish works (Manager NetworkProtocol, IPMI)"})
	}
	if p.Telnet.ProtocolEnabled {
		a.Findings = append(a.Findings, power.Finding{Code: "telnet", What: "Telnet is enabled: passwords cross the network in the clear", Fix: "disable it (Manager NetworkProtocol, Telnet)"})
	}
	return nil
}

func (s *session) auditFirmware(ctx context.Context, _ system, a *power.Audit) error {
	if s.root.UpdateService.ID == "" {
		return nil
	}
	var u struct{ FirmwareInventory link }
	if _, err := s.get(ctx, s.root.UpdateService.ID, &u); err != nil {
		return err
	}
	members, err := s.members(ctx, u.FirmwareInventory)
	if err != nil {
		return err
	}
	for _, b := range members {
		var v struct {
			ID            string `json:"Id"`
			Name, Version string
		}
		_ = json.Unmarshal(b, &v) // what does not fit stays empty
		name := legible(first(v.Name, v.ID))
		if name == "" || v.Version == "" {
			continue
		}
		if _, ok := a.Firmware[name]; ok {
			name = legible(v.ID) // iDRAC: eight times "Disk"; iLO: each slot
		}
		a.Firmware[name] = legible(v.Version)
	}
	return nil
}

// defaults are the names of accounts that BMCs leave the factory with.
var defaults = []string{"admin", "administrator", "root", "userid", "superuser"}

func (s *session) auditAccounts(ctx context.Context, _ system, a *power.Audit) error {
	all, err := s.accounts(ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		if v.UserName == "" && !v.Enabled {
			continue // iDRAC: an empty slot
		}
		a.Accounts = append(a.Accounts, power.Account{ID: legible(v.ID), Name: legible(v.UserName), Role: legible(v.RoleID), Enabled: v.Enabled})
		switch {
		case !v.Enabled:
		case v.UserName == "":
			a.Findings = append(a.Findings, power.Finding{Code: "anonymous-user", What: fmt.Sprintf("account %s has no name and is enabled", legible(v.ID)), Fix: "disable it"})
		case v.Expired:
			a.Findings = append(a.Findings, power.Finding{Code: "default-credential", What: fmt.Sprintf("account %s must change its password: it is the factory's, or expired", legible(v.UserName)), Fix: "set a password, or disable the account"})
		case v.UserName != s.cfg.User && slices.Contains(defaults, strings.ToLower(v.UserName)):
			a.Findings = append(a.Findings, power.Finding{Code: "default-account", What: fmt.Sprintf("account %s has a factory's name and is not the one Smelt uses; its password is not known to be changed", legible(v.UserName)), Fix: "disable it, or set a password of its own"})
		}
	}
	return nil
}

// A managerAccount is a ManagerAccount.
type managerAccount struct {
	at       string
	ID       string `json:"Id"`
	UserName string
	RoleID   string `json:"RoleId"`
	Enabled  bool
	Expired  bool   `json:"PasswordChangeRequired"`
	Etag     string `json:"@odata.etag"`
	etags    []string
}

type accountService struct {
	Accounts link
	Min      *number `json:"MinPasswordLength"`
	Max      *number `json:"MaxPasswordLength"`
}

func (s *session) accountService(ctx context.Context) (accountService, error) {
	var v accountService
	if s.root.AccountService.ID == "" {
		return v, fmt.Errorf("the BMC shows no accounts: %w", power.ErrUnsupported)
	}
	_, err := s.get(ctx, s.root.AccountService.ID, &v)
	if err == nil && v.Accounts.ID == "" {
		err = fmt.Errorf("the BMC shows no accounts: %w", power.ErrUnsupported)
	}
	return v, err
}

const maxAccounts = 32

func (s *session) accounts(ctx context.Context) ([]managerAccount, error) {
	service, err := s.accountService(ctx)
	if errors.Is(err, power.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all struct{ Members []link }
	if _, err := s.get(ctx, service.Accounts.ID, &all); err != nil {
		return nil, err
	}
	var out []managerAccount
	for _, m := range all.Members[:min(len(all.Members), maxAccounts)] {
		v, err := s.account(ctx, m.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (s *session) account(ctx context.Context, at string) (managerAccount, error) {
	var v managerAccount
	h, err := s.get(ctx, at, &v)
	v.at, v.etags = at, etags(h, v.Etag)
	return v, err
}

// SetPassword changes the password of the account it logged in with. Where the
// BMC demands that before it lets anybody do anything, it says which account
// that is (Base registry, PasswordChangeRequired), and answers 403 to all else.
func (r *redfish) SetPassword(ctx context.Context, password string) error {
	if password == "" || len(password) > 20 {
		// The account is the same for IPMI, which carries no more.
		return errors.New("set the password: want 1 to 20 bytes")
	}
	return r.with(ctx, func(s *session) error {
		own, err := s.own(ctx, password)
		if err != nil {
			return fmt.Errorf("set the password of %s: %w", s.cfg.User, err)
		}
		s.fresh = password
		if err = s.patch(ctx, own.at, own.etags, map[string]string{"Password": password}); err != nil {
			return fmt.Errorf("set the password of %s: %w", s.cfg.User, err)
		}
		return nil
	})
}

// own finds the account of this login.
func (s *session) own(ctx context.Context, password string) (managerAccount, error) {
	if s.expired != "" && s.expired != "unknown" {
		return managerAccount{at: s.expired}, nil
	}
	service, err := s.accountService(ctx)
	if err == nil {
		if least, ok := service.Min.value(); ok && float64(len(password)) < least {
			return managerAccount{}, fmt.Errorf("the new one has %d bytes, the BMC wants at least %v", len(password), least)
		}
		if most, ok := service.Max.value(); ok && most > 0 && float64(len(password)) > most {
			return managerAccount{}, fmt.Errorf("the new one has %d bytes, the BMC takes at most %v", len(password), most)
		}
		var all []managerAccount
		if all, err = s.accounts(ctx); err == nil {
			for _, v := range all {
				if v.UserName == s.cfg.User {
					return v, nil
				}
			}
			return managerAccount{}, errors.New("the BMC lists no such account (is it one of a directory service?)")
		}
	}
	if at := s.expired; at == "unknown" && answered(err, http.StatusForbidden) {
		// It may not look, only change its own; OpenBMC names accounts by user.
		return managerAccount{at: rootPath + "AccountService/Accounts/" + path.Base(path.Clean("/"+s.cfg.User))}, nil
	}
	return managerAccount{}, err
}

// SetRestorePolicy writes ComputerSystem.PowerRestorePolicy and reads it back.
// iDRAC and Lenovo XCC keep it elsewhere (a BIOS attribute, an OEM part of
// Power): they show no such property, and the answer is ErrUnsupported.
func (r *redfish) SetRestorePolicy(ctx context.Context, p power.RestorePolicy) error {
	if p != power.AlwaysOff && p != power.AlwaysOn && p != power.LastState {
		return fmt.Errorf("restore policy %q: want %s, %s or %s", p, power.AlwaysOff, power.AlwaysOn, power.LastState)
	}
	return r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if sys.RestorePolicy == "" {
			return fmt.Errorf("restore policy: the BMC does not show one: %w", power.ErrUnsupported)
		}
		if sys.RestorePolicy == string(p) {
			return nil
		}
		if err := s.patch(ctx, sys.ID, sys.etags, map[string]string{"PowerRestorePolicy": string(p)}); err != nil {
			return fmt.Errorf("restore policy %s: %w", p, err)
		}
		for _, wait := range readBacks {
			if err := pause(ctx, wait); err != nil {
				return fmt.Errorf("restore policy %s: read back: %w", p, err)
			}
			if sys, err = s.readSystem(ctx, sys.ID); err != nil {
				return fmt.Errorf("restore policy %s: read back: %w", p, err)
			}
			if sys.RestorePolicy == string(p) {
				return nil
			}
		}
		return fmt.Errorf("restore policy %s: the BMC accepted it, but reads back %q", p, sys.RestorePolicy)
	})
}
