package powertest

import (
	"fmt"
	"testing"

	"smelt/power"
)

func TestFake(t *testing.T) {
	Run(t, func(t *testing.T) (power.Controller, Hardware) {
		const secret = "s3cret-pass"
		var f Fake
		f.Use(secret)
		refused := Fake{script: Script{Err: fmt.Errorf("wrong password: %w", power.ErrAuth)}}
		dead := Fake{script: Script{Err: fmt.Errorf("no route to host")}}
		return &f, Hardware{
			On: f.On, Turn: f.Turn,
			Boot: func() (out []string) {
				for _, d := range f.Boots() {
					out = append(out, map[power.Device]string{power.Network: "network", power.Disk: "disk"}[d])
				}
				return out
			},
			Refused: func(*testing.T) (power.Controller, func() int) {
				return &refused, func() int { return len(refused.Calls()) }
			},
			Dead: func(*testing.T) power.Controller { return &dead },
			Hang: func() { f.SetScript(Script{Hang: true}) },

			Light: f.Lit,
			Log: func(what string) string {
				f.Logged(what)
				return what
			},
			Secret: secret,
			Again: func(_ *testing.T, password string) power.Controller {
				f.Use(password)
				return &f
			},
		}
	})
}
