package certificate

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"smelt/inventory"
)

//go:embed certificate.html
var pageHTML string

var page = template.Must(template.New("certificate").Funcs(template.FuncMap{
	"size": size, "proof": proof, "utc": utc, "took": took, "join": strings.Join, "identity": identity,
}).Parse(pageHTML))

// WriteHTML writes c as one self-contained page that prints on paper. signed
// is its signed form, whose digest and key the page names: the page itself is
// proof of nothing.
func WriteHTML(w io.Writer, c Certificate, signed []byte, key string) error {
	sum := sha256.Sum256(signed)
	err := page.Execute(w, struct {
		Certificate
		Digest, Key string
	}{c, hex.EncodeToString(sum[:]), key})
	if err != nil {
		return fmt.Errorf("certificate %s: page: %w", c.ID, err)
	}
	return nil
}

// WriteText writes c for a terminal.
func WriteText(w io.Writer, c Certificate) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, strings.Map(printable, fmt.Sprintf(format, args...)))
	}
	if c.Simulated {
		line("SIMULATED", "made in a lab: it proves nothing about a real machine")
	}
	line("certificate", "%s", c.ID)
	line("site", "%s", c.Site)
	line("node", "%s %s", c.Node, c.Position)
	line("machine", "%s %s, board %s, chassis %s", c.Board.Vendor, c.Board.Product, or(c.Board.Serial, "without a serial"), or(c.Board.ChassisSerial, "without a serial"))
	line("wiped", "%s to %s", utc(c.Began), utc(c.Ended))
	line("approved by", "%s", or(c.Approved, "unknown"))
	line("policy", "%s", c.Policy)
	for _, d := range c.Disks {
		line("disk", "%s, %s, %s", or(d.Model, "unknown model"), identity(d.Disk), size(d.Disk.Size))
		line("", "%s (NIST: %s) by %s in %s", d.Level, or(d.NIST, "unknown"), or(d.Method, "unknown"), took(d.Took))
		line("", "%s", proof(d))
		for _, n := range d.Notes {
			line("", "note: %s", n)
		}
	}
	for _, d := range c.Spared {
		line("not wiped", "%s, %s, %s", or(d.Model, "unknown model"), identity(d.DiskID), size(d.Size))
	}
	if was := c.Was; was != nil {
		line("was", "%s, worker %s, rig %s", or(was.MinerOS, "unknown"), or(was.Worker, "unknown"), or(was.Rig, "unknown"))
		if len(was.Pools) > 0 {
			line("", "mined at %s", strings.Join(was.Pools, ", "))
		}
		for _, f := range was.Files {
			line("", "%s; values not kept: %d", f.Path, f.Redacted)
		}
	}
	line("standard", "%s", c.Standard)
	return t.Flush()
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func printable(r rune) rune {
	if r < ' ' || r >= 0x7f && r < 0xa0 {
		return '?'
	}
	return r
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func took(d time.Duration) string { return d.Round(time.Second / 10).String() }

func size(n int64) string {
	if n < 1e9 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f GB (%d bytes)", float64(n)/1e9, n)
}

// identity is everything that tells a disk from another.
func identity(d inventory.DiskID) string {
	var s []string
	for _, f := range [][2]string{{"serial", d.Serial}, {"WWN", d.WWN}, {"at", d.Path}} {
		if f[1] != "" {
			s = append(s, f[0]+" "+f[1])
		}
	}
	return strings.Join(s, ", ")
}

// proof says how it is known that a disk was wiped.
func proof(d inventory.Wiped) string {
	var s []string
	if d.Proofs > 0 {
		s = append(s, fmt.Sprintf("%d places that held data or marks before were read and hold them no more", d.Proofs))
	}
	if d.Zeros {
		s = append(s, "a random sample reads as zeros")
	}
	if len(s) == 0 {
		return "nothing but what the drive reports"
	}
	return strings.Join(s, "; ")
}
