package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	stdin string            // a file
}

// toolPackages says which Debian package has a tool, for the error message.
var toolPackages = map[string]string{
	"apt-cache": "apt", "apt-config": "apt", "apt-get": "apt", "depmod": "kmod", "dpkg-deb": "dpkg",
	"e2fsck": "e2fsprogs", "grub-mkimage": "grub-common", "mcopy": "mtools", "mkfs.fat": "dosfstools",
	"mke2fs": "e2fsprogs", "mmd": "mtools", "mmdebstrap": "mmdebstrap", "tar": "tar",
}

// run returns what the tool wrote. Its error holds the end of that, since tools
// of this age say why last.
func (c command) run(ctx context.Context) (string, error) {
	path, err := findTool(c.name)
	if err != nil {
		return "", err
	}
	var out lines
	out.each = c.line
	cmd := exec.CommandContext(ctx, path, c.args...)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = &out, &out
	if c.stdin != "" {
		f, err := os.Open(c.stdin)
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	cmd.WaitDelay = 10 * time.Second // a grandchild may hold the pipe open
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
	}, c.env...)
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
		return out.all.String(), fmt.Errorf("%s: %v:\n%s", c.name, err, tail(out.all.String(), 12))
	}
	return out.all.String(), nil
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
}

func (l *lines) Write(b []byte) (int, error) {
	l.all.Write(b)
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
