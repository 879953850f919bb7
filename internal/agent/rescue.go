package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"smelt/internal/api"
	"smelt/internal/inspect"
	"smelt/internal/rescue"
)

// Rescued is what a rescue is made with in the RAM system.
type Rescued struct {
	Open func() error          // lets disks be written
	Show func(lines ...string) // puts text on the machine's screen
}

const (
	maxTools = 16 << 20
	toolsDir = "/bin"
)

// rescue lets operators in until the order is over.
func (a *Agent) rescue(ctx context.Context, o api.Order) api.Result {
	w := o.Rescue
	if w == nil || a.c.Mode != Rescue || a.c.Rescue == nil {
		return failed("other", fmt.Errorf("this machine was not started for a rescue (mode %s)", a.c.Mode))
	}
	now, known := a.clock.now()
	if !known {
		now = time.Now()
	}
	if err := retry(ctx, 5, func() error { return tools(ctx, w.Tools, w.Digest) }, func(error) bool { return false }); err != nil {
		return failed("network", fmt.Errorf("the tools of the rescue: %w", err))
	}
	if err := terminals(); err != nil {
		return failed("other", err)
	}
	s, err := rescue.New(rescue.Config{
		Keys: w.Keys, Shell: []string{toolsDir + "/busybox", "sh"}, Log: a.log,
		Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "USER=root", "PS1=rescue:" + string(a.node()) + "# "},
	})
	if err != nil {
		return failed("other", err)
	}
	if w.Write {
		if err := a.c.Rescue.Open(); err != nil {
			return failed("disk", fmt.Errorf("the disks stay read-only: %w", err))
		}
	}
	ln, err := net.Listen("tcp", ":22")
	if err != nil {
		return failed("other", err)
	}
	disks := "its disks are read-only"
	if w.Write {
		disks = "its disks can be written"
	}
	addr := inspect.Addr(a.client.base)
	a.c.Rescue.Show("ssh root@"+addr, "host key "+s.Fingerprint(), disks, "until "+w.Until.UTC().Format("2006-01-02 15:04 MST"))
	a.log.Info("rescue", "ssh", "root@"+addr, "hostkey", s.Fingerprint(), "until", w.Until, "write", w.Write)
	// Live progress is forgotten by a server that is started again.
	ctx, cancel := context.WithTimeout(ctx, w.Until.Sub(now))
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			a.progress(o, 0, fmt.Sprintf("rescue: ssh root@%s, host key %s, %s", addr, s.Fingerprint(), disks), 0)
			sleep(ctx, 30*time.Second)
		}
	}()
	if err := s.Serve(ctx, ln); err != nil {
		return failed("other", err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// Whatever the server says: the time that was granted is over.
		a.next = Reboot
		return api.Result{OK: true}
	}
	return failed("other", ctx.Err())
}

// tools fetches the one program that makes a shell, and its many names.
func tools(ctx context.Context, url, digest string) error {
	path := filepath.Join(toolsDir, "busybox")
	if b, err := os.ReadFile(path); err == nil && sum(b) == digest {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // a server that stops in the middle is asked again
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req) // plain HTTP is enough: the digest came with the order
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(url + ": " + resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTools+1))
	if err != nil {
		return err
	}
	if sum(b) != digest {
		return fmt.Errorf("%s is not what the server named", url)
	}
	if err := os.MkdirAll(toolsDir, 0o755); err != nil {
		return err
	}
	if err := writeFile(path, b, 0o755); err != nil {
		return err
	}
	if said, err := exec.CommandContext(ctx, path, "--install", "-s", toolsDir).CombinedOutput(); err != nil {
		return fmt.Errorf("%s --install: %w: %s", path, err, bytes.TrimSpace(said))
	}
	return nil
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// terminals mounts what a shell's terminal is made of (pts(4)).
func terminals() error {
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		return err
	}
	err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0620,ptmxmode=0666")
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	return nil
}
