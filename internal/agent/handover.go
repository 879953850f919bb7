package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
	"smelt/internal/api"
)

// Paths in the installed system.
const (
	handoffFile  = "var/lib/smelt/agent.json"
	hostnameFile = "etc/hostname"
)

// Handed is agent.json: what the agent of the installed system starts with.
type Handed struct {
	api.Handoff
	Base   string         `json:"base,omitempty"`  // image store, for the network check
	Images images.Signers `json:"images,omitzero"` // whom its RAM system trusted
}

// ReadHandoff reads what the RAM system left.
func ReadHandoff(file string) (Handed, error) {
	var h Handed
	b, err := os.ReadFile(file)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%s: %v", file, err)
	}
	if h.Node == "" || h.Session == "" {
		return h, fmt.Errorf("%s names no node or session", file)
	}
	return h, nil
}

// handOver grows the root file system to the end of the disk and writes into
// it who the machine is. Only after this is the order done; a power cut before
// leaves a whole image that nobody takes for a converted node.
func (a *Agent) handOver(ctx context.Context, h *held, m images.Manifest, w *api.ImageOrder) error {
	if err := reread(ctx, h.path()); err != nil {
		return err
	}
	last, err := disk.Grow(h.path())
	if err != nil {
		return err
	}
	part := disk.PartitionPath(a.device(h.Disk), last.Number)
	if err := appears(ctx, part); err != nil {
		return err
	}
	// A partition can be found by name only: is that still the name?
	if err := a.named(h); err != nil {
		return err
	}
	if uuid, err := ext4UUID(part); err != nil {
		return err
	} else if m.Root != "" && !strings.EqualFold(uuid, m.Root) {
		return fmt.Errorf("the last partition of %s is file system %s, the image's root is %s", h.Name, uuid, m.Root)
	}
	dir, err := os.MkdirTemp("", "smelt-root-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount(part, dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %v", part, err)
	}
	err = a.fill(dir, part, w)
	unix.Sync()
	if e := unix.Unmount(dir, 0); e != nil {
		err = errors.Join(err, fmt.Errorf("unmount %s: %v", part, e))
	}
	return errors.Join(err, h.f.Sync())
}

func (a *Agent) fill(dir, part string, w *api.ImageOrder) error {
	if err := disk.GrowFilesystem(dir, part); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return leave(root, Handed{w.Handoff, w.Base, a.c.Images})
}

// leave writes into a root who the machine is.
func leave(root *os.Root, h Handed) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(filepath.Dir(handoffFile), 0o755); err != nil {
		return err
	}
	if err := put(root, handoffFile, b, 0o600); err != nil {
		return err
	}
	// What an earlier installed agent kept belongs to an earlier life.
	_ = root.RemoveAll("var/lib/smelt/agent")
	return put(root, hostnameFile, []byte(string(h.Node)+"\n"), 0o644)
}

func put(root *os.Root, name string, b []byte, mode os.FileMode) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// reread makes the kernel see the new partitions. Whoever else looks at the
// disk in this moment makes it busy.
func reread(ctx context.Context, dev string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		err := disk.Reread(dev)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

func appears(ctx context.Context, path string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// ext4UUID reads the UUID from the superblock (s_magic at 0x38, s_uuid at 0x68).
func ext4UUID(part string) (string, error) {
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, 1024); err != nil && err != io.EOF {
		return "", err
	}
	if b[0x38] != 0x53 || b[0x39] != 0xef {
		return "", fmt.Errorf("%s holds no ext4", part)
	}
	u := b[0x68:0x78]
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]), nil
}
