package care

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"smelt/power"
)

var errCut = errors.New("the plug was pulled")

// world is a BMC and a vault, with a cut after so many steps: from then on
// nothing happens any more until the next life.
type world struct {
	password string // what the BMC takes
	vault    map[string]string
	failed   int // logins the BMC refused
	steps    int
	cut      int  // no step beyond this one; 0: never
	half     bool // the step that is cut happens, and its answer is lost

	lies   bool // the BMC says ok and keeps its password
	answer error
	policy power.RestorePolicy
}

func (w *world) step(do func()) error {
	w.steps++
	switch {
	case w.cut == 0 || w.steps < w.cut:
		do()
		return nil
	case w.steps == w.cut && w.half:
		do()
	}
	return errCut
}

type vault struct{ *world }

func (v vault) Get(name string) (s string, err error) {
	err = v.step(func() { s = v.vault[name] })
	return s, err
}
func (v vault) Set(name, value string) error { return v.step(func() { v.vault[name] = value }) }
func (v vault) Delete(name string) error     { return v.step(func() { delete(v.vault, name) }) }

type device struct {
	*world
	with string
}

func (d device) login(do func()) error {
	wrong := false
	err := d.step(func() {
		if wrong = d.with != d.password; wrong {
			d.failed++
			return
		}
		do()
	})
	if err == nil && wrong {
		return fmt.Errorf("user admin: %w", power.ErrAuth)
	}
	return err
}

func (d device) String() string { return "bmc" }
func (d device) State(context.Context) (power.State, error) {
	return power.Off, d.login(func() {})
}
func (d device) Set(context.Context, power.State) error       { return power.ErrUnsupported }
func (d device) BootOnce(context.Context, power.Device) error { return power.ErrUnsupported }
func (d device) Audit(context.Context) (a power.Audit, err error) {
	err = d.login(func() { a.Restore = d.policy })
	return a, err
}
func (d device) SetPassword(_ context.Context, p string) error {
	err := d.login(func() {
		if !d.lies {
			d.password = p
		}
	})
	if err == nil {
		err = d.answer
	}
	return err
}
func (d device) SetRestorePolicy(_ context.Context, p power.RestorePolicy) error {
	return d.login(func() { d.policy = p })
}

func newWorld() *world { return &world{password: "given", vault: map[string]string{}} }

func (w *world) device() Device {
	return Device{
		Node: "srv-01", User: "admin", Vault: vault{w},
		Given: func(context.Context) (string, error) { return "given", nil },
		With:  func(_, p string) (power.Controller, error) { return device{w, p}, nil },
	}
}

func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		out, err := w.device().Adopt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^[a-zA-Z2-9]{16}$`).MatchString(w.password) || w.vault["adopted.srv-01"] != w.password || len(w.vault) != 1 {
			t.Errorf("password %q, vault %v", w.password, w.vault)
		}
		if w.failed != 0 || out.Audit.Restore != power.AlwaysOff {
			t.Errorf("%d refused logins, restore policy %q", w.failed, out.Audit.Restore)
		}
		if strings.Contains(fmt.Sprintf("%+v", out), w.password) {
			t.Error("the outcome tells the password")
		}
		// Again: a new password, by way of the own one.
		was := w.password
		if _, err := w.device().Adopt(t.Context()); err != nil || w.password == was || w.failed != 0 {
			t.Errorf("second adoption: %v, same password %v, %d refused", err, w.password == was, w.failed)
		}
	})
}

// TestCut pulls the plug after each step, with the step done or not, and twice
// in a row: the next try always ends with a password that the device takes and
// the vault knows, and in between no password of the device is unknown.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := newWorld()
		if _, err := whole.device().Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		for first := 1; first <= whole.steps; first++ {
			for second := 1; second <= whole.steps+3; second++ {
				for _, half := range []bool{false, true} {
					w := newWorld()
					for _, cut := range []int{first, second} {
						w.steps, w.cut, w.half = 0, cut, half
						w.device().Adopt(t.Context())
						if known := w.password == "given" || w.password == w.vault["adopted.srv-01"] || w.password == w.vault["adopting.srv-01"]; !known {
							t.Fatalf("cut at %d, %d (half %v): the password of the device is lost", first, second, half)
						}
					}
					w.cut, w.failed = 0, 0
					if _, err := w.device().Adopt(t.Context()); err != nil {
						t.Fatalf("cut at %d, %d (half %v): %v", first, second, half, err)
					}
					if w.vault["adopted.srv-01"] != w.password || w.vault["adopting.srv-01"] != "" || w.failed > 1 {
						t.Fatalf("cut at %d, %d (half %v): device and vault disagree, or %d logins were refused", first, second, half, w.failed)
					}
				}
			}
		}
		t.Logf("%d cuts", 2*whole.steps*(whole.steps+3))
	})
}

func TestLies(t *testing.T) {
	t.Run("says ok and keeps its password", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.lies = true
			if _, err := w.device().Adopt(t.Context()); !errors.Is(err, power.ErrAuth) {
				t.Errorf("error %v, want ErrAuth", err)
			}
			if p, err := w.device().Password(t.Context()); p != "given" || err != nil || w.failed != 1 {
				t.Errorf("password now %q (%v), %d refused logins, want the given one and 1", p, err, w.failed)
			}
			kept := w.vault["adopting.srv-01"]
			w.lies = false
			if _, err := w.device().Adopt(t.Context()); err != nil || w.password != kept {
				t.Errorf("later: %v; password kept %v", err, w.password == kept)
			}
		})
	})
	t.Run("fails and did it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.answer = errors.New("500")
			if _, err := w.device().Adopt(t.Context()); err != nil || w.failed != 0 || w.vault["adopted.srv-01"] != w.password {
				t.Errorf("%v, %d refused", err, w.failed)
			}
		})
	})
	t.Run("wrong credential", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.password = "another"
			if _, err := w.device().Adopt(t.Context()); !errors.Is(err, power.ErrAuth) || w.failed != 1 || len(w.vault) != 0 {
				t.Errorf("%v, %d refused, vault %v", err, w.failed, w.vault)
			}
		})
	})
}

func TestTryDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Default{Vendor: "acme", User: "admin", Password: "changeme"}
		w := newWorld()
		if _, err := w.device().TryDefault(t.Context(), c); !errors.Is(err, power.ErrAuth) || w.failed != 1 {
			t.Errorf("another password: %v, %d refused", err, w.failed)
		}
		w = newWorld()
		w.password = "changeme"
		if _, err := w.device().TryDefault(t.Context(), c); err != nil || w.password == "changeme" || w.failed != 0 {
			t.Errorf("the maker's password: %v, still the old one %v", err, w.password == "changeme")
		}
		if _, err := w.device().TryDefault(t.Context(), c); !errors.Is(err, ErrAdopted) || w.failed != 0 {
			t.Errorf("an adopted device: %v, %d refused", err, w.failed)
		}
		c.User = "root"
		w = newWorld()
		if _, err := w.device().TryDefault(t.Context(), c); err == nil || !strings.Contains(err.Error(), "correct user") || w.steps > 2 {
			t.Errorf("another account: %v after %d steps", err, w.steps)
		}
	})
}

func TestDefaults(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range Defaults() {
		if d.Vendor == "" || d.User == "" || d.Password == "" || d.Note == "" || seen[d.Vendor] {
			t.Errorf("row %+v", d)
		}
		seen[d.Vendor] = true
	}
	if _, err := DefaultOf("SuperMicro"); err != nil {
		t.Error(err)
	}
	if _, err := DefaultOf("nobody"); err == nil || !strings.Contains(err.Error(), "supermicro") {
		t.Errorf("unknown vendor: %v", err)
	}
}
