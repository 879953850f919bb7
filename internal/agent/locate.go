package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"smelt/internal/api"
	"smelt/internal/pid1"
)

// What makes this machine findable at the rack. It is beside the orders and no
// part of them: it ends by the clock of this machine whatever becomes of the
// server, a job that destroys or measures puts the drive lights out, and
// nothing is ever written to a disk.
const (
	blink      = time.Second // a drive light is on for it, and off for it
	bannerWait = 10 * time.Second
	locateMax  = 4 * time.Hour
	blinkDisks = 16
	blinkBlock = 256 << 10 // bytes of one read
)

// locateWays are the ways in the words of the server.
const (
	wayDisk   = "disk-light"
	wayScreen = "screen"
)

// beacon is what is done to be found now. It has no lock: obey alone calls it.
type beacon struct {
	taken  string // the last order, done or not
	cancel context.CancelFunc
	wait   sync.WaitGroup
	dark   context.CancelFunc // of the drive lights
}

// take begins what o asks for, instead of what was asked before.
func (b *beacon) take(ctx context.Context, a *Agent, o api.LocateOrder, working bool) {
	b.stop()
	b.taken = o.ID
	if o.For <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(o.For, locateMax))
	b.cancel = cancel
	said := api.Located{ID: o.ID}
	disk := api.LocateWay{Way: wayDisk}
	switch {
	case o.Quiet || working:
		disk.Error = "the machine works: its disks are left alone"
	default:
		lit, dark := context.WithCancel(ctx)
		b.dark = dark
		disks := a.blinking()
		if len(disks) == 0 {
			disk.Error = "it has no disk whose light could blink"
			dark()
			break
		}
		disk.Look = fmt.Sprintf("the drive light of PLACE blinks: %d s on, %d s off (%s)", int(blink.Seconds()), int(blink.Seconds()), named(disks))
		for _, d := range disks {
			go d.blink(lit) // not waited for: a disk that is dying may hold a read for minutes
		}
	}
	b.wait.Go(func() {
		for ctx.Err() == nil {
			a.show("", banner(o.Lines)...)
			sleep(ctx, bannerWait)
		}
		a.show("", "", "this machine is no longer looked for", "")
	})
	said.Ways = []api.LocateWay{disk, {Way: wayScreen, Look: "the screen of PLACE says LOCATE and beeps"}}
	b.wait.Go(func() {
		if err := a.client.call(ctx, http.MethodPost, api.PathLocated, said, nil); err != nil && ctx.Err() == nil {
			a.log.Warn("how to find this machine is not known to the server", "err", err)
		}
	})
	a.log.Info("locate", "for", o.For, "disk", disk.Look, "why not", disk.Error)
}

// hush puts the drive lights out: a job begins that would feel them.
func (b *beacon) hush() {
	if b.dark != nil {
		b.dark()
	}
}

func (b *beacon) stop() {
	if b.cancel != nil {
		b.cancel()
		b.wait.Wait()
	}
	b.cancel, b.dark = nil, nil
}

// feels tells whether a job would feel that the disks are read beside it.
func feels(o api.Order) bool {
	switch o.Kind {
	case api.OrderWait, api.OrderInspect, api.OrderRescue:
		return false
	}
	return true
}

// banner is what a screen says. A bell in it beeps.
func banner(lines []string) []string {
	out := append([]string{"\a"}, letters...)
	out = append(out, "")
	for _, l := range lines {
		if len(l) > 78 {
			l = l[:78]
		}
		out = append(out, strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, l))
	}
	return append(out, "")
}

// letters can be read from the other end of an aisle.
var letters = []string{
	"##       ######    ######      ###     ########  ######## ",
	"##      ##    ##  ##    ##    ## ##       ##     ##       ",
	"##      ##    ##  ##         ##   ##      ##     ##       ",
	"##      ##    ##  ##        ##     ##     ##     ######   ",
	"##      ##    ##  ##        #########     ##     ##       ",
	"##      ##    ##  ##    ##  ##     ##     ##     ##       ",
	"######   ######    ######   ##     ##     ##     ######## ",
}

// light is one disk that is read in a rhythm.
type light struct {
	name, path string
	size       int64

	testOnlyRead func()
}

func named(disks []light) string {
	var out []string
	for _, d := range disks {
		out = append(out, d.name)
	}
	return strings.Join(out, ", ")
}

// blinking are the disks that can be read.
func (a *Agent) blinking() []light {
	sys := a.c.System
	sys.Signatures = nil // nobody asks what is on them
	var out []light
	for _, d := range sys.Disks() {
		if d.Removable || d.Size < blinkBlock || len(out) == blinkDisks {
			continue
		}
		l := light{name: d.Name, path: a.device(d), size: d.Size}
		f, err := l.open()
		if err != nil {
			continue
		}
		f.Close()
		out = append(out, l)
	}
	return out
}

// open opens the disk for reading past the page cache: what comes from memory
// lights nothing.
func (l light) open() (*os.File, error) {
	f, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return os.Open(l.path) // a file that stands for a disk may know no O_DIRECT
	}
	return f, nil
}

// blink reads for a second, rests for a second. All disks do so by the same
// clock, so that they blink together.
func (l light) blink(ctx context.Context) {
	f, err := l.open()
	if err != nil {
		return
	}
	defer f.Close()
	// O_DIRECT wants memory that begins at a page.
	buf, err := unix.Mmap(-1, 0, blinkBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return
	}
	defer unix.Munmap(buf)
	for ctx.Err() == nil {
		now := time.Now()
		phase := now.UnixNano() / int64(blink)
		if phase%2 != 0 {
			sleep(ctx, now.Truncate(blink).Add(blink).Sub(now))
			continue
		}
		if l.testOnlyRead != nil {
			l.testOnlyRead()
		}
		at := rand.Int64N(max(l.size/blinkBlock, 1)) * blinkBlock
		if _, err := f.ReadAt(buf, at); err != nil {
			sleep(ctx, blink) // a bad sector is no reason to try it for an hour
		}
	}
}

// show writes on the consoles of the machine.
func (a *Agent) show(page string, lines ...string) {
	if a.testOnlyShow != nil {
		a.testOnlyShow(lines...)
		return
	}
	pid1.Show(page, lines...)
}
