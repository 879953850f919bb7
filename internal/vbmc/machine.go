package vbmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"smelt/inventory"
)

// A Machine is a QEMU machine as a powered thing. Fill the exported fields
// before the first call and leave them alone afterwards. On means that the
// QEMU process runs: a guest that powers itself off ends it.
//
// q35 with TCG, one serial port that is logged and can be attached to, and
// everything else given by the fields. NICs and disks sit on the root bus; each
// GPU sits behind its own root port, so that the first GPU is 0000:01:00.0, the
// second 0000:02:00.0.
type Machine struct {
	Name   string // in messages and as QEMU's window name
	Dir    string // its state: firmware variables, monitor socket, pid file; made if missing
	Serial string // file that the serial port is appended to; Dir/serial.log when empty
	UEFI   bool   // OVMF, else SeaBIOS
	Memory int    // MiB; 1024 when 0
	CPUs   int    // 1 when 0
	NICs   []NIC
	Disks  []Disk
	GPUs   []GPU
	SMBIOS SMBIOS
	Boot   Boot     // what it boots from when nobody asks for anything else; disk when 0
	KVM    bool     // else emulated (TCG), which runs anywhere
	Extra  []string // appended to the arguments of QEMU

	// Start starts the process, by default (*exec.Cmd).Start. A lab starts it
	// inside a network namespace.
	Start func(*exec.Cmd) error

	port serialPort

	mu   sync.Mutex
	once Boot
	nic  int // boot index of the first NIC in the running QEMU
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// A NIC is a network card on a tap device that exists already. With an empty
// Tap it is on no network (link up, nobody there). OVMF boots from a virtio card
// only: it has a driver for no other.
type NIC struct {
	MAC   inventory.MAC
	Tap   string
	Model string // QEMU device; virtio-net-pci when empty
}

// A Disk is a raw image file.
type Disk struct {
	Path   string
	Serial string // as the guest sees it; virtio keeps 20 bytes
	NVMe   bool   // a drive of its own on PCIe
	SATA   bool   // behind the board's AHCI controller; else virtio-blk
}

// A GPU is a display device that stands for a card, behind a root port with
// the given link. QEMU 7.2 has no display device whose own link is wider than
// x1 at 2.5 GT/s: with bochs-display and virtio-gpu-pci (PCIe endpoints) the
// port trains down to that; secondary-vga is a conventional device without a
// link of its own, and its port shows full width and speed.
type GPU struct {
	Model string // QEMU device; secondary-vga when empty
	Slot  int    // physical slot number that the guest sees; 1 for the first when 0
	Speed string // of the port: 2_5, 5, 8, 16; 8 when empty
	Width int    // of the port: 1, 2, 4, 8, 16; 16 when 0
}

// SMBIOS is the identity that the firmware reports (types 1 to 3).
type SMBIOS struct {
	Vendor, Product, Serial, UUID          string // type 1
	BoardVendor, BoardProduct, BoardSerial string // type 2
	ChassisSerial                          string // type 3
}

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

func (m *Machine) String() string { return "machine " + m.Name }

func (m *Machine) serial() string {
	if m.Serial != "" {
		return m.Serial
	}
	return filepath.Join(m.Dir, "serial.log")
}

// Monitor is the path of the QMP socket.
func (m *Machine) Monitor() string { return filepath.Join(m.Dir, "qmp") }

func (m *Machine) vars() string { return filepath.Join(m.Dir, "vars.fd") }

// The boot indices. The disk stays where it is; the first NIC moves before or
// behind it. QEMU writes the order anew for the firmware at each reset.
const (
	nicBefore = 1
	diskIndex = 5
	nicBehind = 9
)

func (m *Machine) order() Boot {
	if m.Boot == BootNetwork {
		return BootNetwork
	}
	return BootDisk
}

func nicIndex(b Boot) int {
	if b == BootNetwork {
		return nicBefore
	}
	return nicBehind
}

// Args are the arguments of QEMU when m boots from b.
func (m *Machine) Args(b Boot) []string {
	memory, cpus := m.Memory, m.CPUs
	if memory == 0 {
		memory = 1024
	}
	if cpus == 0 {
		cpus = 1
	}
	a := []string{
		"-name", m.Name,
		"-nodefaults", "-no-user-config", "-display", "none",
		// graphics=off sends SeaBIOS and iPXE to the serial port.
		"-machine", "q35,smm=off,graphics=off",
		// Measured: Linux boots equally fast on every CPU model, but with AVX2
		// BLAKE3 and zstd run two to three times faster than on qemu64.
		"-accel", m.accel(), "-cpu", "max",
		"-m", strconv.Itoa(memory), "-smp", strconv.Itoa(cpus),
		"-rtc", "base=utc",
		// Native PCIe hot-plug: the guest names a slot by the number of its
		// root port. With the ACPI kind every slot is called 0.
		"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
		"-chardev", "socket,id=ser0,reconnect=1,path=" + m.serialSocket() + ",logappend=on,logfile=" + m.serial(), "-serial", "chardev:ser0",
		"-qmp", "unix:" + m.Monitor() + ",server=on,wait=off",
		"-pidfile", filepath.Join(m.Dir, "pid"),
		"-device", "virtio-rng-pci",
	}
	if m.UEFI {
		a = append(a,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,unit=1,file="+m.vars())
	}
	for i, n := range m.NICs {
		net := fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, n.Tap)
		if n.Tap == "" {
			net = fmt.Sprintf("hubport,id=net%d,hubid=%d", i, i)
		}
		model := n.Model
		if model == "" {
			model = "virtio-net-pci"
		}
		dev := fmt.Sprintf("%s,id=nic%d,netdev=net%d,mac=%s", model, i, i, n.MAC)
		if i == 0 {
			dev += fmt.Sprintf(",bootindex=%d", nicIndex(b))
		}
		if m.UEFI {
			dev += ",romfile=" // or the iPXE in the card's ROM boots instead of the firmware
		}
		a = append(a, "-netdev", net, "-device", dev)
	}
	for i, d := range m.Disks {
		dev := "virtio-blk-pci"
		switch {
		case d.NVMe:
			dev = "nvme"
		case d.SATA:
			dev = fmt.Sprintf("ide-hd,bus=ide.%d", i)
		}
		a = append(a,
			"-drive", fmt.Sprintf("if=none,id=drive%d,format=raw,cache=writeback,discard=unmap,file=%s", i, d.Path),
			"-device", fmt.Sprintf("%s,id=disk%d,drive=drive%d,serial=%s,bootindex=%d", dev, i, i, d.Serial, diskIndex+min(i, nicBehind-diskIndex-1)))
	}
	for i, g := range m.GPUs {
		model, slot, speed, width := g.Model, g.Slot, g.Speed, g.Width
		if model == "" {
			model = "secondary-vga"
		}
		if slot == 0 {
			slot = i + 1
		}
		if speed == "" {
			speed = "8"
		}
		if width == 0 {
			width = 16
		}
		port := fmt.Sprintf("pcie-root-port,id=port%d,bus=pcie.0,addr=%x.%x,chassis=%d,slot=%d,x-speed=%s,x-width=%d",
			i, 0x10+i/8, i%8, i+1, slot, speed, width)
		if i%8 == 0 {
			port += ",multifunction=on"
		}
		a = append(a, "-device", port, "-device", fmt.Sprintf("%s,id=gpu%d,bus=port%d", model, i, i))
	}
	return append(append(a, m.SMBIOS.args()...), m.Extra...)
}

func (m *Machine) accel() string {
	if m.KVM {
		return "kvm"
	}
	return "tcg,thread=multi,tb-size=512"
}

func (s SMBIOS) args() []string {
	var a []string
	add := func(typ string, pairs ...string) {
		v := "type=" + typ
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i+1] != "" {
				// A comma ends a value in QEMU's options; two are one.
				v += "," + pairs[i] + "=" + strings.ReplaceAll(pairs[i+1], ",", ",,")
			}
		}
		if v != "type="+typ {
			a = append(a, "-smbios", v)
		}
	}
	add("1", "manufacturer", s.Vendor, "product", s.Product, "serial", s.Serial, "uuid", s.UUID)
	add("2", "manufacturer", s.BoardVendor, "product", s.BoardProduct, "serial", s.BoardSerial)
	add("3", "serial", s.ChassisSerial)
	return a
}

// PowerOn starts QEMU. It returns when the monitor answers, which is before
// the firmware has done anything.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running() {
		return nil
	}
	if err := m.prepare(); err != nil {
		return fmt.Errorf("%s: power on: %w", m, err)
	}
	b := m.order()
	if m.once != 0 {
		b = m.once
	}
	if err := m.port.open(m.serialSocket()); err != nil {
		return fmt.Errorf("%s: power on: serial port: %w", m, err)
	}
	var said tail
	cmd := exec.Command("qemu-system-x86_64", m.Args(b)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	start := m.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		m.port.close()
		return fmt.Errorf("%s: power on: start QEMU: %w", m, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // how it ended does not matter: the machine is off
		m.port.close()
	}()
	m.cmd, m.done, m.nic = cmd, done, nicIndex(b)
	if err := m.monitor(ctx, done); err != nil {
		m.kill()
		return fmt.Errorf("%s: power on: %w; QEMU said: %s", m, err, said.String())
	}
	m.once = 0
	if b != m.order() {
		// The firmware of this boot has its order; the next reset, the guest's
		// own reboot included, follows the standing one.
		if err := m.setIndex(ctx, m.order()); err != nil {
			m.kill()
			return fmt.Errorf("%s: power on: %w", m, err)
		}
	}
	return nil
}

func (m *Machine) prepare() error {
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	if n := len(m.Monitor()); n > maxSocket {
		return fmt.Errorf("socket path %s has %d bytes, the system allows %d: use a shorter directory", m.Monitor(), n, maxSocket)
	}
	if !m.UEFI {
		return nil
	}
	if _, err := os.Stat(m.vars()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	src, err := os.Open(ovmfVars)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.CreateTemp(m.Dir, "vars")
	if err != nil {
		return err
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return os.Rename(dst.Name(), m.vars())
}

// maxSocket is sizeof(sockaddr_un.sun_path) less the final zero, unix(7).
const maxSocket = 107

// monitor waits until QEMU answers, up to 20 s on a busy host.
func (m *Machine) monitor(ctx context.Context, done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		_, err := qmp(ctx, m.Monitor(), qmpCommand{Execute: "query-status"})
		if err == nil {
			return nil
		}
		select {
		case <-done:
			return errors.New("QEMU ended at once")
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (m *Machine) setIndex(ctx context.Context, b Boot) error {
	index := nicIndex(b)
	if len(m.NICs) == 0 || m.nic == index { // QEMU refuses an index that is taken, by itself too
		return nil
	}
	_, err := qmp(ctx, m.Monitor(), qmpCommand{Execute: "qom-set", Arguments: map[string]any{
		"path": "/machine/peripheral/nic0", "property": "bootindex", "value": index,
	}})
	if err != nil {
		return fmt.Errorf("boot order: %w", err)
	}
	m.nic = index
	return nil
}

// PowerOff ends QEMU as a cut cable would, and waits until it is gone.
func (m *Machine) PowerOff(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kill()
	return nil
}

func (m *Machine) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill() // an error means that it has ended, which Wait sees
	<-m.done
	m.cmd = nil
}

// Reset is the reset line: QEMU stays, the guest starts again.
func (m *Machine) Reset(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running() {
		return nil
	}
	if err := m.reset(ctx); err != nil && !m.ending() {
		return fmt.Errorf("%s: reset: %w", m, err)
	}
	return nil
}

func (m *Machine) reset(ctx context.Context) error {
	b := m.order()
	if m.once != 0 {
		b = m.once
	}
	if err := m.setIndex(ctx, b); err != nil {
		return err
	}
	// The answer comes before the reset, the event after the firmware has got
	// its boot order.
	if _, err := qmp(ctx, m.Monitor(), qmpCommand{Execute: "system_reset", until: "RESET"}); err != nil {
		return err
	}
	m.once = 0
	return m.setIndex(ctx, m.order())
}

// ending tells whether QEMU is on its way out: its socket goes before the
// process does.
func (m *Machine) ending() bool {
	select {
	case <-m.done:
	case <-time.After(time.Second):
	}
	return !m.running()
}

// Shutdown presses the ACPI power button.
func (m *Machine) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running() {
		return nil
	}
	if _, err := qmp(ctx, m.Monitor(), qmpCommand{Execute: "system_powerdown"}); err != nil && !m.ending() {
		return fmt.Errorf("%s: shutdown: %w", m, err)
	}
	return nil
}

// State tells whether QEMU runs.
func (m *Machine) State(context.Context) (bool, error) { return m.Running(), nil }

// Running tells whether QEMU runs.
func (m *Machine) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running()
}

func (m *Machine) running() bool {
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.done:
		m.cmd = nil
		return false
	default:
		return true
	}
}

// Pid is the process of QEMU, 0 when m is off.
func (m *Machine) Pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running() {
		return 0
	}
	return m.cmd.Process.Pid
}

// SetBoot chooses what m boots from at its next start or reset (once), or
// from now on.
func (m *Machine) SetBoot(ctx context.Context, b Boot, once bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if once {
		m.once = b
		return nil
	}
	m.Boot, m.once = b, 0
	if !m.running() {
		return nil
	}
	if err := m.setIndex(ctx, b); err != nil && !m.ending() {
		return fmt.Errorf("%s: %w", m, err)
	}
	return nil
}

// Close cuts the power.
func (m *Machine) Close() error { return m.PowerOff(context.Background()) }

// tail keeps the last kilobyte written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - 1024; n > 0 {
		t.b = append([]byte(nil), t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := strings.TrimSpace(string(t.b)); s != "" {
		return s
	}
	return "nothing"
}

// PoliteDisk is a disk image without a system: its boot sector waits for the
// power button and then powers off, for tests of power control that need no
// kernel. SeaBIOS sets q35's ACPI registers at 0x600 (status, enable) and
// 0x604 (control).
func PoliteDisk() []byte {
	b := make([]byte, 1<<20)
	copy(b, []byte{
		0xfb,             // sti
		0xba, 0x02, 0x06, // mov dx, 0x602
		0xb8, 0x00, 0x01, // mov ax, PWRBTN_EN
		0xef,             // out dx, ax
		0xba, 0x00, 0x06, // mov dx, 0x600
		0xf4,             // hlt, until the timer ticks
		0xed,             // in ax, dx
		0xf6, 0xc4, 0x01, // test ah, PWRBTN_STS
		0x74, 0xf9, // jz hlt
		0xba, 0x04, 0x06, // mov dx, 0x604
		0xb8, 0x00, 0x20, // mov ax, SLP_EN, S5
		0xef,       // out dx, ax
		0xeb, 0xfe, // jmp itself
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}
