package pxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func get(t testing.TB, s *Server, method, target string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, "http://10.77.0.1/", nil)
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	r.URL, r.RemoteAddr = u, "10.77.0.11:1234"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Result()
}

func body(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFileHTTP(t *testing.T) {
	s := testServer(t, tableBooter{})
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789"), 1000)
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.files.AddFile("Dir/Big.img", filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	// What is served is what was registered, whatever becomes of the name.
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path string
		header       []string
		status       int
		length       string
		body         string
	}{
		{"GET", "/boot/file/vmlinuz", nil, 200, "18", "content of vmlinuz"},
		{"HEAD", "/boot/file/vmlinuz", nil, 200, "18", ""},
		{"GET", "/boot//file//VMLINUZ", nil, 200, "18", "content of vmlinuz"},
		{"GET", "//boot/x/../file/vmlinuz", nil, 200, "18", "content of vmlinuz"},
		{"GET", "/boot/file/dir/big.img", nil, 200, "10000", string(big)},
		{"HEAD", "/boot/file/dir/big.img", nil, 200, "10000", ""},
		{"GET", "/boot/file/dir/big.img", []string{"Range", "bytes=5-9"}, 206, "5", "56789"},
		{"GET", "/boot/file/dir/big.img", []string{"Range", "bytes=10000-"}, 416, "", ""},
		{"GET", "/boot/file/nothing", nil, 404, "", ""},
		{"GET", "/boot/file/", nil, 404, "", ""},
		{"GET", "/boot/file/../../etc/passwd", nil, 404, "", ""},
		{"GET", "/boot/file/%2e%2e/%2e%2e/etc/passwd", nil, 404, "", ""},
		{"GET", "/", nil, 404, "", ""},
		{"POST", "/boot/file/vmlinuz", nil, 405, "", ""},
		{"PUT", "/boot/script?mac=52:54:00:00:00:01", nil, 405, "", ""},
	} {
		r := get(t, s, c.method, c.path, c.header...)
		if r.StatusCode != c.status || c.length != "" && r.Header.Get("Content-Length") != c.length {
			t.Errorf("%s %s: %d with length %q, want %d with %q", c.method, c.path, r.StatusCode, r.Header.Get("Content-Length"), c.status, c.length)
		}
		if got := body(t, r); c.status < 300 && got != c.body {
			t.Errorf("%s %s: got %d bytes %.40q", c.method, c.path, len(got), got)
		}
	}
}

func TestScriptHTTP(t *testing.T) {
	answers := map[MAC]Boot{
		known:                       {Action: Kernel, Kernel: "vmlinuz", Initrd: []string{"initrd"}, Args: []string{"a=1"}, Why: "go"},
		unknown:                     {Action: Local, Why: "in service"},
		other:                       {Action: Kernel, Kernel: "not-there", Why: "go"},
		{0x52, 0x54, 0, 0, 0, 0xcc}: {Action: Program, BIOS: "vmlinuz", EFI: "initrd", Why: "a test"},
		{0x52, 0x54, 0, 0, 0, 0xcd}: {Action: Program, BIOS: "vmlinuz", EFI: "not-there", Why: "a test"},
	}
	var asked []Machine
	s := testServer(t, booterFunc(func(_ context.Context, m Machine) (Boot, error) {
		asked = append(asked, m)
		if b, ok := answers[m.MAC]; ok {
			return b, nil
		}
		if m.MAC[5] == 0xee {
			return Boot{Action: Ignore, Why: "rejected"}, nil
		}
		if m.MAC[5] == 0xdd {
			return Boot{}, nil // no action at all
		}
		return Boot{}, errors.New("the store\nis away || reboot")
	}))
	for _, c := range []struct {
		query string
		want  []string
		not   string
	}{
		{"mac=52:54:00:00:00:01&uuid=abc&serial=S%201&arch=7", []string{
			"kernel --name linux http://10.77.0.1/boot/file/vmlinuz a=1 initrd=initrd0 || goto retry\n",
			"initrd --name initrd0 http://10.77.0.1/boot/file/initrd || goto retry\n", "\nboot || goto retry\n",
			"\nchain --replace --autofree http://10.77.0.1/boot/script?arch=7&mac=52%3A54%3A00%3A00%3A00%3A01&serial=S+1&uuid=abc || goto retry\n",
		}, "sanboot"},
		{"mac=52:54:00:00:00:99", []string{"sanboot --no-describe --drive 0x80 || exit 1\n", "iseq ${platform} efi && goto efi ||\n", "\n:efi\nexit 1\n"}, "kernel"},
		{"mac=52:54:00:00:00:98", []string{`hold: not decided: the boot file "not-there" is not served`, "sleep 10"}, "kernel --name"},
		{"mac=52:54:00:00:00:cc", []string{"program: a test", "kernel --name program http://10.77.0.1/boot/file/vmlinuz || goto retry\n"}, "not decided"},
		{"mac=52:54:00:00:00:cd", []string{`hold: not decided: the boot file "not-there" is not served`}, "kernel --name"},
		{"mac=52:54:00:00:00:ee", []string{"hold: rejected", "sleep 10"}, "kernel"},
		{"mac=52:54:00:00:00:dd", []string{"hold: not decided: the decision was action(0)"}, "kernel"},
		{"mac=52:54:00:00:00:aa&serial=${serial}", []string{"hold: not decided: the store is away _ reboot", "serial=&uuid="}, "|| reboot"},
		{"mac=junk", []string{"hold: not decided: MAC address", "chain --replace --autofree http://10.77.0.1/boot/script?mac=${mac}&uuid="}, "kernel"},
		{"", []string{"hold: not decided: MAC address"}, "kernel"},
		{"mac=52:54:00:00:00:01;x=%zz", []string{"hold: "}, "kernel"},
	} {
		r := get(t, s, "GET", "/boot/script?"+c.query)
		text := body(t, r)
		if r.StatusCode != 200 || !strings.HasPrefix(text, "#!ipxe\n") || r.Header.Get("Content-Length") != fmt.Sprint(len(text)) {
			t.Errorf("%s: %d %q", c.query, r.StatusCode, text)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", c.query, want, text)
			}
		}
		if strings.Contains(text, c.not) {
			t.Errorf("%s: %q in\n%s", c.query, c.not, text)
		}
	}
	before := len(asked)
	if r := get(t, s, "HEAD", "/boot/script?mac=52:54:00:00:00:01"); r.StatusCode != 200 || len(asked) != before {
		t.Errorf("HEAD: %d, and the Booter was asked %d times: a look must make no nonce", r.StatusCode, len(asked)-before)
	}
	m := asked[0]
	if m.MAC != known || m.Serial != "S 1" || m.UUID != "abc" || m.Arch != UEFIx64 || !m.IPXE || m.Stage != AskScript || m.Addr != netip.MustParseAddr("10.77.0.11") {
		t.Errorf("the Booter was asked about %+v", m)
	}
	if e := s.Recent(known); len(e) != 1 || e[0].Kind != "script" || e[0].Answer != "kernel" || e[0].Why != "go" {
		t.Errorf("Recent: %+v", e)
	}
}

func FuzzScriptQuery(f *testing.F) {
	f.Add("mac=52:54:00:00:00:01&uuid=x&serial=y&arch=7")
	f.Add("mac=525400000001&serial=%0a%0d||%20reboot&arch=99999")
	f.Add("mac=${net0/mac}&serial=${x}&uuid=\\")
	s := testServer(f, tableBooter{"": {Action: Hold, Why: "fuzz"}})
	s.limits.clients = newThrottle(rate{1 << 20, 1 << 20}, 1)
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "http://10.77.0.1/boot/script", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != 200 {
			t.Fatalf("status %d", w.Code)
		}
		checkScript(t, w.Body.String())
	})
}

var (
	pictureRow      = regexp.MustCompile(`^(\$\{qc\})?(\$\{q[wb]\})+\$\{qr\}$`)
	pictureSettings = []string{
		"set esc:hex 1b ||", "set sp:hex 20:20 ||", "set qw ${esc:string}[47m${sp:string} ||", "set qb ${esc:string}[40m${sp:string} ||",
		"set qr ${esc:string}[0m ||", "set qc ${esc:string}[2J${esc:string}[1;1H ||",
	}
)

// checkScript holds that every line is a command of ours and has the form that
// we write: nothing from outside became a command, a setting or a second line.
func checkScript(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != "#!ipxe" {
		t.Fatalf("first line %q", lines[0])
	}
	for _, line := range lines[1:] {
		for i := range len(line) {
			if line[i] < ' ' || line[i] > '~' {
				t.Fatalf("byte %#x in %q", line[i], line)
			}
		}
		if strings.HasSuffix(line, `\`) {
			t.Fatalf("%q continues on the next line", line)
		}
		words := strings.Fields(line)
		rest := words[1:]
		switch words[0] {
		case "echo":
			if len(rest) > 0 && rest[0] == "-n" {
				rest = rest[1:]
			}
			if len(rest) > 0 && pictureRow.MatchString(rest[0]) {
				if rest = rest[1:]; len(rest) == 0 {
					continue
				}
			}
			if len(rest) == 0 || rest[0] != "|" {
				t.Fatalf("%q could start with an option", line)
			}
		case "set":
			if !slices.Contains(pictureSettings, line) {
				t.Fatalf("a setting we do not write: %q", line)
			}
			continue
		case "kernel", "initrd", "chain", "boot":
			if end := strings.Join(words[max(0, len(words)-3):], " "); end != "|| goto retry" && end != "|| goto uki" && end != "|| exit 1" {
				t.Fatalf("%q does not end in a retry", line)
			}
			rest = words[1 : len(words)-3]
		case ":retry", ":uki", ":efi", "sleep", "imgfree", "iseq", "sanboot", "exit":
			continue // ours as they are
		default:
			t.Fatalf("a command we do not write: %q", line)
		}
		for _, w := range rest {
			if w == "||" || w == "&&" || w == "#" || w == ";" {
				t.Fatalf("syntax in the middle of %q", line)
			}
			if strings.Contains(strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(w, "${mac}", ""), "${uuid}", ""), "${serial:uristring}", ""), "${") {
				t.Fatalf("a setting in %q", line)
			}
		}
	}
}

// FuzzScript: however a Boot is filled, its script has the lines it should
// have, and each argument is one word of the kernel's line.
func FuzzScript(f *testing.F) {
	f.Add(3, "vmlinuz", "initrd", "console=ttyS0", "smelt.x=1", "why", "screen", "7QX2", "HTTPS://H.EXAMPLE/N/7QX2")
	f.Add(3, "a b", "x\ny", "||", "# ${net0/ip}", "\\", "-n --\x00\xff", "|| reboot", "https://smelt.hall.example/n/7QX2")
	f.Add(4, "", "", "", "", "`${cls}`\r\nreboot", "&& reboot", "${x}", "${net0/ip} || reboot")
	f.Add(4, "", "", "", "", "|| # ; && ||", "-n", "-n", "HTTP://A/N/|| #")
	f.Add(5, "memtest.bin", "memtest.efi", "console=ttyS0,115200", "", "a test", "", "7QX2", "")
	f.Add(5, "a b", "x\ny", "||", "# ${net0/ip}", "\\", "-n --\x00\xff", "|| reboot", "")
	f.Fuzz(func(t *testing.T, action int, kernel, initrd, arg1, arg2, why, screen, code, page string) {
		b := Boot{Action: Action(action), Kernel: kernel, Initrd: []string{initrd}, Args: []string{arg1, arg2}, Why: why, Screen: []string{screen, why}, Code: code, Page: page, BIOS: kernel, EFI: initrd}
		text, err := scriptFor(b, "http://h/boot/script?"+url.QueryEscape(why), initrd, initrd, func(name string) string { return "http://h/boot/file/" + escapePath(name) })
		if err != nil {
			if text != "" {
				t.Fatalf("an error and a script: %q", text)
			}
			return
		}
		checkScript(t, text)
		if b.Action != Kernel {
			return
		}
		args := 0
		for _, a := range b.Args {
			if a != "" {
				args++
			}
		}
		for _, line := range strings.Split(text, "\n") {
			if words := strings.Fields(line); len(words) > 0 && words[0] == "kernel" && len(words) != 4+args+1+3 {
				t.Fatalf("%d arguments became %q", args, line)
			}
		}
	})
}

// Firmware that trusts the site's key alone refuses Debian's kernel: its script
// goes on to the UKI. A BIOS could do nothing with that.
func TestScriptUKI(t *testing.T) {
	s := testServer(t, tableBooter{"": Boot{Action: Kernel, Kernel: "vmlinuz", Initrd: []string{"initrd"}, Why: "why"}})
	if err := s.files.Add(LoaderUKI, []byte("uki")); err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[string]bool{"0": false, "7": true, "9": true, "16": true, "11": false} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/boot/script?mac="+known.String()+"&arch="+arch, nil))
		text := w.Body.String()
		checkScript(t, text)
		if got := strings.Contains(text, "\nboot || goto uki\n") && strings.Contains(text, "\n:uki\nimgfree ||\nchain --autofree http://10.77.0.1/boot/file/smelt.efi || goto retry\n"); got != want {
			t.Errorf("architecture %s: UKI %v, want %v:\n%s", arch, got, want, text)
		}
	}
}

// On a network that is only observed, HTTP is as silent as DHCP.
func TestObservedHTTP(t *testing.T) {
	s := modesServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	for from, want := range map[string]int{"10.90.0.7:1234": http.StatusForbidden, "10.77.0.7:1234": http.StatusOK} {
		for _, path := range []string{"/boot/script?mac=", "/boot/next?mac=", "/boot/grub/", "/boot/file/vmlinuz?"} {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, path+unknown.String(), nil)
			r.RemoteAddr = from
			s.Handler().ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s from %s: %d, want %d", path, from, w.Code, want)
			}
		}
	}
}

func TestScriptArgs(t *testing.T) {
	for in, want := range map[string]string{
		"console=ttyS0,115200":         "console=ttyS0,115200",
		"smelt.url=https://h:8443/a?b": "smelt.url=https://h:8443/a?b",
		"two words":                    "two%20words",
		"line\nreboot":                 "line%0Areboot",
		"||":                           "%7C|",
		"#x":                           "%23x",
		"${ip}":                        "%24{ip}",
		`end\`:                         "end%5C",
		`q"q`:                          "q%22q",
		"é":                            "%C3%A9",
	} {
		if got := value(in).token(); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	long := Boot{Action: Kernel, Kernel: "vmlinuz", Args: []string{strings.Repeat("x", maxArgs)}}
	if _, err := scriptFor(long, "u", "", "", func(n string) string { return n }); err == nil {
		t.Error("a kernel would cut this command line short, and the script was made")
	}
}

// TestProgram: each kind of firmware gets its own file, and one that asks as a
// RAM system does is sent back to its firmware.
func TestProgram(t *testing.T) {
	b := Boot{Action: Program, BIOS: "memtest.bin", EFI: "memtest.efi", Args: []string{"console=ttyS0,115200"}}
	text, err := scriptFor(b, "u", "", "", func(n string) string { return "http://h/" + n })
	if err != nil {
		t.Fatal(err)
	}
	efi := strings.Index(text, "\n:efi\n")
	bios := strings.Index(text, "kernel --name program http://h/memtest.bin console=ttyS0,115200 || goto retry\nboot || goto retry\n")
	if bios < 0 || efi < bios || !strings.Contains(text[efi:], "chain --autofree http://h/memtest.efi console=ttyS0,115200 || goto retry\n") {
		t.Errorf("script:\n%s", text)
	}
	if _, err := scriptFor(Boot{Action: Program, BIOS: "memtest.bin"}, "u", "", "", func(n string) string { return n }); err == nil {
		t.Error("a program for half of the machines")
	}
	if n, err := nextFor(b); err != nil || n.Action != "local" {
		t.Errorf("a RAM system is told to %s, %v", n.Action, err)
	}
	for _, arch := range []Arch{UEFIx64, HTTPx64} {
		c := choose(question{client: map[Arch]client{UEFIx64: firmware, HTTPx64: httpBoot}[arch], arch: arch, action: Program, path: UKI, has: func(string) bool { return true }})
		if c.path == UKI || c.file == "" {
			t.Errorf("architecture %d gets %+v, which can only start a RAM system", arch, c)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f := &Files{}
	for name, path := range map[string]string{"link": filepath.Join(dir, "link"), "dir": dir, "none": filepath.Join(dir, "none")} {
		if err := f.AddFile(name, path); err == nil {
			t.Errorf("AddFile served %s", path)
		}
	}
	for _, name := range []string{"", "/x", "../x", "a/../b", "a//b", "a\x00", "é", strings.Repeat("x", 256), `a\b`} {
		if err := f.Add(name, nil); err == nil {
			t.Errorf("Add took the name %q", name)
		}
	}
	if err := f.Add("Kernel/A", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kernel/a", `\KERNEL\A`, "//kernel//A", "kernel/x/../a", "Kernel/A\xff"} {
		if !f.Has(name) {
			t.Errorf("%q was not found", name)
		}
	}
	if got := f.Names(); len(got) != 1 || got[0] != "Kernel/A" {
		t.Errorf("Names: %q", got)
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"undionly.kpxe", `\Boot\x64\wdsnbp.com`, "//grubx64.efi", "../../etc/passwd", "a\xff\xff", "\x00", "/", "a/./../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := cleanName(name)
		if err != nil {
			if key != "" {
				t.Fatalf("an error and the name %q", key)
			}
			return
		}
		again, err := cleanName(key)
		if err != nil || again != key {
			t.Fatalf("%q became %q, which becomes %q (%v)", name, key, again, err)
		}
		for _, part := range strings.Split(key, "/") {
			if part == "" || part == "." || part == ".." {
				t.Fatalf("%q became %q", name, key)
			}
		}
	})
}

// TestRecent: the last events of a machine, of a bounded number of machines,
// and an observer that hangs is nobody's problem.
func TestRecent(t *testing.T) {
	c := testConfig(t, tableBooter{})
	c.Observe = func(Event) { select {} }
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range recentEvents + 5 {
		s.recorder.record(Event{Machine: Machine{MAC: known}, Why: fmt.Sprint(i)})
	}
	e := s.Recent(known)
	if len(e) != recentEvents || e[0].Why != "5" || e[recentEvents-1].Why != fmt.Sprint(recentEvents+4) {
		t.Errorf("%d events, %v", len(e), e)
	}
	for range 3 { // one that waits does not push its own history out
		s.recorder.record(Event{Machine: Machine{MAC: known}, Why: "wait"})
	}
	if e := s.Recent(known); len(e) != recentEvents || e[recentEvents-1].Times != 3 || e[recentEvents-2].Why != fmt.Sprint(recentEvents+4) {
		t.Errorf("after it asked the same three times: %+v", e[recentEvents-2:])
	}
	for i := range recentMachines {
		s.recorder.record(Event{Machine: Machine{MAC: MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}}})
	}
	if s.Recent(known) != nil || len(s.recorder.byID) != recentMachines {
		t.Errorf("%d machines are remembered, and the quietest: %v", len(s.recorder.byID), s.Recent(known) != nil)
	}
}

func TestJournal(t *testing.T) {
	good := `{"mac":"52:54:00:00:00:99","addr":"10.77.0.100","state":2,"until":1}` + "\n"
	for _, c := range []struct {
		name, text string
		records    int
		damaged    int
	}{
		{"empty", "", 0, 0},
		{"two", good + good, 2, 0},
		{"torn end", good + `{"mac":"52`, 1, 0},
		{"zeroes at the end", good + "\x00\x00\x00\n\x00", 1, 0},
		{"damage in the middle", good + "x\n" + good, 0, 2},
		{"an offer is no lease", `{"mac":"52:54:00:00:00:99","addr":"10.77.0.100","state":1,"until":1}` + "\n" + good, 0, 1},
	} {
		if r, damaged := parseJournal([]byte(c.text)); len(r) != c.records || damaged != c.damaged {
			t.Errorf("%s: %d records, line %d damaged; want %d and %d", c.name, len(r), damaged, c.records, c.damaged)
		}
	}
	path := filepath.Join(t.TempDir(), "leases")
	if err := os.WriteFile(path, []byte(good+"x\n"+good), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path); err == nil || !strings.Contains(err.Error(), "line 2 is damaged") {
		t.Errorf("a damaged journal: %v", err)
	}
}

// TestJournalFails: no lease is acknowledged that the disk did not take, and
// once the disk works again, they are.
func TestJournalFails(t *testing.T) {
	s := testServer(t, tableBooter{})
	j := s.networks[0].leases.journal
	ask := message{kind: 3, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"}
	if a, e := ask.tell(t, s, time.Now()); a == nil {
		t.Fatal(e)
	}
	dir := filepath.Dir(j.path)
	j.file.Close() // as a disk that is gone: the next write fails
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the write, and the rewrite
		if a, e := ask.tell(t, s, time.Now()); a != nil || !strings.Contains(e.Why, "could not be made durable") {
			t.Fatalf("acknowledged without a journal: %+v", e)
		}
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if a, e := ask.tell(t, s, time.Now()); a == nil {
		t.Fatalf("not acknowledged although the disk is back: %+v", e)
	}
	data, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := parseJournal(data); len(r) != 1 || r[0].MAC != unknown {
		t.Errorf("the journal holds %v", r)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"mac":"52:54:00:00:00:99","addr":"10.77.0.100","state":2,"until":1}` + "\n"))
	f.Add([]byte("{}\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, damaged := parseJournal(data)
		if damaged > 0 && records != nil {
			t.Fatal("damage and records")
		}
		for _, r := range records {
			if !r.Addr.Is4() || r.State == offered {
				t.Fatalf("record %+v", r)
			}
		}
	})
}
