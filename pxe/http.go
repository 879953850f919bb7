package pxe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	scriptPath = "/boot/script"
	filePath   = "/boot/file/"
)

// base is where machines of n reach boot HTTP.
func (s *Server) base(n *network) string {
	a := s.http
	if a.Addr().IsUnspecified() || n.id.Is6() {
		a = netip.AddrPortFrom(n.id, a.Port())
	}
	return base("http", a, 80)
}

// scriptURL is what iPXE is told to load. It expands the settings itself: they
// are facts that DHCP does not carry.
func (s *Server) scriptURL(n *network, m Machine) string {
	return fmt.Sprintf("%s%s?mac=%s&arch=%d&uuid=${uuid}&serial=${serial:uristring}", s.base(n), scriptPath, m.MAC, m.Arch)
}

func (s *Server) fileURL(n *network, name string) string {
	return s.base(n) + filePath + escapePath(name)
}

// loaderURL is where UEFI HTTP clients of n fetch their loader. A shim or a GRUB
// that came by TLS stays with it.
func (s *Server) loaderURL(n *network, name string) string {
	if !n.HTTPS.IsValid() {
		return s.fileURL(n, name)
	}
	return base("https", n.HTTPS, 443) + filePath + escapePath(name)
}

// base is the URL of a server, as short as it can be: some firmware takes no
// port that is the usual one.
func base(scheme string, a netip.AddrPort, usual uint16) string {
	return scheme + "://" + strings.TrimSuffix(a.String(), fmt.Sprintf(":%d", usual)) // an IPv6 address stays in brackets
}

func escapePath(name string) string { return (&url.URL{Path: name}).EscapedPath() }

// Handler serves scripts and files. It is no ServeMux, because that one
// answers an unclean path ("//grubx64.efi", which shim asks for) with a
// redirect, and firmware follows none.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "read only", http.StatusMethodNotAllowed)
		return
	}
	if n := s.networkOf(remote(r)); n != nil && n.Mode == Observe {
		http.Error(w, "this network is only observed: nobody boots from here", http.StatusForbidden)
		return
	}
	p := path.Clean("/" + strings.ReplaceAll(r.URL.Path, `\`, "/"))
	if p == scriptPath {
		s.serveScript(w, r)
		return
	}
	if p == nextPath {
		s.serveNext(w, r)
		return
	}
	if name, ok := strings.CutPrefix(p, grubPath); ok {
		s.serveGRUB(w, r, name)
		return
	}
	// A loader may ask from the root for what belongs to it: GRUB does.
	name, ok := strings.CutPrefix(p, filePath)
	if !ok {
		name = p[1:]
	}
	s.serveFile(w, r, name)
}

func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, name string) {
	client := remote(r)
	e := Event{At: time.Now(), Machine: Machine{Addr: client, Stage: AskScript}, Kind: "file " + plain(name, 64)}
	mac, known := s.holder(client, e.At)
	e.Machine.MAC = mac
	f, ok := s.lookup(s.networkFor(r, client), name)
	if !ok {
		s.recorder.stats.files.add(1, "not found")
		if known && !optional(name) {
			e.Answer, e.Why = "not found", "no such boot file"
			s.recorder.record(e)
		}
		http.Error(w, "no such boot file", http.StatusNotFound)
		return
	}
	content := f.open()
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream") // nothing here is for a browser to guess at
	defer cork(r)()
	http.ServeContent(counting{w, &s.recorder.stats.fileBytes}, r, "", f.when, content)
	s.recorder.stats.files.add(1, "sent")
	if known && f.name == LoaderLocal {
		s.trail.beyond(mac) // nothing more is heard of it
	}
	if known {
		e.Answer, e.Why = "sent", fmt.Sprintf("%s of %d bytes in %s", r.Method, f.size, time.Since(e.At).Round(time.Millisecond))
		s.recorder.record(e)
	}
}

// remote is the address of the client.
func remote(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// parseQuery reads who asks for a script. What it returns is bounded and
// printable whatever the query holds; err is set when it names no machine.
func parseQuery(q url.Values) (Machine, error) {
	m := Machine{Stage: AskScript, IPXE: true, UUID: setting(q.Get("uuid")), Serial: setting(q.Get("serial"))}
	if n, err := strconv.ParseUint(q.Get("arch"), 10, 16); err == nil {
		m.Arch = Arch(n)
	}
	mac, err := ParseMAC(q.Get("mac"))
	m.MAC = mac
	return m, err
}

// setting is the value of an iPXE setting, or nothing when iPXE did not expand it.
func setting(v string) string {
	if strings.Contains(v, "${") {
		return ""
	}
	return plain(v, 64)
}

// serveScript always answers with a script: iPXE that gets a 404 falls through
// to whatever boots next, which on a machine that is being converted can be
// the system that was just wiped.
func (s *Server) serveScript(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return // a script is made for one machine, once: not for a look
	}
	now := time.Now()
	client := remote(r)
	n := s.networkFor(r, client)
	m, err := parseQuery(r.URL.Query())
	m.Addr = client
	e := Event{At: now, Machine: m, Kind: "script"}
	again := s.base(n) + scriptPath + "?" + url.Values{
		"mac": {m.MAC.String()}, "arch": {strconv.Itoa(int(m.Arch))}, "uuid": {m.UUID}, "serial": {m.Serial},
	}.Encode()
	var b Boot
	if err != nil {
		// Say it again with what iPXE knows of itself.
		again = s.base(n) + scriptPath + "?mac=${mac}&uuid=${uuid}&serial=${serial:uristring}"
	} else {
		b, err = s.askFor(r.Context(), &m, now)
	}
	if err == nil && b.Action == Ignore {
		b = Boot{Action: Hold, Why: b.Why, Screen: b.Screen}
	}
	if err == nil {
		err = s.complete(b)
	}
	local := ""
	if s.files.Has(LoaderLocal) {
		local = LoaderLocal
	}
	uki := ""
	if l, ok := ladders[m.Arch]; ok {
		for _, r := range l.rungs {
			if r.path == UKI && s.files.Has(r.files[0]) {
				uki = r.files[0]
			}
		}
	}
	text := ""
	if err == nil {
		text, err = scriptFor(b, again, local, uki, func(name string) string { return s.fileURL(n, name) })
	}
	if err != nil {
		b = Boot{Action: Hold, Why: "not decided: " + plain(err.Error(), 200), Screen: b.Screen}
		s.log.Log(r.Context(), s.recorder.level(slog.LevelError, now), "boot: no script, the machine waits and asks again", "mac", m.MAC, "addr", client, "err", err)
		if text, err = scriptFor(b, again, "", "", nil); err != nil {
			panic(err) // a hold cannot fail
		}
	}
	e.Answer, e.Why = b.Action.String(), b.Why
	if m.MAC != (MAC{}) {
		s.recorder.record(e)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write([]byte(text))
}

// askFor puts the question of a machine that asks by HTTP. A connection shows
// whose address it comes from, and anybody can name any MAC: what is named from
// the address of another machine tells nothing of how far that MAC came.
func (s *Server) askFor(ctx context.Context, m *Machine, now time.Time) (Boot, error) {
	if !allow(s.limits.clients, m.Addr, now) {
		return Boot{}, errors.New("too many questions from its address")
	}
	holder, held := s.holder(m.Addr, now)
	m.Leased = held && holder == m.MAC
	if m.Leased || !held {
		s.trail.beyond(m.MAC)
	}
	return s.ask(ctx, *m, askScriptTime)
}

// complete reports what b needs and is not served.
func (s *Server) complete(b Boot) error {
	var names []string
	switch b.Action {
	case Kernel:
		names = append([]string{b.Kernel}, b.Initrd...)
	case Program:
		names = []string{b.BIOS, b.EFI}
	}
	for _, name := range names {
		if !s.files.Has(name) {
			return fmt.Errorf("the boot file %q is not served", name)
		}
	}
	return nil
}
