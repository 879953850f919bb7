package sim

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/inventory"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseScript(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		args       map[string]string
		ok         bool
	}{
		{"kernel", "#!ipxe\necho | S m e l t\nkernel --name linux http://x/k smelt.mode=inspect smelt.server=https://10.0.0.1:8443 a=%22b%22 initrd=initrd0 || goto retry\nboot\n",
			map[string]string{"smelt.mode": "inspect", "smelt.server": "https://10.0.0.1:8443", "a": `"b"`, "initrd": "initrd0"}, true},
		{"local", "#!ipxe\niseq ${platform} efi && exit 1 ||\nsanboot --no-describe --drive 0x80 || exit 1\n", nil, true},
		{"wait", "#!ipxe\n:retry\nsleep 10 ||\nchain http://x || goto retry\n", nil, false},
		{"no script", "<html>", nil, false},
		{"nothing", "", nil, false},
	} {
		args, ok := parseScript(tt.text)
		if ok != tt.ok || !maps.Equal(args, tt.args) {
			t.Errorf("%s: %v, %v", tt.name, args, ok)
		}
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add("#!ipxe\nkernel x a=b || goto retry\n")
	f.Add("#!ipxe\nsanboot")
	f.Fuzz(func(t *testing.T, text string) {
		if args, ok := parseScript(text); !ok && args != nil {
			t.Fatalf("arguments %v of a script that says to wait", args)
		}
	})
}

// TestPower holds the machine to what a BMC expects of one, and shows that
// nothing of an earlier life goes on after a power cut.
func TestPower(t *testing.T) {
	asked := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Query().Get("mac")
		_, _ = w.Write([]byte("#!ipxe\nsleep 10\n"))
	}))
	defer srv.Close()
	mac := inventory.MAC{0x52, 0x54, 0, 0, 0, 1}
	m := New(Site{Boot: srv.URL, Pace: time.Millisecond}, Config{Name: "a", MAC: mac, Hardware: Hardware(1, mac, 2)})
	defer m.Close()
	ctx := t.Context()
	is := func(want bool) {
		t.Helper()
		if on, err := m.State(ctx); err != nil || on != want {
			t.Fatalf("on %v, %v; want %v", on, err, want)
		}
	}
	is(false)
	for range 2 { // on a running machine: nothing
		if err := m.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
	is(true)
	if got := <-asked; got != mac.String() {
		t.Errorf("it asked as %q", got)
	}
	if m.Boots() != 1 {
		t.Errorf("%d boots", m.Boots())
	}
	_ = m.Reset(ctx)
	if m.Boots() != 2 {
		t.Errorf("%d boots after a reset", m.Boots())
	}
	_ = m.PowerOff(ctx)
	is(false)
	_ = m.Reset(ctx)
	if m.Boots() != 2 {
		t.Error("a reset started a machine that is off")
	}
	if alive := (life{Machine: m, boot: 2}).alive(ctx, func() {}); alive {
		t.Error("a life went on after its power cut")
	}
	// Once from the disk, which is empty, then from the network again.
	_ = m.SetBoot(ctx, vbmc.BootDisk, true)
	_ = m.PowerOn(ctx)
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(m.Doing(), "no bootable disk") && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if d := m.Doing(); !strings.Contains(d, "no bootable disk") {
		t.Errorf("from an empty disk it %s", d)
	}
	if w := m.Writes(); len(w) != 0 {
		t.Errorf("written %v", w)
	}
}
