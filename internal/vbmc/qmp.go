package vbmc

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// maxQMP bounds one line from QEMU; the longest answers are a few kilobytes.
const maxQMP = 1 << 20

// qmp sends commands to one QEMU over its monitor socket and returns the
// answer to the last one. The connection lives for one call: QEMU takes one
// client at a time, and people want to attach too.
func qmp(ctx context.Context, socket string, commands ...qmpCommand) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	lines := bufio.NewScanner(c)
	lines.Buffer(nil, maxQMP)
	var last json.RawMessage
	if _, err := answer(lines, "QMP", ""); err != nil {
		return nil, err
	}
	for _, cmd := range append([]qmpCommand{{Execute: "qmp_capabilities"}}, commands...) {
		if err := json.NewEncoder(c).Encode(cmd); err != nil {
			return nil, fmt.Errorf("monitor: %s: %w", cmd.Execute, err)
		}
		if last, err = answer(lines, "return", cmd.until); err != nil {
			return nil, fmt.Errorf("monitor: %s: %w", cmd.Execute, err)
		}
	}
	return last, nil
}

type qmpCommand struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments,omitempty"`
	until     string         // the event to wait for beside the answer
}

// answer reads lines up to the one that has key, and on to the event unless
// that came before. Other events are passed over.
func answer(lines *bufio.Scanner, key, event string) (json.RawMessage, error) {
	var found json.RawMessage
	for lines.Scan() {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return nil, fmt.Errorf("answer %.80q: %w", lines.Bytes(), err)
		}
		if e, ok := m["error"]; ok {
			var q struct{ Desc string }
			if err := json.Unmarshal(e, &q); err != nil {
				return nil, fmt.Errorf("error %.80q: %w", e, err)
			}
			return nil, fmt.Errorf("QEMU refused: %s", q.Desc)
		}
		if v, ok := m[key]; ok {
			found = v
		}
		if string(m["event"]) == `"`+event+`"` {
			event = ""
		}
		if found != nil && event == "" {
			return found, nil
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("QEMU closed the monitor before it answered")
}
