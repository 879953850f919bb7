package pxe

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// shellWords cuts a line as GRUB's shell does, which takes single quotes and
// the backslash from the Bourne shell. It fails on what would be syntax.
func shellWords(t testing.TB, line string) []string {
	t.Helper()
	var words []string
	word, in := "", false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				t.Fatalf("a quote stays open: %q", line)
			}
			word, in, i = word+line[i+1:i+1+end], true, i+1+end
		case c == '\\' && i+1 < len(line):
			word, in, i = word+string(line[i+1]), true, i+1
		case c == ' ':
			if in {
				words, word, in = append(words, word), "", false
			}
		case strings.IndexByte("\"$;&|<>{}#`\n\r", c) >= 0:
			t.Fatalf("%q outside of quotes: %q", c, line)
		default:
			word, in = word+string(c), true
		}
	}
	if in {
		words = append(words, word)
	}
	return words
}

// FuzzGRUB: whatever a Booter says stays words, for GRUB's shell and for the
// kernel, and can neither end the script nor add a command to it.
func FuzzGRUB(f *testing.F) {
	f.Add("why", "screen", "initrd", "a=b")
	f.Add("'; reboot '", "\\", "a'b", "x y")
	f.Add("$net_default_mac", "`halt`", "../../x", "\"; linux x")
	f.Add("\n}", "${x}", "#", "'\\''")
	f.Fuzz(func(t *testing.T, why, screen, name, arg string) {
		b := Boot{Action: Kernel, Why: why, Screen: []string{screen}, Kernel: "vmlinuz" + name, Initrd: []string{name}, Args: []string{arg}}
		text, err := grubFor(b, "http://10.77.0.1:8080", []string{"smelt.boot=x"})
		if err != nil {
			return // too long
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) != 6 {
			t.Fatalf("%d lines:\n%s", len(lines), text)
		}
		for _, l := range append(lines[:4:4], lines[5]) {
			if w := shellWords(t, l); w[0] != "echo" || len(w) > 2 {
				t.Errorf("%q", l)
			}
		}
		linux, ok := strings.CutPrefix(lines[4], "if ")
		linux, rest, ok2 := strings.Cut(linux, "; then if initrd ")
		if !ok || !ok2 {
			t.Fatalf("%q", lines[4])
		}
		want := 3 // linux, the kernel, ours
		if arg != "" {
			want++
		}
		if w := shellWords(t, linux); len(w) != want || w[0] != "linux" || strings.ContainsAny(strings.Join(w[2:], ""), " '\"\\") {
			t.Errorf("%q: %q", linux, w)
		}
		initrd, _ := strings.CutSuffix(rest, "; then boot; fi; fi")
		if w := shellWords(t, initrd); len(w) != 1 {
			t.Errorf("%q: %q", initrd, w)
		}
	})
}

// TestGRUB: what grub.cfg is told, machine by machine.
func TestGRUB(t *testing.T) {
	boots := tableBooter{
		known.String(): {Action: Kernel, Kernel: "vmlinuz", Initrd: []string{"initrd"}, Args: []string{"quiet", "a b"}, Why: "go", Screen: []string{"it's rig-01"}},
		"":             {Action: Local, Why: "in service"},
	}
	s := testServer(t, boots)
	ask := func(method, target, from string) (int, string, http.Header) {
		t.Helper()
		r := httptest.NewRequest(method, "http://10.77.0.1"+target, nil)
		r.RemoteAddr = from + ":1000"
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String(), w.Header()
	}
	_, kernel, _ := ask("GET", "/boot/grub/"+known.String(), "10.77.0.11")
	for _, want := range []string{
		"linux '(http,10.77.0.1)/boot/file/vmlinuz' 'quiet' 'a%20b' 'smelt.boot=http://10.77.0.1' 'smelt.via=shim' 'BOOTIF=01-52-54-00-00-00-01'",
		"initrd '(http,10.77.0.1)/boot/file/initrd'", `echo '| it'\''s rig-01'`, "echo '| kernel: go'",
	} {
		if !strings.Contains(kernel, want) {
			t.Errorf("no %s in:\n%s", want, kernel)
		}
	}
	if e := s.Recent(known); len(e) != 1 || e[0].Kind != "grub" || e[0].Answer != "kernel" || e[0].Machine.Stage != AskMenu {
		t.Errorf("recorded: %+v", e)
	}
	// EDK2 looks first, and takes the length for granted.
	code, text, header := ask("HEAD", "/boot/grub/"+known.String(), "10.77.0.11")
	if code != 200 || text != "" || header.Get("Content-Length") != strconv.Itoa(len(kernel)) {
		t.Errorf("HEAD: %d %q %v", code, text, header)
	}
	_, local, _ := ask("GET", "/boot/grub/"+unknown.String(), "10.77.0.100")
	if !strings.Contains(local, "chainloader /EFI/BOOT/BOOTX64.EFI") || !strings.HasSuffix(local, "exit\n") {
		t.Errorf("local:\n%s", local)
	}
	// A GRUB that has no MAC to give is known by its lease.
	if a, e := (message{kind: dhcpv4.MessageTypeRequest, mac: known, want: "10.77.0.11", server: "10.77.0.1"}).tell(t, s, s.since); a == nil {
		t.Fatal(e.Why)
	}
	if _, again, _ := ask("GET", "/boot/grub/_", "10.77.0.11"); again != kernel {
		t.Errorf("by its address:\n%s", again)
	}
	for _, target := range []string{"/boot/grub/_", "/boot/grub/../grub/%0a"} {
		if code, text, _ := ask("GET", target, "10.77.0.77"); code != 200 || strings.Contains(text, "linux") || strings.Contains(text, "exit") {
			t.Errorf("%s: %d\n%s", target, code, text)
		}
	}

	s.booter = tableBooter{known.String(): {Action: Kernel, Kernel: "gone", Why: "go"}}
	if code, text, _ := ask("GET", "/boot/grub/"+known.String(), "10.77.0.11"); code != 200 || strings.Contains(text, "linux") || !strings.Contains(text, "not served") {
		t.Errorf("a kernel that is not there: %d\n%s", code, text)
	}
}

// TestMadeFiles: what is made for a network is found however it is spelled,
// by HTTP and by TFTP alike.
func TestMadeFiles(t *testing.T) {
	s := testServer(t, tableBooter{})
	n := s.networks[0]
	for _, name := range []string{"grub/grub.cfg", "/grub/grub.cfg", "//GRUB//grub.cfg", `\grub\grub.cfg`} {
		f, ok := s.lookup(n, name)
		if !ok {
			t.Fatalf("no %s", name)
		}
		text, err := io.ReadAll(f.open())
		if err != nil || !strings.Contains(string(text), "set smelt='(http,10.77.0.1)'") || int64(len(text)) != f.size {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	for _, target := range []string{"/grub/grub.cfg", "/boot/file/autoexec.ipxe", "/boot/file/snponly.efi", "//snponly.efi"} {
		if r := get(t, s, "GET", "http://10.77.0.1"+target); r.StatusCode != 200 {
			t.Errorf("%s: %s", target, r.Status)
		}
	}
	for _, target := range []string{"/", "/grub", "/grub/x86_64-efi/command.lst", "/boot/file/", "/boot/file/revocations_sku.efi"} {
		if r := get(t, s, "GET", "http://10.77.0.1"+target); r.StatusCode != 404 {
			t.Errorf("%s: %s", target, r.Status)
		}
	}
	auto := autoexecScript("http://10.77.0.1")
	for _, want := range []string{"ifconf -c dhcp || dhcp || goto wait\n", "chain --autofree http://10.77.0.1/boot/script?mac=${netX/mac}&arch=${arch}&", "\ngoto start\n"} {
		if !strings.Contains(auto, want) {
			t.Errorf("no %q in:\n%s", want, auto)
		}
	}
}

// TestGRUBSyntax: GRUB's own parser takes what we write.
func TestGRUBSyntax(t *testing.T) {
	check, err := exec.LookPath("grub-script-check")
	if err != nil {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs grub-script-check of the package grub-common")
	}
	texts := []string{grubStart("http://10.77.0.1:8080")}
	for _, b := range []Boot{
		{Action: Kernel, Kernel: "k", Initrd: []string{"a", "b"}, Args: []string{`'"$x;`, "b"}, Why: "it's", Screen: []string{"} fi done", `a\`}},
		{Action: Kernel, Kernel: "k"}, {Action: Local, Why: "in service"},
		{Action: Program, BIOS: "b", EFI: `it's $x`, Args: []string{`'"$x;`}}, {Action: Hold}, {Action: Hold, Wait: time.Minute},
	} {
		text, err := grubFor(b, "http://10.77.0.1", []string{"x"})
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if last := texts[len(texts)-1]; !strings.HasSuffix(last, "\nsleep 50\n") { // and grub.cfg 10
		t.Errorf("on hold for a minute:\n%s", last)
	}
	for _, text := range texts {
		p := filepath.Join(t.TempDir(), "grub.cfg")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(check, p).CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, text)
		}
	}
}
