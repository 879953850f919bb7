package agent

import (
	"strings"
	"testing"
)

func TestParseBoot(t *testing.T) {
	const good = "if serial --unit=0; then\n\tterminal_input console serial\nfi\nset timeout=0\nlinux /boot/vmlinuz-6.1 root=UUID=0f0e ro console=ttyS0 quiet\ninitrd /boot/initrd.img-6.1\nboot\n"
	k, i, args, err := parseBoot(good)
	if err != nil || k != "boot/vmlinuz-6.1" || i != "boot/initrd.img-6.1" || args != "root=UUID=0f0e ro console=ttyS0 quiet" {
		t.Errorf("%q %q %q %v", k, i, args, err)
	}
	for what, text := range map[string]string{
		"nothing":     "",
		"no initrd":   "linux /vmlinuz root=x\n",
		"two kernels": good + "linux /other ro\n",
		"a variable":  "linux /vmlinuz root=$root\ninitrd /i\n",
	} {
		if k, _, _, err := parseBoot(text); err == nil {
			t.Errorf("%s: starts %q", what, k)
		}
	}
}

// FuzzParseBoot: what is started is one file each, and no word of the command
// line is ours.
func FuzzParseBoot(f *testing.F) {
	f.Add("linux /boot/vmlinuz root=UUID=x ro\ninitrd /boot/initrd\n")
	f.Add("linux a\nlinux b\n")
	f.Add("initrd i\n\tlinux\t/k\n")
	f.Fuzz(func(t *testing.T, text string) {
		k, i, args, err := parseBoot(text)
		if err != nil {
			if k+i+args != "" {
				t.Errorf("an error and %q", k+i+args)
			}
			return
		}
		if k == "" || i == "" || strings.ContainsAny(k+i+args, "\n$") {
			t.Errorf("%q %q %q", k, i, args)
		}
	})
}

func TestStartOf(t *testing.T) {
	for line, want := range map[string]string{
		"root=UUID=x ro quiet\n":               "disk",
		"root=UUID=x ro " + bySelf + "\n":      "kexec",
		"console=ttyS0 smelt.mode=ram quiet\n": "ram",
		"smelt.start=kexecx":                   "disk",
	} {
		if got := startOf(line); got != want {
			t.Errorf("%q was started by %s, want %s", line, got, want)
		}
	}
}
