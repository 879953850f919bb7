package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/internal/doctor"
	"smelt/internal/uki"
	"smelt/pxe"
)

func newDoctor(o *options) *cobra.Command {
	var iface, cache string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what on this machine and its networks would stop a conversion, and which boot modes will work",
		Long: `Look at this machine and at the networks of the site: ports, boot files, rights,
clock, other DHCP and ProxyDHCP servers, relays, MTU, IPv6 routers; and say for
each way to boot whether it will work, and why. It changes nothing. It works
before smelt serve runs and while it does. On a laptop in the machines' network,
without a site file, it says who answers there: sudo smelt doctor --interface IF

Each check is ok, warn (it works, but), FAIL (it will not work) or skip (it could
not be looked at). The exit code is 3 when a check fails.`,
		Example: "  sudo smelt doctor\n  sudo smelt doctor --site hall-b.yaml --interface eno2 -o json\n  smelt doctor snippet dnsmasq",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			site, err := o.doctorSite(c.Flags().Changed("site"), iface)
			if err != nil {
				return err
			}
			conf := doctor.Config{Site: site, Interface: iface, Files: doctorFiles(cache), Wait: 4 * time.Second}
			if site != nil {
				conf.Running = o.running(c, site)
			}
			report, err := doctor.Run(c.Context(), conf)
			if err != nil {
				return usageError{err.Error(), ""}
			}
			return o.showDoctor(c, report)
		},
	}
	c.Flags().StringVar(&iface, "interface", "", "look only at this interface; without a site file, see who answers there")
	c.Flags().StringVar(&cache, "cache", ".cache", "the folder of smelt serve for what is fetched once")
	c.AddCommand(newDoctorSnippet(o))
	return c
}

// doctorSite is the site file, nil where there is none and none was named.
func (o *options) doctorSite(named bool, iface string) (*config.Site, error) {
	if _, err := os.Stat(o.site); errors.Is(err, fs.ErrNotExist) && !named {
		if iface == "" {
			return nil, usageError{"there is no " + o.site + " here", "give --site FILE, or --interface IF on a machine that is no server"}
		}
		return nil, nil
	}
	site, _, err := o.loadSite(nil)
	return site, err
}

// doctorFiles are the first loaders and the agent, and what serve makes them of.
func doctorFiles(cache string) []doctor.File {
	agent := "smelt-agent"
	if exe, err := os.Executable(); err == nil {
		agent = filepath.Join(filepath.Dir(exe), agent)
	}
	return []doctor.File{
		{Name: pxe.LoaderBIOS, Sources: []string{undionly}, Next: "apt-get install ipxe"},
		{Name: pxe.LoaderUEFI, Sources: []string{snponly}, Next: "apt-get install ipxe"},
		{Name: pxe.LoaderUKI, Sources: []string{uki.Stub}, Next: "apt-get install systemd-boot-efi"},
		{Name: pxe.LoaderLocal, Sources: []string{"/usr/bin/grub-mkimage", "/usr/lib/grub/x86_64-efi"}, Next: "apt-get install grub-common grub-efi-amd64-bin"},
		{Name: pxe.LoaderShim, Sources: []string{filepath.Join(cache, "loaders/usr/lib/shim/shimx64.efi.signed")}, Fetched: true},
		{Name: pxe.LoaderGRUB, Sources: []string{filepath.Join(cache, "loaders/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")}, Fetched: true},
		{Name: pxe.LoaderARM64, Sources: []string{filepath.Join(cache, "loaders/usr/lib/ipxe/ipxe-arm64.efi")}, Fetched: true},
		{Name: "agent.cpio.zst", Sources: []string{agent}, Next: "build it (make build) and put it beside smelt, or serve with --agent"},
	}
}

// running is what the server says of its networks, if one runs.
func (o *options) running(c *cobra.Command, site *config.Site) doctor.Running {
	ctx, cancel := context.WithTimeout(c.Context(), min(o.timeout, 5*time.Second))
	defer cancel()
	local := *o
	if !c.Flags().Changed("token-file") {
		// As root beside the server, its own token does.
		if own := filepath.Join(site.State, "operator.token"); readable(own) {
			local.tokenFile = own
		}
	}
	cl, err := local.client()
	if err != nil {
		return doctor.Running{Err: err}
	}
	list, err := cl.Networks(ctx)
	if err != nil {
		return doctor.Running{Err: fmt.Errorf("%s does not answer: %w", o.server, err)}
	}
	seen, err := cl.Seen(ctx)
	if err != nil {
		return doctor.Running{Err: fmt.Errorf("%s does not answer: %w", o.server, err)}
	}
	var out doctor.Running
	for _, n := range list.Items {
		r := doctor.RunningNetwork{Name: n.Name, Heard: n.Heard, Warnings: n.Warnings, Relays: map[string]int{}}
		for _, x := range n.Rivals {
			if x.Alarm != "" && !x.Gone {
				r.Rivals = append(r.Rivals, doctor.RunningRival{Name: x.Name, Alarm: x.Alarm, Next: x.Next})
			}
		}
		for _, s := range seen.Items {
			if s.Network == n.Name && s.Relay != "" {
				r.Relays[s.Relay]++
			}
		}
		out.Networks = append(out.Networks, r)
	}
	return out
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func (o *options) showDoctor(c *cobra.Command, r *doctor.Report) error {
	checks := listing{
		doc: map[string]any{"apiVersion": api.Version, "kind": "DoctorReport", "checks": r.Checks, "modes": r.Modes,
			"failed": r.Count(doctor.Fail), "warnings": r.Count(doctor.Warn)},
		cols: []string{"check", "where", "result", "found"},
	}
	for _, k := range r.Checks {
		checks.rows = append(checks.rows, []string{k.Name, k.Where, k.Result.String(), k.Found})
	}
	if err := o.show(c, checks); err != nil {
		return err
	}
	if o.output == "table" || o.output == "wide" {
		out := c.OutOrStdout()
		if len(r.Modes) > 0 {
			fmt.Fprintln(out)
			modes := listing{cols: []string{"boot mode", "network", "works", "why"}}
			for _, m := range r.Modes {
				modes.rows = append(modes.rows, []string{m.Name, m.Network, m.Works, m.Why})
			}
			if err := o.show(c, modes); err != nil {
				return err
			}
		}
		steps := 0
		for _, want := range []doctor.Result{doctor.Fail, doctor.Warn, doctor.Skip, doctor.OK} {
			for _, k := range r.Checks {
				if k.Result != want || k.Next == "" {
					continue
				}
				if steps++; steps == 1 {
					fmt.Fprintln(out)
				}
				line := fmt.Sprintf("next: %s, %s (%s): %s", k.Where, k.Name, k.Result, k.Next)
				fmt.Fprintln(out, strings.Map(printable, line))
			}
		}
		fmt.Fprintf(out, "\n%d ok, %d warn, %d FAIL, %d skip\n", r.Count(doctor.OK), r.Count(doctor.Warn), r.Count(doctor.Fail), r.Count(doctor.Skip))
	}
	if r.Count(doctor.Fail) > 0 {
		return errNegative
	}
	return nil
}
