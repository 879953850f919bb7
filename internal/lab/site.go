package lab

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"smelt/internal/config"
)

// siteText is the lab's site.yaml. The cards are named here because QEMU has
// none: standsFor says which card an emulated PCI device stands for, and
// everything derived from that is labelled simulated. What is real is the PCIe
// slot behind each device: the first slot of rig-c has one lane.
const siteText = `# Written by smelt lab; changed at each start.
apiVersion: smelt/v1
site: lab
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

circuits:
  - {name: feed-a, kind: feed, volts: 230, amps: 32, phases: 1, derate: 0.8}
  - {name: pdu-1, kind: pdu, parent: feed-a, volts: 230, amps: 16, phases: 1, derate: 0.8}

pdus:
  - {name: pdu-1, address: "%[4]s:161", model: apc-rpdu2, version: v2c, community: {secret: pdu-community}}

classes:
  - name: mining-server-2x3090
    gpus: {count: 2, model: "RTX 3090", minLinkWidth: 8}
    target: lab
    image: %[5]s
    profile: lab
    wipe: discard
    watts: 900
    slots: {"0000:01:00.0": "slot 1", "0000:02:00.0": "slot 2"}
  - name: rig-2x3080
    gpus: {count: 2, model: "RTX 3080", minLinkWidth: 4}
    target: lab
    image: %[5]s
    profile: lab
    wipe: discard
    watts: 900
    slots: {"0000:01:00.0": "riser 1", "0000:02:00.0": "riser 2"}

nodes:
  - name: srv-a
    position: A1-U10
    class: mining-server-2x3090
    macs: ["52:54:00:77:00:0a"]
    address: 10.77.1.1
    serial: SL24Q70010
    circuit: pdu-1
    power: {driver: ipmi, address: "%[6]s:623", user: admin, password: {secret: bmc-srv-a}, cipherSuite: 3}
  - name: srv-b
    position: A1-U14
    class: mining-server-2x3090
    macs: ["52:54:00:77:00:0b"]
    address: 10.77.1.2
    serial: SL24Q70014
    circuit: pdu-1
    power: {driver: redfish, address: "https://%[7]s", user: admin, password: {secret: bmc-srv-b}}
  - name: rig-c
    position: A3-S2
    class: rig-2x3080
    macs: ["52:54:00:77:00:0c"]
    address: 10.77.1.3
    circuit: pdu-1
    power: {driver: pdu, outlets: [{pdu: pdu-1, outlet: 3}]}

standsFor:
  - {node: srv-a, pci: "0000:01:00.0", model: "RTX 3090", vram: 24GiB}
  - {node: srv-a, pci: "0000:02:00.0", model: "RTX 3090", vram: 24GiB}
  - {node: srv-b, pci: "0000:01:00.0", model: "RTX 3090", vram: 24GiB}
  - {node: srv-b, pci: "0000:02:00.0", model: "RTX 3090", vram: 24GiB}
  - {node: rig-c, pci: "0000:01:00.0", model: "RTX 3080", vram: 10GiB}
  - {node: rig-c, pci: "0000:02:00.0", model: "RTX 3080", vram: 10GiB}

cluster:
  kind: slurm
  conf: %[8]s
  server: %[2]s:6817
  mungeKey: {secret: munge-key}

limits:
  maxActive: 3
  startWindow: 1s
`

// siteYAML fills in the folder and the addresses.
func siteYAML(o Options) string {
	return fmt.Sprintf(siteText, o.State(), serverAddr, bridge, pduAddr, o.Image, ipmiAddr, redfishAddr,
		filepath.Join(o.SlurmDir(), "slurm.conf"))
}

// bmcPassword makes a password that every BMC takes: IPMI has 20 bytes at most.
func bmcPassword() (string, error) {
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

// secrets stores what site.yaml only names, as an operator would with smelt
// secret set, and returns the passwords for the virtual BMCs.
func (l *Lab) secrets() (map[string]string, error) {
	store, err := config.OpenSecrets(l.opts.State())
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range []string{"bmc-srv-a", "bmc-srv-b", "pdu-community"} {
		if out[name], err = bmcPassword(); err != nil {
			return nil, err
		}
		if err := store.Set(name, config.NewSecret([]byte(out[name]))); err != nil {
			return nil, err
		}
	}
	key, err := os.ReadFile(filepath.Join(l.opts.SlurmDir(), "munge.key"))
	if err != nil {
		return nil, err
	}
	return out, store.Set("munge-key", config.NewSecret(key))
}
