// Package doctor says what on this machine and its networks would stop a
// conversion, which boot modes will work and why, and how to set up what stands
// around: DHCP servers and switches. It changes nothing.
package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"smelt/internal/config"
	"smelt/pxe"
)

// A Result is the outcome of a check.
type Result int

// The results.
const (
	_ Result = iota
	OK
	Warn
	Fail
	Skip // it could not be checked, or does not apply: Found says why
)

func (r Result) String() string {
	switch r {
	case OK:
		return "ok"
	case Warn:
		return "warn"
	case Fail:
		return "FAIL"
	case Skip:
		return "skip"
	}
	return fmt.Sprintf("result(%d)", int(r))
}

// MarshalText implements encoding.TextMarshaler.
func (r Result) MarshalText() ([]byte, error) { return []byte(strings.ToLower(r.String())), nil }

// Check is one thing that was looked at.
type Check struct {
	Where  string `json:"where"` // this machine, or the name of a network
	Name   string `json:"check"`
	Result Result `json:"result"`
	Found  string `json:"found"`
	Next   string `json:"next,omitempty"`
}

// Mode is one way to boot on one network.
type Mode struct {
	Network string `json:"network"`
	Name    string `json:"mode"`
	Works   string `json:"works"` // yes, no, unknown
	Why     string `json:"why"`
}

// Report is all that was found.
type Report struct {
	Checks []Check `json:"checks"`
	Modes  []Mode  `json:"modes"`
}

// Count is how many checks have a result.
func (r *Report) Count(result Result) int {
	n := 0
	for _, c := range r.Checks {
		if c.Result == result {
			n++
		}
	}
	return n
}

// File is a boot file that serve hands out.
type File struct {
	Name    string   // as machines ask for it
	Sources []string // what serve makes it of, on this machine
	Next    string   // how to get them
	Fetched bool     // serve fetches it as it starts, where Sources are missing
}

// Running is what a smelt serve says of itself, on this machine or elsewhere.
type Running struct {
	Networks []RunningNetwork
	Err      error // why there is none
}

// RunningNetwork is one network of it.
type RunningNetwork struct {
	Name     string
	Heard    int            // machines
	Relays   map[string]int // machines heard through each relay
	Warnings []string       // in words, with what to do
	Rivals   []RunningRival
}

// RunningRival is another server that it heard, and that does harm.
type RunningRival struct {
	Name  string // as pxe.Rival prints itself
	Alarm string
	Next  string
}

// Config says what to look at.
type Config struct {
	Site      *config.Site // nil: only the interface is looked at
	Interface string       // only this one; "" all of the site
	Files     []File
	Running   Running
	Wait      time.Duration // for answers of other servers
	Root      string        // of /proc and /sys; "/" but in tests
}

// thisMachine is where checks belong that are about no network.
const thisMachine = "this machine"

// doctor collects.
type doctor struct {
	Config
	report Report
	served map[string]service // boot files by name
	facts  []*facts
}

// service says whether a boot file is served.
type service struct {
	why    string // it is not; "" it is
	unsure bool   // it may be, once serve runs
}

// facts are what the boot modes of a network follow from.
type facts struct {
	name    string
	mode    string
	link    string // why the interface does not work; "" it does
	ports   map[int]string
	http    string // why boot HTTP does not work; "" it does
	https   string // why boot HTTPS does not
	rivals  []pxe.Rival
	heard   []string // rivals that only the running server heard
	looked  bool     // for rivals
	hall    bool     // a DHCP server of the hall answers
	relays  string   // why it is not known whether machines reach us; "" they do
	dropped string   // by this machine's packet filter
}

func (d *doctor) add(where, name string, r Result, next, format string, args ...any) {
	d.report.Checks = append(d.report.Checks, Check{where, name, r, fmt.Sprintf(format, args...), next})
}

// Run looks at everything.
func Run(ctx context.Context, c Config) (*Report, error) {
	if c.Root == "" {
		c.Root = "/"
	}
	d := &doctor{Config: c, served: make(map[string]service)}
	d.machine()
	if c.Site == nil {
		d.bystander(ctx)
		return &d.report, ctx.Err()
	}
	seen := 0
	for _, n := range c.Site.Networks {
		if c.Interface != "" && n.Interface != c.Interface {
			continue
		}
		seen++
		d.network(ctx, n)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if seen == 0 {
		return nil, fmt.Errorf("no network of the site is on the interface %s: its interfaces are %s", c.Interface, strings.Join(interfaces(c.Site), ", "))
	}
	for _, f := range d.facts {
		d.report.Modes = append(d.report.Modes, modes(f, d.served)...)
	}
	return &d.report, nil
}

func interfaces(s *config.Site) []string {
	var out []string
	for _, n := range s.Networks {
		if !slices.Contains(out, n.Interface) {
			out = append(out, n.Interface)
		}
	}
	return out
}

// bystander looks at an interface of a machine that serves nothing, such as a
// laptop on the machines' network.
func (d *doctor) bystander(ctx context.Context) {
	if d.Interface == "" {
		d.add(thisMachine, "site", Skip, "give --site FILE on the server, or --interface IF on a laptop in the machines' network", "there is no site file: networks are not looked at")
		return
	}
	f := &facts{name: d.Interface, mode: "observe", ports: map[int]string{}}
	d.link(f, d.Interface, netip.Prefix{})
	if f.link != "" {
		return
	}
	d.router(ctx, d.Interface, d.Interface, false)
	rivals, err := pxe.FindRivals(ctx, pxe.Network{Name: d.Interface, Interface: d.Interface}, d.Wait)
	if err != nil {
		d.add(d.Interface, "DHCP servers", Skip, "run it as root", "%v", err)
		return
	}
	dhcp, smelt := 0, false
	for _, r := range rivals {
		if r.Program == "Smelt" {
			smelt = true
			d.add(d.Interface, "Smelt", OK, "", "a Smelt serves this network (%s, %s)", r.Server, r.MAC)
			continue
		}
		if r.DHCP {
			dhcp++
		}
		found := r.String()
		if r.Offered.IsValid() {
			found += ", gives " + r.Offered.String()
		}
		if b := r.Gives(); b != "" {
			found += ", boots " + b
		}
		res, next := OK, ""
		if b := r.Gives(); b != "" {
			res, next = Warn, "machines boot that, unless it points to Smelt: "+r.Next()
		}
		d.add(d.Interface, "DHCP servers", res, next, "%s", found)
	}
	if !smelt {
		d.add(d.Interface, "Smelt", Warn, "check that smelt serve runs, that this port is in the machines' VLAN, and whether a relay (ip helper-address) stands between: Smelt is only heard on its own wire", "no Smelt was heard on this wire")
	}
	if dhcp == 0 && !smelt {
		d.add(d.Interface, "DHCP servers", Fail, "check the VLAN of this switch port and the DHCP relay (ip helper-address) of its router: smelt doctor snippet cisco-ios", "nobody answers DHCP here: a machine that boots gets no address")
	}
}
