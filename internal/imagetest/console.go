package imagetest

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// escapes are what terminals take for orders (ECMA-48): OVMF and systemd write
// a lot of them.
var escapes = regexp.MustCompile("\x1b(\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)|[@-Z\\\\-_=>()][0-9A-Z]?)")

// consoleLines are the lines of a serial port as people would have read them.
func consoleLines(raw string) []string {
	raw = escapes.ReplaceAllString(raw, "")
	raw = strings.ReplaceAll(raw, "\r\n", "\n")
	var out []string
	for l := range strings.SplitSeq(raw, "\n") {
		if i := strings.LastIndexByte(strings.TrimRight(l, "\r"), '\r'); i >= 0 {
			l = l[i+1:] // what was written over
		}
		out = append(out, strings.TrimRight(printable(l), " ?\t"))
	}
	return out
}

// A blame is a kind of line that says what went wrong, the surest kinds first.
// A fatal one means that nothing good will follow.
var blames = []struct {
	re    *regexp.Regexp
	fatal bool
}{
	{regexp.MustCompile(`Kernel panic - not syncing`), true},
	{regexp.MustCompile(`Gave up waiting for (root|suspend)|ALERT! .* does not exist`), true},
	{regexp.MustCompile(`You are in emergency mode|Cannot open access to console, the root account is locked|^\(initramfs\)`), true},
	{regexp.MustCompile(`Failed to start .*[Ee]mergency|Reached target .*[Ee]mergency`), true},
	{regexp.MustCompile(`^grub rescue>|^error: (file|no such|unknown filesystem|disk|symbol|you need to load)`), true},
	{regexp.MustCompile(`^\[ *(FAILED|DEPEND) *\]`), false},
	{regexp.MustCompile(`Out of memory: Killed|EXT4-fs error|I/O error|BUG: |Oops: |general protection fault`), false},
	{regexp.MustCompile(`No bootable device|Boot failed: not a bootable disk|BdsDxe: No bootable option`), false},
	{regexp.MustCompile(`version magic .* should be|Unknown symbol`), false},
	{regexp.MustCompile(`BdsDxe: failed to (load|start)`), false},
	{regexp.MustCompile(`(?i)^smelt.*(error|refuse|fail)|level=ERROR`), false},
}

// blame finds the line that most likely says what went wrong: the first of the
// surest kind.
func blame(lines []string) (at int, fatal, ok bool) {
	for _, b := range blames {
		if i := slices.IndexFunc(lines, b.re.MatchString); i >= 0 {
			return i, b.fatal, true
		}
	}
	return 0, false, false
}

// excerpt is what a person reads first: the blamed line of a log and what is
// around it, or the last lines. file and first say where they come from.
func excerpt(file string, lines []string, first int) []string {
	const before, after, tail = 4, 8, 20
	at, _, ok := blame(lines)
	from, to := max(0, len(lines)-tail), len(lines)
	if ok {
		from, to = max(0, at-before), min(len(lines), at+after+1)
	}
	var out []string
	for i := from; i < to; i++ {
		if lines[i] == "" {
			continue
		}
		mark := " "
		if ok && i == at {
			mark = ">"
		}
		out = append(out, fmt.Sprintf("%s %s:%d: %s", mark, filepath.Base(file), first+i+1, clip(lines[i])))
	}
	if len(out) == 0 {
		out = append(out, fmt.Sprintf("  %s: nothing was written to it", filepath.Base(file)))
	}
	return out
}

func clip(s string) string {
	if len(s) > 300 {
		return strings.ToValidUTF8(s[:300], "") + " ..."
	}
	return s
}
