package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A command is one run of a tool of the build host.
type command struct {
	name  string
	args  []string
	dir   string
	env   []string          // beside the fixed environment below
	line  func(line string) // each line of output as it comes; may be nil
	jail  string            // the only folder it may write, if any
	root  string            // unpacked packages that the tool is of, instead of the host's
	stdin io.Reader
	log   io.Writer // takes all it says; may be nil
}

// toolPackages says which Debian package has a tool, for the error message.
var toolPackages = map[string]string{
	"apt-cache": "apt", "apt-config": "apt", "apt-get": "apt", aptHelper: "apt", "depmod": "kmod", "dpkg-deb": "dpkg",
}

// run returns what the tool wrote. Its error holds the end of that, since tools
// of this age say why last.
func (c command) run(ctx context.Context) (string, error) {
	path, args, env, err := c.find()
	if err != nil {
		return "", err
	}
	out := lines{each: c.line, log: c.log}
	if c.log != nil {
		fmt.Fprintf(c.log, "$ %s %.1000s\n", c.name, strings.Join(c.args, " "))
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = c.dir
	if c.jail != "" {
		cmd.Dir = c.jail // ours may be hidden in there
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdin, &out, &out
	cmd.WaitDelay = 10 * time.Second // a grandchild may hold the pipe open
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
	}, slices.Concat(env, c.env)...)
	for _, v := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if s, ok := os.LookupEnv(v); ok {
			cmd.Env = append(cmd.Env, v+"="+s)
		}
	}
	if c.jail != "" {
		err = runSandboxed(cmd, c.jail)
	} else {
		err = cmd.Run()
	}
	out.flush()
	if ctx.Err() != nil {
		return out.all.String(), fmt.Errorf("%s: %w", c.name, ctx.Err())
	}
	if err != nil {
		why := fmt.Errorf("%s: %w:\n%s", c.name, err, tail(out.all.String(), 12))
		if full.MatchString(out.all.String()) {
			why = fmt.Errorf("%w: %w", errFull, why)
		}
		return out.all.String(), why
	}
	return out.all.String(), nil
}

// full is what tools say of a disk without room.
var full = regexp.MustCompile(`(?i)no space left on device|could not allocate block`)

var errFull = errors.New("the disk is full")

// find returns what to run. A tool out of unpacked packages runs with the
// libraries that came with it, by its own dynamic linker (ld.so(8)): no chroot,
// and nothing of the build host has a say.
func (c command) find() (path string, args, env []string, err error) {
	if c.root == "" {
		path, err = findTool(c.name)
		return path, c.args, nil, err
	}
	lib := filepath.Join(c.root, "usr/lib/x86_64-linux-gnu")
	for _, d := range []string{"usr/sbin", "usr/bin"} {
		tool := filepath.Join(c.root, d, c.name)
		if exists(tool) {
			// argv[0] tells mtools which of its commands it is.
			args = append([]string{"--argv0", c.name, "--library-path", lib, tool}, c.args...)
			env = []string{
				"MKE2FS_CONFIG=" + filepath.Join(c.root, "etc/mke2fs.conf"),
				"GCONV_PATH=" + filepath.Join(lib, "gconv"),
				"MTOOLSRC=/dev/null",
			}
			return filepath.Join(c.root, "usr/lib64/ld-linux-x86-64.so.2"), args, env, nil
		}
	}
	return "", nil, nil, fmt.Errorf("%s is not among the locked tools: %w", c.name, ErrStale)
}

// findTool looks in the sbin folders too: a user's PATH often lacks them.
func findTool(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, d := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"} {
		p := filepath.Join(d, name)
		if i, err := os.Stat(p); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	p := toolPackages[name]
	if p == "" {
		p = name
	}
	return "", fmt.Errorf("%s is not installed: apt-get install %s", name, p)
}

// lines keeps output and hands out its whole lines.
type lines struct {
	all  bytes.Buffer
	part []byte
	each func(string)
	log  io.Writer
}

func (l *lines) Write(b []byte) (int, error) {
	l.all.Write(b)
	if l.log != nil {
		l.log.Write(b) // a log that cannot be written fails no build
	}
	if l.each == nil {
		return len(b), nil
	}
	l.part = append(l.part, b...)
	for {
		i := bytes.IndexAny(l.part, "\r\n")
		if i < 0 {
			return len(b), nil
		}
		if s := strings.TrimSpace(string(l.part[:i])); s != "" {
			l.each(s)
		}
		l.part = l.part[i+1:]
	}
}

func (l *lines) flush() {
	if s := strings.TrimSpace(string(l.part)); s != "" && l.each != nil {
		l.each(s)
	}
	l.part = nil
}

func tail(s string, n int) string {
	ls := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(ls) > n {
		ls = ls[len(ls)-n:]
	}
	return strings.Join(ls, "\n")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
