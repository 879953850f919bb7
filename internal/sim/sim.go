// Package sim simulates machines that behave like real ones towards a real
// server: they are switched by a BMC (a Machine is a vbmc.Power), ask for a
// boot script over HTTP, run an agent that enrols with the nonce from their
// kernel command line, obey its orders, and keep a log of every destructive
// write. It knows the server only by its protocols.
//
// Everything a simulated machine reports is labelled simulated where a person
// could take it for real: its board says so.
package sim

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"smelt/burnin"
	"smelt/internal/vbmc"
	"smelt/inventory"
)

// Site is what all machines of a site share.
type Site struct {
	Boot    string            // base URL of the boot server: BOOT/boot/script
	Pin     string            // SHA-256 of the agent listener's SPKI, hexadecimal; "" for plain HTTP in tests
	SiteKey ed25519.PublicKey // as built into the RAM system
	Pace    time.Duration     // of everything: POST, a chunk, a check, a pause before trying again
}

// Config is one machine.
type Config struct {
	Name     string
	MAC      inventory.MAC
	Hardware inventory.Hardware
	Salvage  *inventory.Salvage
	Chunks   int    // of an image, to make writing take a while
	Fault    string // "", wipe, image, start, burnin, gpu-lost, join
	// Joined tells the cluster that the machine's daemon runs; may be nil.
	Joined func(name string)
	// What it draws at the wall, in watts: 150 and 900 when not given.
	Idle, Full float64
	Slow       int // paces of half a check; 1 when not given
}

// Hardware makes the hardware of simulated machine n: unlike every other one.
func Hardware(n int, mac inventory.MAC, gpus int) inventory.Hardware {
	hw := inventory.Hardware{
		Board: inventory.Board{SystemVendor: "Smelt", SystemProduct: "simulated machine", Vendor: "Smelt", Product: "simulated board",
			Serial: fmt.Sprintf("SIM-B%05d", n), ChassisSerial: fmt.Sprintf("SIM-C%05d", n)},
		Firmware: inventory.Firmware{UEFI: true, Arch: "amd64"},
		CPU:      inventory.CPU{Model: "simulated CPU", Cores: 8, Threads: 16, Flags: []string{"avx", "avx2", "aes"}},
		Memory:   inventory.Memory{Total: 64 << 30},
		Disks: []inventory.Disk{{DiskID: inventory.DiskID{Serial: fmt.Sprintf("SIM-D%05d", n), Path: "pci-0000:00:05.0", Size: 480 << 30},
			Name: "vda", Model: "simulated disk", Bus: "nvme"}},
		NICs: []inventory.NIC{{Name: "eth0", MAC: mac, Driver: "sim", Speed: 1000, Link: true}},
	}
	for i := range gpus {
		link := inventory.PCILink{MaxWidth: 16, MaxSpeed: 16, CurrentWidth: 16, CurrentSpeed: 16}
		p := inventory.PCI{Address: fmt.Sprintf("0000:%02x:00.0", i+1), Class: "030000", Vendor: "10de", Device: "2204", Link: link,
			Port: &inventory.Port{Address: fmt.Sprintf("0000:00:%02x.0", i+1), Link: link}}
		hw.GPUs = append(hw.GPUs, inventory.GPU{PCI: p, Model: "RTX 3090", UUID: fmt.Sprintf("GPU-sim-%05d-%d", n, i), VRAM: 24 << 30})
		hw.PCI = append(hw.PCI, p)
	}
	return hw
}

// A Write is one destructive step on a disk, as the disk saw it.
type Write struct {
	Machine string
	Disk    string
	Action  string // wipe or image
	Permit  string
	Plan    string
	Fence   uint64
	Order   string
	Boot    int // which start of the machine
	At      time.Time
}

// Machine is one simulated machine: a vbmc.Power with a disk and an agent.
type Machine struct {
	site Site
	cfg  Config
	http *http.Client

	mu     sync.Mutex
	on     bool
	boots  int
	once   vbmc.Boot
	first  vbmc.Boot
	end    context.CancelFunc // ends the running life
	lives  sync.WaitGroup
	disk   disk
	writes []Write
	doing  string
	busy   bool           // a check or a job loads its cards
	load   inventory.Load // as last ordered
	checks map[string]int // that were begun, by id
}

// disk is what is on the machine's disk.
type disk struct {
	image   string // digest of a complete image, "" if none
	part    string // digest of the image that is being written
	done    int    // its chunks
	handoff *handoff
	start   string         // by what the system on it was started, when not from it
	held    *burnin.Report // what a burn-in found that is held
}

var _ vbmc.Power = (*Machine)(nil)

// New makes a machine that is off. Close ends it.
func New(s Site, c Config) *Machine {
	if s.Pace <= 0 {
		s.Pace = 10 * time.Millisecond
	}
	if c.Chunks <= 0 {
		c.Chunks = 8
	}
	if c.Idle <= 0 {
		c.Idle = 150
	}
	if c.Full <= 0 {
		c.Full = 900
	}
	return &Machine{site: s, cfg: c, checks: map[string]int{}, http: &http.Client{Transport: transport(s.Pin)}, first: vbmc.BootNetwork}
}

// transport believes only the pinned key; every machine has connections of its own.
func transport(pin string) *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 10 * time.Second}
	if pin == "" {
		return t
	}
	t.TLSClientConfig = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the pin
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return errors.New("the server shows no certificate")
			}
			c, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
			if got := hex.EncodeToString(sum[:]); got != pin {
				return fmt.Errorf("the server's key is %s, not the pinned %s", got, pin)
			}
			return nil
		},
	}
	return t
}

func (m *Machine) String() string { return "simulated machine " + m.cfg.Name }

// Writes is the log of the machine's disks.
func (m *Machine) Writes() []Write {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Write(nil), m.writes...)
}

// Doing is what the machine does now, for people.
func (m *Machine) Doing() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doing
}

// Watts is what the machine draws now.
func (m *Machine) Watts() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.on:
		return 0
	case !m.busy:
		return m.cfg.Idle
	case m.load.Cap > 0:
		return m.cfg.Idle + (m.cfg.Full-m.cfg.Idle)*m.load.Cap
	}
	return m.cfg.Full
}

// Began is how often each check was begun.
func (m *Machine) Began() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.checks)
}

// Boots is how often it started.
func (m *Machine) Boots() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boots
}

// Close switches the machine off and waits for its end.
func (m *Machine) Close() error {
	_ = m.PowerOff(context.Background())
	m.lives.Wait()
	m.http.CloseIdleConnections()
	return nil
}

// PowerOn starts the machine.
func (m *Machine) PowerOn(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on {
		m.on = true
		m.start()
	}
	return nil
}

// PowerOff pulls the plug: what the agent was doing stops at once.
func (m *Machine) PowerOff(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = false
	m.stop()
	return nil
}

// Reset starts the machine again.
func (m *Machine) Reset(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on {
		m.stop()
		m.start()
	}
	return nil
}

// Shutdown is PowerOff: a simulated system obeys.
func (m *Machine) Shutdown(ctx context.Context) error { return m.PowerOff(ctx) }

// State tells whether the machine is on.
func (m *Machine) State(context.Context) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on, nil
}

// SetBoot chooses what it boots from.
func (m *Machine) SetBoot(_ context.Context, b vbmc.Boot, once bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if once {
		m.once = b
	} else {
		m.first, m.once = b, 0
	}
	return nil
}

// start begins a life. m.mu is held.
func (m *Machine) start() {
	from := m.first
	if m.once != 0 {
		from, m.once = m.once, 0
	}
	m.boots++
	m.busy, m.load = false, inventory.Load{}
	ctx, end := context.WithCancel(context.Background())
	m.end = end
	l := life{Machine: m, boot: m.boots}
	m.lives.Go(func() {
		defer end()
		l.run(ctx, from)
	})
}

func (m *Machine) stop() {
	if m.end != nil {
		m.end()
		m.end = nil
	}
}

// reboot is a restart from inside.
func (m *Machine) reboot(boot int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on && m.boots == boot {
		m.stop()
		m.start()
	}
}

// A life is one start of the machine.
type life struct {
	*Machine
	boot int
}

// alive runs f unless the machine was switched off or restarted meanwhile: what
// an agent does to the machine happens before or after a power cut, not beside it.
func (l life) alive(ctx context.Context, f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil || !l.on || l.boots != l.boot {
		return false
	}
	f()
	return true
}

func (l life) say(ctx context.Context, format string, args ...any) {
	l.alive(ctx, func() { l.doing = fmt.Sprintf(format, args...) })
}

func (l life) run(ctx context.Context, from vbmc.Boot) {
	if from == vbmc.BootNetwork {
		l.say(ctx, "asks for its boot script")
		args, err := l.script(ctx)
		if err != nil {
			return // switched off
		}
		if args != nil {
			l.ram(ctx, args)
			return
		}
	}
	var d disk
	l.alive(ctx, func() { d = l.disk })
	switch {
	case d.image == "" || d.handoff == nil || l.cfg.Fault == "start":
		l.say(ctx, "shows no bootable disk")
		<-ctx.Done()
	default:
		l.installed(ctx, d)
	}
}

// script asks for the boot script until it is told something; nil arguments
// mean the machine's own disk.
func (l life) script(ctx context.Context) (map[string]string, error) {
	u := l.site.Boot + "/boot/script?" + url.Values{"mac": {l.cfg.MAC.String()}, "arch": {"7"}, "serial": {l.cfg.Hardware.Board.Serial}}.Encode()
	for {
		text, err := l.get(ctx, u)
		if err == nil {
			if args, ok := parseScript(text); ok {
				return args, nil
			}
		}
		if err := l.pause(ctx, 5); err != nil {
			return nil, err
		}
	}
}

func (l life) get(ctx context.Context, u string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return "", err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", u, resp.Status)
	}
	return string(b), err
}

// parseScript reads what an iPXE script makes the machine do: the kernel's
// arguments, or nil for its own disk. ok is false when it is told to wait.
func parseScript(text string) (args map[string]string, ok bool) {
	if !strings.HasPrefix(text, "#!ipxe") {
		return nil, false
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "kernel":
			args = map[string]string{}
			for _, w := range words[1:] {
				if w == "||" {
					break
				}
				if k, v, found := strings.Cut(w, "="); found {
					if d, err := url.PathUnescape(v); err == nil {
						v = d
					}
					args[k] = v
				}
			}
			return args, true
		case words[0] == "sanboot", words[0] == "exit":
			return nil, true
		}
	}
	return nil, false
}

// pause waits some paces, or until the machine is switched off.
func (l life) pause(ctx context.Context, paces int) error {
	t := time.NewTimer(time.Duration(paces) * l.site.Pace)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
