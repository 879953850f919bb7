package lab

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"

	"smelt/internal/vbmc"
	"smelt/inventory"
)

// machine is one QEMU machine of the lab and what switches it.
type machine struct {
	name   string
	hw     *vbmc.Machine
	plugIn func(context.Context) error // how its owner switched it on
	close  func()
}

func machineNames() []string { return []string{"srv-a", "srv-b", "rig-c"} }

// design says what each machine is. Boot order is network first, as in a hall
// whose machines wait for an installer.
func (l *Lab) design(name string) (*vbmc.Machine, error) {
	m := &vbmc.Machine{
		Name:   name,
		Dir:    filepath.Join(l.sockets, name),
		Serial: l.opts.path("log", name+".serial.log"),
		Memory: 1024,
		Boot:   vbmc.BootNetwork,
		Start:  func(c *exec.Cmd) error { return l.space.start(c) },
	}
	disk := l.opts.path("disks", name+".raw")
	var mac, serial, worker string
	var rig int
	switch name {
	case "srv-a": // a mining server: BMC, BIOS, two cards, HiveOS on its disk
		mac, serial, worker, rig = "52:54:00:77:00:0a", "SL24Q70010", "hall7-a10", 700110
		m.SMBIOS = vbmc.SMBIOS{Vendor: "Supermicro", Product: "SYS-4028GR-TR (simulated)", BoardVendor: "Supermicro", BoardProduct: "X10DRG-O+-CPU"}
		m.GPUs = []vbmc.GPU{{Slot: 1}, {Slot: 2}}
	case "srv-b": // a UEFI server behind Redfish, with an empty disk
		mac, serial = "52:54:00:77:00:0b", "SL24Q70014"
		m.UEFI = true
		m.SMBIOS = vbmc.SMBIOS{Vendor: "ASUSTeK", Product: "ESC4000 G4 (simulated)", BoardVendor: "ASUSTeK", BoardProduct: "Z11PG-D16"}
		m.GPUs = []vbmc.GPU{{Slot: 1}, {Slot: 2}}
	case "rig-c": // a rig on a desktop board: no BMC, no serials, one card in a slot with one lane
		mac, serial, worker, rig = "52:54:00:77:00:0c", "", "rig042", 700142
		m.SMBIOS = vbmc.SMBIOS{Vendor: "To Be Filled By O.E.M.", Product: "To Be Filled By O.E.M.", Serial: "To Be Filled By O.E.M.",
			BoardVendor: "MSI", BoardProduct: "Z270-A PRO (MS-7A71)", BoardSerial: "To Be Filled By O.E.M."}
		m.GPUs = []vbmc.GPU{{Slot: 1, Speed: "2_5", Width: 1}, {Slot: 2}}
	default:
		return nil, fmt.Errorf("the lab has no machine %s", name)
	}
	addr, err := inventory.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	m.NICs = []vbmc.NIC{{MAC: addr, Tap: tapName(name)}}
	m.Disks = []vbmc.Disk{{Path: disk, Serial: fmt.Sprintf("LD%X", addr[2:])}}
	if serial != "" {
		m.SMBIOS.Serial, m.SMBIOS.BoardSerial, m.SMBIOS.ChassisSerial = serial, "MB"+serial, "CH"+serial
	}
	if worker == "" {
		return m, blankDisk(disk, diskSize)
	}
	return m, miningDisk(disk, worker, rig)
}

// startMachines makes the machines, off, and what switches them.
func (l *Lab) startMachines(ctx context.Context) error {
	secret, err := l.secrets()
	if err != nil {
		return err
	}
	hw := map[string]*vbmc.Machine{}
	for _, name := range machineNames() {
		if hw[name], err = l.design(name); err != nil {
			return fmt.Errorf("make machine %s: %w", name, err)
		}
	}

	udp, err := l.space.listenPacket(ipmiAddr + ":623")
	if err != nil {
		return err
	}
	ipmi, err := vbmc.StartIPMI(ctx, vbmc.IPMIConfig{Dir: filepath.Join(l.sockets, "ipmi"), Conn: udp, Password: secret["bmc-srv-a"]}, hw["srv-a"])
	if err != nil {
		return err
	}
	l.ipmi = ipmi
	l.add("srv-a", hw["srv-a"], hw["srv-a"].PowerOn, func() { ipmi.Close() })

	tcp, err := l.space.listen(redfishAddr + ":443")
	if err != nil {
		return err
	}
	redfish, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: tcp, Password: secret["bmc-srv-b"]}, hw["srv-b"])
	if err != nil {
		return err
	}
	l.add("srv-b", hw["srv-b"], hw["srv-b"].PowerOn, func() { redfish.Close() })

	snmp, err := l.space.listenPacket(pduAddr + ":161")
	if err != nil {
		return err
	}
	pdu, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: snmp, Model: "apc-rpdu2", Community: secret["pdu-community"],
		Outlets: []vbmc.Outlet{{Name: "spare-1"}, {Name: "spare-2"}, {Name: "rig-c", Power: hw["rig-c"], Watts: 640}}})
	if err != nil {
		return err
	}
	l.add("rig-c", hw["rig-c"], func(context.Context) error { return pdu.Turn(3, true) }, func() { pdu.Close() })
	return nil
}

func (l *Lab) add(name string, hw *vbmc.Machine, plugIn func(context.Context) error, closeBMC func()) {
	l.machines = append(l.machines, &machine{name: name, hw: hw, plugIn: plugIn, close: func() {
		closeBMC()
		hw.Close()
	}})
}

// PlugIn switches every machine on, as whoever owned them did.
func (l *Lab) PlugIn(ctx context.Context) error {
	for _, m := range l.machines {
		if err := m.plugIn(ctx); err != nil {
			return fmt.Errorf("switch on %s: %w", m.name, err)
		}
	}
	return nil
}

// listenPacket opens a UDP socket on an address of the lab.
func (s *space) listenPacket(addr string) (c net.PacketConn, err error) {
	err = s.do(func() error {
		c, err = net.ListenPacket("udp4", addr)
		return err
	})
	return c, err
}
