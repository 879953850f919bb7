package bmc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"smelt/power"
)

// newest is how many entries EventLog reads.
const newest = 200

// EventLog reads the System Event Log. The meaning of its bytes differs from
// sensor type to sensor type (IPMI 2.0, table 42-3) and from vendor to vendor:
// ipmitool knows them.
func (i *ipmi) EventLog(ctx context.Context) ([]power.LogEntry, error) {
	var log []power.LogEntry
	err := i.session(ctx, func(s *shell) error {
		text, err := s.ask(fmt.Sprintf("sel list last %d", newest))
		if err != nil {
			return err
		}
		log, err = parseSEL(text, i.named())
		return err
	})
	return log, err
}

// named are the names of the sensors that were read already, by number. The
// log alone is no reason to read hundreds of records.
func (i *ipmi) named() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := map[string]string{}
	for _, s := range i.sdr.sensors {
		out[fmt.Sprintf("#0x%02x", s.number)] = s.name
	}
	return out
}

// parseSEL reads what "ipmitool sel list" prints in UTC:
//
//	1 | 11/22/26 | 19:03:29 UTC | Temperature #0x30 | Upper Critical going high | Asserted
//	2 |  Pre-Init  |0000000012| Power Unit #0x01 | Power off/down | Asserted
//
// The year has two digits or four, by version and locale.
func parseSEL(text string, names map[string]string) ([]power.LogEntry, error) {
	var log []power.LogEntry
	for line := range strings.Lines(strings.ToValidUTF8(text, "?")) {
		line = strings.TrimSpace(line)
		f := strings.Split(line, "|")
		for n := range f {
			f[n] = legible(f[n])
		}
		if len(f) < 4 {
			if strings.Contains(line, "failed") || strings.Contains(line, "rror") {
				return nil, fmt.Errorf("event log: ipmitool said: %s", clip(line))
			}
			continue // "SEL has no entries"
		}
		e := power.LogEntry{ID: f[0], At: selTime(f[1], f[2]), Sensor: f[3], Message: strings.Join(f[4:], ", ")}
		if at := strings.LastIndex(e.Sensor, "#0x"); at >= 0 {
			if name := names[e.Sensor[at:]]; name != "" {
				e.Sensor = name
			}
		}
		if e.Message == "" { // an OEM record
			e.Sensor, e.Message = "", strings.Join(f[3:], ", ")
		}
		if strings.Trim(e.Message, ", ") == "" {
			continue
		}
		e.Severity = severity(e.Message)
		log = append(log, e)
	}
	return log, nil
}

// selTime is zero where the BMC had no clock yet.
func selTime(date, clock string) time.Time {
	clock = strings.TrimSuffix(clock, " UTC")
	for _, form := range []string{"01/02/06 15:04:05", "01/02/2006 15:04:05", "2006-01-02 15:04:05"} {
		if at, err := time.Parse(form, date+" "+clock); err == nil {
			return at
		}
	}
	return time.Time{}
}

// severity is in the words of the generic thresholds (table 42-2) and of some
// sensor types.
func severity(message string) string {
	m := strings.ToLower(message)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(m, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("deasserted"):
		return "OK"
	case has("non-critical", "predictive", "redundancy lost", "redundancy degraded"), has("correctable") && !has("uncorrectable"):
		return "Warning"
	case has("critical", "non-recoverable", "uncorrectable", "failure detected", "thermal trip", "power supply ac lost", "ierr"):
		return "Critical"
	}
	return ""
}
