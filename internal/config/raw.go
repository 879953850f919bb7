package config

import (
	"fmt"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"
)

// The raw structs mirror the file. Their tags are the one table of keys: the
// decoder obeys it, and the JSON Schema is printed from it.
//
//	yaml    the key
//	need    yes: the key must stand there
//	doc     one line for the schema and for "is missing"
//	enum    the words allowed, separated by spaces
//	format  duration, size, or what Parse makes of a text

type rawSite struct {
	at
	APIVersion text         `yaml:"apiVersion" need:"yes" enum:"smelt/v1" doc:"version of this file's format"`
	Site       text         `yaml:"site" need:"yes" doc:"name of the site"`
	State      text         `yaml:"state" need:"yes" doc:"folder of the database, keys, secrets, images and boot files"`
	Store      rawStore     `yaml:"store" doc:"sqlite (default) or {postgres: {dsn: {secret: NAME}}}"`
	Listen     rawListen    `yaml:"listen" need:"yes" doc:"addresses that the server listens on"`
	Images     *rawImages   `yaml:"images" doc:"released images; without it the site builds and signs its own"`
	Networks   []rawNetwork `yaml:"networks" need:"yes" doc:"networks that machines boot on"`
	Circuits   []rawCircuit `yaml:"circuits" doc:"the power tree; nothing is granted above volts x amps x derate"`
	PDUs       []rawPDU     `yaml:"pdus" doc:"switched power distribution units"`
	Classes    []rawClass   `yaml:"classes" need:"yes" doc:"what is expected of groups of nodes"`
	Nodes      []rawNode    `yaml:"nodes" doc:"the machines that are expected"`
	Cluster    *rawCluster  `yaml:"cluster" doc:"the cluster that validated nodes join; none without it"`
	Rescue     rawRescue    `yaml:"rescue" doc:"who may log in to a machine that was asked for a rescue"`
	Limits     rawLimits    `yaml:"limits" doc:"blast radius and pace"`
	Curtail    []rawCurtail `yaml:"curtail" doc:"weekly times in which power is given back"`
	Swarm      rawSwarm     `yaml:"swarm" doc:"how images spread within the site"`
	Lab        flag         `yaml:"lab" doc:"a lab site may show simulated cards, labelled so"`
	StandsFor  []rawStandIn `yaml:"standsFor" doc:"lab only: which card an emulated device stands for"`
}

type rawListen struct {
	at
	Boot    text `yaml:"boot" need:"yes" format:"addrport" doc:"plain HTTP for boot files and images: ADDRESS:PORT, as machines are told it"`
	BootTLS text `yaml:"bootTLS" format:"addrport" doc:"HTTPS for the loaders of UEFI firmware: ADDRESS:PORT, as machines are told it; for networks with https: true"`
	Agent   text `yaml:"agent" need:"yes" format:"addrport" doc:"HTTPS for agents: ADDRESS:PORT, as machines are told it"`
	Public  text `yaml:"public" format:"url" doc:"URL by which people reach the pages, for example https://smelt.hall.example: screens of machines show it as a QR code"`
	UI      text `yaml:"ui" need:"yes" format:"listen" doc:"API and pages for people: HOST:PORT, fd:N or systemd"`
}

type rawImages struct {
	at
	Remote   text      `yaml:"remote" need:"yes" doc:"where images are published: a folder, https://, s3://HOST/BUCKET/PREFIX, oci://HOST/REPOSITORY"`
	Root     text      `yaml:"root" need:"yes" doc:"file of the root that trust begins with: smelt image publish --root FILE"`
	Channel  text      `yaml:"channel" enum:"canary stable" doc:"which image a plain name stands for; stable (default)"`
	Every    text      `yaml:"every" format:"duration" doc:"how often to look for news; 15m (default)"`
	User     text      `yaml:"user" doc:"S3 access key, or user of the registry"`
	Password secretRef `yaml:"password" doc:"S3 secret key, or password of the registry"`
}

type rawNetwork struct {
	at
	Name      text    `yaml:"name" need:"yes" doc:"name of the network"`
	Mode      text    `yaml:"mode" enum:"authoritative proxy relay observe" doc:"authoritative (default): we give the addresses; proxy: the hall's DHCP server does, we add what to boot; relay: a subnet behind relay agents; observe: nobody is answered, who asks is listed"`
	Interface text    `yaml:"interface" need:"yes" doc:"network interface of this server; relay: where its relay agents reach us, may be shared"`
	Address   text    `yaml:"address" need:"yes" format:"prefix" doc:"our address on it with prefix length, for example 10.20.0.1/16"`
	Subnet    text    `yaml:"subnet" format:"prefix" doc:"relay, and proxy behind relays: addresses of the machines, for example 10.21.0.0/16"`
	Relays    []text  `yaml:"relays" format:"address" doc:"relay agents (giaddr) that are answered"`
	Servers   []text  `yaml:"dhcpServers" format:"address" doc:"the hall's own DHCP servers: no rivals"`
	Pool      text    `yaml:"pool" format:"range" doc:"FIRST-LAST address for machines without a fixed one"`
	Router    text    `yaml:"router" format:"address" doc:"default gateway given to machines"`
	DNS       []text  `yaml:"dns" format:"address" doc:"name servers given to machines"`
	RA        flag    `yaml:"routerAdvertisement" doc:"answer IPv6 router solicitations with an empty one: iPXE starts sooner"`
	HTTPS     flag    `yaml:"https" doc:"UEFI HTTP clients fetch their loader by HTTPS; their firmware must know the site's boot CA: smelt secureboot export"`
	IPv6      text    `yaml:"ipv6" format:"prefix6" doc:"authoritative: our IPv6 address on it, for example fd00:10:20::1/64; makes firmware boot over IPv6 too, which is off without it (docs/decisions/0010-ipv6.md)"`
	Allow     rawRule `yaml:"allow" doc:"when given, only these machines are answered"`
	Deny      rawRule `yaml:"deny" doc:"these machines are not answered, whatever allow says"`
}

type rawRule struct {
	at
	MACs    []text `yaml:"macs" format:"mac" doc:"hardware addresses"`
	OUIs    []text `yaml:"ouis" format:"oui" doc:"first half of hardware addresses: the maker of the card"`
	Vendors []text `yaml:"vendorClasses" doc:"what the client calls itself (DHCP option 60); * stands for any text"`
	Classes []text `yaml:"classes" doc:"classes of nodes: the hardware addresses of their nodes"`
}

type rawCircuit struct {
	at
	Name    text   `yaml:"name" need:"yes" doc:"name of the circuit"`
	Kind    text   `yaml:"kind" need:"yes" enum:"feed panel pdu bank outlet" doc:"level of the power tree"`
	Parent  text   `yaml:"parent" doc:"name of the circuit that feeds it"`
	Volts   number `yaml:"volts" need:"yes" doc:"line voltage; line to line on three phases"`
	Amps    number `yaml:"amps" need:"yes" doc:"breaker rating"`
	Phases  whole  `yaml:"phases" enum:"1 3" doc:"1 (default) or 3"`
	Derate  number `yaml:"derate" doc:"share of the rating for continuous load; 0.8 (default)"`
	Lines   text   `yaml:"lines" enum:"L1 L2 L3 L1-L2 L2-L3 L3-L1" doc:"below three phases: the line it is on, or the two it is between; left out, it counts in full on all three"`
	Reserve number `yaml:"reserve" doc:"watts drawn there by what is no node: switches, fans, lights; on three phases those of the line with most of it"`
}

type rawPDU struct {
	at
	Name      text      `yaml:"name" need:"yes" doc:"name of the PDU"`
	Address   text      `yaml:"address" need:"yes" format:"hostport" doc:"HOST:PORT of its SNMP agent; port 161 when left out"`
	Model     text      `yaml:"model" doc:"PDU model: which OIDs it understands; what it says itself when left out"`
	Version   text      `yaml:"version" enum:"v1 v2c v3" doc:"SNMP version; v2c (default)"`
	Community secretRef `yaml:"community" doc:"v1 and v2c: the write community"`
	User      text      `yaml:"user" doc:"v3: user name"`
	Auth      secretRef `yaml:"auth" doc:"v3: authentication passphrase (SHA-256)"`
	Priv      secretRef `yaml:"priv" doc:"v3: privacy passphrase (AES)"`
	Names     text      `yaml:"names" enum:"check ignore" doc:"check (default): an outlet that people named on the PDU is switched only when its name has the node's name or position in it; ignore: names are not looked at"`
}

type rawClass struct {
	at
	Name    text            `yaml:"name" need:"yes" doc:"name of the class"`
	GPUs    rawGPUs         `yaml:"gpus" doc:"the cards that are expected"`
	Target  text            `yaml:"target" need:"yes" doc:"floors that triage holds a node against"`
	Image   text            `yaml:"image" need:"yes" doc:"name or digest of an image in the store"`
	Profile text            `yaml:"profile" need:"yes" doc:"burn-in profile"`
	Wipe    text            `yaml:"wipe" enum:"metadata discard overwrite secure purge" doc:"how thoroughly disks are erased: metadata, discard (default), overwrite, secure (by the drive itself), purge (by the drive, as NIST SP 800-88r1 has it); a drive that cannot is a failure"`
	Disk    rawDisk         `yaml:"disk" doc:"which disk the image goes to, when an approval names none"`
	Read    text            `yaml:"readBack" enum:"sample all" doc:"what is read again of a disk after the image was written: both ends and a sample (default), or all of it, which takes as long as reading the disk"`
	Watts   number          `yaml:"watts" doc:"nameplate power of one node, reserved before a start"`
	Slots   map[string]text `yaml:"slots" doc:"PCI address of a port or card: label a technician can find"`
	MayFail []text          `yaml:"mayFail" doc:"systemd units of the image whose failure burn-in accepts"`
	Boot    text            `yaml:"boot" enum:"uki shim ipxe" doc:"uki: signed with the site's Secure Boot key; shim: vendors' keys, by Debian's shim and GRUB; ipxe: no Secure Boot; whatever the firmware takes (default)"`
	Root    text            `yaml:"root" enum:"disk ram" doc:"disk (default): the image is written to a disk; ram: it runs from memory, is loaded at each start, and no disk is touched"`
	Start   text            `yaml:"start" enum:"restart kexec" doc:"restart (default): the installed system is started through the firmware; kexec: straight from the installer, and through the firmware once before it joins"`
	Approve text            `yaml:"approve" enum:"operator rule" doc:"operator (default), or rule: nodes whose verdict is convert are approved without a person"`
}

type rawDisk struct {
	at
	Bus   text `yaml:"bus" enum:"nvme sata sas scsi virtio mmc usb" doc:"how it is connected; usb only when this says so"`
	Model text `yaml:"model" doc:"part of the model's name"`
	Pick  text `yaml:"pick" enum:"largest smallest" doc:"of several, the largest (default), or the smallest that holds the image"`
}

type rawGPUs struct {
	at
	Count        whole `yaml:"count" need:"yes" doc:"number of cards"`
	Model        text  `yaml:"model" doc:"part of the model's name, for example RTX 3090"`
	MinLinkWidth whole `yaml:"minLinkWidth" enum:"1 2 4 8 16" doc:"PCIe lanes each card must have"`
}

type rawNode struct {
	at
	Name     text     `yaml:"name" need:"yes" doc:"name of the node: a host name label"`
	Position text     `yaml:"position" need:"yes" doc:"place in the site, for example A3-S2"`
	Class    text     `yaml:"class" need:"yes" doc:"name of a class"`
	MACs     []text   `yaml:"macs" format:"mac" doc:"hardware addresses of its network cards"`
	BMCMAC   text     `yaml:"bmcMAC" format:"mac" doc:"hardware address of its BMC"`
	Serial   text     `yaml:"serial" doc:"serial number of board or chassis"`
	Address  text     `yaml:"address" format:"address" doc:"fixed address"`
	Circuit  text     `yaml:"circuit" doc:"name of the circuit it hangs on"`
	Watts    number   `yaml:"watts" doc:"nameplate power, when it differs from its class"`
	Protect  flag     `yaml:"protect" doc:"true: it is never wiped, whatever anybody approves"`
	Image    text     `yaml:"image" doc:"image, when it differs from its class"`
	Profile  text     `yaml:"profile" doc:"burn-in profile, when it differs from its class"`
	Target   text     `yaml:"target" doc:"triage target, when it differs from its class"`
	Root     text     `yaml:"root" enum:"disk ram" doc:"where its system runs from, when it differs from its class"`
	Power    rawChain `yaml:"power" doc:"how it is switched, or a list of ways, tried in this order; a person does it when left out"`
}

type rawPower struct {
	at
	Driver      text        `yaml:"driver" need:"yes" enum:"redfish ipmi pdu wol plug amt inband manual" doc:"how the machine is switched: by its BMC (redfish, ipmi), by Intel AMT, at its outlets (pdu, plug), woken by a magic packet (wol), by the agent on it (inband: it shuts down, and nothing more), or by a person (manual)"`
	Kind        text        `yaml:"kind" enum:"shelly tasmota homeassistant" doc:"plug: what it is; shelly is Gen2 or newer"`
	Address     text        `yaml:"address" doc:"redfish: https://HOST; ipmi: HOST or HOST:PORT; amt: HOST or https://HOST; plug: http://HOST, of Home Assistant its URL"`
	User        text        `yaml:"user" doc:"redfish, ipmi, amt: account; plug of kind tasmota: admin (default)"`
	Password    secretRef   `yaml:"password" doc:"redfish, ipmi, amt, plug: its password; wol: SecureOn password, six bytes as 00:11:22:33:44:55"`
	Token       secretRef   `yaml:"token" doc:"plug of kind homeassistant: a long-lived access token"`
	CipherSuite whole       `yaml:"cipherSuite" enum:"3 17" doc:"ipmi: 17 (default), or 3 for a BMC that knows no better"`
	Pin         text        `yaml:"pin" doc:"redfish, amt: SHA-256 of its public key, base64 (RFC 7469); the key of the first connection when left out"`
	System      text        `yaml:"system" doc:"redfish: id of the system, where a BMC has several"`
	Outlets     []rawOutlet `yaml:"outlets" doc:"pdu: every outlet that feeds the machine"`
	Channel     whole       `yaml:"channel" doc:"plug: shelly: id of its switch, from 0 (default); tasmota: number of its relay, from 1 (default)"`
	Entity      text        `yaml:"entity" doc:"plug of kind homeassistant: the switch, for example switch.rig_01"`
	Meter       text        `yaml:"meter" doc:"plug of kind homeassistant: the sensor of its watts, for example sensor.rig_01_power"`
	Network     text        `yaml:"network" doc:"wol: name of the network that the packet is sent on; the one of its address when left out"`
}

// rawChain is one way to switch a machine, or a list of them.
type rawChain struct {
	at
	links []rawPower
}

func (c *rawChain) decode(d *decoder, n *yaml.Node, path string) {
	c.at = place(n, path)
	if n.Kind != yaml.SequenceNode {
		c.links = make([]rawPower, 1)
		d.value(n, reflect.ValueOf(&c.links[0]).Elem(), path)
		return
	}
	if len(n.Content) == 0 {
		d.fail(c.at, "leave power out where a person switches the machine", "the list is empty")
	}
	d.value(n, reflect.ValueOf(&c.links).Elem(), path)
}

type rawOutlet struct {
	at
	PDU    text  `yaml:"pdu" need:"yes" doc:"name of a PDU"`
	Outlet whole `yaml:"outlet" need:"yes" doc:"number of the outlet, from 1; on PDUs with levels, two digits for the outlet and two for each level before it that is not the first: 203 is outlet 3 of the second"`
}

type rawCluster struct {
	at
	Kind     text      `yaml:"kind" need:"yes" enum:"slurm" doc:"kind of cluster"`
	Name     text      `yaml:"name" doc:"name of the cluster; its kind (default)"`
	Conf     text      `yaml:"conf" need:"yes" doc:"slurm: slurm.conf of the controller; scontrol runs here"`
	Server   text      `yaml:"server" need:"yes" format:"hostport" doc:"slurm: HOST:PORT where slurmd finds the controller"`
	MungeKey secretRef `yaml:"mungeKey" need:"yes" doc:"slurm: the munge key"`
}

type rawRescue struct {
	at
	Keys []text `yaml:"keys" need:"yes" format:"sshkey" doc:"public ssh keys, as in authorized_keys: ssh-ed25519 AAAA... anna"`
}

type rawLimits struct {
	at
	MaxActive   whole `yaml:"maxActive" doc:"conversions at once: the blast radius; 10 (default)"`
	StartWindow text  `yaml:"startWindow" format:"duration" doc:"one machine starts on a circuit in this time; 2s (default)"`
	PanelWindow text  `yaml:"panelWindow" format:"duration" doc:"after a blackout, one machine starts on a panel in this time; 10s (default)"`
	MeterStale  text  `yaml:"meterStale" format:"duration" doc:"a power reading older than this is missing, and what is missing counts as reserved; 60s (default)"`
	BootWait    text  `yaml:"bootWait" format:"duration" doc:"a machine that was started to boot from the network and does not ask within this time did something else; 15m (default): servers test themselves for long"`
}

type rawStandIn struct {
	at
	Node  text `yaml:"node" need:"yes" doc:"name of the node"`
	PCI   text `yaml:"pci" need:"yes" format:"pci" doc:"PCI address of the emulated device"`
	Model text `yaml:"model" need:"yes" doc:"model of the card it stands for"`
	UUID  text `yaml:"uuid" doc:"UUID shown for it; made from node and address when left out"`
	VRAM  text `yaml:"vram" need:"yes" format:"size" doc:"memory of the card, for example 24GiB"`
	Fault text `yaml:"fault" enum:"lost vram hot" doc:"what is wrong with it"`
}

// rawStore is a word or one key: sqlite, or {postgres: {dsn: {secret: NAME}}}.
type rawStore struct {
	at
	kind string
	dsn  secretRef
}

func (s *rawStore) decode(d *decoder, n *yaml.Node, path string) {
	s.at = place(n, path)
	if n.Kind == yaml.ScalarNode {
		if s.kind = n.Value; n.Value != "sqlite" {
			// A connection string in clear may hold a password: it is not repeated.
			d.fail(s.at, "write sqlite, or {postgres: {dsn: {secret: NAME}}}", "unknown store")
		}
		return
	}
	var r struct {
		at
		Postgres struct {
			at
			DSN secretRef `yaml:"dsn" need:"yes" doc:"{secret: NAME} of the connection string"`
		} `yaml:"postgres" need:"yes" doc:"{dsn: {secret: NAME}}"`
	}
	d.object(n, reflect.ValueOf(&r).Elem(), path)
	s.kind, s.dsn = "postgres", r.Postgres.DSN
}

func (*text) schema() map[string]any   { return map[string]any{"type": "string", "minLength": 1} }
func (*number) schema() map[string]any { return map[string]any{"type": "number"} }
func (*whole) schema() map[string]any  { return map[string]any{"type": "integer"} }
func (*flag) schema() map[string]any   { return map[string]any{"type": "boolean"} }

func (*secretRef) schema() map[string]any {
	return map[string]any{
		"type": "object", "additionalProperties": false, "required": []string{"secret"},
		"properties": map[string]any{"secret": map[string]any{"type": "string", "pattern": secretName.String(), "description": "name of a stored secret: smelt secret set NAME"}},
	}
}

func (*rawStore) schema() map[string]any {
	dsn := map[string]any{
		"type": "object", "additionalProperties": false, "required": []string{"dsn"},
		"properties": map[string]any{"dsn": (*secretRef)(nil).schema()},
	}
	return map[string]any{"oneOf": []any{
		map[string]any{"const": "sqlite"},
		map[string]any{"type": "object", "additionalProperties": false, "required": []string{"postgres"}, "properties": map[string]any{"postgres": dsn}},
	}}
}

func (*rawChain) schema() map[string]any {
	one := schemaOf(reflect.TypeFor[rawPower](), "")
	return map[string]any{"oneOf": []any{one, map[string]any{"type": "array", "minItems": 1, "items": one}}}
}

// patterns are what a schema can say of the formats; Parse checks the rest.
var patterns = map[string]string{
	"duration": `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`,
	"clock":    `^([01][0-9]|2[0-3]):[0-5][0-9]$`,
	"size":     `^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$`,
	"mac":      `^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$`,
	"oui":      `^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){2}$`,
	"pci":      `^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`,
	"prefix":   `^[0-9.]+/[0-9]+$`,
	"prefix6":  `^[0-9A-Fa-f:]+/64$`,
	"range":    `^[0-9.]+ ?- ?[0-9.]+$`,
	"address":  `^[0-9.]+$`,
	"hostport": `^[^ ]+$`,
	"addrport": `^[0-9.]+:[0-9]+$`,
	"url":      `^https?://[^ ?#@]+$`,
	"sshkey":   `^(ssh|ecdsa|sk)-[^ ]+ [A-Za-z0-9+/=]+( .*)?$`,
	"listen":   `^(.*:[0-9]+|fd:[0-9]+|systemd)$`,
}

// Schema is the JSON Schema (2020-12) of a site file, for editors.
func Schema() map[string]any {
	s := schemaOf(reflect.TypeFor[rawSite](), "")
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "Smelt site"
	return s
}

func schemaOf(t reflect.Type, tag reflect.StructTag) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if l, ok := reflect.New(t).Interface().(leaf); ok {
		s := l.schema()
		if e := tag.Get("enum"); e != "" {
			var words []any
			for w := range strings.FieldsSeq(e) {
				if s["type"] == "integer" {
					var n int
					fmt.Sscan(w, &n)
					words = append(words, n)
					continue
				}
				words = append(words, w)
			}
			s["enum"] = words
		}
		if p := patterns[tag.Get("format")]; p != "" {
			s["pattern"] = p
		}
		return s
	}
	switch t.Kind() {
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), tag)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), "")}
	}
	props, need := map[string]any{}, []string{}
	for f := range t.Fields() {
		k := f.Tag.Get("yaml")
		if k == "" {
			continue
		}
		p := schemaOf(f.Type, f.Tag)
		p["description"] = f.Tag.Get("doc")
		props[k] = p
		if f.Tag.Get("need") == "yes" {
			need = append(need, k)
		}
	}
	s := map[string]any{"type": "object", "additionalProperties": false, "properties": props}
	if len(need) > 0 {
		s["required"] = need
	}
	return s
}
