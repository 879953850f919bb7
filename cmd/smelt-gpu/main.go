// Command smelt-gpu tests the NVIDIA cards of this machine for smelt-agent. It
// is apart from the agent because it needs cgo and the driver's libraries, and
// because those may end the process they are in.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"smelt/burnin/gpu"
)

const usage = `usage: smelt-gpu run      read one JSON {"spec", "subject"} from standard input, run that check,
                         write JSON lines {"sample"}, {"progress"} and at last {"result"}
       smelt-gpu worker   the same for one card; started by run
       smelt-gpu limit    read one JSON {"share"} from standard input: every card may draw
                         that share of its default power limit; 0 is the default itself

Exit code 0: there is a result, whatever it says. 1: there is none. 2: wrong usage.
SMELT_NVML and SMELT_LIBCUDA name other libraries than the driver's.`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch os.Args[1] {
	case "run":
		var self string
		if self, err = os.Executable(); err == nil {
			err = gpu.Supervisor{Worker: []string{self, "worker"}, Sysfs: "/sys"}.Run(ctx, os.Stdin, os.Stdout)
		}
	case "worker":
		err = gpu.Work(os.Stdin, os.Stdout)
	case "limit":
		err = gpu.Limit(os.Stdin, os.Stdout)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "smelt-gpu:", err)
		stop()
		os.Exit(1)
	}
}
