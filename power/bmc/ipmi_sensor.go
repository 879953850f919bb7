package bmc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"smelt/power"
)

var (
	getSDRInfo       = command{"get SDR repository info", 0x0a, 0x20}
	reserveSDR       = command{"reserve SDR repository", 0x0a, 0x22}
	getSDR           = command{"get SDR", 0x0a, 0x23}
	getSensorReading = command{"get sensor reading", 0x04, 0x2d}
	dcmiPower        = command{"DCMI get power reading", 0x2c, 0x02}
)

// repository is what is known of the sensor data repository of a BMC. Reading
// it takes hundreds of requests, so it is kept until the BMC says that it
// changed, and a call that runs out of time leaves off where the next goes on.
type repository struct {
	stamp   [8]byte // of the last addition and erasure (IPMI 2.0, section 33.9)
	next    uint16  // the record to read next, lastRecord when all are read
	started bool
	sensors []sensor
}

const lastRecord = 0xffff

// maxRecords bounds the sensors of a BMC; two hundred are usual, ids have 16 bits.
const maxRecords = 4096

// sensor is a record of the repository.
type sensor struct {
	number  byte
	name    string
	typ     byte // table 42-3
	unit    byte // table 43-15; 0 without a number
	convert func(byte) float64
}

// The types and units of sensors that matter.
const (
	typeTemperature = 0x01
	typeFan         = 0x04

	unitCelsius = 1
	unitWatts   = 6
	unitRPM     = 18
)

// sensors reads what of the repository is not known yet.
func (i *ipmi) sensors(s *shell) ([]sensor, error) {
	info, err := s.raw(getSDRInfo)
	if err != nil {
		return nil, unlessKnown(err)
	}
	if len(info) < 13 {
		return nil, fmt.Errorf("SDR repository info of %d bytes", len(info))
	}
	i.mu.Lock()
	r := i.sdr
	i.mu.Unlock()
	stamp := [8]byte(info[5:13])
	if !r.started || r.stamp != stamp {
		r = repository{stamp: stamp, started: true}
		if info[1] == 0 && info[2] == 0 { // an empty one has no record 0
			r.next = lastRecord
		}
	}
	defer func() {
		i.mu.Lock()
		i.sdr = r
		i.mu.Unlock()
	}()
	for n := 0; r.next != lastRecord; n++ {
		if n == maxRecords {
			return nil, fmt.Errorf("a sensor repository of more than %d records", maxRecords)
		}
		next, record, err := s.record(r.next)
		if err != nil {
			return nil, err
		}
		if found, ok := parseSDR(record); ok {
			r.sensors = append(r.sensors, found)
		}
		r.next = next
	}
	return r.sensors, nil
}

// The pieces that a record is read in: no more than every BMC can send.
const (
	sdrHead  = 5
	sdrPiece = 16
)

// record reads one record, in pieces because many BMCs cannot send a whole one.
func (s *shell) record(id uint16) (next uint16, record []byte, err error) {
	for range 3 { // a reservation is lost when anything changes
		var hold []byte
		if hold, err = s.raw(reserveSDR); err != nil || len(hold) < 2 {
			hold = []byte{0, 0} // some have no reservations
		}
		next, record, err = s.pieces(id, hold)
		if !errors.Is(err, lostReservation) {
			break
		}
	}
	return next, record, err
}

func (s *shell) pieces(id uint16, hold []byte) (next uint16, record []byte, err error) {
	want := sdrHead
	for len(record) < want {
		n := min(want-len(record), sdrPiece)
		b, err := s.raw(getSDR, hold[0], hold[1], byte(id), byte(id>>8), byte(len(record)), byte(n))
		if err != nil {
			return 0, nil, err
		}
		if len(b) != 2+n {
			return 0, nil, fmt.Errorf("record %d: %d bytes, asked for %d", id, len(b)-2, n)
		}
		next = binary.LittleEndian.Uint16(b)
		if record = append(record, b[2:]...); len(record) == sdrHead {
			want = min(sdrHead+int(record[4]), 255)
		}
	}
	return next, record, nil
}

// parseSDR reads a full or a compact sensor record (sections 43.1 and 43.2) of
// a sensor of the BMC itself.
func parseSDR(b []byte) (sensor, bool) {
	const full, compact = 0x01, 0x02
	if len(b) < 8 || b[5] != 0x20 || b[6]&0x03 != 0 { // owner, LUN
		return sensor{}, false
	}
	name := map[byte]int{full: 47, compact: 31}[b[3]]
	if name == 0 || len(b) <= name {
		return sensor{}, false
	}
	s := sensor{number: b[7], typ: b[12], name: sensorName(b[name], b[name+1:])}
	if s.name == "" {
		s.name = fmt.Sprintf("#0x%02x", s.number)
	}
	if b[3] == full {
		s.unit, s.convert = b[21], conversion(b[20:])
		if s.convert == nil || b[20]&0x3f != 0 || b[22] != 0 { // a rate, a ratio or a percentage
			s.unit = 0
		}
	}
	return s, true
}

// sensorName reads the characters of a type/length byte (section 43.15).
func sensorName(typ byte, b []byte) string {
	n := min(int(typ&0x1f), len(b))
	var out []byte
	switch typ >> 6 {
	case 2: // 6-bit ASCII, three bytes for four characters (section 43.16)
		var bits, held uint
		for _, c := range b[:n] {
			bits |= uint(c) << held
			for held += 8; held >= 6; held -= 6 {
				out = append(out, byte(bits&0x3f)+' ')
				bits >>= 6
			}
		}
	case 3:
		out = b[:n]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unprintable(r) {
			return ' '
		}
		return r
	}, string(out)))
}

// conversion is the formula of section 36.3, from the units byte of a full
// record on; nil without a number, or with a formula of its own for each value.
func conversion(b []byte) func(byte) float64 {
	units, linear := b[0], b[3]&0x7f
	m := signed(uint(b[4])|uint(b[5]>>6)<<8, 10)
	off := signed(uint(b[6])|uint(b[7]>>6)<<8, 10)
	rexp, bexp := signed(uint(b[9]>>4), 4), signed(uint(b[9]&0x0f), 4)
	shape := map[byte]func(float64) float64{
		0: func(x float64) float64 { return x }, 1: math.Log, 2: math.Log10, 3: math.Log2, 4: math.Exp,
		5: func(x float64) float64 { return math.Pow(10, x) }, 6: math.Exp2,
		7: func(x float64) float64 { return 1 / x }, 8: func(x float64) float64 { return x * x },
		9: func(x float64) float64 { return x * x * x }, 10: math.Sqrt, 11: math.Cbrt,
	}[linear]
	if shape == nil || units>>6 == 3 {
		return nil
	}
	return func(raw byte) float64 {
		x := float64(raw)
		switch units >> 6 {
		case 1: // one's complement
			if raw&0x80 != 0 {
				x = -float64(^raw)
			}
		case 2:
			x = float64(int8(raw))
		}
		return shape((m*x + off*math.Pow(10, bexp)) * math.Pow(10, rexp))
	}
}

// signed reads n bits of two's complement.
func signed(v uint, n int) float64 {
	if v&(1<<(n-1)) != 0 {
		return float64(int(v) - 1<<n)
	}
	return float64(v)
}

// reading asks one sensor; NaN when it does not know.
func (s *shell) reading(of sensor) (float64, error) {
	b, err := s.raw(getSensorReading, of.number)
	var code completion
	if errors.As(err, &code) {
		return math.NaN(), nil // this one sensor: others are asked all the same
	}
	if err != nil {
		return math.NaN(), err
	}
	return readingOf(of, b), nil
}

func readingOf(of sensor, b []byte) float64 {
	// Scanning is off, or the value is not to be had (section 35.14).
	if len(b) < 2 || b[1]&0x40 == 0 || b[1]&0x20 != 0 {
		return math.NaN()
	}
	v := of.convert(b[0])
	if math.IsInf(v, 0) {
		return math.NaN()
	}
	return v
}

// parseDCMI reads the power of DCMI (DCMI 1.5, section 6.6.1), NaN while it is
// not measured. 0 W cannot be: the BMC itself takes some.
func parseDCMI(b []byte) float64 {
	if len(b) < 18 || b[0] != 0xdc || b[17]&0x40 == 0 {
		return math.NaN()
	}
	if w := binary.LittleEndian.Uint16(b[1:]); w > 0 {
		return float64(w)
	}
	return math.NaN()
}

// Readings are temperatures, fans and watts: those of DCMI where the BMC has
// them, else those of its sensors.
func (i *ipmi) Readings(ctx context.Context) (power.Readings, error) {
	r := power.Readings{Watts: math.NaN(), Celsius: map[string]float64{}, RPM: map[string]float64{}}
	err := i.session(ctx, func(s *shell) error {
		b, err := s.raw(dcmiPower, 0xdc, 1, 0, 0)
		var refused completion
		if err == nil {
			r.Watts = parseDCMI(b)
		} else if !errors.As(err, &refused) {
			return err
		}
		known, err := i.sensors(s)
		if err != nil {
			if errors.Is(err, power.ErrUnsupported) && !math.IsNaN(r.Watts) {
				return nil
			}
			return err
		}
		watts := map[string]float64{}
		for _, one := range known {
			var to map[string]float64
			switch {
			case one.typ == typeTemperature && one.unit == unitCelsius:
				to = r.Celsius
			case one.typ == typeFan && one.unit == unitRPM:
				to = r.RPM
			case one.unit == unitWatts && math.IsNaN(r.Watts):
				to = watts
			default:
				continue
			}
			v, err := s.reading(one)
			if err != nil {
				return fmt.Errorf("sensor %s: %w", one.name, err)
			}
			if !math.IsNaN(v) {
				name := one.name
				if _, taken := to[name]; taken {
					name = fmt.Sprintf("%s #0x%02x", name, one.number)
				}
				to[name] = v
			}
		}
		if math.IsNaN(r.Watts) {
			r.Watts = total(watts)
		}
		return nil
	})
	if err != nil {
		return power.Readings{}, err
	}
	r.At = time.Now()
	return r, nil
}

// total finds the watts of the machine among its watt sensors: the one whose
// name says so, else the sum of the inputs of its power supplies. Sensors of a
// part (CPU, memory, GPU) are no answer.
func total(watts map[string]float64) float64 {
	sum, supplies := 0.0, 0
	for _, name := range slices.Sorted(maps.Keys(watts)) {
		n, w := strings.ToLower(name), watts[name]
		switch {
		case w <= 0, strings.HasPrefix(n, "cpu"), strings.HasPrefix(n, "mem"), strings.HasPrefix(n, "gpu"), strings.HasPrefix(n, "fan"), strings.Contains(n, "limit"), strings.Contains(n, "cap"), strings.Contains(n, "out"):
		// Dell, HPE, Supermicro, Lenovo, Intel: the words of their sensors.
		case n == "pwr consumption", n == "power meter", strings.Contains(n, "total"), strings.HasPrefix(n, "sys power"), strings.HasPrefix(n, "sys_power"):
			return w
		case strings.HasPrefix(n, "ps"):
			sum += w
			supplies++
		}
	}
	if supplies == 0 {
		return math.NaN()
	}
	return sum
}
