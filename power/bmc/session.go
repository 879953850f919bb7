package bmc

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"smelt/power"
)

// A journal remembers the logins at one BMC until their sessions are gone, so
// that a process killed at any instruction leaves none behind. It is a file of
// JSON lines, only ever appended to while it matters:
//
//	{"login":"K3…","at":"…","user":"admin"}   a login begins
//	{"login":"K3…","session":"/redfish/v1/…"} it was granted
//	{"login":"K3…","ended":true}              its session is gone
//
// A last line that was cut off counts as not written, which errs towards
// looking for a session that is not there. The file is not synced: a machine
// that loses its power takes longer to come back than most BMCs keep a session,
// and two thousand BMCs are polled.
//
// The file is locked (flock) for the whole call, which a kill releases: there
// is one call to a BMC at a time, whoever makes it, and a login in the file
// that is not ours is one whose owner died.
type journal struct{ path string }

// A record is what the lines of one login amount to.
type record struct {
	Login   string    `json:"login"`
	At      time.Time `json:"at,omitzero"` // when it began
	User    string    `json:"user,omitempty"`
	Session string    `json:"session,omitempty"` // path; empty: no answer was seen
	Ended   bool      `json:"ended,omitempty"`
}

const (
	maxJournal = 64 << 10 // bytes; beyond it the oldest records are forgotten
	keptRecord = 50       // what is left then
	// sessionLife is how long a BMC keeps a session at most (Session service
	// schema: SessionTimeout is at most 86,400 s).
	sessionLife = 24 * time.Hour
)

// newJournal is the journal of the BMC at address in dir; without dir it
// remembers nothing.
func newJournal(dir, address string) journal {
	if dir == "" {
		return journal{}
	}
	return journal{filepath.Join(dir, power.DeviceFile(address)+".sessions")}
}

// A ledger is a journal that is locked. The nil ledger remembers nothing.
type ledger struct {
	file *os.File
	open []record // not ended, oldest first
	size int64
}

// lock waits until nobody else uses the BMC, and reads what was left behind.
func (j journal) lock(ctx context.Context) (*ledger, error) {
	if j.path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(j.path), 0o700); err == nil {
			f, err = os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("journal of sessions: %w", err)
	}
	if err := flock(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal of sessions: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*maxJournal))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal of sessions: %w", err)
	}
	l := &ledger{file: f, open: unended(b, time.Now()), size: int64(len(b))}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		if err := l.write([]byte("\n")); err != nil { // ends the line that was cut off
			f.Close()
			return nil, err
		}
	}
	return l, nil
}

// flock takes the lock of f. The kernel's own wait would not end with ctx.
func flock(ctx context.Context, f *os.File) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if pause(ctx, wait) != nil {
			return fmt.Errorf("another call to this BMC is under way: %w", ctx.Err())
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unended are the logins in b whose sessions may still be there. What is no
// record is passed over: the file is ours, a damaged line says nothing.
func unended(b []byte, now time.Time) []record {
	var all []record
	for line := range bytes.Lines(b) {
		var r record
		if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &r) != nil || r.Login == "" {
			continue
		}
		i := slices.IndexFunc(all, func(a record) bool { return a.Login == r.Login })
		switch {
		case r.Ended && i >= 0:
			all = slices.Delete(all, i, i+1)
		case r.Ended:
		case r.Session != "" && i >= 0:
			all[i].Session = inService(r.Session)
		case i < 0 && r.At.After(now.Add(-sessionLife)):
			all = append(all, record{Login: r.Login, At: r.At, User: r.User})
		}
	}
	return all
}

func (l *ledger) write(b []byte) error {
	n, err := l.file.Write(b)
	l.size += int64(n)
	if err != nil {
		return fmt.Errorf("journal of sessions: %w", err)
	}
	return nil
}

func (l *ledger) add(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return l.write(append(b, '\n'))
}

// begin writes down that a login of user begins. It must be written before the
// BMC hears of it.
func (l *ledger) begin(user string) (record, error) {
	r := record{Login: rand.Text(), At: time.Now().UTC(), User: user}
	if l == nil {
		return r, nil
	}
	l.open = append(l.open, r)
	return r, l.add(r)
}

// granted writes down where the session is.
func (l *ledger) granted(r record, session string) error {
	if l == nil {
		return nil
	}
	if i := l.index(r); i >= 0 {
		l.open[i].Session = session
	}
	return l.add(record{Login: r.Login, Session: session})
}

// ended writes down that the session is gone, or was never made. An error
// would only have it looked for once more.
func (l *ledger) ended(r record) {
	if l == nil {
		return
	}
	if i := l.index(r); i >= 0 {
		l.open = slices.Delete(l.open, i, i+1)
	}
	_ = l.add(record{Login: r.Login, Ended: true})
}

func (l *ledger) index(r record) int {
	return slices.IndexFunc(l.open, func(o record) bool { return o.Login == r.Login })
}

// left are the open logins of others.
func (l *ledger) left(own record) []record {
	if l == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(l.open), func(r record) bool { return r.Login == own.Login })
}

// unlock gives the BMC free. With nothing open the file is emptied.
func (l *ledger) unlock() {
	if l == nil {
		return
	}
	if len(l.open) == 0 && l.size > 0 {
		_ = l.file.Truncate(0) // or it grows until the next time
	} else if l.size > maxJournal {
		_ = l.file.Truncate(0)
		for _, r := range l.open[max(0, len(l.open)-keptRecord):] {
			_ = l.add(record{Login: r.Login, At: r.At, User: r.User})
			if r.Session != "" {
				_ = l.add(record{Login: r.Login, Session: r.Session})
			}
		}
	}
	l.file.Close() // and with it the lock
}
