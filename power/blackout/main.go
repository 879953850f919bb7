// Command blackout simulates how a hall of 500 machines starts again after a
// blackout, by itself and in the order of power.Budget, and draws both:
//
//	go run ./power/blackout >docs/blackout.svg
//
// Nothing of it was measured on machines. What a machine draws from its start on
// is a model (see phases); the budget is the real one.
package main

import (
	"fmt"
	"os"
)

//go:generate sh -c "go run . >../../docs/blackout.svg"

func main() {
	alone, err := simulate(false)
	if err == nil {
		var ordered result
		if ordered, err = simulate(true); err == nil {
			_, err = os.Stdout.WriteString(picture(alone, ordered))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "blackout:", err)
		os.Exit(1)
	}
}
