package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// The test binary is the other processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		if err := roles[os.Args[1]](context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A hundred power verbs, ten processes killed in the middle of them: no BMC is
// left with a session, and no login was refused.
func TestSessionsAfterKills(t *testing.T) {
	h, err := startHall(t.Context(), size{bmcs: 50, jobs: 100, kills: 10, latency: time.Millisecond}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	results, err := benchSessions(t.Context(), h)
	if err != nil {
		t.Error(err)
	}
	if len(results) != 2 {
		t.Fatalf("%d results, want sessions and failed logins", len(results))
	}
	for _, r := range results {
		t.Logf("%s %v: %s", r.key, r.value, r.what)
		if r.value != 0 {
			t.Errorf("%s is %v, want 0: %s", r.key, r.value, r.what)
		}
	}
}
