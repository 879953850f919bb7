package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/internal/vbmc"
	"smelt/inventory"
)

// A Trial is what one image is tried on: blank machines of a lab without a
// cluster, whose nodes come into service once the installed system is proven.
type Trial struct {
	Machines []TrialMachine
	Memory   int      // MiB of each machine
	DiskSize int64    // bytes
	MayFail  []string // units whose failure is accepted
	KVM      bool
}

// A TrialMachine has one disk, one network card and a Redfish BMC. The two are
// of kinds that real machines have: an image whose initrd lacks their drivers
// comes up on virtio all the same.
type TrialMachine struct {
	Name inventory.NodeID
	UEFI bool
	Disk string // nvme, sata; virtio when empty
	NIC  string // QEMU device, such as e1000e; virtio when empty
}

// trialSite is the head of the site.yaml of a trial; classes have no cards.
const trialSite = `# Written by smelt image test.
apiVersion: smelt/v1
site: image-test
lab: true
state: %[1]s
store: sqlite

listen:
  boot: %[2]s:80
  agent: %[2]s:8443
  ui: systemd

networks:
  - name: provisioning
    interface: %[3]s
    address: %[2]s/16
    pool: 10.77.200.1-10.77.200.250
    router: %[2]s
    routerAdvertisement: true

classes:
  - name: image-test
    target: lab
    image: %[4]s
    profile: image
    wipe: discard
    mayFail: [%[5]s]

limits:
  maxActive: 8
  startWindow: 1s

nodes:
`

func (t Trial) site(o Options) string {
	units := make([]string, 0, len(t.MayFail))
	for _, u := range t.MayFail {
		units = append(units, fmt.Sprintf("%q", u))
	}
	var b strings.Builder
	fmt.Fprintf(&b, trialSite, o.State(), serverAddr, bridge, o.Image, strings.Join(units, ", "))
	for i, m := range t.Machines {
		fmt.Fprintf(&b, `  - name: %[1]s
    position: bench-%[2]d
    class: image-test
    macs: [%[3]q]
    serial: %[4]s
    address: 10.77.1.%[2]d
    power: {driver: redfish, address: "https://%[5]s", user: admin, password: {secret: bmc-%[1]s}}
`, m.Name, i+1, trialMAC(i), trialSerial(i), trialBMC(i))
	}
	return b.String()
}

func trialMAC(i int) string    { return fmt.Sprintf("52:54:00:77:01:%02x", i+1) }
func trialSerial(i int) string { return fmt.Sprintf("IT24Q%05d", i+1) }
func trialBMC(i int) string    { return fmt.Sprintf("10.77.0.%d", 31+i) }

// TryUp starts a lab for a trial, with its machines off. Close must be called
// also when TryUp fails.
func TryUp(ctx context.Context, o Options, t Trial) (*Lab, error) {
	s := scene{addrs: []string{serverAddr + "/16"}, site: t.site, furnish: func(_ context.Context, l *Lab) error {
		for i, m := range t.Machines {
			if err := l.trialMachine(i, m, t); err != nil {
				return fmt.Errorf("make machine %s: %w", m.Name, err)
			}
		}
		return nil
	}}
	for i, m := range t.Machines {
		s.machines, s.addrs = append(s.machines, string(m.Name)), append(s.addrs, trialBMC(i)+"/16")
	}
	return up(ctx, o, s)
}

func (l *Lab) trialMachine(i int, m TrialMachine, t Trial) error {
	name := string(m.Name)
	mac, err := inventory.ParseMAC(trialMAC(i))
	if err != nil {
		return err
	}
	if err := blankDisk(l.Disk(m.Name), t.DiskSize); err != nil {
		return err
	}
	serial := trialSerial(i)
	hw := &vbmc.Machine{
		Name: name, Dir: filepath.Join(l.sockets, name), Serial: l.Console(m.Name), UEFI: m.UEFI, Memory: t.Memory, KVM: t.KVM,
		Boot: vbmc.BootNetwork, Start: l.space.start,
		NICs:  []vbmc.NIC{{MAC: mac, Tap: tapName(name), Model: m.NIC}},
		Disks: []vbmc.Disk{{Path: l.Disk(m.Name), Serial: "LD" + serial, NVMe: m.Disk == "nvme", SATA: m.Disk == "sata"}},
		SMBIOS: vbmc.SMBIOS{Vendor: "QEMU", Product: "image test (simulated)", Serial: serial, BoardVendor: "QEMU", BoardProduct: "q35",
			BoardSerial: "MB" + serial, ChassisSerial: "CH" + serial},
	}
	secrets, err := config.OpenSecrets(l.opts.State())
	if err != nil {
		return err
	}
	password, err := bmcPassword()
	if err != nil {
		return err
	}
	if err := secrets.Set("bmc-"+name, config.NewSecret([]byte(password))); err != nil {
		return err
	}
	ln, err := l.space.listen(trialBMC(i) + ":443")
	if err != nil {
		return err
	}
	bmc, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: ln, Password: password}, hw)
	if err != nil {
		return err
	}
	l.add(name, hw, hw.PowerOn, func() { bmc.Close() })
	return nil
}

// Disk is the file that is a machine's disk.
func (l *Lab) Disk(name inventory.NodeID) string { return l.opts.path("disks", string(name)+".raw") }

// Console is the file that a machine's serial port writes.
func (l *Lab) Console(name inventory.NodeID) string {
	return l.opts.path("log", string(name)+".serial.log")
}

// ServerLog is the file that smelt serve logs to.
func (l *Lab) ServerLog() string { return l.opts.path("log", "serve.log") }

// Client is the operator's, to the lab's server.
func (l *Lab) Client() *api.Client { return l.client }

// Unplug cuts a machine's power.
func (l *Lab) Unplug(ctx context.Context, name inventory.NodeID) error {
	for _, m := range l.machines {
		if m.name == string(name) {
			return m.hw.PowerOff(ctx)
		}
	}
	return fmt.Errorf("the lab has no machine %s", name)
}

// Follow shows the machines of want on their way, and hands each view of one to
// seen, until seen says that nothing more is awaited.
func (l *Lab) Follow(ctx context.Context, want map[inventory.NodeID]inventory.State, seen func(map[inventory.NodeID]api.NodeView) (done bool, err error)) error {
	view := newView(l.opts.Out, want)
	defer view.close()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := l.client.Nodes(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("ask the server for its nodes: %w", err)
		}
		views := map[inventory.NodeID]api.NodeView{}
		for _, v := range list.Items {
			if _, ours := want[v.Node.ID]; ours {
				views[v.Node.ID] = v
				view.show(v)
			}
		}
		if done, err := seen(views); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// StartsFrom starts a machine that has nothing but the given disk, until its
// serial port says something that found knows, and returns all it said.
func (l *Lab) StartsFrom(ctx context.Context, disk string, uefi bool, console string, found func(said string) bool) (string, error) {
	dir, err := os.MkdirTemp(l.sockets, "alone-")
	if err != nil {
		return "", err
	}
	m := &vbmc.Machine{Name: "alone", Dir: dir, Serial: console, UEFI: uefi, Boot: vbmc.BootDisk, Start: func(c *exec.Cmd) error { return l.space.start(c) },
		Disks: []vbmc.Disk{{Path: disk, Serial: "ALONE"}}}
	defer m.Close()
	if err := m.PowerOn(ctx); err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(console)
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		if found(string(b)) {
			return string(b), nil
		}
		select {
		case <-ctx.Done():
			return string(b), ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// CopyLogs copies what the lab logged into a folder.
func (l *Lab) CopyLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	logs, err := filepath.Glob(l.opts.path("log", "*.log"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		if err := copyFile(filepath.Join(dir, filepath.Base(name)), name); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
