package pxe

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// question is everything that the choice of a first loader depends on.
type question struct {
	client client
	arch   Arch
	tls    bool   // its network has HTTPS for HTTP clients
	vendor string // option 60, for the explanation
	action Action // what the Booter wants; 0 when it has not decided
	path   Path   // what it insists on; may be empty
	starts int    // starts, with this one, since the machine last got beyond its loader; 0 when nobody counted
	worked Path   // what brought it beyond then; may be empty
	has    func(name string) bool
}

// transport is how firmware fetches its loader.
type transport int

const (
	byNothing transport = iota // no boot: a plain lease
	byTFTP
	byHTTP
	byHTTPS
)

func (t transport) String() string {
	switch t {
	case byNothing:
		return "nothing"
	case byTFTP:
		return "TFTP"
	case byHTTP:
		return "HTTP"
	case byHTTPS:
		return "HTTPS"
	}
	return fmt.Sprintf("transport(%d)", int(t))
}

// choice is the first loader of a machine, and why.
type choice struct {
	via  transport
	path Path // empty: no path to the RAM system
	file string
	why  string
}

// rung is one loader that firmware can be started with.
type rung struct {
	path  Path
	files []string // the loader, then what it cannot do without
}

// ladder is what firmware of one architecture can be started with, best first.
type ladder struct {
	via   transport
	rungs []rung
	local string // starts the machine's own disk
}

// Firmware does not say whether Secure Boot is on, nor whose keys it has, so
// what it takes can only be found by trying, from the rung that proves most:
// by HTTP a file of any size is cheap and the UKI comes first. By TFTP it comes
// last, for firmware that knows no other key than the site's.
var (
	shim    = rung{Shim, []string{LoaderShim, LoaderGRUB}}
	pxeX64  = ladder{via: byTFTP, rungs: []rung{{IPXE, []string{LoaderUEFI}}, shim, {UKI, []string{LoaderUKI}}}}
	ladders = map[Arch]ladder{
		BIOS:      {via: byTFTP, rungs: []rung{{IPXE, []string{LoaderBIOS}}}},
		UEFIx64:   pxeX64,
		UEFIx64v9: pxeX64,
		ARM64:     {via: byTFTP, rungs: []rung{{IPXE, []string{LoaderARM64}}, {UKI, []string{LoaderUKIARM64}}}},
		HTTPx64:   {via: byHTTP, rungs: []rung{{UKI, []string{LoaderUKI}}, shim, {IPXE, []string{LoaderUEFI}}}, local: LoaderLocal},
		HTTPARM64: {via: byHTTP, rungs: []rung{{UKI, []string{LoaderUKIARM64}}, {IPXE, []string{LoaderARM64}}}},
	}
)

// choose picks the first loader of firmware. It is pure: the same question
// has the same answer.
func choose(q question) choice {
	no := func(format string, args ...any) choice { return choice{why: fmt.Sprintf(format, args...)} }
	l, ok := ladders[q.arch]
	switch {
	case !ok:
		return no("no loader for architecture %d", q.arch)
	case (l.via == byHTTP) != (q.client == httpBoot):
		return no("architecture %d does not go with %q", q.arch, q.vendor)
	}
	if l.via == byHTTP && q.tls {
		l.via = byHTTPS
	}
	if q.action == Local && q.path != Shim && l.local != "" && q.has(l.local) {
		// No ladder here: firmware that refuses it goes on to its next boot
		// entry, which is the disk.
		return choice{via: l.via, file: l.local, why: fmt.Sprintf("%s by %s starts its own disk", l.local, l.via)}
	}
	var rungs []rung
	var missing, better []string // of all rungs; of those above the first that is there
	for _, r := range l.rungs {
		if (q.action == Local || q.action == Program) && r.path == UKI {
			continue // it starts nothing but a RAM system
		}
		if i := slices.IndexFunc(r.files, func(f string) bool { return !q.has(f) }); i >= 0 {
			missing = append(missing, r.files[i])
			continue
		}
		if len(rungs) == 0 {
			better = missing
		}
		rungs = append(rungs, r)
	}
	if len(rungs) == 0 {
		return no("not served for architecture %d: %s", q.arch, strings.Join(missing, ", "))
	}
	at := func(p Path) int { return slices.IndexFunc(rungs, func(r rung) bool { return r.path == p }) }
	i, why := 0, ""
	switch pin, worked := at(q.path), at(q.worked); {
	case pin >= 0:
		i, why = pin, "asked for by its class"
	case q.starts > 1 && len(rungs) > 1:
		i = (max(worked, 0) + q.starts - 1) % len(rungs)
		before := rungs[(i+len(rungs)-1)%len(rungs)]
		why = fmt.Sprintf("start %d, and %s brought nothing", q.starts, before.files[0])
	case worked > 0:
		i, why = worked, "it worked last time"
	}
	var notes []string
	if why != "" {
		notes = append(notes, why)
	}
	if q.path != "" && at(q.path) < 0 {
		notes = append(notes, fmt.Sprintf("its class asks for %s, which it cannot have", q.path))
	}
	if len(better) > 0 {
		notes = append(notes, "not served: "+strings.Join(better, ", "))
	}
	r := rungs[i]
	c := choice{via: l.via, path: r.path, file: r.files[0], why: fmt.Sprintf("%s by %s", r.files[0], l.via)}
	if len(notes) > 0 {
		c.why += " (" + strings.Join(notes, "; ") + ")"
	}
	return c
}

// choose picks the first loader for r and remembers it.
func (s *Server) choose(n *network, r *request, b Boot) choice {
	starts, worked := s.trail.of(r.machine.MAC, r.client)
	c := choose(question{client: r.client, arch: r.machine.Arch, tls: n.HTTPS.IsValid(), vendor: r.machine.Vendor, action: b.Action, path: b.Path, starts: starts, worked: worked, has: s.files.Has})
	s.trail.sent(r.machine.MAC, r.client, c.path)
	return c
}

// started counts the start of the machine's firmware that r belongs to.
func (s *Server) started(r *request, now time.Time) int {
	return s.trail.start(r.machine.MAC, r.client, r.msg.TransactionID, r.begins(), now)
}
