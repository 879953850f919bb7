package bmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"smelt/power"
)

// shell is a running "ipmitool shell": one session at the BMC, in which
// commands are asked one after the other. Commands go through its standard
// input, so that a password to be set is in no command line either; the
// password of the login is in its environment. It says why a login failed only
// with -v.
//
// At the end of its input ipmitool's shell does not end: it spins, and keeps
// its session alive for ever. So what feeds it (fed) says "exit" at the end,
// also when this process is killed.
type shell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *os.File
	ctx context.Context // of the call that it serves

	ending sync.Once
}

// The pauses of ipmitool. It sends a request again after resend, 1 s more each
// time; Ironic found that BMCs break when asked faster than every 5 s
// (ironic.conf, [ipmi]min_command_interval).
const (
	resend = 3 * time.Second
	tries  = 4
	// fed becomes the rest of the command line, fed what comes in and "exit". A
	// broken pipe, when nobody listens any more, must not keep it from logging out.
	fed = `trap "" PIPE; exec 3<&0; exec "$0" "$@" < <(exec 2>/dev/null; cat <&3; echo exit) 3<&-`
	// parting is how long ipmitool has to close its session. A BMC that does not
	// answer keeps it until it times out, 60 s later (section 6.12.15).
	parting = 1500 * time.Millisecond
)

// tool is the command line of ipmitool. Its environment holds nothing but what
// is named here: no DEBUG_ variable, no locale, no time zone of the operator.
func (i *ipmi) tool(suite int, password string, args ...string) *exec.Cmd {
	cmd := exec.Command("ipmitool", append([]string{
		"-I", "lanplus", "-C", strconv.Itoa(suite), "-H", i.host, "-p", i.port, "-U", i.cfg.User, "-E", "-v",
		"-N", strconv.Itoa(int(resend / time.Second)), "-R", strconv.Itoa(tries),
	}, args...)...)
	cmd.Env = []string{
		"IPMITOOL_PASSWORD=" + password,
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "INPUTRC=/dev/null",
		"TERM=dumb", "COLUMNS=500", "LC_ALL=C", "TZ=UTC",
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C on a terminal is ours to handle
	return cmd
}

// secret asks for the password.
func (i *ipmi) secret(ctx context.Context) (string, error) {
	password, err := i.cfg.Password(ctx)
	if err != nil {
		return "", fmt.Errorf("password of the BMC: %w", err)
	}
	return password, fits(password)
}

// fits tells why IPMI cannot carry a password.
func fits(password string) error {
	switch {
	case len(password) > maxPassword:
		return fmt.Errorf("the password has more than %d bytes, which IPMI 2.0 cannot carry", maxPassword)
	case strings.ContainsAny(password, "\x00\n\r"):
		return errors.New("the password has a byte that IPMI cannot carry")
	}
	return nil
}

// session logs in once, lets do ask, and logs out.
func (i *ipmi) session(ctx context.Context, do func(*shell) error) error {
	password, err := i.secret(ctx)
	if err != nil {
		return err
	}
	if _, err := i.capabilities(ctx); err != nil {
		return err
	}
	return i.login(ctx, i.cfg.CipherSuite, password, do)
}

func (i *ipmi) login(ctx context.Context, suite int, password string, do func(*shell) error) error {
	cmd := i.tool(suite, password, "shell")
	cmd.Path, cmd.Args = "/bin/bash", append([]string{"bash", "-c", fed}, cmd.Args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, said, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Start()
	said.Close()
	if err != nil {
		in.Close()
		return fmt.Errorf("start ipmitool: %w", err)
	}
	s := &shell{cmd: cmd, in: in, out: out, ctx: ctx}
	stop := context.AfterFunc(ctx, func() { s.end() })
	defer func() {
		stop()
		s.end()
		_ = cmd.Wait() // how it ended says nothing that its words did not
	}()
	if text, err := s.until(); err != nil {
		return i.explain(ctx, text)
	}
	if _, err := s.ask("set verbose 0"); err != nil { // it would print what is sent
		return err
	}
	return do(s)
}

// end lets ipmitool close its session, and kills it when that takes too long.
func (s *shell) end() {
	s.ending.Do(func() {
		s.in.Close()
		timer := time.AfterFunc(parting, func() { _ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) })
		defer timer.Stop()
		_, _ = io.Copy(io.Discard, s.out) // until it has ended
	})
}

const prompt = "ipmitool> "

// maxAnswer bounds what ipmitool may print to one command.
const maxAnswer = 1 << 20

// until reads up to the next prompt and returns what came before.
func (s *shell) until() (string, error) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := s.out.Read(buf)
		text = append(text, buf[:n]...)
		if before, ok := bytes.CutSuffix(text, []byte("\n"+prompt)); ok {
			return string(before) + "\n", nil
		}
		if err != nil {
			return string(text), errSilent
		}
		if len(text) > maxAnswer {
			return "", fmt.Errorf("ipmitool said more than %d bytes", maxAnswer)
		}
	}
}

// errSilent is a BMC that stopped answering in the middle of a session.
var errSilent = errors.New("the BMC stopped answering")

// ask has ipmitool run one of its commands and returns what it printed.
func (s *shell) ask(line string) (string, error) {
	_, err := io.WriteString(s.in, line+"\n")
	var text string
	if err == nil {
		text, err = s.until()
	}
	switch {
	case s.ctx.Err() != nil:
		return "", fmt.Errorf("%w: %w", errSilent, s.ctx.Err())
	case err != nil:
		return "", errSilent // never text: it repeats the line, which may hold a password
	}
	_, answer, _ := strings.Cut(text, "\n") // the line itself comes first
	return answer, nil
}

// A command of IPMI.
type command struct {
	name       string
	netfn, cmd byte
}

// raw sends a command and returns the data of its answer. An answer that is a
// refusal is an error that wraps its completion code.
func (s *shell) raw(c command, data ...byte) ([]byte, error) {
	line := fmt.Sprintf("raw %d %d", c.netfn, c.cmd)
	for _, b := range data {
		line += " " + strconv.Itoa(int(b))
	}
	text, err := s.ask(line)
	var answer []byte
	if err == nil {
		answer, err = parseRaw(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	return answer, nil
}

// parseRaw reads what "ipmitool -v raw" prints:
//
//	RAW REQ (channel=0x0 netfn=0x0 lun=0x0 cmd=0x1 data_len=0)
//	RAW RSP (3 bytes)
//	 01 00 00
//
// or, instead of the last two, "Unable to send RAW command (... rsp=0xc1): ...".
func parseRaw(text string) ([]byte, error) {
	want := -1
	data := []byte{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "Unable to send RAW command ("); ok {
			_, code, found := strings.Cut(rest, "rsp=0x")
			code, _, closed := strings.Cut(code, ")")
			c, err := strconv.ParseUint(code, 16, 8)
			if !found || !closed || err != nil || c == 0 {
				return nil, errSilent
			}
			return nil, completion(c)
		}
		if rest, ok := strings.CutPrefix(line, "RAW RSP ("); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(rest, " bytes)"))
			if err != nil || n < 0 || n > 255 || want >= 0 {
				return nil, fmt.Errorf("ipmitool said %.80q", line)
			}
			want = n
			continue
		}
		if want < 0 {
			continue // what it sent
		}
		for word := range strings.FieldsSeq(line) {
			b, err := strconv.ParseUint(word, 16, 8)
			if len(word) != 2 || err != nil {
				return nil, fmt.Errorf("ipmitool said %.80q", line)
			}
			data = append(data, byte(b))
		}
	}
	if want < 0 {
		return nil, errSilent
	}
	if len(data) != want {
		return nil, fmt.Errorf("ipmitool announced %d bytes and printed %d", want, len(data))
	}
	return data, nil
}

// completion is a completion code other than 00h (IPMI 2.0, table 5-2).
type completion byte

// The completion codes that the driver acts on.
const (
	unknownCommand  completion = 0xc1
	lostReservation completion = 0xc5
	badLength       completion = 0xc7
	tooLong         completion = 0xc8
	cannotReturn    completion = 0xca
	notPresent      completion = 0xcb
	badField        completion = 0xcc
	wrongState      completion = 0xd5
	disabledCommand completion = 0xd6
)

func (c completion) Error() string {
	what := map[completion]string{
		0xc0: "busy", 0xc1: "unknown command", 0xc2: "unknown command for this LUN", 0xc3: "timeout inside the BMC",
		0xc4: "out of space", 0xc5: "reservation lost", 0xc6: "data truncated", 0xc7: "wrong length",
		0xc8: "too long", 0xc9: "parameter out of range", 0xca: "cannot return that many bytes", 0xcb: "not present",
		0xcc: "invalid field", 0xcd: "not for this sensor", 0xce: "no answer could be given", 0xcf: "duplicate request",
		0xd0: "sensor repository is being updated", 0xd1: "firmware is being updated", 0xd2: "the BMC is starting",
		0xd3: "destination unavailable", 0xd4: "the user may not do this", 0xd5: "not in the present state",
		0xd6: "disabled", 0xff: "unspecified error",
	}[c]
	if what == "" {
		what = "refused"
	}
	return fmt.Sprintf("the BMC answered %02Xh (%s)", byte(c), what)
}

// explain finds in ipmitool's words why no session came about. Its words for
// the status codes of RAKP are those of ipmi_rakp_return_codes in its
// lib/ipmi_strings.c, after table 13-15.
func (i *ipmi) explain(ctx context.Context, said string) error {
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("ipmitool: not found"):
		return errors.New("ipmitool is missing: apt-get install ipmitool")
	case has("unauthorized name", "RAKP 2 HMAC is invalid", "invalid integrity check value", "RAKP 4 message has invalid"):
		return fmt.Errorf("user %s: %w", i.cfg.User, power.ErrAuth)
	case has("unauthorized role", "invalid role", "Set Session Privilege Level to"):
		return fmt.Errorf("user %s may not be ADMINISTRATOR over the LAN: %w", i.cfg.User, power.ErrAuth)
	case has("insufficient resources"):
		return errors.New("all sessions of the BMC are taken (they end by themselves, mostly within a minute)")
	case has("authentication algorithm", "integrity algorithm", "confidentiality algorithm", "cipher suite"):
		return fmt.Errorf("the BMC does not take cipher suite %d (3 is the older one; cipherSuite in site.yaml chooses it)", i.cfg.CipherSuite)
	case ctx.Err() != nil:
		return fmt.Errorf("the BMC answers and lets nobody log in: %w", ctx.Err())
	}
	return fmt.Errorf("the BMC answers and lets nobody log in; ipmitool said: %s", clip(said))
}

// clip is the end of what a program said, on one line.
func clip(said string) string {
	said = strings.Join(strings.Fields(harmless(said)), " ")
	if len(said) > maxSaid {
		said = "…" + strings.ToValidUTF8(said[len(said)-maxSaid:], "")
	}
	return said
}
