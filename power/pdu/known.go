package pdu

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gosnmp/gosnmp"

	"smelt/power"
)

// known is what was learned about a PDU, for as long as it is the same one and
// has not restarted.
type known struct {
	object string        // sysObjectID
	up     time.Duration // sysUpTime, as it was
	at     time.Time     // then

	names map[int]string    // outlets whose name was checked, and what it is
	sent  map[int]time.Time // outlets that were told something, and when
	told  map[int]*order    // outlets that were told to switch and have not followed yet
	doubt error             // why nothing more is written to it
}

// An order is what an outlet was told, and how all outlets were before.
type order struct {
	want   power.State
	at     time.Time
	before map[int]power.State
}

// forget makes everything be looked at again.
func (k *known) forget() {
	k.names, k.sent, k.told, k.doubt = map[int]string{}, map[int]time.Time{}, map[int]*order{}, nil
}

// Objects of the system group (RFC 3418).
const (
	sysObjectID = "1.3.6.1.2.1.1.2.0"
	sysUpTime   = "1.3.6.1.2.1.1.3.0"
)

// clockSlack is how far a PDU's sense of time may be off before it is taken for
// another one, or for one that restarted.
const clockSlack = time.Minute

// identify finds the model, and refuses a device that is another one than the
// site says: the same words switch other things elsewhere. Of a device that
// restarted or was replaced, nothing is known any more.
func (s *session) identify() error {
	// Repeated here when nothing comes: gosnmp repeats a refused login too, and a
	// wrong key is to cost one.
	var values []gosnmp.SnmpPDU
	err := error(gosnmp.ErrMaxRetriesExceeded)
	for tries := 0; tries <= retries && errors.Is(err, gosnmp.ErrMaxRetriesExceeded); tries++ {
		values, err = s.get(sysObjectID, sysUpTime)
	}
	if err != nil {
		return fmt.Errorf("which PDU is it: %w", err)
	}
	s.Retries = retries
	object, ok := values[0].Value.(string)
	if !ok || values[0].Type != gosnmp.ObjectIdentifier {
		return fmt.Errorf("which PDU is it: sysObjectID is %s", values[0].Type)
	}
	object = strings.TrimPrefix(object, ".")
	m, ok := modelOf(object)
	want := s.unit.cfg.Model
	switch {
	case !ok:
		return fmt.Errorf("%w: sysObjectID %s is no model that Smelt knows, so nothing is switched; it knows %s", power.ErrMismatch, object, strings.Join(Models(), " "))
	case want != "" && m.Name != want:
		return fmt.Errorf("%w: there it is a %s, sysObjectID %s says %s, so nothing is switched", power.ErrMismatch, want, object, m.Name)
	}
	s.model = m
	ticks, err := whole(values[1])
	if err != nil {
		return fmt.Errorf("which PDU is it: sysUpTime: %w", err)
	}
	k, now := &s.unit.known, time.Now()
	up := time.Duration(ticks) * 10 * time.Millisecond
	drift := up - k.up - now.Sub(k.at)
	slack := clockSlack + now.Sub(k.at)/100
	if k.object != object || up < k.up || drift > slack || drift < -slack {
		doubt := k.doubt
		k.forget()
		k.doubt = doubt // a restart does not number its outlets anew, and a person has not looked
	}
	k.object, k.up, k.at = object, up, now
	return nil
}

// states reads every outlet.
func (s *session) states() (map[int]power.State, error) {
	rows, err := s.walk(s.model.State.At.prefix)
	if err != nil {
		return nil, fmt.Errorf("states of all outlets: %w", err)
	}
	out := map[int]power.State{}
	for oid, v := range rows {
		if n, ok := s.model.State.At.number(oid); ok {
			if out[n], err = s.model.state(v); err != nil {
				return nil, fmt.Errorf("outlet %d: state: %w", n, err)
			}
		}
	}
	return out, nil
}

// state is what a word of the state column means.
func (m *model) state(v gosnmp.SnmpPDU) (power.State, error) {
	n, err := whole(v)
	switch {
	case err != nil:
		return power.Unknown, err
	case slices.Contains(m.State.On, int(n)):
		return power.On, nil
	case slices.Contains(m.State.Off, int(n)):
		return power.Off, nil
	}
	return power.Unknown, nil
}

// An outletState is what is read of an outlet at once.
type outletState struct {
	power.State
	waits bool // a delayed command waits: the state is about to change
}

// read reads some outlets. An outlet for which a delayed command waits is
// neither on nor off.
func (s *session) read(outlets []int) (map[int]outletState, error) {
	var oids []string
	for _, n := range outlets {
		oid, err := s.model.State.At.at(n)
		if err != nil {
			return nil, err
		}
		oids = append(oids, oid)
	}
	if s.model.Pending != nil {
		for _, n := range outlets {
			oid, err := s.model.Pending.At.at(n)
			if err != nil {
				return nil, err
			}
			oids = append(oids, oid)
		}
	}
	values, err := s.get(oids...)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	out := map[int]outletState{}
	for i, n := range outlets {
		st, err := s.model.state(values[i])
		if errors.Is(err, errMissing) {
			return nil, s.beyond(n)
		}
		if err != nil {
			return nil, fmt.Errorf("outlet %d: state: %w", n, err)
		}
		w, _ := whole(values[i])
		o := outletState{State: st, waits: slices.Contains(s.model.State.Pending, int(w))}
		// A model without the column on this device says nothing about delays.
		if s.model.Pending != nil && !missing(values[len(outlets)+i]) {
			p, err := whole(values[len(outlets)+i])
			if err != nil {
				return nil, fmt.Errorf("outlet %d: pending command: %w", n, err)
			}
			o.waits = o.waits || !slices.Contains(s.model.Pending.Idle, int(p))
		}
		if o.waits {
			o.State = power.Unknown
		}
		out[n] = o
	}
	return out, nil
}

// beyond says which outlets there are instead.
func (s *session) beyond(n int) error {
	all, err := s.states()
	if err != nil || len(all) == 0 {
		return fmt.Errorf("%w: this %s says nothing of an outlet %d", power.ErrMismatch, s.model.Name, n)
	}
	numbers := slices.Sorted(maps.Keys(all))
	return fmt.Errorf("%w: there is no outlet %d: this %s has %d, from %d to %d", power.ErrMismatch, n, s.model.Name, len(numbers), numbers[0], numbers[len(numbers)-1])
}

// orderLasts bounds how long an outlet is watched for what it was told.
const orderLasts = 5 * time.Minute

// settle is how long an outlet that was told something may take: what it does
// then is no surprise while another one is watched.
const settle = time.Minute

// follow holds what outlets do against what they were told. When another
// outlet moved that nobody here told to, the PDU's numbers are not what they
// seem: nothing more is written to it, and an error says what was seen. The note
// is for an outlet that did follow, beside which another one moved.
func (s *session) follow(states map[int]outletState) (note string, err error) {
	k := &s.unit.known
	for _, n := range slices.Sorted(maps.Keys(states)) {
		o := k.told[n]
		if o == nil {
			continue
		}
		if time.Since(o.at) > orderLasts {
			delete(k.told, n)
			continue
		}
		now, err := s.states()
		if err != nil {
			return note, err
		}
		moved := s.strangers(n, o, now)
		followed := states[n].State == o.want
		if followed {
			delete(k.told, n)
		}
		if moved == "" {
			continue
		}
		k.doubt = fmt.Errorf("%w: it was told to switch outlet %d %s, and %s changed instead or as well: are its outlets numbered otherwise, or grouped? Nothing more is written to it until its controllers are reset", power.ErrMismatch, n, o.want, moved)
		if !followed {
			return note, k.doubt
		}
		note = k.doubt.Error()
	}
	return note, nil
}

// strangers names the outlets that changed since the order and that nobody
// here told to.
func (s *session) strangers(n int, o *order, now map[int]power.State) string {
	var moved []string
	for _, m := range slices.Sorted(maps.Keys(now)) {
		was, is := o.before[m], now[m]
		if m == n || was != power.On && was != power.Off || is != power.On && is != power.Off || was == is {
			continue
		}
		if sent, ok := s.unit.sent[m]; ok && sent.After(o.at.Add(-settle)) {
			continue
		}
		name := ""
		if oid, err := s.model.Label.at(m); err == nil && s.model.Label.set() {
			if v, err := s.get(oid); err == nil && text(v[0]) != "" {
				name = fmt.Sprintf(" (%q)", text(v[0]))
			}
		}
		moved = append(moved, fmt.Sprintf("outlet %d%s: %s to %s", m, name, was, is))
	}
	return strings.Join(moved, ", ")
}
