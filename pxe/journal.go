package pxe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// record is one line of the lease journal. The last line about an address wins.
type record struct {
	MAC   MAC        `json:"mac"`
	Addr  netip.Addr `json:"addr"`
	State leaseState `json:"state"`
	Until int64      `json:"until"` // Unix seconds
}

// journal keeps leases on disk. Records that arrive while the disk is busy are
// written together and made durable by one fdatasync, which is what makes an
// ACK per durable lease affordable when a whole hall powers on.
//
// The file only grows; once it holds far more lines than there are addresses
// it is written anew and renamed into place. The same is done after any failed
// write: what a file holds after a failed fsync cannot be known.
type journal struct {
	path  string
	queue chan pending
	state map[netip.Addr]record // what the file says; only run touches it
	lock  *os.File
	file  *os.File // nil: to be written anew
	lines int
	done  chan struct{} // closed when run has ended: nothing becomes durable any more
}

type pending struct {
	record record
	result chan error
}

var errStopped = errors.New("the server is stopping")

// openJournal reads the journal at path, if there is one, and takes it for
// this process alone.
func openJournal(path string) (*journal, error) {
	j := &journal{path: path, queue: make(chan pending, 4096), state: make(map[netip.Addr]record), done: make(chan struct{})}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lease journal: %v", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lease journal %s: another server uses it (%v)", path, err)
	}
	j.lock = lock
	if err := j.read(); err != nil {
		lock.Close()
		return nil, err
	}
	if err := j.rewrite(time.Now()); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lease journal %s: %v", path, err)
	}
	return j, nil
}

// read replays the file. A crash can leave garbage at its end, never before a
// line that was acknowledged: damage in the middle is not ours to guess at.
func (j *journal) read() error {
	data, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lease journal: %v", err)
	}
	records, damaged := parseJournal(data)
	if damaged > 0 {
		return fmt.Errorf("lease journal %s: line %d is damaged: move the file away to start with no leases (machines then get new addresses)", j.path, damaged)
	}
	for _, r := range records {
		j.state[r.Addr] = r
	}
	return nil
}

// parseJournal returns the records in data, and the number of the first line
// that cannot be read although a readable one follows it; 0 if there is none.
func parseJournal(data []byte) (records []record, damaged int) {
	bad := 0
	for i, line := range bytes.Split(data, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		var r record
		if json.Unmarshal(line, &r) != nil || !r.Addr.Is4() || r.State < bound || r.State > declined {
			if bad == 0 {
				bad = i + 1
			}
			continue
		}
		if bad > 0 {
			return nil, bad
		}
		records = append(records, r)
	}
	return records, 0
}

// records returns what was read, in no order. It must not be called once run
// has started.
func (j *journal) records() []record { return slices.Collect(maps.Values(j.state)) }

// append queues r and returns the function that waits until it is durable.
func (j *journal) append(r record) (wait func() error) {
	p := pending{r, make(chan error, 1)}
	select {
	case j.queue <- p:
	case <-j.done:
		return func() error { return errStopped }
	}
	return func() error {
		select {
		case err := <-p.result:
			return err
		case <-j.done:
			select {
			case err := <-p.result: // it was in the last batch
				return err
			default:
				return errStopped
			}
		}
	}
}

// close gives the journal up. What was durable stays so.
func (j *journal) close() {
	if j.file != nil {
		j.file.Close()
	}
	j.lock.Close()
}

// run writes what is queued until ctx ends.
func (j *journal) run(ctx context.Context) error {
	defer j.close()
	defer close(j.done)
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-j.queue:
			batch := []pending{p}
		more:
			for len(batch) < cap(j.queue) {
				select {
				case p := <-j.queue:
					batch = append(batch, p)
				default:
					break more
				}
			}
			err := j.write(batch)
			for _, p := range batch {
				p.result <- err
			}
		}
	}
}

// write makes a batch durable.
func (j *journal) write(batch []pending) error {
	var b bytes.Buffer
	for _, p := range batch {
		line, err := json.Marshal(p.record)
		if err != nil {
			return err
		}
		b.Write(line)
		b.WriteByte('\n')
		j.state[p.record.Addr] = p.record
	}
	if j.file == nil || j.lines > 4*len(j.state)+10000 {
		return j.rewrite(time.Now())
	}
	_, err := j.file.Write(b.Bytes())
	if err == nil {
		err = unix.Fdatasync(int(j.file.Fd()))
	}
	if err != nil {
		j.file.Close()
		j.file = nil
		return fmt.Errorf("lease journal %s: %v", j.path, err)
	}
	j.lines += len(batch)
	return nil
}

// stale is how long an ended lease is remembered, so that its machine gets the
// same address when it comes back.
const stale = 30 * 24 * time.Hour

// rewrite puts a new file in place that holds the present state only.
func (j *journal) rewrite(now time.Time) error {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	maps.DeleteFunc(j.state, func(_ netip.Addr, r record) bool { return time.Unix(r.Until, 0).Before(now.Add(-stale)) })
	tmp := j.path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, r := range j.state {
		line, err := json.Marshal(r)
		if err != nil {
			f.Close()
			return err
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		f.Close()
		return err
	}
	j.file, j.lines = f, len(j.state)
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
