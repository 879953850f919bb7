package convert

import (
	"time"

	"smelt/inventory"
	"smelt/power"
)

// A class may say start: kexec. Then the agent that wrote the disk starts the
// system on it itself, past the firmware, which takes minutes on a server with
// much memory. That proves nothing of the disk's boot loader: before such a node
// joins, it is started from its disk through the firmware once.

const orderKexec = "kexec" // start the system that was written, past the firmware

const (
	markKexec       = "kexec"        // its agent was told to
	markKexecFailed = "kexec-failed" // it could not, or nothing came of it
)

// kexecLimit is how long a system that was started past the firmware may take
// to report before it is started through the firmware.
const kexecLimit = 10 * time.Minute

// How an installed system says that it was started.
const (
	startDisk  = "disk"
	startKexec = "kexec"
)

// kexecs tells whether a system that was started past the firmware may report.
func (h history) kexecs() bool { return h.mark(markKexec) != nil && h.mark(markRestart) == nil }

// kexec lets the agent start what it wrote, and tells whether the machine is to
// be restarted instead.
func (t *turn) kexec() (restart bool, err error) {
	if t.n.Plan == nil || t.n.Plan.Start != inventory.StartKexec {
		return true, nil
	}
	h, err := t.here()
	if err != nil || h.mark(markRestart) != nil || h.mark(markKexecFailed) != nil {
		return true, err
	}
	m := h.mark(markKexec)
	if m != nil {
		if wait := kexecLimit - t.at.Sub(m.At); wait > 0 {
			t.again(wait)
			return false, nil
		}
		t.setMark(markKexecFailed, "nothing was heard of the system that was started past the firmware", nil)
		return false, nil
	}
	if live := t.Live(t.n.ID); live.Mode == modeConvert && t.at.Sub(live.LastSeen) < agentAlive {
		t.setMark(markKexec, "its agent starts it past the firmware", nil)
		return false, nil
	}
	// A process that just began has heard of no agent yet.
	t.mu.Lock()
	heard := t.begun.Add(agentAlive)
	t.mu.Unlock()
	if t.at.Before(heard) && t.at.Sub(t.n.Since) < agentAlive {
		t.again(min(heard.Sub(t.at), 5*time.Second))
		return false, nil
	}
	return true, nil
}

// kexecID names the order to start past the firmware.
func kexecID(n inventory.Node) string { return orderID(n) + "/kexec" }

// kexeced takes in that the agent could not start the system.
func (t *turn) kexeced(r reported) {
	if !r.OK {
		t.setMark(markKexecFailed, "it could not be started past the firmware: "+r.Error, nil)
	}
}

// cold tells whether the system that runs was started through the firmware, as
// it will be after the next power cut. A plan that did not ask for anything else
// needs no proof of it.
func (t *turn) cold() (bool, error) {
	if t.n.Plan == nil || t.n.Plan.Start != inventory.StartKexec {
		return true, nil
	}
	h, err := t.all()
	if err != nil {
		return false, err
	}
	for i := len(h) - 1; i >= 0 && h[i].To != inventory.Imaging; i-- {
		if h[i].Evidence["start"] == startDisk {
			return true, nil
		}
	}
	return false, nil
}

// coldStart starts a node that passed from its disk through the firmware. h is
// what happened since it passed.
func (t *turn) coldStart(h history) error {
	const why = "from its own disk through the firmware, which was never tried"
	if t.Power[t.n.ID] == nil && h.mark(markRestarted) == nil {
		if live := t.Live(t.n.ID); live.Mode == modeInstalled && t.at.Sub(live.LastSeen) < agentAlive {
			t.setMark(markRestarted, "its agent was told to restart it "+why, map[string]string{"via": "agent"})
			return nil
		}
	}
	done, err := t.restartSince(h, power.Disk, why)
	if err != nil || !done || t.dirty() {
		return err
	}
	if t.n.Note == "" {
		t.note("waits for it to report " + why)
		return nil
	}
	return t.watch(power.Disk)
}

// passedOnce is what happened since burn-in was passed by a system that was
// started past the firmware, or nil.
func (t *turn) passedOnce() (history, error) {
	if t.n.State != inventory.BurningIn {
		return nil, nil
	}
	h, err := t.here()
	if err != nil {
		return nil, err
	}
	if m := h.mark(markPassed); m != nil {
		return h[indexOf(h, m):], nil
	}
	return nil, nil
}

// provesCold takes in a report of the system after its start through the
// firmware, and tells whether it is one.
func (t *turn) provesCold(f found, h history) bool {
	if h.mark(markRestarted) == nil || f.Start == startKexec {
		return false
	}
	t.setMark("cold", "it started from its own disk through the firmware", map[string]string{"start": startDisk})
	t.move(inventory.Joining, "burn-in passed: report "+t.n.Report+"; and it starts from its own disk", nil)
	return true
}
