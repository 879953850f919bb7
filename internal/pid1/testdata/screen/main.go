// Screen is process 1 of a machine whose screen a test looks at.
package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"smelt/internal/pid1"
)

func main() {
	for _, d := range []string{"/dev", "/sys"} {
		_ = os.MkdirAll(d, 0o755)
	}
	_ = unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	c, _ := pid1.ParseCmdLine("smelt.server=https://h smelt.nonce=n smelt.node=rig-01 smelt.code=7QX2 smelt.page=" + os.Getenv("page"))
	pid1.Show(c.Page, c.Lines("inspected: its disks are read-only; it waits for what the site decides")...)
	time.Sleep(time.Hour)
}
