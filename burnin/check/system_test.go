package check

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// installed is an installed system as System meets it: programs on the PATH
// that answer like systemd's and kmod's do on Debian 12, and a /proc.
type installed struct {
	state    string // is-system-running, a line for each time it is asked
	units    string // lines of list-units
	modprobe string // shell
	version  string // of the loaded module; modinfo says 535.309.01
}

const goodUnits = `-.mount                      loaded    active   mounted   Root Mount
dbus.service                 loaded    active   running   D-Bus System Message Bus
plymouth-quit.service        not-found inactive dead      plymouth-quit.service
smelt-agent.service          loaded    active   running   Smelt agent
`

func (i installed) run(t *testing.T, ctx context.Context, s burnin.Subject) burnin.Result {
	t.Helper()
	bin, root := t.TempDir(), t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "states"), i.state, 0o644)
	write(filepath.Join(bin, "units"), i.units, 0o644)
	write(filepath.Join(bin, "systemctl"), `#!/bin/sh
cd `+bin+`
case "$1" in
is-system-running)
	s=$(head -n 1 states); [ $(wc -l <states) -le 1 ] || sed -i 1d states
	echo "$s"; [ "$s" = running ];;
show) echo 28400123;;
list-units) cat units;;
list-jobs) echo "12 slow.service start running";;
esac
`, 0o755)
	write(filepath.Join(bin, "journalctl"), `#!/bin/sh
case "$*" in
*--dmesg*) echo "nvidia: version magic '6.1.0-50-amd64 SMP' should be '6.1.0-56-amd64 SMP'"; echo "something else";;
*) echo "cannot open /etc/broken.conf";;
esac
`, 0o755)
	write(filepath.Join(bin, "modprobe"), "#!/bin/sh\n"+i.modprobe+"\n", 0o755)
	write(filepath.Join(bin, "modinfo"), "#!/bin/sh\n[ $2 = nvidia-current ] && echo 535.309.01\n", 0o755)
	write(filepath.Join(root, "proc/sys/kernel/osrelease"), "6.1.0-56-amd64\n", 0o644)
	if i.version != "" {
		write(filepath.Join(root, "sys/module/nvidia/version"), i.version+"\n", 0o644)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return System{Root: root}.Run(ctx, spec(burnin.System, 0, nil), s, &record{})
}

func TestSystem(t *testing.T) {
	const kernel = "6.1.0-56-amd64"
	noDevice := `echo "modprobe: ERROR: could not insert 'nvidia_current': No such device" >&2; exit 1`
	card := inventory.Hardware{GPUs: []inventory.GPU{{PCI: inventory.PCI{Address: "0000:01:00.0", Vendor: "10de"}}}}
	simulated := inventory.Hardware{GPUs: []inventory.GPU{{PCI: inventory.PCI{Address: "0000:01:00.0", Vendor: "10de"}, Simulated: true}}}
	failed := "broken.service loaded failed failed Broken\n"
	persistence := "nvidia-persistenced.service loaded failed failed NVIDIA Persistence Daemon\n"
	driver := burnin.Installed{Kernel: kernel, Driver: "535.309.01"}

	for _, tt := range []struct {
		name   string
		system installed
		want   burnin.Installed
		hw     inventory.Hardware
		status burnin.Status
		said   string // in the reason, the findings or the log
	}{
		{"good", installed{state: "starting\nstarting\nrunning\n", units: goodUnits}, burnin.Installed{Kernel: kernel}, card, burnin.Pass, "running after 28.4s, 4 units"},
		{"image not known", installed{state: "running\n", units: goodUnits}, burnin.Installed{}, card, burnin.Pass, "kernel is not known here"},
		{"failed unit", installed{state: "degraded\n", units: goodUnits + failed}, burnin.Installed{Kernel: kernel}, card, burnin.Fail, "broken.service: cannot open /etc/broken.conf"},
		{"allowed unit", installed{state: "degraded\n", units: goodUnits + failed}, burnin.Installed{Kernel: kernel, MayFail: []string{"broken.service"}}, card, burnin.Pass, "which its class allows"},
		{"daemon without a card", installed{state: "degraded\n", units: goodUnits + persistence}, burnin.Installed{Kernel: kernel}, simulated, burnin.Pass, "without a card"},
		{"daemon with a card", installed{state: "degraded\n", units: goodUnits + persistence}, burnin.Installed{Kernel: kernel}, card, burnin.Fail, "nvidia-persistenced.service failed"},
		{"another kernel", installed{state: "running\n", units: goodUnits}, burnin.Installed{Kernel: "6.1.0-50-amd64"}, card, burnin.Fail, "is not the one of its image, 6.1.0-50-amd64"},
		{"not systemd", installed{state: "offline\n", units: goodUnits}, burnin.Installed{}, card, burnin.Error, "offline"},
		{"no units", installed{state: "running\n"}, burnin.Installed{}, card, burnin.Error, "no work"},

		{"module without a card", installed{state: "running\n", units: goodUnits, modprobe: noDevice}, driver, simulated, burnin.Pass, "there is no card for it"},
		{"module that does not drive the card", installed{state: "running\n", units: goodUnits, modprobe: noDevice}, driver, card, burnin.Fail, "does not know the card"},
		{"module loads", installed{state: "running\n", units: goodUnits, modprobe: "exit 0", version: "535.309.01"}, driver, card, burnin.Pass, "535.309.01"},
		{"module of another version", installed{state: "running\n", units: goodUnits, modprobe: "exit 0", version: "535.216.03"}, driver, card, burnin.Fail, "module and libraries"},
		{"module of another kernel", installed{state: "running\n", units: goodUnits, modprobe: `echo "modprobe: ERROR: could not insert 'nvidia_current': Exec format error" >&2; exit 1`},
			driver, simulated, burnin.Fail, "kernel: nvidia: version magic '6.1.0-50-amd64 SMP' should be"},
		{"one of two modules does not fit", installed{state: "running\n", units: goodUnits, modprobe: `echo "modprobe: ERROR: could not insert 'nvidia_modeset': Unknown symbol in module, or unknown parameter (see dmesg)" >&2; ` + noDevice},
			driver, simulated, burnin.Fail, "Unknown symbol"},
		{"no module", installed{state: "running\n", units: goodUnits, modprobe: `echo "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.1.0-56-amd64" >&2; exit 1`},
			driver, simulated, burnin.Fail, "Module nvidia not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.system.run(t, t.Context(), burnin.Subject{Hardware: tt.hw, Installed: &tt.want})
			all := r.Reason + "\n" + strings.Join(r.Log, "\n")
			for _, f := range r.Findings {
				all += "\n" + f.String() + " " + f.Fix
			}
			if r.Status != tt.status || !strings.Contains(all, tt.said) {
				t.Errorf("%v: %s\nwant %v and %q", r.Status, all, tt.status, tt.said)
			}
			if r.Status == burnin.Pass {
				rep := burnin.Report{Node: "n", Image: "x", Profile: burnin.Profiles()[burnin.ImageProfile], Lab: true, Results: []burnin.Result{r}}
				rep.HWDigest = rep.Hardware.Digest()
				if v := burnin.Judge(rep); v.Answer != burnin.PASS {
					t.Errorf("judged %s: %q", v.Answer, v.Reasons)
				}
			}
		})
	}
}

// A system that hangs while it starts says what it waits for.
func TestSystemThatHangs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r := installed{state: "starting\n", units: goodUnits}.run(t, ctx, burnin.Subject{})
	if r.Status != burnin.Error || !strings.Contains(r.Reason, `still "starting"`) || !strings.Contains(strings.Join(r.Log, "\n"), "slow.service") {
		t.Errorf("%+v", r)
	}
}
