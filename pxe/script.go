package pxe

import (
	"fmt"
	"strings"
	"time"
)

// script builds an iPXE script. iPXE has no quoting: it expands ${settings} in
// a line, cuts it at white space, and takes the tokens "||", "&&" and "#" and
// a backslash at the end of the line as syntax. So a value that comes from
// outside is written only by token or text, which leave it nothing of that.
type script struct {
	b strings.Builder
}

func newScript() *script {
	s := &script{}
	s.b.WriteString("#!ipxe\n")
	return s
}

func (s *script) String() string { return s.b.String() }

// line writes one command. Parts of type string are our own constants; a
// value is written as a token.
func (s *script) line(parts ...any) {
	for i, p := range parts {
		if i > 0 {
			s.b.WriteByte(' ')
		}
		switch p := p.(type) {
		case string:
			s.b.WriteString(p)
		case value:
			s.b.WriteString(p.token())
		default:
			panic(fmt.Sprintf("pxe: script part of type %T", p))
		}
	}
	s.b.WriteByte('\n')
}

// echo writes a line on the machine's screen. The bar in front keeps a text
// that starts with a dash from being an option of echo.
func (s *script) echo(text string) {
	s.b.WriteString("echo |" + words(text) + "\n")
}

// words is text as words of a line, with a space before each.
func words(text string) string {
	var b strings.Builder
	for _, word := range strings.Fields(plain(text, maxText)) {
		b.WriteByte(' ')
		switch word {
		case "||", "&&", "#", ";":
			word = "_" // syntax between spaces
		}
		b.WriteString(word)
	}
	return b.String()
}

// value is one word of a command, whatever it holds.
type value string

// token is v as exactly one token of an iPXE line that is also exactly one
// parameter of a kernel command line: bytes that mean something to either
// become %XX, and no bytes at all become "_".
func (v value) token() string {
	const hex = "0123456789ABCDEF"
	if v == "" {
		return "_"
	}
	var b strings.Builder
	for i := range len(v) {
		c := v[i]
		switch {
		case c <= ' ', c >= 0x7f, // separators, control and non-ASCII bytes
			c == '"', c == '\'', // quotes of the kernel's parser
			c == '$', // settings
			c == '\\',
			i == 0 && (c == '#' || c == '|' || c == '&' || c == ';'): // a token of syntax, if it stood alone
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// maxText bounds a line on a machine's screen, in bytes.
const maxText = 300

// plain returns at most limit bytes of text as printable ASCII on one line,
// with no way to name an iPXE setting or to continue the line. It serves for
// the screen, the log and the page alike.
func plain(text string, limit int) string {
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= limit {
			break
		}
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			b.WriteByte(' ')
		case r < 0x20 || r > 0x7e:
			b.WriteByte('?')
		case r == '\\':
			b.WriteByte('/')
		case r == '$' || r == '`':
			b.WriteByte('?')
		default:
			b.WriteByte(byte(r))
		}
	}
	return strings.TrimSpace(b.String())
}

// What a machine may be told at most; the first is COMMAND_LINE_SIZE of x86,
// less its NUL, and leaves room for the loader's own initrd= words.
const (
	maxArgs   = 2047
	maxScreen = 12
)

// scriptFor is the script for what was decided. again is the URL at which the
// machine asks anew, query-escaped, in which only our own settings stand for
// iPXE to fill in; file makes the URL of a boot file; local is the file that
// starts an UEFI machine's own disk, or nothing; uki is the RAM system as one
// program that this machine's firmware may start, or nothing.
func scriptFor(b Boot, again, local, uki string, file func(name string) string) (string, error) {
	s := newScript()
	p, drawn := picture{}, false
	if b.Action == Kernel || b.Action == Hold {
		p, drawn = qrPicture(b.Page)
	}
	if !drawn || b.Action != Hold { // there it all stands beside the picture
		s.echo("")
		s.echo("S m e l t")
		for i, text := range b.Screen {
			if i == maxScreen {
				break
			}
			s.echo(text)
		}
		if text := codeLine(b); text != "" {
			s.echo(text)
		}
		s.echo(fmt.Sprintf("%s: %s", b.Action, b.Why))
		s.echo("")
	}
	switch b.Action {
	case Kernel:
		if b.Kernel == "" {
			return "", fmt.Errorf("a kernel boot that names no kernel")
		}
		// Names of our own: an EFI kernel finds its initrd by the initrd= word
		// on its command line, in a file system that iPXE shows it, and iPXE
		// before 2020 offers no other way.
		parts := []any{"kernel --name linux", value(file(b.Kernel))}
		var args []any
		length := 0
		for _, a := range b.Args {
			if a != "" {
				args = append(args, value(a))
				length += len(value(a).token()) + 1
			}
		}
		parts = append(parts, args...)
		for i := range b.Initrd {
			word := fmt.Sprintf("initrd=initrd%d", i)
			parts = append(parts, word)
			length += len(word) + 1
		}
		if length > maxArgs {
			return "", fmt.Errorf("kernel arguments of %d bytes: a kernel takes %d", length, maxArgs)
		}
		failed := "|| goto retry"
		if uki != "" {
			failed = "|| goto uki"
		}
		s.line(append(parts, failed)...)
		for i, name := range b.Initrd {
			s.line(fmt.Sprintf("initrd --name initrd%d", i), value(file(name)), failed)
		}
		s.line("boot", failed)
		if uki != "" {
			// Firmware that knows no key but the site's refuses Debian's kernel,
			// which is not signed with it on purpose: it would start any initrd.
			// The arguments are for a machine without Secure Boot, whose kernel
			// did not arrive: there what iPXE says outweighs the UKI's own
			// (systemd-stub(7)).
			s.line(":uki")
			s.line("imgfree ||")
			s.line(append(append([]any{"chain --autofree", value(file(uki))}, args...), "|| goto retry")...)
		}
		s.retry(b, p, again, "loading failed; asking", retryAfter)
	case Local:
		// BIOS: the first disk, through its boot sector; what a PXE ROM does
		// after exit differs from board to board.
		s.line("iseq ${platform} efi && goto efi ||")
		s.line("sanboot --no-describe --drive 0x80 || exit 1")
		// UEFI: sanboot knows no EFI loader. Failing makes the boot manager take
		// the next entry; after a success it may stop at its menu (UEFI 2.10
		// chapter 3.1). The next entries are often the same card by IPv6 and
		// by HTTP, and OVMF spends a minute and a half on those.
		s.line(":efi")
		if local != "" {
			s.line("chain --autofree", value(file(local)), "|| exit 1")
		}
		s.line("exit 1")
	case Program:
		if b.BIOS == "" || b.EFI == "" {
			return "", fmt.Errorf("a program that is not named for each kind of firmware")
		}
		var args []any
		for _, a := range b.Args {
			args = append(args, value(a))
		}
		s.line("iseq ${platform} efi && goto efi ||")
		s.line(append(append([]any{"kernel --name program", value(file(b.BIOS))}, args...), "|| goto retry")...)
		s.line("boot || goto retry")
		s.line(":efi")
		s.line(append(append([]any{"chain --autofree", value(file(b.EFI))}, args...), "|| goto retry")...)
		s.retry(b, p, again, "loading failed; asking", retryAfter)
	case Hold:
		s.retry(b, p, again, "asking", b.wait())
	default:
		return "", fmt.Errorf("no script for action %v", b.Action)
	}
	return s.String(), nil
}

// wait is how many seconds a machine on hold waits.
func (b Boot) wait() int {
	if b.Wait <= 0 {
		return retryAfter
	}
	return int(min(b.Wait, time.Hour).Seconds())
}

// retry ends a script: wait, forget what was loaded, ask the server anew.
func (s *script) retry(b Boot, p picture, again, text string, seconds int) {
	s.line(":retry")
	text = fmt.Sprintf("%s again in %d seconds, or at once on Ctrl-C", text, seconds)
	if len(p.rows) > 0 {
		s.panel(p, panelTexts(b, text))
	} else {
		s.echo(text)
	}
	s.line(fmt.Sprintf("sleep %d ||", seconds)) // sleep fails on Ctrl-C: ask at once
	s.line("imgfree ||")
	s.line("chain --replace --autofree", again, "|| goto retry")
}
