package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/internal/join"
)

// join installs what the cluster's daemon needs and starts it. Contents never
// reach a log, an error or a result.
func (a *Agent) join(ctx context.Context, o api.Order) api.Result {
	if a.c.Mode != Installed {
		return failed("other", fmt.Errorf("a cluster is joined from the installed system, this is mode %s", a.c.Mode))
	}
	if o.Join == nil {
		return failed("other", errors.New("the order carries no grant"))
	}
	root := filepath.Join("/", a.c.System.Root)
	for _, f := range o.Join.Files {
		if err := install(root, f); err != nil {
			return failed("other", fmt.Errorf("install %s: %w", f.Path, err))
		}
	}
	if err := a.systemctl(ctx, "daemon-reload"); err != nil {
		return failed("other", err)
	}
	for i, u := range o.Join.Units {
		a.progress(o, float64(i)/float64(len(o.Join.Units)), "starting "+u, 0)
		if !unitName(u) {
			return failed("other", fmt.Errorf("%q is no name of a unit", u))
		}
		// Restart, not start: a daemon that runs already has not read the new files.
		if err := a.systemctl(ctx, "enable", u); err != nil {
			return failed("other", err)
		}
		if err := a.systemctl(ctx, "restart", u); err != nil {
			return failed("other", err)
		}
		if err := a.stays(ctx, u); err != nil {
			return failed("other", err)
		}
	}
	return api.Result{OK: true, Evidence: map[string]string{"units": strings.Join(o.Join.Units, " ")}}
}

func unitName(u string) bool {
	return u != "" && len(u) < 128 && u[0] != '-' &&
		strings.Trim(u, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@") == ""
}

// install writes one file of a grant: whole, with its owner and mode from the
// first byte on.
func install(root string, f join.File) error {
	if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path {
		return errors.New("the path is not absolute and clean")
	}
	if f.Mode&^0o777 != 0 {
		return fmt.Errorf("mode %o is more than permissions", f.Mode)
	}
	uid, gid := 0, 0
	if f.Owner != "" && f.Owner != "root" {
		u, err := user.Lookup(f.Owner)
		if err != nil {
			return err
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			return err
		}
		if gid, err = strconv.Atoi(u.Gid); err != nil {
			return err
		}
	}
	path := filepath.Join(root, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".smelt-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = errors.Join(tmp.Chown(uid, gid), tmp.Chmod(os.FileMode(f.Mode)))
	if err == nil {
		_, err = tmp.Write(f.Data)
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (a *Agent) systemctl(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %v: %s", strings.Join(args, " "), err, tail(out, 300))
	}
	return nil
}

// stays waits until a unit is active and looks a second time: a daemon that
// dies on its configuration is active for a moment too.
func (a *Agent) stays(ctx context.Context, unit string) error {
	end := time.Now().Add(time.Minute)
	for {
		err := a.systemctl(ctx, "is-active", "--quiet", unit)
		if err == nil {
			sleep(ctx, 2*time.Second)
			if err = a.systemctl(ctx, "is-active", "--quiet", unit); err == nil {
				return nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("unit %s does not stay active: %w", unit, err)
		}
		sleep(ctx, time.Second)
	}
}

func tail(b []byte, n int) string {
	s := strings.TrimSpace(string(b))
	if len(s) > n {
		s = "..." + s[len(s)-n:]
	}
	return s
}
