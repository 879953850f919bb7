// Command smelt is the server and the command line of a site: it finds machines
// on the network, converts them into validated nodes of a cluster, and says
// what it did.
//
//	smelt NOUN VERB
//
// There is one file a noun. Data goes to stdout and everything else to stderr;
// errors say what happened, why, and what to do next.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"smelt/images"
	"smelt/images/release"
	"smelt/images/remote"
	"smelt/internal/api"
	"smelt/internal/config"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second interrupt ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

func run(ctx context.Context, args []string, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	complain(stderr, err)
	return exitCode(ctx, err)
}

func complain(stderr io.Writer, err error) {
	if msg := err.Error(); msg != "" {
		for line := range strings.Lines(plain(msg)) {
			fmt.Fprintf(stderr, "smelt: %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

// Exit codes: a contract that scripts branch on.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2 // usage or invalid input
	exitNegative    = 3 // ran correctly, but the verdict is negative
	exitDenied      = 4
	exitConflict    = 5
	exitTimeout     = 6
	exitChanges     = 10 // the plan has changes; only with --detailed-exitcode
	exitInterrupted = 130
)

// Errors that mean an exit code of their own.
var (
	errNegative = errors.New("")
	errChanges  = errors.New("")
)

// usageError is a command that was called wrongly.
type usageError struct{ msg, next string }

func (e usageError) Error() string {
	if e.next == "" {
		return e.msg
	}
	return e.msg + "; next: " + e.next
}

// exitCode is the one place where errors become exit codes.
func exitCode(ctx context.Context, err error) int {
	var usage usageError
	var site config.Errors
	switch {
	case errors.Is(err, errNegative), refusedImage(err):
		return exitNegative
	case errors.Is(err, errChanges):
		return exitChanges
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitInterrupted
	case errors.Is(err, api.ErrPending), errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.As(err, &usage), errors.As(err, &site), errors.Is(err, api.ErrInvalid), errors.Is(err, api.ErrNotFound):
		return exitUsage
	case errors.Is(err, api.ErrDenied), errors.Is(err, release.ErrRole), errors.Is(err, remote.ErrDenied):
		return exitDenied
	case errors.Is(err, api.ErrConflict), errors.Is(err, release.ErrConflict):
		return exitConflict
	}
	return exitFailed
}

// refusedImage tells whether an image, or what is published about images, was
// looked at and is not to be trusted.
func refusedImage(err error) bool {
	for _, e := range []error{images.ErrUnsigned, images.ErrDamaged, release.ErrUntrusted, release.ErrExpired, release.ErrRollback, release.ErrDamaged} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
