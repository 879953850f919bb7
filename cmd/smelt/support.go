package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/internal/doctor"
)

func newSupport(o *options) *cobra.Command {
	return group("support", "What to send to somebody who helps", newSupportBundle(o))
}

const (
	maxBundleNodes = 500      // views of single nodes in a bundle
	maxBundleLog   = 16 << 20 // bytes of the end of each log
)

func newSupportBundle(o *options) *cobra.Command {
	var out string
	var logs []string
	c := &cobra.Command{
		Use: "bundle", Short: "Write what is known about this site and its server into one file, without secrets",
		Long: `Write a tar.gz with the site file, versions, metrics, the state of every node
with its last events, tasks, networks, what smelt doctor says, the server's log
and a list of the files in the state folder. It works, with less in it, while no
server runs.

Left out: the secrets, the key that opens them, the site's keys, tokens, and the
database. Every file is searched for the value of each secret of the site, also
in base64, hexadecimal and as part of a URL; what is found is replaced, and said.
Look into the file before you send it: names of nodes, addresses and serial
numbers are in it.`,
		Example: "  sudo smelt support bundle --out bundle.tar.gz\n  sudo smelt support bundle --out bundle.tar.gz --log /var/log/smelt.log",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if out == "" {
				out = "smelt-support-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			b := &bundle{}
			o.fillBundle(c, b, logs)
			if err := b.write(out); err != nil {
				return err
			}
			for _, m := range b.missing {
				fmt.Fprintln(c.ErrOrStderr(), "smelt: not in the bundle:", m)
			}
			for _, n := range b.redacted {
				fmt.Fprintln(c.ErrOrStderr(), "smelt: a secret stood in", n, "and was taken out of the bundle: where it came from is a fault, please report it")
			}
			fmt.Fprintln(c.OutOrStdout(), out)
			return say(c, nil, "It has %d files. Look into it before you send it: tar tzf %s", len(b.files), out)
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: smelt-support-TIME.tar.gz here)")
	c.Flags().StringSliceVar(&logs, "log", nil, "a log file of the server; left out, the journal of the unit smelt where there is one")
	return c
}

// A bundle is a set of files without secrets.
type bundle struct {
	files    []bundleFile
	missing  []string
	redacted []string
	secrets  [][]byte
}

type bundleFile struct {
	name string
	data []byte
}

// add takes a file, without the secrets that stand in it.
func (b *bundle) add(name string, data []byte, err error) {
	if err != nil {
		b.missing = append(b.missing, fmt.Sprintf("%s: %v", name, err))
		return
	}
	clean, found := redact(data, b.secrets)
	if found {
		b.redacted = append(b.redacted, name)
	}
	b.files = append(b.files, bundleFile{name, clean})
}

func (b *bundle) addJSON(name string, v any) {
	data, err := json.MarshalIndent(v, "", " ")
	b.add(name, data, err)
}

// minSecret is the shortest value that is searched for: a shorter one is part
// of ordinary words.
const minSecret = 4

// redact replaces every form of every secret.
func redact(data []byte, secrets [][]byte) ([]byte, bool) {
	found := false
	for _, s := range secrets {
		if len(s) < minSecret {
			continue
		}
		for _, form := range forms(s) {
			if bytes.Contains(data, form) {
				data, found = bytes.ReplaceAll(data, form, []byte("[secret]")), true
			}
		}
	}
	return data, found
}

// forms are the ways in which a value leaves a program: as it is, in a URL, in
// JSON, in a page, in hexadecimal, and in base64 wherever it begins in a longer text.
func forms(s []byte) [][]byte {
	out := [][]byte{s, []byte(url.QueryEscape(string(s))), []byte(url.PathEscape(string(s))), []byte(hex.EncodeToString(s)), []byte(strings.ToUpper(hex.EncodeToString(s)))}
	if j, err := json.Marshal(string(s)); err == nil {
		out = append(out, j[1:len(j)-1])
	}
	page := template.HTMLEscapeString(string(s))
	out = append(out, []byte(page), []byte(strings.ReplaceAll(page, "+", "&#43;"))) // html/template escapes + too
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			// The characters that depend on s alone: those of the neighbours are cut off.
			text := enc.EncodeToString(append(make([]byte, before), s...))
			first := (before*8 + 5) / 6
			last := (before + len(s)) * 8 / 6
			if last-first >= minSecret {
				out = append(out, []byte(text[first:last]))
			}
		}
	}
	slices.SortFunc(out, func(a, b []byte) int { return len(b) - len(a) }) // a form may hold another one
	return slices.CompactFunc(out, bytes.Equal)
}

// write makes the file, readable by its owner only.
func (b *bundle) write(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usageError{path + " is there already", "give another --out"}
	}
	if err != nil {
		return usageError{err.Error(), "give an --out that can be written"}
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	t := tar.NewWriter(z)
	now := time.Now()
	b.files = append(b.files, bundleFile{"missing.txt", []byte(strings.Join(append(b.missing, ""), "\n"))})
	for _, file := range b.files {
		h := &tar.Header{Name: "smelt-support/" + file.name, Mode: 0o600, Size: int64(len(file.data)), ModTime: now, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(file.data); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close(), f.Sync())
}

// fillBundle collects. Whatever cannot be had is named and left out: a bundle
// is asked for when things do not work.
func (o *options) fillBundle(c *cobra.Command, b *bundle, logs []string) {
	text, readErr := os.ReadFile(o.site)
	site, _, err := o.loadSite(nil)
	if err != nil {
		b.missing = append(b.missing, fmt.Sprintf("what a valid site file tells: %v", err))
	}
	if site != nil {
		b.secrets, err = values(site)
		if err != nil {
			// Without them nothing can be searched for.
			b.missing = append(b.missing, fmt.Sprintf("secrets to search for: %v", err))
		}
	}
	b.add("site.yaml", text, readErr)
	host, _ := os.Hostname()
	b.addJSON("version.json", map[string]any{"smelt": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH, "cpus": runtime.NumCPU(), "host": host, "at": time.Now().UTC()})
	for _, path := range []string{"/etc/os-release", "/proc/version", "/proc/meminfo", "/proc/loadavg"} {
		data, err := os.ReadFile(path)
		b.add("host"+path, data, err)
	}
	if site != nil {
		data, err := listFolder(site.State)
		b.add("state.txt", data, err)
	}
	local := *o
	if site != nil && !c.Flags().Changed("token-file") {
		// As root beside the server, its own token does.
		if own := filepath.Join(site.State, "operator.token"); readable(own) {
			local.tokenFile = own
		}
	}
	local.fillFromServer(c, b)
	if site != nil {
		report, err := doctor.Run(c.Context(), doctor.Config{Site: site, Files: doctorFiles(".cache"), Wait: 2 * time.Second, Running: local.running(c, site)})
		if err != nil {
			b.add("doctor.json", nil, err)
		} else {
			b.addJSON("doctor.json", report)
		}
	}
	if len(logs) == 0 {
		data, err := exec.CommandContext(c.Context(), "journalctl", "--unit", "smelt", "--no-pager", "--lines", "20000").Output()
		b.add("server.log", tail(data), err)
	}
	for i, path := range logs {
		data, err := readTail(path)
		b.add(fmt.Sprintf("server-%d.log", i+1), data, err)
	}
}

// fillFromServer takes what the API tells a viewer.
func (o *options) fillFromServer(c *cobra.Command, b *bundle) {
	cl, err := o.client()
	if err != nil {
		b.add("server", nil, err)
		return
	}
	get := func(name, path string) {
		ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
		defer cancel()
		data, err := cl.Raw(ctx, path)
		b.add(name, data, err)
	}
	for _, f := range [][2]string{
		{"metrics.txt", "/metrics"}, {"site.json", api.PathSite}, {"nodes.json", api.PathNodes}, {"tasks.json", api.PathTasks},
		{"networks.json", api.PathNetworks}, {"seen.json", api.PathNetworks + "/seen"}, {"images.json", api.PathImages},
		{"power.json", api.PathPower}, {"bmcs.json", api.PathBMCs},
	} {
		get(f[0], f[1])
	}
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	list, err := cl.Nodes(ctx)
	if err != nil {
		b.add("nodes", nil, err)
		return
	}
	for i, v := range list.Items {
		if i == maxBundleNodes {
			b.missing = append(b.missing, fmt.Sprintf("the events of %d more nodes", len(list.Items)-i))
			break
		}
		get("nodes/"+string(v.Node.ID)+".json", api.PathNodes+"/"+url.PathEscape(string(v.Node.ID)))
	}
}

// values are the secrets of the site.
func values(site *config.Site) ([][]byte, error) {
	if _, err := os.Stat(filepath.Join(site.State, "secrets")); err != nil {
		return nil, err
	}
	s, err := config.OpenSecrets(site.State)
	if err != nil {
		return nil, err
	}
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, n := range names {
		v, err := s.Get(n)
		if err != nil {
			return nil, err
		}
		out = append(out, v.Reveal())
	}
	return out, nil
}

// listFolder lists names, sizes and modes, of no content.
func listFolder(dir string) ([]byte, error) {
	var out bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&out, "%s: %v\n", path, err)
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil // gone in the meantime
		}
		fmt.Fprintf(&out, "%s %12d %s %s\n", fi.Mode(), fi.Size(), fi.ModTime().UTC().Format(time.RFC3339), path)
		return nil
	})
	return out.Bytes(), err
}

func readTail(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > maxBundleLog {
		if _, err := f.Seek(-maxBundleLog, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxBundleLog))
}

func tail(b []byte) []byte { return b[max(0, len(b)-maxBundleLog):] }
