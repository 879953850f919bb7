package pxe

import "fmt"

// question is everything that the choice of a first loader depends on.
type question struct {
	client client
	arch   Arch
	vendor string // option 60, for the explanation
	action Action // what the Booter wants; 0 when it has not decided
	path   Path   // what it insists on; may be empty
	starts int    // how often this machine started without getting beyond its loader
	has    func(name string) bool
}

// transport is how firmware fetches its loader.
type transport int

const (
	byNothing transport = iota // no boot: a plain lease
	byTFTP
	byHTTP
)

// choice is the first loader of a machine, and why.
type choice struct {
	via  transport
	file string
	why  string
}

// loaders says which file starts which architecture, and whether its firmware
// fetches it by HTTP.
var loaders = map[Arch]struct {
	file string
	via  transport
}{
	BIOS:      {LoaderBIOS, byTFTP},
	UEFIx64:   {LoaderUEFI, byTFTP},
	UEFIx64v9: {LoaderUEFI, byTFTP},
	ARM64:     {LoaderARM64, byTFTP},
	HTTPx64:   {LoaderUEFI, byHTTP},
	HTTPARM64: {LoaderARM64, byHTTP},
}

// choose picks the first loader of firmware. It is pure: the same question
// has the same answer.
func choose(q question) choice {
	no := func(format string, args ...any) choice { return choice{why: fmt.Sprintf(format, args...)} }
	l, ok := loaders[q.arch]
	switch {
	case !ok:
		return no("no loader for architecture %d", q.arch)
	case (l.via == byHTTP) != (q.client == httpBoot):
		return no("architecture %d does not go with %q", q.arch, q.vendor)
	case !q.has(l.file):
		return no("no %s is served for architecture %d", l.file, q.arch)
	}
	if l.via == byHTTP {
		return choice{l.via, l.file, l.file + " by HTTP"}
	}
	return choice{l.via, l.file, l.file + " by TFTP"}
}
