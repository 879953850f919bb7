package power

import (
	"errors"
	"time"
)

// A Blind error of State says that nobody can tell the state, now or in a
// second, and that one command is safe all the same: On, because it does
// nothing to a machine that runs (a magic packet), or Off, because a machine
// that has power and may run is what it is for. What is not known never causes
// an action: only the verb that asks for that very state sends it.
type Blind struct {
	May State
	Why string
}

func (b *Blind) Error() string { return b.Why }

func blind(err error) bool { return errors.As(err, new(*Blind)) }

// may tells whether err is a Blind one under which want may be commanded.
func may(err error, want State) bool {
	var b *Blind
	return errors.As(err, &b) && b.May == want
}

// A Hearer is a Controller that knows when the machine was last heard of: it
// asked for an address or for its boot, or its agent spoke.
type Hearer interface {
	// Heard is the zero time when it was not. By says what was heard, for
	// people: "its agent", "a boot request".
	Heard() (at time.Time, by string)
}

// Alive is how long a machine counts as on after it was heard of. An agent
// asks for orders at least every 25 s.
const Alive = 90 * time.Second
