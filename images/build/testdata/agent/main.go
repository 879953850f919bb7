// Agent stands in for smelt-agent in the boot test: it looks at the system it
// runs in, grows the root filesystem, and says so on the console.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images/disk"
)

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(console, "\r\nsmelt-test: "+format+"\r\n", args...)
	}
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		said := strings.Join(strings.Fields(string(out)), " ")
		if err != nil {
			said += " (" + err.Error() + ")"
		}
		return said
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return strings.Join(strings.Fields(string(b)), " ")
	}
	say("agent uptime=%s", strings.Fields(read("/proc/uptime"))[0])
	root := run("findmnt", "-no", "SOURCE", "/")
	disks := strings.TrimRight(root, "0123456789")
	if strings.HasPrefix(root, "/dev/nvme") {
		disks = strings.TrimSuffix(disks, "p")
	}
	p, err := disk.Grow(disks)
	say("grow partition=%d end=%d err=%v", p.Number, p.Offset+p.Size, err)
	say("growfs err=%v", disk.GrowFilesystem("/", root))
	var st unix.Statfs_t
	unix.Statfs("/", &st)
	say("root bytes=%d", int64(st.Blocks)*st.Bsize)

	wiped, err := disk.Wipe(context.Background(), "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_second", disk.Secure, nil)
	say("secure wipe reached=%s zeros=%v err=%v", wiped.Reached, wiped.Zeros, err)

	state := run("systemctl", "is-system-running", "--wait")
	say("state=%s uptime=%s", state, strings.Fields(read("/proc/uptime"))[0])
	say("failed=%q", run("systemctl", "list-units", "--failed", "--no-legend", "--plain"))
	say("kernel=%s machine-id=%d hostname=%s", run("uname", "-r"), len(read("/etc/machine-id")), run("hostname"))
	say("slurmd=%s munge=%s agent=%s", run("systemctl", "is-enabled", "slurmd"), run("systemctl", "is-enabled", "munge"), run("systemctl", "is-enabled", "smelt-agent"))
	say("munge.key=%s", read("/etc/munge/munge.key"))
	say("shadow=%s", strings.Split(read("/etc/shadow"), ":")[1])
	for range 60 { // DHCP may take its time
		if a := run("ip", "-4", "-br", "addr", "show", "scope", "global"); a != "" {
			say("address=%s", a)
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	say("time=%s", run("systemd-analyze", "time"))
	say("done")
	run("systemctl", "poweroff")
}
