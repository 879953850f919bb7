package server

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// An answer is given again for as long as it lives, and is not kept longer.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d devices
		asked := 0
		ask := func() ([]byte, error) {
			asked++
			if asked == 3 {
				return nil, errors.New("no")
			}
			return []byte{byte(asked)}, nil
		}
		get := func() byte {
			b, _, err := kept(&d, "screen n", time.Second, ask)
			if err != nil {
				return 0
			}
			return b[0]
		}
		if one, again := get(), get(); one != 1 || again != 1 {
			t.Errorf("%d questions for one answer", asked)
		}
		time.Sleep(600 * time.Millisecond)
		if get() != 1 {
			t.Error("an answer that lives was not given again")
		}
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if v := d.answered["screen n"].value; v != nil {
			t.Errorf("%v is kept for nobody", v)
		}
		if get() != 2 {
			t.Error("an old answer was given")
		}
		time.Sleep(2 * time.Second)
		if failed, again := get(), get(); failed != 0 || again != 4 {
			t.Error("an error was kept")
		}
	})
}
