package bmc

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"smelt/power"
)

// What ipmitool prints comes from the BMC.
func FuzzIPMIRaw(f *testing.F) {
	f.Add("RAW REQ (channel=0x0 netfn=0x0 lun=0x0 cmd=0x1 data_len=0)\nRAW RSP (3 bytes)\n 01 00 00\n")
	f.Add("RAW RSP (18 bytes)\n 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n 10 11\n")
	f.Add("RAW RSP (0 bytes)\n\n")
	f.Add("Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x77 rsp=0xc1): Invalid command\n")
	f.Add("Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x77)\n")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := parseRaw(text)
		if err != nil {
			if b != nil {
				t.Errorf("% x beside error %v", b, err)
			}
			return
		}
		if !strings.Contains(text, fmt.Sprintf("RAW RSP (%d bytes)", len(b))) && !strings.Contains(text, "RAW RSP (") {
			t.Errorf("% x from %q", b, text)
		}
		again, err := parseRaw(fmt.Sprintf("RAW RSP (%d bytes)\n % x\n", len(b), b))
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("% x printed again is % x, error %v", b, again, err)
		}
	})
}

func FuzzIPMIWords(f *testing.F) {
	f.Add("   1 | 11/22/26 | 19:03:29 UTC | Temperature #0x30 | Upper Critical going high | Asserted\n")
	f.Add("   2 |  Pre-Init  |0000000012| Power Unit #0x01 | Power off/down | Asserted\n")
	f.Add("   3 | OEM record c0 | 000157 | 0000000000\nSEL has no entries\n")
	f.Add("Get SEL Info command failed: Invalid command\n")
	f.Add("Firmware Revision         : 9.08\nManufacturer Name         : MontaVista Software, Inc.\n")
	f.Fuzz(func(t *testing.T, text string) {
		log, err := parseSEL(text, map[string]string{"#0x30": "CPU1 Temp"})
		if err != nil && log != nil {
			t.Errorf("%d entries beside error %v", len(log), err)
		}
		for _, e := range log {
			if e.Message == "" {
				t.Errorf("an entry from nothing: %+v", e)
			}
			if !utf8.ValidString(e.ID + e.Sensor + e.Message) {
				t.Errorf("%+q", e)
			}
		}
		for name, value := range fields(text) {
			if name == "" || strings.ContainsAny(name+value, "\n") {
				t.Errorf("field %q %q", name, value)
			}
		}
		if c := clip(text); len(c) > maxSaid+len("…") || strings.ContainsAny(c, "\n\r") || !utf8.ValidString(c) {
			t.Errorf("%d bytes: %q", len(c), c)
		}
	})
}

// What a BMC sends.
func FuzzIPMIBytes(f *testing.F) {
	record := make([]byte, 48, 64)
	record[3], record[5], record[12], record[21], record[24], record[47] = 1, 0x20, 1, 1, 1, 0xc4
	f.Add(append(record, "Temp"...))
	f.Add([]byte{0xdc, 0xaf, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40})
	f.Add([]byte{0x06, 0, 0xff, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0x81, 0x1c, 0x63, 0x20, 0, 0x38, 0, 1, 0x80, 4, 2, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseChassis(b); err == nil && c.state != power.On && c.state != power.Off {
			t.Errorf("%+v", c)
		}
		if w := parseDCMI(b); !math.IsNaN(w) && (w <= 0 || w > math.MaxUint16) {
			t.Errorf("%v watts", w)
		}
		if _, err := parseCapabilities(b); err == nil && len(b) < 30 {
			t.Errorf("capabilities from %d bytes", len(b))
		}
		if strings.ContainsFunc(parseName(b), unprintable) {
			t.Errorf("name %q", parseName(b))
		}
		if len(b) >= 4 {
			parseAccess(1, b)
		}
		_ = (&ipmi{}).kept([]byte{0x80, 4, 0, 0, 0}, b)
		s, ok := parseSDR(b)
		if !ok {
			return
		}
		if s.name == "" || strings.ContainsFunc(s.name, unprintable) {
			t.Errorf("sensor %q", s.name)
		}
		if s.convert == nil {
			return
		}
		for v := range 256 {
			if r := readingOf(s, []byte{byte(v), 0xc0}); math.IsInf(r, 0) {
				t.Errorf("%s reads %v", s.name, r)
			}
		}
	})
}

// Data that people type passes ipmitool unharmed.
func FuzzEscape(f *testing.F) {
	f.Add([]byte("~.\r~~\n~?x~.\r\r~B"), 3)
	f.Fuzz(func(t *testing.T, typed []byte, cut int) {
		cut = min(max(cut, 0), len(typed))
		e := escaper{fresh: true}
		got, ended := unescape(append(e.escape(typed[:cut]), e.escape(typed[cut:])...))
		if ended || !bytes.Equal(got, typed) {
			t.Errorf("%q arrives as %q, ended %v", typed, got, ended)
		}
	})
}

// unescape is ipmitool's processSolUserInput (1.8.19, lib/ipmi_sol.c): what
// it sends, and whether it took some of it for a command.
func unescape(in []byte) (out []byte, ended bool) {
	pending, fresh := false, true
	for _, c := range in {
		switch {
		case pending:
			pending = false
			if c != '~' {
				return out, true
			}
			out = append(out, c)
		case fresh && c == '~':
			pending = true
			continue
		default:
			out = append(out, c)
		}
		fresh = c == '\r' || c == '\n'
	}
	return out, pending
}
