// Bench runs the benchmarks of images, writing and swarm, one after the other,
// and closes with one line of JSON that has the numbers of both. What follows
// -- goes to the writing part.
//
//	go run ./images/bench [-only disk|swarm] [-- -rounds 1 -mib 4096]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// line is what each benchmark ends with.
type line struct {
	Bench   string             `json:"bench"`
	Results map[string]float64 `json:"results"`
}

func main() {
	only := flag.String("only", "", "one of them: disk or swarm")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all := line{"images", map[string]float64{}}
	failed := false
	for _, name := range []string{"disk", "swarm"} {
		if *only != "" && *only != name {
			continue
		}
		var args []string
		if name == "disk" {
			args = flag.Args()
		}
		l, err := run(ctx, name, args)
		if err != nil {
			// The other one's numbers are worth having.
			fmt.Fprintf(os.Stderr, "bench: images/%s: %v\n", name, err)
			failed = true
			continue
		}
		for k, v := range l.Results {
			all.Results[k] = v
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil || failed {
		os.Exit(1)
	}
}

// run runs one, shows what it says, and returns its last line.
func run(ctx context.Context, name string, args []string) (line, error) {
	c := exec.CommandContext(ctx, "go", append([]string{"run", "./images/" + name + "/bench"}, args...)...)
	// go run passes an interrupt on; a benchmark removes what it made.
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.Stderr = os.Stderr
	var out bytes.Buffer
	c.Stdout = io.MultiWriter(&out, os.Stdout)
	if err := c.Run(); err != nil {
		return line{}, err
	}
	b := bytes.TrimSpace(out.Bytes())
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	var l line
	if err := json.Unmarshal(b, &l); err != nil || len(l.Results) == 0 {
		return line{}, fmt.Errorf("its last line %.100q is no result: %v", b, err)
	}
	return l, nil
}
