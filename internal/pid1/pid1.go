// Package pid1 is what stands under the agent in the RAM system, where there
// is nothing else: mounts, kernel modules, devices, network, and the end by
// reboot or power off.
//
// Process 1 itself (Init) does little and uses no library that could panic,
// because its death stops the kernel. The agent runs as its child and is
// started again when it dies.
package pid1

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes by which the child tells process 1 what to do next. Any other
// code, or death by a signal, starts it again.
const (
	ExitReboot = 80
	ExitOff    = 81
	ExitSwitch = 82 // go on with the root at NewRoot
	ExitKexec  = 83 // go on with the kernel of LoadKernel
)

// Child is set in the environment of the child.
const Child = "SMELT_CHILD"

// mounts of the RAM system, in order.
var mounts = []struct {
	source, target, kind string
	flags                uintptr
	data                 string
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=25%"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=25%"},
}

// Init is process 1. It never returns.
func Init() {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			say("make %s: %v", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			say("mount %s: %v", m.target, err)
		}
	}
	// Everything below runs in the child, which may die: this loop may not.
	wait := time.Second
	for {
		start := time.Now()
		code, err := supervise()
		switch code {
		case ExitReboot:
			End(unix.LINUX_REBOOT_CMD_RESTART)
		case ExitOff:
			End(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case ExitKexec:
			End(unix.LINUX_REBOOT_CMD_KEXEC)
		case ExitSwitch:
			err := switchRoot()
			say("the root in memory could not be started: %v", err)
			End(unix.LINUX_REBOOT_CMD_RESTART) // there is no way back
		}
		if time.Since(start) > time.Minute {
			wait = time.Second
		}
		say("the agent ended (exit code %d, %v); it starts again in %v", code, err, wait)
		time.Sleep(wait)
		wait = min(2*wait, 30*time.Second)
	}
}

// supervise runs the agent once and buries every orphan meanwhile.
func supervise() (int, error) {
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	defer signal.Stop(sigs)
	c := exec.Command("/proc/self/exe")
	c.Args = []string{"smelt-agent"}
	c.Env = []string{"PATH=/sbin:/bin", "HOME=/root", "TERM=linux", Child + "=1"}
	if m := memLimit(); m != "" {
		c.Env = append(c.Env, m)
	}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return -1, err
	}
	for {
		// Not Cmd.Wait: it and the reaping of orphans would race for the status.
		for {
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
			if pid != c.Process.Pid || !(ws.Exited() || ws.Signaled()) {
				continue
			}
			if ws.Signaled() {
				return -1, fmt.Errorf("killed by %v", ws.Signal())
			}
			return ws.ExitStatus(), nil
		}
		switch s := <-sigs; s {
		case unix.SIGTERM, unix.SIGINT: // Ctrl-Alt-Del sends SIGINT to process 1
			return ExitReboot, nil
		case unix.SIGPWR:
			return ExitOff, nil
		}
	}
}

// memLimit keeps the collector of a small machine ahead of the OOM killer:
// half the memory, because the rest holds the RAM system itself.
func memLimit() string {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return ""
	}
	return fmt.Sprintf("GOMEMLIMIT=%d", uint64(si.Totalram)*uint64(si.Unit)/2)
}

// End stops everything, writes what is not yet on the disks, and calls
// reboot(2) with cmd. It does not return when it worked.
func End(cmd int) {
	_ = unix.Kill(-1, unix.SIGTERM)
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	if err := unix.Reboot(cmd); err != nil {
		say("reboot(%#x): %v", cmd, err)
		time.Sleep(time.Second)
		// Last resort, as on a keyboard: sysrq b or o.
		key := "b"
		if cmd == unix.LINUX_REBOOT_CMD_POWER_OFF {
			key = "o"
		}
		_ = os.WriteFile("/proc/sysrq-trigger", []byte(key), 0)
	}
	select {}
}

// say writes one line where a person or a serial log can see it even when
// nothing else works.
func say(format string, args ...any) {
	line := "smelt: " + fmt.Sprintf(format, args...) + "\n"
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString("<3>" + line)
		_ = f.Close()
		if err == nil {
			return
		}
	}
	_, _ = os.Stderr.WriteString(line)
}

// Log returns the logger of the RAM system: everything goes to the console,
// warnings also to the kernel log, which netconsole and crash dumps carry.
func Log() *slog.Logger {
	var w io.Writer = os.Stderr
	if f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		w = f
	}
	w = &teeKmsg{out: w}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: noTime}))
}

// noTime drops the time: clocks of rigs are dead, the console has the kernel's.
func noTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// teeKmsg copies lines above level INFO to the kernel log.
type teeKmsg struct {
	out  io.Writer
	kmsg *os.File
}

func (t *teeKmsg) Write(b []byte) (int, error) {
	n, err := t.out.Write(append([]byte("smelt: "), b...))
	if len(b) > 10 && (string(b[:10]) == "level=WARN" || string(b[:10]) == "level=ERRO") {
		if t.kmsg == nil {
			t.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
		}
		if t.kmsg != nil {
			// 6 is info: the console has the line already.
			_, _ = t.kmsg.Write(append([]byte("<6>smelt: "), b...))
		}
	}
	return min(n, len(b)), err
}
