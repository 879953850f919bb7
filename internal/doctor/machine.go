package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	wantFree = 20 << 30 // images, their upload and the database
	needFree = 1 << 30
)

// machine looks at the machine that runs, or will run, smelt serve.
func (d *doctor) machine() {
	d.capabilities()
	d.clock()
	if d.Site == nil {
		return
	}
	d.state()
	d.files()
	if d.Running.Err != nil {
		d.add(thisMachine, "smelt serve", Skip, "", "not asked what it hears: %v", d.Running.Err)
	} else {
		d.add(thisMachine, "smelt serve", OK, "", "runs, and was asked what it hears")
	}
}

// Capabilities that a boot server needs, by their bit (capabilities(7)).
var needed = []struct {
	bit  uint
	name string
	what string
}{
	{10, "CAP_NET_BIND_SERVICE", "the ports below 1024"},
	{13, "CAP_NET_RAW", "answers to machines that have no address yet"},
}

func (d *doctor) capabilities() {
	b, err := os.ReadFile(filepath.Join(d.Root, "proc/self/status"))
	if err != nil {
		d.add(thisMachine, "rights", Skip, "", "%v", err)
		return
	}
	_, rest, _ := strings.Cut(string(b), "\nCapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		d.add(thisMachine, "rights", Skip, "", "the capabilities in /proc/self/status are not readable: %q", line)
		return
	}
	var missing []string
	for _, n := range needed {
		if caps>>n.bit&1 == 0 {
			missing = append(missing, n.name+" ("+n.what+")")
		}
	}
	if len(missing) > 0 {
		d.add(thisMachine, "rights", Warn, "run it again with sudo: then doctor sees everything, and smelt serve needs the same", "this user lacks %s", strings.Join(missing, " and "))
		return
	}
	d.add(thisMachine, "rights", OK, "", "enough to serve DHCP and TFTP")
}

// clock: certificates, permits and leases are about time.
func (d *doctor) clock() {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch now := time.Now(); {
	case now.Year() < 2025:
		d.add(thisMachine, "clock", Fail, "set it: timedatectl set-ntp true", "it says %s: machines would refuse certificates and permits", now.Format(time.RFC3339))
	case err != nil:
		d.add(thisMachine, "clock", Skip, "", "%v", err)
	case state == unix.TIME_ERROR:
		d.add(thisMachine, "clock", Warn, "switch on time synchronisation: timedatectl set-ntp true", "it says %s, and nothing keeps it right", now.Format("2006-01-02 15:04 MST"))
	default:
		d.add(thisMachine, "clock", OK, "", "synchronised")
	}
}

func (d *doctor) state() {
	dir := d.Site.State
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir) // serve makes it
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		d.add(thisMachine, "state folder", Fail, "", "%s: %v", dir, err)
		return
	}
	free := uint64(s.Bavail) * uint64(s.Bsize)
	gib := fmt.Sprintf("%s has %.0f GiB free", d.Site.State, float64(free)/(1<<30))
	switch {
	case unix.Access(dir, unix.W_OK) != nil && os.Geteuid() != 0:
		d.add(thisMachine, "state folder", Skip, "run it again with sudo", "%s cannot be written by this user; whether smelt serve can is not known", dir)
	case unix.Access(dir, unix.W_OK) != nil:
		d.add(thisMachine, "state folder", Fail, "mount it for writing, or change state: in site.yaml", "%s cannot be written", dir)
	case free < needFree:
		d.add(thisMachine, "state folder", Fail, "free some space, or move state: in site.yaml to a larger disk", "%s", gib)
	case free < wantFree:
		d.add(thisMachine, "state folder", Warn, fmt.Sprintf("images of some GiB each lie there: %d GiB are comfortable", wantFree>>30), "%s", gib)
	default:
		d.add(thisMachine, "state folder", OK, "", "%s", gib)
	}
}

// files looks for what firmware loads first.
func (d *doctor) files() {
	missing := map[string][]string{} // by what to do about it
	var here []string
	for _, f := range d.Files {
		var gone []string
		for _, path := range f.Sources {
			if _, err := os.Stat(path); err != nil {
				gone = append(gone, path)
			}
		}
		switch {
		case len(gone) == 0:
			d.served[f.Name] = service{}
			here = append(here, f.Name)
		case f.Fetched:
			d.served[f.Name] = service{f.Name + " is fetched when smelt serve starts", true}
		default:
			d.served[f.Name] = service{why: strings.Join(gone, " and ") + " is missing"}
			missing[f.Next] = append(missing[f.Next], gone...)
		}
	}
	for _, f := range d.Files { // in their order
		if list := missing[f.Next]; len(list) > 0 {
			d.add(thisMachine, "boot files", Fail, f.Next, "missing: %s", strings.Join(list, ", "))
			delete(missing, f.Next)
		}
	}
	if len(here) > 0 {
		d.add(thisMachine, "boot files", OK, "", "what is needed for %s", strings.Join(here, ", "))
	}
}
