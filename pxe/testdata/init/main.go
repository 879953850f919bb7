// Command init is the userland of a machine that booted in a test: it says so
// on the serial line and switches the machine off.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	_ = os.Mkdir("/proc", 0o755)
	_ = syscall.Mount("proc", "/proc", "proc", 0, "")
	line, err := os.ReadFile("/proc/cmdline")
	second, _ := os.ReadFile("/second") // from another initrd
	fmt.Printf("\nBOOT-OK cmdline=%q err=%v second=%q\n", line, err, second)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
