package pdu

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gosnmp/gosnmp"

	"smelt/power"
)

// A session is one use of a PDU.
type session struct {
	*gosnmp.GoSNMP
	unit  *Unit
	model *model
	login [sha256.Size]byte // of SNMPv3
}

// failure is what an answer says went wrong. A Set is answered without an error
// of the transport even when the device refused it.
func failure(p *gosnmp.SnmpPacket, err error) error {
	switch {
	case errors.Is(err, gosnmp.ErrUnknownUsername), errors.Is(err, gosnmp.ErrWrongDigest),
		errors.Is(err, gosnmp.ErrDecryption), errors.Is(err, gosnmp.ErrUnknownSecurityLevel):
		return fmt.Errorf("%w: %w", power.ErrAuth, err)
	case errors.Is(err, gosnmp.ErrMaxRetriesExceeded):
		return fmt.Errorf("no answer (a wrong community looks like that too): %w", err)
	case err != nil && strings.Contains(err.Error(), "not authentic"):
		// The report that says "wrong digest" is not signed, so gosnmp 1.47
		// drops it with an error that has no name.
		return fmt.Errorf("%w: %w", power.ErrAuth, err)
	case err != nil:
		return err
	case p == nil:
		return errors.New("no answer")
	}
	switch p.Error {
	case gosnmp.NoError:
		return nil
	case gosnmp.NoSuchName, gosnmp.NoCreation, gosnmp.InconsistentName:
		return errMissing
	case gosnmp.NoAccess, gosnmp.ReadOnly, gosnmp.NotWritable, gosnmp.AuthorizationError:
		return fmt.Errorf("%w: the PDU answers %s; may this community or user write?", power.ErrAuth, p.Error)
	}
	return fmt.Errorf("the PDU answers %s", p.Error)
}

var errMissing = errors.New("the PDU does not have it")

// missing tells a value that says that there is none (RFC 3416, section 4.2.1).
func missing(v gosnmp.SnmpPDU) bool {
	switch v.Type {
	case gosnmp.NoSuchInstance, gosnmp.NoSuchObject, gosnmp.EndOfMibView, gosnmp.Null:
		return true
	}
	return false
}

// answer is the values of an answer, in the order of the OIDs that were asked
// for. A value with another name is another outlet's.
func answer(p *gosnmp.SnmpPacket, err error, oids ...string) ([]gosnmp.SnmpPDU, error) {
	if err := failure(p, err); err != nil {
		return nil, err
	}
	if len(p.Variables) != len(oids) {
		return nil, fmt.Errorf("the PDU answers with %d values, not %d", len(p.Variables), len(oids))
	}
	for i, v := range p.Variables {
		if strings.TrimPrefix(v.Name, ".") != oids[i] {
			return nil, fmt.Errorf("the PDU was asked for %s and answers with %s", oids[i], strings.TrimPrefix(v.Name, "."))
		}
	}
	return p.Variables, nil
}

// get reads values. One that is not there has a type that missing knows.
func (s *session) get(oids ...string) ([]gosnmp.SnmpPDU, error) {
	var out []gosnmp.SnmpPDU
	for part := range slices.Chunk(oids, 20) { // some cards answer tooBig above 40
		p, err := s.Get(part)
		values, err := answer(p, err, part...)
		if errors.Is(err, errMissing) {
			// SNMPv1 answers for all of them with one error (RFC 1157, section 4.1.2).
			if values, err = s.each(part); err != nil {
				return nil, err
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, values...)
	}
	return out, nil
}

func (s *session) each(oids []string) ([]gosnmp.SnmpPDU, error) {
	var out []gosnmp.SnmpPDU
	for _, oid := range oids {
		v := []gosnmp.SnmpPDU{{Name: oid, Type: gosnmp.NoSuchInstance}}
		if len(oids) > 1 {
			p, err := s.Get([]string{oid})
			got, err := answer(p, err, oid)
			switch {
			case err == nil:
				v = got
			case !errors.Is(err, errMissing):
				return nil, err
			}
		}
		out = append(out, v...)
	}
	return out, nil
}

// set writes one value.
func (s *session) set(oid string, word int) error {
	p, err := s.Set([]gosnmp.SnmpPDU{{Name: oid, Type: gosnmp.Integer, Value: word}})
	v, err := answer(p, err, oid)
	if err == nil && missing(v[0]) {
		return errMissing // v2c agents answer that without an error
	}
	return err
}

// A walk ends here whatever the PDU says: 192 outlets with ten columns.
const (
	maxRows     = 4000
	maxRequests = 400
)

// walk reads everything below the prefixes, by OID. Unlike gosnmp's own, it does
// not take an error in the middle for the end.
func (s *session) walk(prefixes ...string) (map[string]gosnmp.SnmpPDU, error) {
	slices.Sort(prefixes)
	last := map[string]string{} // prefix: where to go on
	var open []string
	for _, p := range slices.Compact(prefixes) {
		if !slices.ContainsFunc(open, func(q string) bool { return under(p, q) }) {
			open = append(open, p)
			last[p] = p
		}
	}
	rows := map[string]gosnmp.SnmpPDU{}
	for requests := 0; len(open) > 0; requests++ {
		if requests == maxRequests || len(rows) > maxRows {
			return nil, fmt.Errorf("the PDU's tables do not end after %d values", len(rows))
		}
		values, err := s.next(open, last)
		if err != nil {
			return nil, err
		}
		grown := map[string]bool{}
		for _, v := range values {
			oid := strings.TrimPrefix(v.Name, ".")
			for _, p := range open {
				if !under(oid, p) || missing(v) || !after(oid, last[p]) {
					continue
				}
				rows[oid] = v
				last[p], grown[p] = oid, true
			}
		}
		open = slices.DeleteFunc(open, func(p string) bool { return !grown[p] })
	}
	return rows, nil
}

// next asks for what comes after last in each open column.
func (s *session) next(open []string, last map[string]string) ([]gosnmp.SnmpPDU, error) {
	if s.Version != gosnmp.Version1 {
		var from []string
		for _, p := range open {
			from = append(from, last[p])
		}
		p, err := s.GetBulk(from, 0, uint32(max(48/len(from), 4)))
		if err := failure(p, err); err != nil {
			return nil, err
		}
		return p.Variables, nil
	}
	var out []gosnmp.SnmpPDU
	for _, prefix := range open {
		p, err := s.GetNext([]string{last[prefix]})
		err = failure(p, err)
		switch {
		case errors.Is(err, errMissing): // the end of the MIB
		case err != nil:
			return nil, err
		default:
			out = append(out, p.Variables...)
		}
	}
	return out, nil
}

// after tells whether OID a comes after b.
func after(a, b string) bool {
	x, err := parseOID(a)
	if err != nil {
		return false
	}
	y, err := parseOID(b)
	return err == nil && slices.Compare(x, y) > 0
}

// whole is a value as a number.
func whole(v gosnmp.SnmpPDU) (int64, error) {
	if missing(v) {
		return 0, errMissing
	}
	switch v.Type {
	case gosnmp.Integer, gosnmp.Gauge32, gosnmp.Uinteger32, gosnmp.Counter32, gosnmp.Counter64, gosnmp.TimeTicks:
		switch n := v.Value.(type) {
		case int:
			return int64(n), nil
		case int64:
			return n, nil
		case uint:
			return int64(n), nil
		case uint32:
			return int64(n), nil
		case uint64:
			if n <= math.MaxInt64 {
				return int64(n), nil
			}
		}
	}
	return 0, fmt.Errorf("the PDU answers with %s, not with a number", v.Type)
}

// amount is a measured value; some PDUs say it in words ("12.5").
func amount(v gosnmp.SnmpPDU) (float64, error) {
	if b, ok := v.Value.([]byte); ok && v.Type == gosnmp.OctetString {
		f, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return 0, fmt.Errorf("the PDU answers with %.20q, not with a number", b)
		}
		return f, nil
	}
	n, err := whole(v)
	return float64(n), err
}

// text is a name as people wrote it, without what does not print.
func text(v gosnmp.SnmpPDU) string {
	b, _ := v.Value.([]byte)
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, string(b))
	return strings.TrimSpace(s[:min(len(s), 100)])
}
