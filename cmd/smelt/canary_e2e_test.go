package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smelt/internal/vbmc"
)

// The canaries: one value for each secret of the site, which looks like
// nothing else.
var canaries = map[string]string{
	"bmc":       "Kanar1+bmc/rot=Q7",
	"bmc-wrong": "Kanar1+falsch/W4=",
	"ipmi":      "Kanar1ipmiBlau9x",
	"pdu":       "Kanar1-gemein-5f",
	"v3-auth":   "Kanar1-auth-lang8",
	"v3-priv":   "Kanar1-priv-lang8",
	"shelly":    "Kanar1+shelly&=7",
	"tasmota":   "Kanar1+url&pass=3",
	"hass":      "Kanar1.token.eyJhbGciOi",
	"amt":       "Kanar1!Amt+9",
	"munge":     "Kanar1-munge-key-of-32-bytes-0123456789",
}

// planted is no secret: it stands where texts of people go, and shows that the
// search would find a secret there.
const planted = "Kanar1+offen/X8=y"

const canarySite = `apiVersion: smelt/v1
site: e2e
lab: true
state: STATE
listen: {boot: "10.78.0.1:80", agent: "10.78.0.1:8443", ui: "127.0.0.1:8480"}
networks:
  - {name: provisioning, interface: br0, address: 10.78.0.1/16, pool: 10.78.200.1-10.78.200.50}
classes:
  - {name: rig, image: none, target: lab, profile: lab}
pdus:
  - {name: p1, address: "PDU", model: apc-rpdu2, version: v2c, community: {secret: pdu}, names: ignore}
  - {name: p3, address: "PD3", model: apc-rpdu2, version: v3, user: smelt, auth: {secret: v3-auth}, priv: {secret: v3-priv}, names: ignore}
nodes:
  - {name: good, position: "PLANTED", class: rig, macs: ["52:54:00:78:00:11"], power: {driver: redfish, address: "https://GOOD", user: admin, password: {secret: bmc}}}
  - {name: broken, position: A1-S2, class: rig, macs: ["52:54:00:78:00:12"], power: {driver: redfish, address: "https://BROKEN", user: admin, password: {secret: bmc}}}
  - {name: wrong, position: A1-S3, class: rig, macs: ["52:54:00:78:00:13"], power: {driver: redfish, address: "https://WRONG", user: admin, password: {secret: bmc-wrong}}}
  - {name: ipmi, position: A1-S4, class: rig, macs: ["52:54:00:78:00:14"], power: {driver: ipmi, address: "IPMI", user: admin, password: {secret: ipmi}, cipherSuite: 3}}
  - {name: outlet, position: A1-S5, class: rig, macs: ["52:54:00:78:00:15"], power: {driver: pdu, outlets: [{pdu: p1, outlet: 1}]}}
  - {name: outlet3, position: A1-S6, class: rig, macs: ["52:54:00:78:00:16"], power: {driver: pdu, outlets: [{pdu: p3, outlet: 1}]}}
  - {name: shelly, position: A1-S7, class: rig, macs: ["52:54:00:78:00:17"], power: {driver: plug, kind: shelly, address: "http://SHELLY", password: {secret: shelly}}}
  - {name: tasmota, position: A1-S8, class: rig, macs: ["52:54:00:78:00:18"], power: {driver: plug, kind: tasmota, address: "http://TASMOTA", password: {secret: tasmota}}}
  - {name: hass, position: A1-S9, class: rig, macs: ["52:54:00:78:00:19"], power: {driver: plug, kind: homeassistant, address: "http://HASS", token: {secret: hass}, entity: switch.rig_01}}
  - {name: amt, position: A1-S10, class: rig, macs: ["52:54:00:78:00:1a"], power: {driver: amt, address: "https://AMT", user: admin, password: {secret: amt}}}
cluster: {kind: slurm, conf: /nonexistent/slurm.conf, server: "10.78.0.1:6817", mungeKey: {secret: munge}}
`

// TestCanaries: a secret that the server was given is in no log, no argument,
// no event, no metric, no page, no answer and no bundle, whatever happens to
// those who use it; and a wrong one is tried once, however many ask and however
// often the server starts.
func TestCanaries(t *testing.T) {
	h := newHall(t)
	words := []string{"STATE", h.path("state"), "PLANTED", planted}
	at := func(word string, addr net.Addr, close func() error, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { close() })
		words = append(words, word, addr.String())
	}
	tcp := func() net.Listener {
		return inNamespace(h, func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") })
	}
	udp := func() net.PacketConn {
		return inNamespace(h, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "127.0.0.1:0") })
	}
	bmcs := map[string]*vbmc.Redfish{}
	for _, name := range []string{"GOOD", "BROKEN", "WRONG"} {
		b, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: tcp(), Password: canaries["bmc"]}, new(vbmc.Switch))
		at(name, b.Addr(), b.Close, err)
		bmcs[name] = b
	}
	bmcs["BROKEN"].SetFaults(vbmc.RedfishFaults{Status: 500})
	short, err := os.MkdirTemp("", "ipmi") // it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	ipmi, err := vbmc.StartIPMI(t.Context(), vbmc.IPMIConfig{Dir: short, Conn: udp(), Password: canaries["ipmi"]}, new(vbmc.Switch))
	at("IPMI", ipmi.Addr(), ipmi.Close, err)
	outlets := []vbmc.Outlet{{Name: "outlet", Power: new(vbmc.Switch)}}
	pdu, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: udp(), Model: "apc-rpdu2", Community: canaries["pdu"], Outlets: outlets})
	at("PDU", pdu.Addr(), pdu.Close, err)
	pdu, err = vbmc.StartPDU(vbmc.PDUConfig{Conn: udp(), Model: "apc-rpdu2", User: "smelt", Auth: canaries["v3-auth"], Priv: canaries["v3-priv"], Outlets: []vbmc.Outlet{{Name: "outlet3", Power: new(vbmc.Switch)}}})
	at("PD3", pdu.Addr(), pdu.Close, err)
	for kind, secret := range map[string]string{"shelly": "shelly", "tasmota": "tasmota", "homeassistant": "hass"} {
		l := tcp()
		p, err := vbmc.StartPlug(vbmc.PlugConfig{Listener: l, Kind: kind, Password: canaries[secret], Power: new(vbmc.Switch), Watts: 100})
		at(strings.ToUpper(secret), l.Addr(), p.Close, err)
	}
	l := tcp()
	amt, err := vbmc.StartAMT(vbmc.AMTConfig{Listener: l, TLS: true, Password: canaries["amt"]}, new(vbmc.Switch))
	at("AMT", l.Addr(), amt.Close, err)
	h.write(h.path("site.yaml"), []byte(strings.NewReplacer(words...).Replace(canarySite)))
	for name, value := range canaries {
		h.write(h.path("value"), []byte(value))
		h.smelt("secret", "set", name, "--from-file", h.path("value"))
	}
	os.Remove(h.path("value"))

	seen := collect(t)
	try := func(args ...string) {
		out, err := exec.Command("ip", append([]string{"netns", "exec", h.ns, h.path("smelt"), "--site", h.path("site.yaml"), "--token-file", h.path("state/operator.token")}, args...)...).CombinedOutput()
		seen.add("smelt "+strings.Join(args, " "), fmt.Appendf(out, "\n%v", err))
	}
	logs := ""
	for start := range 3 { // restarts: a wrong credential is not tried again
		h.up()
		var verbs sync.WaitGroup
		for _, node := range []string{"wrong", "good", "broken", "ipmi", "outlet", "outlet3", "shelly", "tasmota", "hass", "amt"} {
			if start > 0 && node != "wrong" {
				continue
			}
			verbs.Go(func() {
				if node == "broken" { // a verb waits for its minute
					try("node", "power", node, "on", "--timeout", "10s")
					return
				}
				for _, verb := range []string{"on", "cycle", "off"} {
					try("node", "power", node, verb, "--confirm", node, "--timeout", "90s")
				}
			})
		}
		verbs.Wait()
		try("site", "stop", "--reason", planted)
		try("site", "resume")
		h.down()
		logs += h.log.text()
	}
	if n := bmcs["WRONG"].Stats(); n.FailedLogins != 1 || n.Logins != 0 {
		t.Errorf("the BMC with the wrong password saw %d failed logins, want 1 (and %d granted)", n.FailedLogins, n.Logins)
	}
	for _, b := range bmcs {
		if n := b.Stats().OpenSessions; n != 0 {
			t.Errorf("%s: %d sessions are left", b, n)
		}
	}

	for _, node := range []string{"good", "ipmi", "outlet", "outlet3", "shelly", "tasmota", "hass", "amt"} {
		if said := seen.text("smelt node power " + node + " off --confirm " + node + " --timeout 90s"); !strings.Contains(said, "confirmed") {
			t.Errorf("%s: its secret was hardly used: %s", node, said)
		}
	}

	h.up()
	for _, args := range [][]string{
		{"node", "list", "-o", "json"}, {"node", "show", "good"}, {"node", "show", "wrong", "-o", "json"}, {"power", "status", "-o", "json"},
		{"power", "budget"}, {"bmc", "list"}, {"bmc", "quirks"}, {"task", "list", "-o", "json"}, {"doctor"}, {"secret", "list"}, {"site", "validate"},
	} {
		try(args...)
	}
	h.write(h.path("header"), fmt.Appendf(nil, "Authorization: Bearer %s", strings.TrimSpace(string(h.read(h.path("state/operator.token"))))))
	for _, path := range []string{
		"/metrics", "/", "/nodes/good", "/nodes/wrong", "/nodes/ipmi", "/nodes/tasmota", "/queue", "/tasks", "/network",
		"/api/v1/site", "/api/v1/nodes", "/api/v1/nodes/good", "/api/v1/nodes/wrong", "/api/v1/tasks", "/api/v1/events?after=0", "/api/openapi.json",
	} {
		out, _ := exec.Command("ip", "netns", "exec", h.ns, "curl", "-sS", "--max-time", "3", "-H", "@"+h.path("header"), "http://127.0.0.1:8480"+path).CombinedOutput() // the stream of events ends by its time
		if len(out) == 0 {
			t.Errorf("%s is empty", path)
		}
		seen.add("GET "+path, out)
	}
	h.write(h.path("serve.log"), []byte(logs+h.log.text()))
	h.smelt("support", "bundle", "--out", h.path("bundle.tar.gz"), "--log", h.path("serve.log"))
	for name, data := range untar(t, h.read(h.path("bundle.tar.gz"))) {
		seen.add("bundle "+name, data)
	}
	h.down()
	seen.add("log", []byte(logs+h.log.text()))
	// What a backup of the state folder holds, but for the keys.
	err = filepath.WalkDir(h.path("state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		if rel, _ := filepath.Rel(h.path("state"), path); strings.HasPrefix(rel, "boot/") && strings.Contains(rel, ".cpio") {
			return nil // compressed; public bits
		}
		seen.add("state "+path, h.read(path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seen.stop()

	for name, value := range canaries {
		for _, where := range seen.find(value) {
			t.Errorf("the secret %q is in: %s", name, where)
		}
	}
	// The search finds what is there, in each of the places that texts reach.
	found := strings.Join(seen.find(planted), "\n") + "\n"
	for _, where := range []string{"GET /nodes/good\n", "GET /api/v1/nodes\n", "GET /api/v1/events", "bundle smelt-support/site.yaml\n", "bundle smelt-support/nodes/good.json\n", "argv ", "smelt node list -o json\n", "smelt.db"} {
		if !strings.Contains(found, where) {
			t.Errorf("what was planted is not found in %q: the search is blind there; found in:\n%s", where, found)
		}
	}
}

// TestCanarySearch: a leak in any disguise is found.
func TestCanarySearch(t *testing.T) {
	const v = `Kanar1+x/y=<"ä z`
	b := []byte(v)
	quoted, err := json.Marshal(map[string]string{"error": v})
	if err != nil {
		t.Fatal(err)
	}
	for name, leak := range map[string]string{
		"plain":         "login with " + v + " failed",
		"query":         "GET /cm?password=" + url.QueryEscape(v) + "&cmnd=Power",
		"path":          "/login/" + url.PathEscape(v),
		"json":          string(quoted),
		"hex":           "key " + hex.EncodeToString(b),
		"HEX":           strings.ToUpper(hex.EncodeToString(b)),
		"base64":        base64.StdEncoding.EncodeToString(b),
		"basic":         "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+v)),
		"basic, shift1": base64.URLEncoding.EncodeToString([]byte("a:" + v + " and more")),
		"basic, shift2": base64.RawStdEncoding.EncodeToString([]byte("ab:" + v + "!")),
		"spaced":        "K a n",
	} {
		s := &spoor{}
		s.add("here", []byte("much text before "+leak+" and after"))
		if got := len(s.find(v)) == 1; got != (name != "spaced") {
			t.Errorf("%s: found %v in %q", name, got, leak)
		}
	}
}

// spoor are what the site showed to anybody.
type spoor struct {
	mu   sync.Mutex
	what map[string][]byte
	stop func()
}

// collect looks at the arguments of every process, and at the environment of
// those that Smelt starts, until it is stopped.
func collect(t *testing.T) *spoor {
	ctx, cancel := context.WithCancel(t.Context())
	s := &spoor{}
	var done sync.WaitGroup
	s.stop = func() {
		cancel()
		done.Wait()
	}
	t.Cleanup(s.stop)
	done.Go(func() {
		for ctx.Err() == nil {
			s.processes()
			time.Sleep(10 * time.Millisecond)
		}
	})
	return s
}

// processes notes what /proc shows of processes. The environment of ipmitool
// is where it takes its password from, and is readable by its owner only.
func (s *spoor) processes() {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(line) == 0 {
			continue
		}
		s.add("argv "+d.Name()+" "+string(line[:min(len(line), 40)]), line)
		if strings.Contains(string(line), "smelt") && !strings.Contains(string(line), "ipmitool") {
			environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			again, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && bytes.Equal(line, again) { // else it became ipmitool meanwhile
				s.add("environ "+d.Name(), environ)
			}
		}
	}
}

func (s *spoor) add(where string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.what == nil {
		s.what = map[string][]byte{}
	}
	if !bytes.Contains(s.what[where], data) {
		s.what[where] = append(append(s.what[where], data...), '\n')
	}
}

func (s *spoor) text(where string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.what[where])
}

// find tells where value is, in any form.
func (s *spoor) find(value string) (where []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, data := range s.what {
		if _, found := redact(data, [][]byte{[]byte(value)}); found {
			where = append(where, w)
		}
	}
	slices.Sort(where)
	return where
}

// inNamespace opens a socket in the hall's network namespace: a socket stays
// where it was opened.
func inNamespace[S any](h *hall, open func() (S, error)) S {
	h.t.Helper()
	type opened struct {
		s   S
		err error
	}
	out := make(chan opened)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var o opened
		ns, err := os.Open("/run/netns/" + h.ns)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if o.err = err; err == nil {
			o.s, o.err = open()
		}
		out <- o
	}()
	o := <-out
	if o.err != nil {
		h.t.Fatal(o.err)
	}
	return o.s
}

// untar is what is in a bundle.
func untar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
