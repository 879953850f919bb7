package inventory

import "strings"

// junkWords are factory defaults that have a digit in them, folded as Junk
// folds: lower case, letters and digits only. From captures of mining boards
// and servers (linuxhw/DMI) and the reference trees of AMI.
var junkWords = map[string]bool{
	"mb1234567890": true, "ssn12345678901234567": true, "bsn12345678901234567": true, "csn12345678901234567": true,
	"type1productserial": true, "type2boardserialnumber": true, "type3chassisserialnumber": true, "oemdefault000": true,
	// QEMU numbers the disks of every machine alike.
	"qm00001": true, "qm00002": true, "qm00003": true, "qm00004": true, "qm00005": true, "qm00006": true,
	// The UUID of AMI's reference tree: 03000200-0400-0500-0006-000700080009.
	"03000200040005000006000700080009": true,
}

// junkRuns contain every run of digits somebody typed by sliding a finger.
var junkRuns = []string{
	"0123456789012345678901234567890123456789abcdef", "123456789abcdef0123456789abcdef",
	"9876543210987654321098765432109876543210",
}

// Junk tells whether s, read as a serial number, names no single machine or
// part: words without a digit ("To Be Filled By O.E.M.", "Default string"),
// less than four letters and digits, one character repeated, a run of digits,
// or a known default. Many boards answer the same junk; two machines that
// share it have nothing in common. The rare real serial that looks like junk
// costs a second fact, not a wrong wipe.
func Junk(s string) bool {
	f := fold(s)
	if len(f) < 4 || !strings.ContainsAny(f, "0123456789") || junkWords[f] {
		return true
	}
	// One character repeated, with or without the 0x of a hexadecimal number.
	for _, t := range []string{f, strings.TrimPrefix(f, "0x")} {
		if t == "" || strings.Trim(t, t[:1]) == "" {
			return true
		}
	}
	for _, run := range junkRuns {
		if strings.Contains(run, f) {
			return true
		}
	}
	return false
}

// junkNames are what firmware answers where a maker or a model belongs.
var junkNames = map[string]bool{
	"": true, "tobefilledbyoem": true, "filledbyoem": true, "oem": true, "defaultstring": true, "default": true, "others": true,
	"none": true, "unknown": true, "na": true, "notspecified": true, "notapplicable": true, "empty": true,
	"systemmanufacturer": true, "systemproductname": true, "systemname": true, "baseboardmanufacturer": true, "productname": true,
}

// model is vendor and product of a board, "" if the firmware does not say.
func model(b Board) string {
	if junkNames[fold(b.Vendor)] || junkNames[fold(b.Product)] {
		return ""
	}
	return b.Vendor + " " + b.Product
}

// fold is s in lower case with its ASCII letters and digits only.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return -1
	}, s)
}
