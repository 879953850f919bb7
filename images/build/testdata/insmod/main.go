// Insmod is the only program of a machine that tries kernel modules: it loads
// each file of /modules in the order of their names, says what the kernel said,
// and switches the machine off.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func main() {
	files, err := filepath.Glob("/modules/*")
	if err != nil {
		fmt.Println("smelt-test:", err)
	}
	for _, p := range files {
		fmt.Printf("\r\nsmelt-test: %s: %v\r\n", filepath.Base(p), load(p))
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("smelt-test:", err)
	}
}

func load(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
