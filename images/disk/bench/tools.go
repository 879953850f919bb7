package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"smelt/images"
	"smelt/images/disk"
)

// A tool writes a published image to a disk: a pipeline of processes, without
// a shell, whose exit statuses all count.
type tool struct {
	name string
	http bool // reads what is published, as a node must
	pipe func(p published, dev string) [][]string
}

const (
	smeltName  = "smelt"
	curlDD     = "curl | dd oflag=direct"
	localDD    = "dd oflag=direct, local raw file"
	streamName = "stream: Go zstd, io.Copy, fsync"
)

func dd(in, dev string) []string {
	c := []string{"dd", "of=" + dev, "bs=4M", "iflag=fullblock", "oflag=direct", "conv=fsync,notrunc", "status=none"}
	if in != "" {
		c = append(c, "if="+in)
	}
	return c
}

func curl(url string) []string { return []string{"curl", "-sSf", url} }

var tools = []tool{
	{smeltName, true, func(p published, dev string) [][]string {
		return [][]string{{self, "-as", "smelt", p.manifest, p.zst, dev}}
	}},
	{smeltName + ", everything read back", true, func(p published, dev string) [][]string {
		return [][]string{{self, "-as", "smelt-readback", p.manifest, p.zst, dev}}
	}},
	{curlDD, true, func(p published, dev string) [][]string { return [][]string{curl(p.raw), dd("", dev)} }},
	{localDD, false, func(p published, dev string) [][]string {
		if p.kind == "incompressible" {
			return nil // fio's limit says what there is to know
		}
		return [][]string{dd(p.rawFile, dev)}
	}},
	{"curl | zstd -d | dd oflag=direct", true, func(p published, dev string) [][]string {
		return [][]string{curl(p.zst), {"zstd", "-dcq"}, dd("", dev)}
	}},
	{streamName, true, func(p published, dev string) [][]string {
		return [][]string{{self, "-as", "stream", p.zst, dev}}
	}},
	{"bmaptool, zst", true, func(p published, dev string) [][]string { return [][]string{bmaptool(p, p.bmap, p.zst, dev)} }},
	{"bmaptool, raw", true, func(p published, dev string) [][]string { return [][]string{bmaptool(p, p.bmap, p.raw, dev)} }},
	{"bmaptool, local raw file", false, func(p published, dev string) [][]string {
		if p.kind == "incompressible" {
			return nil
		}
		return [][]string{bmaptool(p, p.bmapFile, p.rawFile, dev)}
	}},
	{"qemu-img convert, raw", true, func(p published, dev string) [][]string {
		return [][]string{qemu("raw", p.raw, dev)}
	}},
	{"qemu-img convert, qcow2", true, func(p published, dev string) [][]string {
		if p.kind == "incompressible" {
			return nil // no holes: the raw file with a map in front
		}
		return [][]string{qemu("qcow2", p.qcow2, dev)}
	}},
	{"qemu-img convert, qcow2 zstd", true, func(p published, dev string) [][]string {
		if p.kind == "incompressible" {
			return nil
		}
		return [][]string{qemu("qcow2", p.qcow2z, dev)}
	}},
	{"qemu-img convert, local raw file", false, func(p published, dev string) [][]string {
		if p.kind == "incompressible" {
			return nil
		}
		return [][]string{qemu("raw", p.rawFile, dev)}
	}},
}

// bmaptool skips the holes that the map knows. Where there are none it gets no
// map, and verifies nothing.
func bmaptool(p published, bmap, from, dev string) []string {
	if p.kind == "incompressible" {
		return []string{"bmaptool", "-q", "copy", "--nobmap", from, dev}
	}
	return []string{"bmaptool", "-q", "copy", "--bmap", bmap, from, dev}
}

// qemu writes with direct I/O, several requests at a time, to a target that it
// may not take for empty. With eight requests its HTTP reader hangs at times.
func qemu(format, from, dev string) []string {
	return []string{"qemu-img", "convert", "-n", "-W", "-m", "4", "-t", "none", "-f", format, "-O", "raw", from, dev}
}

// runs runs a pipeline and returns what it cost.
func runs(ctx context.Context, stages [][]string) (sample, error) {
	var cmds []*exec.Cmd
	var logs []*strings.Builder
	var in io.ReadCloser
	began := time.Now()
	for i, s := range stages {
		c := exec.CommandContext(ctx, s[0], s[1:]...)
		log := &strings.Builder{}
		c.Stderr = log
		if in != nil {
			c.Stdin = in
		}
		var next *os.File
		if i < len(stages)-1 {
			r, w, err := os.Pipe()
			if err != nil {
				return sample{}, err
			}
			c.Stdout, in, next = w, r, w
		}
		err := c.Start()
		if next != nil {
			next.Close()
		}
		if f, ok := c.Stdin.(*os.File); ok && f != nil {
			f.Close()
		}
		if err != nil {
			return sample{}, fmt.Errorf("%s: %w", s[0], err)
		}
		cmds, logs = append(cmds, c), append(logs, log)
	}
	var s sample
	var err error
	for i, c := range cmds {
		if e := c.Wait(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w: %s", stages[i][0], e, strings.TrimSpace(logs[i].String())))
			continue
		}
		u := c.ProcessState.SysUsage().(*syscall.Rusage)
		s.cpu += c.ProcessState.UserTime() + c.ProcessState.SystemTime()
		s.peak += u.Maxrss
	}
	s.took = time.Since(began)
	return s, err
}

// fio writes the device once in sequence and returns how long that took. What
// it leaves is nobody's image.
func fio(ctx context.Context, dev string, size int64) (time.Duration, error) {
	out, err := exec.CommandContext(ctx, "fio", "--name=limit", "--filename="+dev, "--rw=write", "--bs=4M", "--direct=1",
		"--ioengine=libaio", "--iodepth=4", "--size="+strconv.FormatInt(size, 10), "--end_fsync=1", "--output-format=json").Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	var r struct {
		Jobs []struct {
			Error int `json:"error"`
			Write struct {
				Bytes   int64   `json:"io_bytes"`
				Runtime float64 `json:"runtime"` // ms, with the fsync
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 || r.Jobs[0].Write.Bytes != size || r.Jobs[0].Write.Runtime == 0 {
		return 0, fmt.Errorf("fio wrote something else: %+v", r)
	}
	return time.Duration(r.Jobs[0].Write.Runtime * float64(time.Millisecond)), nil
}

// self is this program, for the tools that are written in Go.
var self = func() string {
	p, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return p
}()

// ask runs a part of this program as a process of its own and decodes its
// answer. A child's peak memory counts from its parent's, so what needs memory
// is not done in the process that starts the tools.
func ask(ctx context.Context, answer any, args ...string) error {
	c := exec.CommandContext(ctx, self, append([]string{"-as"}, args...)...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return json.Unmarshal(out, answer)
}

// child is one run of a part of this program.
func child(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 4 && strings.HasPrefix(args[0], "smelt"):
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		var m images.Manifest
		if err := json.NewDecoder(f).Decode(&m); err != nil {
			return err
		}
		f.Close()
		_, err = disk.Write(ctx, args[3], m, disk.HTTP(disk.NewClient(), args[2]), disk.Options{ReadBack: args[0] == "smelt-readback"})
		return err
	case len(args) == 3 && args[0] == "stream":
		return stream(ctx, args[1], args[2])
	case len(args) == 4 && args[0] == "publish":
		size, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return err
		}
		return publish(ctx, args[1], size, args[3])
	case len(args) == 4 && args[0] == "equal":
		size, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil {
			return err
		}
		same, err := equal(args[1], args[2], size)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(same)
	}
	return fmt.Errorf("unknown: %q", args)
}

// stream is the usual shape, as in Tinkerbell's image2disk: one connection, one
// decompressor, io.Copy through the page cache, fsync.
func stream(ctx context.Context, url, dev string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	z, err := zstd.NewReader(resp.Body)
	if err != nil {
		return err
	}
	defer z.Close()
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// image2disk hides ReadFrom and WriteTo behind its progress counter.
	if _, err := io.Copy(struct{ io.Writer }{f}, struct{ io.Reader }{z}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}
