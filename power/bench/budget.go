package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// budgetRuns is how many seeds the schedules are spread over: a run ends with
// its first breach.
const budgetRuns = 3

var passed = regexp.MustCompile(`OK, passed (\d+) tests`)

// benchBudget runs the property test of the power budget, which is where its
// random halls and its checker are.
func benchBudget(ctx context.Context, h *hall) ([]result, error) {
	seed := time.Now().UnixNano()
	breaches, ran := 0, 0
	for i := range int64(budgetRuns) {
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "^TestSchedules$", "smelt/power",
			fmt.Sprintf("-rapid.checks=%d", h.schedules/budgetRuns), fmt.Sprintf("-rapid.seed=%d", seed+i), "-rapid.nofailfile")
		out, err := cmd.CombinedOutput()
		m := passed.FindSubmatch(out)
		switch {
		case err == nil && m != nil:
			n, err := strconv.Atoi(string(m[1]))
			if err != nil {
				return nil, err
			}
			ran += n
		case strings.Contains(string(out), "--- FAIL: TestSchedules"):
			breaches++
			say("seed %d:\n%s", seed+i, out)
		default:
			return nil, fmt.Errorf("go test smelt/power: %w:\n%s", err, out)
		}
	}
	return []result{atMost("budget_breaches", float64(breaches), 0, "random schedules of random halls in which a level stood above its derated rating, of %d", ran)}, nil
}
