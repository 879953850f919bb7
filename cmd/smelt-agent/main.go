// Smelt-agent runs on a node: as process 1 of the RAM system, as the kernel's
// modprobe there, and as a service of the installed system.
package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/internal/agent"
	"smelt/internal/initramfs"
	"smelt/internal/inspect"
	"smelt/internal/pid1"
	"smelt/internal/ramroot"
)

// version is set by the linker.
var version = "dev"

const (
	handoff  = "/var/lib/smelt/agent.json"
	stateDir = "/var/lib/smelt/agent"
	helper   = "/usr/lib/smelt/smelt-gpu"
	ramState = "/run/smelt" // of the RAM system
)

func main() {
	switch {
	case os.Getpid() == 1:
		pid1.Init()
	case filepath.Base(os.Args[0]) == "modprobe":
		os.Exit(pid1.Modprobe(os.Args[1:]))
	case os.Getenv(pid1.Child) != "":
		log := pid1.Log()
		code, err := ram(log)
		if err != nil {
			log.Error("agent", "err", err)
		}
		os.Exit(code)
	}
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println(version)
		return
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := installed(log); err != nil {
		log.Error("agent", "err", err)
		os.Exit(1)
	}
}

// ram runs the agent of the RAM system and returns what process 1 does next.
func ram(log *slog.Logger) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	trusted, err := os.ReadFile(initramfs.TrustPath)
	if err != nil {
		return 1, err
	}
	trust, err := initramfs.ParseTrust(trusted)
	if err != nil {
		return 1, err
	}
	cmd, err := pid1.ReadCmdLine()
	if err != nil {
		return 1, err
	}
	log.Info("smelt-agent", "version", version, "mode", cmd.Mode, "server", cmd.Server)

	modules, err := pid1.OpenModules()
	if err != nil {
		log.Warn("drivers", "err", err)
	}
	devices := &pid1.Devices{Modules: modules, Log: log}
	if err := devices.Listen(); err != nil {
		return 1, err
	}
	network := pid1.NewNetwork(cmd.BootIF, log)
	go func() {
		if err := network.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("network", "err", err)
			os.Exit(1) // process 1 starts us again
		}
	}()
	modules.Coldplug(log)
	devices.Settle(300*time.Millisecond, 10*time.Second)
	// Every disk is read-only from here on; those that appear later, too.
	if err := devices.SealAll(); err != nil {
		return 1, fmt.Errorf("disks are not read-only: %w", err)
	}
	go func() { _ = devices.Run(ctx) }()

	select {
	case <-network.Ready():
	case <-ctx.Done():
		return 1, nil
	}
	if cmd.Nonce == "" {
		asker := &pid1.Asker{CmdLine: cmd, Card: network.Card, Other: network.Other, Keep: "/run/smelt-orders", Show: pid1.Show, Log: log}
		cmd, err = asker.Ask(ctx)
		if errors.Is(err, pid1.ErrLocal) {
			return pid1.ExitReboot, nil // its firmware asks again, and gets what starts the disk
		}
		if err != nil {
			return 1, err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err == nil {
		err = agent.Resume(ramState)
	}
	if err != nil {
		return 1, err
	}
	a, err := agent.New(agent.Config{
		Version: version,
		Mode:    agent.Mode(cmd.Mode),
		Memory: &agent.Memory{
			Maker: ramroot.Maker{Dir: "/image", Root: pid1.NewRoot, Load: modules.Load},
			Agent: "/init", Trust: trusted, Command: cmd, Cmdline: string(cmdline),
		},
		Server:  cmd.Server,
		Pin:     trust.Pin,
		SiteKey: trust.SiteKey,
		Images:  images.Signers{Keys: keys(trust.ImageKeys), Threshold: trust.ImageThreshold},
		Nonce:   cmd.Nonce,
		Rescue: &agent.Rescued{Open: devices.OpenAll, Show: func(lines ...string) {
			pid1.Show(cmd.Page, cmd.Lines(strings.Join(lines, "; "))...)
		}},
		StateDir: ramState,
		System:   inspect.System{PermanentMAC: inspect.PermanentMAC},
		Seal:     devices.Seal,
		Unseal:   devices.Unseal,
		Log:      log,
	})
	if err != nil {
		return 1, err
	}
	pid1.Show(cmd.Page, cmd.Lines("asks the server what to do")...)
	go func() {
		select {
		case <-a.Ready():
			doing := "inspected: its disks are read-only; it waits for what the site decides"
			switch cmd.Mode {
			case pid1.Convert:
				doing = "is being converted: do not switch it off"
			case pid1.Rescue:
				doing = "was asked for by an operator: it is readied"
			case pid1.RAM:
				doing = "loads its system into memory: its disks are read-only"
			}
			pid1.Show(cmd.Page, cmd.Lines(doing)...)
		case <-ctx.Done():
		}
	}()
	end, err := a.Run(ctx)
	switch end {
	case agent.Reboot:
		return pid1.ExitReboot, err
	case agent.Off:
		return pid1.ExitOff, err
	case agent.Switch:
		stop() // nobody brings the cards up again
		if err := pid1.Down(); err != nil {
			log.Warn("network", "err", err)
		}
		return pid1.ExitSwitch, err
	case agent.Kexec:
		return pid1.ExitKexec, err
	}
	return 1, err
}

func keys(in [][]byte) []ed25519.PublicKey {
	var out []ed25519.PublicKey
	for _, k := range in {
		out = append(out, k)
	}
	return out
}

// installed runs the agent as a service of the installed system.
func installed(log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	h, err := agent.ReadHandoff(handoff)
	if err != nil {
		return fmt.Errorf("this machine was not converted by Smelt: %w", err)
	}
	a, err := agent.New(agent.Config{
		Version:   version,
		Mode:      agent.Installed,
		Server:    h.Server,
		Pin:       h.Pin,
		SiteKey:   h.SiteKey,
		Handoff:   &h.Handoff,
		Cmdline:   string(cmdline),
		ImageBase: h.Base,
		Images:    h.Images,
		StateDir:  stateDir,
		System:    inspect.System{PermanentMAC: inspect.PermanentMAC},
		GPUHelper: helper,
		Log:       log,
	})
	if err != nil {
		return err
	}
	end, err := a.Run(ctx)
	if err != nil {
		return err
	}
	verb := map[agent.End]string{agent.Reboot: "reboot", agent.Off: "poweroff"}[end]
	if verb == "" {
		return nil
	}
	if err := exec.Command("systemctl", verb).Run(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("systemctl %s: %w", verb, err)
	}
	<-ctx.Done() // systemd ends us on the way
	return nil
}
