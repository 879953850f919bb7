package doctor

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// holder is a process that has a port open.
type holder struct {
	pid  int
	name string
}

func (h holder) String() string {
	if h.pid == 0 {
		return "a process that this user cannot see"
	}
	return fmt.Sprintf("%s (pid %d)", h.name, h.pid)
}

// next is how to end it.
func (h holder) next() string {
	if h.pid == 0 {
		return "run it again with sudo to see who"
	}
	unit := map[string]string{"dhcpd": "isc-dhcp-server", "kea-dhcp4": "kea-dhcp4-server", "in.tftpd": "tftpd-hpa", "systemd": "the .socket unit that ss -lpn names"}[h.name]
	if unit == "" {
		unit = h.name
	}
	return fmt.Sprintf("stop it for good (systemctl disable --now %s; pid %d), or bind it to another interface", unit, h.pid)
}

// holders lists the processes that hold a UDP or listening TCP port, as
// /proc under root tells.
func holders(root, proto string, port int) ([]holder, error) {
	inodes := map[string]bool{}
	for _, table := range []string{proto, proto + "6"} {
		b, err := os.ReadFile(filepath.Join(root, "proc/thread-self/net", table))
		if os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		parseSockets(string(b), port, proto == "tcp", inodes)
	}
	if len(inodes) == 0 {
		return nil, nil
	}
	var out []holder
	dirs, err := filepath.Glob(filepath.Join(root, "proc/[0-9]*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // another user's, or gone
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			inode, ok := strings.CutPrefix(target, "socket:[")
			if err != nil || !ok || !inodes[strings.TrimSuffix(inode, "]")] {
				continue
			}
			name, _ := os.ReadFile(filepath.Join(dir, "comm")) // "" when it just ended
			pid, _ := strconv.Atoi(filepath.Base(dir))         // the pattern says digits
			h := holder{pid, strings.TrimSpace(string(name))}
			if !slices.Contains(out, h) {
				out = append(out, h)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, holder{})
	}
	return out, nil
}

// parseSockets adds the inodes of the sockets that are bound to port, from
// /proc/net/udp or tcp (proc_net_tcp(5)).
func parseSockets(table string, port int, listening bool, inodes map[string]bool) {
	for i, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 10 {
			continue
		}
		_, hexPort, ok := strings.Cut(f[1], ":")
		b, err := hex.DecodeString(hexPort)
		if !ok || err != nil || len(b) != 2 || int(b[0])<<8|int(b[1]) != port {
			continue
		}
		if listening && f[3] != "0A" { // TCP_LISTEN
			continue
		}
		inodes[f[9]] = true
	}
}
