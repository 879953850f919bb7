package inspect

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"smelt/inventory"
)

// hiveFiles are the files of HiveOS that are worth keeping: the site's own name
// for the machine, and the overclock that says how its cards were worn. The
// folder is on the root file system (ext4) of some releases and is a FAT
// partition of its own on others.
var hiveFiles = []string{"rig.conf", "nvidia-oc.conf", "amd-oc.conf", walletFile}

// walletFile says where the machine mined and for whom. Only the hosts of its
// pools are kept.
const walletFile = "wallet.conf"

const (
	maxSalvage    = 64 << 10 // of one file
	maxPartitions = 128
)

// Salvage looks through the file systems of all disks for what a mining OS
// left. It mounts read-only without replaying journals, so not one byte of a
// disk changes. Nil means that nothing was found. Secrets are taken out here,
// on the machine.
func (s System) Salvage() (*inventory.Salvage, error) {
	used := s.used()
	var errs []error
	n := 0
	for _, d := range s.names("sys/block") {
		if !diskName.MatchString(d) {
			continue
		}
		for _, p := range append(s.partitions(d), d) {
			if n++; n > maxPartitions {
				return nil, errors.Join(append(errs, fmt.Errorf("more than %d partitions: not all were looked at", maxPartitions))...)
			}
			if s.inUse(used, p) {
				continue
			}
			found, err := SalvageDevice(s.path("dev", p))
			if err != nil {
				errs = append(errs, err)
			}
			if found != nil {
				return found, nil
			}
		}
	}
	return nil, errors.Join(errs...)
}

// SalvageDevice looks at one block device.
func SalvageDevice(dev string) (*inventory.Salvage, error) {
	kind, opts := fileSystem(dev)
	if kind == "" {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "smelt-salvage-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount(dev, dir, kind, flags, opts); err != nil {
		return nil, fmt.Errorf("salvage: mount %s (%s) read-only: %v", dev, kind, err)
	}
	defer func() {
		if unix.Unmount(dir, 0) != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return salvage(root)
}

// fileSystem tells ext2/3/4 and FAT by their magic numbers.
func fileSystem(dev string) (kind, opts string) {
	f, err := os.Open(dev)
	if err != nil {
		return "", ""
	}
	defer f.Close()
	var b [2048]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return "", ""
	}
	switch {
	case b[1024+0x38] == 0x53 && b[1024+0x39] == 0xef:
		// noload: a journal that is not replayed is not written either.
		return "ext4", "noload"
	case b[510] == 0x55 && b[511] == 0xaa && (string(b[54:57]) == "FAT" || string(b[82:85]) == "FAT"):
		return "vfat", ""
	}
	return "", ""
}

// salvage reads below root only: a link on the disk cannot lead to our own
// files.
func salvage(root *os.Root) (*inventory.Salvage, error) {
	for _, dir := range []string{"hive-config", "."} {
		rig, err := readBounded(root, path.Join(dir, hiveFiles[0]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("salvage: %v", err)
		}
		conf := parseConf(rig)
		if dir == "." && conf["RIG_ID"] == "" && conf["WORKER_NAME"] == "" {
			continue // some other rig.conf
		}
		s := &inventory.Salvage{MinerOS: "HiveOS", Files: map[string]string{}}
		if w := conf["WORKER_NAME"]; len(w) <= 64 {
			s.WorkerName = clean(w)
		}
		if plainID.MatchString(conf["RIG_ID"]) {
			s.RigID = conf["RIG_ID"]
		}
		for _, f := range hiveFiles {
			if b, err := readBounded(root, path.Join(dir, f)); err == nil {
				s.Files[path.Join("/hive-config", f)] = Redact(b)
				if f == walletFile {
					s.Pools = Pools(b)
				}
			}
		}
		return s, nil
	}
	return nil, nil
}

func readBounded(root *os.Root, name string) (string, error) {
	// Not blocking: a FIFO of that name would hold us for ever.
	f, err := root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if i, err := f.Stat(); err != nil || !i.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSalvage))
	return string(b), err
}

var (
	plainID  = regexp.MustCompile(`^[0-9A-Za-z-]{1,32}$`)
	confLine = regexp.MustCompile(`^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]{0,63})=(.*)$`)
	// Numbers and a few words: clocks, fans, power limits, on and off.
	plainValue = regexp.MustCompile(`^(?:(?:[-+]?[0-9]{1,7}(?:\.[0-9]{1,4})?|auto|on|off|yes|no|true|false|default)[ ,;:]*){0,128}$`)
	// A key with one of these in it never keeps its value, whatever it looks like.
	secretKey = regexp.MustCompile(`(?i)pass|pw|secret|token|key|hash|wal|auth|cred|mail|phone|telegram|addr|user|login|pin|seed|mnemonic|priv|ssh|vnc|vpn`)
)

// plainKeys keep their value although it is a text.
var plainKeys = map[string]bool{
	"WORKER_NAME": true, "RIG_ID": true, "FARM_ID": true, "MINER": true, "MINER2": true, "TIMEZONE": true,
}

// poolURL is an address such as stratum+tcp://WALLET.worker:x@pool.example:3333.
// What comes before an @ is somebody's account.
var poolURL = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+]{1,20}://(?:[^\s"'/@]*@)?((?:[a-z0-9-]{1,24}\.){1,5}[a-z]{2,15}(?::[0-9]{1,5})?)(?:[\s"',/;\\]|$)`)

const maxPools = 16

// Pools names the hosts of the pools in a miner's configuration. It fails
// closed: what does not look like the name of a host alone is left out, for a
// wallet may stand where a host should.
func Pools(text string) []string {
	var out []string
	for _, m := range poolURL.FindAllStringSubmatch(text[:min(len(text), maxSalvage)], -1) {
		if host := strings.ToLower(m[1]); !slices.Contains(out, host) && len(out) < maxPools {
			out = append(out, host)
		}
	}
	return out
}

// Redact keeps of a shell-like configuration file what is harmless and takes
// out everything else. It fails closed: a value is kept only when it is a row
// of numbers or belongs to a key known to hold no secret.
func Redact(text string) string {
	var b strings.Builder
	for _, l := range confLines(text) {
		v := l.value
		keep := !secretKey.MatchString(l.key) && (plainValue.MatchString(v) || plainKeys[l.key] && plainText(v))
		if !keep {
			v = inventory.Redacted
		}
		fmt.Fprintf(&b, "%s=\"%s\"\n", l.key, v)
	}
	return b.String()
}

// plainText is a short text without anything a shell or a reader could trip over.
func plainText(v string) bool {
	return len(v) <= 64 && strings.Trim(v, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ._/+-#") == ""
}

type confEntry struct{ key, value string }

// confLines reads KEY=value, KEY="value" and KEY='value', where a quoted value
// may go over several lines. Anything else, comments too, is dropped.
func confLines(text string) []confEntry {
	var out []confEntry
	if len(text) > maxSalvage {
		text = text[:maxSalvage]
	}
	lines := strings.Split(strings.ReplaceAll(text, "\r", ""), "\n")
	for i := 0; i < len(lines); i++ {
		m := confLine.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		key, v := m[1], strings.TrimSpace(m[2])
		if v != "" && (v[0] == '"' || v[0] == '\'') {
			quote := v[:1]
			v = v[1:]
			end := strings.Index(v, quote)
			for end < 0 && i+1 < len(lines) {
				i++
				v += "\n" + lines[i]
				end = strings.Index(v, quote)
			}
			if end >= 0 {
				v = v[:end]
			}
		} else if c := strings.Index(v, " #"); c >= 0 {
			v = strings.TrimSpace(v[:c])
		}
		out = append(out, confEntry{key, v})
	}
	return out
}

func parseConf(text string) map[string]string {
	out := map[string]string{}
	for _, l := range confLines(text) {
		out[l.key] = l.value
	}
	return out
}
