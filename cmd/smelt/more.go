package main

import "github.com/spf13/cobra"

// more are the commands that run something long: each has a file of its own.
func more() []*cobra.Command {
	return []*cobra.Command{}
}
