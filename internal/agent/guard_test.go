package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"smelt/internal/agent"
	"smelt/internal/api"
	"smelt/internal/inspect"
	"smelt/inventory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskSize = 8 << 20

// machine is a root folder that stands for a machine with virtio disks.
type machine struct {
	t    *testing.T
	root string
	n    int
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, root: t.TempDir()}
	m.write("proc/meminfo", "MemTotal:        1000000 kB\n")
	m.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Celeron\n\n")
	m.write("proc/self/mountinfo", "")
	return m
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	p := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// disk adds a disk that holds text again and again, and returns how it is named.
func (m *machine) disk(name, serial, text string) inventory.DiskID {
	m.t.Helper()
	m.n++
	slot := fmt.Sprintf("0000:00:%02x.0", m.n)
	dir := "sys/devices/pci0000:00/" + slot + "/virtio" + fmt.Sprint(m.n) + "/block/" + name
	m.write(dir+"/size", fmt.Sprintln(diskSize/512))
	m.write(dir+"/serial", serial+"\n")
	m.write(dir+"/dev", fmt.Sprintf("253:%d\n", 16*m.n))
	for _, l := range []struct{ link, up string }{{"sys/block/", "../../"}, {"sys/class/block/", "../../../"}} {
		if err := os.MkdirAll(filepath.Join(m.root, l.link), 0o755); err != nil {
			m.t.Fatal(err)
		}
		if err := os.Symlink(l.up+dir, filepath.Join(m.root, l.link, name)); err != nil {
			m.t.Fatal(err)
		}
	}
	m.write("dev/"+name, string(bytes.Repeat([]byte(text), diskSize/len(text)+1)[:diskSize]))
	return inventory.DiskID{Serial: serial, Path: "pci-" + slot, Size: diskSize}
}

func (m *machine) sum(name string) string { return sum(m.t, filepath.Join(m.root, "dev", name)) }

// seals records which disks were writable.
type seals struct {
	mu     sync.Mutex
	opened []string
	open   map[string]bool
	hook   func(name string, open bool) error // called first
}

func (s *seals) set(name string, open bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hook != nil {
		if err := s.hook(name, open); err != nil {
			return err
		}
	}
	if s.open == nil {
		s.open = map[string]bool{}
	}
	s.open[name] = open
	if open {
		s.opened = append(s.opened, name)
	}
	return nil
}

// start runs an agent on m against f until the test ends.
func start(t *testing.T, f *fakeServer, m *machine, mode agent.Mode, state string) *seals {
	t.Helper()
	s := &seals{}
	a, err := agent.New(agent.Config{
		Version: "test", Mode: mode, Server: f.srv.URL, Pin: f.pin(), SiteKey: f.key.Public().(ed25519.PublicKey), Nonce: f.nonce,
		StateDir: state, System: inspect.System{Root: m.root},
		Seal:   func(d string) error { return s.set(d, false) },
		Unseal: func(d string) error { return s.set(d, true) },
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	f.until("inventory", 10*time.Second, func() bool { return len(f.invs) > 0 })
	return s
}

func (f *fakeServer) agentKey() ed25519.PublicKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.enrols[len(f.enrols)-1].Key
}

// result gives an order and waits for what becomes of it.
func (f *fakeServer) result(o api.Order) api.Result {
	f.t.Helper()
	return f.resultIn(o, 20*time.Second)
}

func (f *fakeServer) resultIn(o api.Order, limit time.Duration) api.Result {
	f.t.Helper()
	f.give(o)
	var r api.Result
	f.until("result of "+o.ID, limit, func() bool {
		for _, got := range f.results {
			if got.Order == o.ID {
				r = got
				return true
			}
		}
		return false
	})
	return r
}

// wipeOrder is an order that is right in everything.
func (f *fakeServer) wipeOrder(id string, disks ...inventory.DiskID) (api.Order, inventory.Permit) {
	p := inventory.Permit{
		ID: "permit-" + id, Node: f.node, Agent: agent.Fingerprint(f.agentKey()), Action: "wipe", Disks: disks, Plan: "plan-1", Fence: f.fence,
		Issued: time.Now(), NotAfter: time.Now().Add(5 * time.Minute),
	}
	return api.Order{ID: id, Kind: api.OrderWipe, Fence: f.fence, Wipe: &api.WipeOrder{Level: "metadata", Disks: disks}}, p
}

func (f *fakeServer) sign(o api.Order, p inventory.Permit, key ed25519.PrivateKey) api.Order {
	f.t.Helper()
	s, err := p.Sign(key)
	if err != nil {
		f.t.Fatal(err)
	}
	o.Permit = &s
	return o
}

// Every way in which an order can be wrong is refused with not one byte
// written, not one permit used and no disk opened.
func TestGuards(t *testing.T) {
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := inventory.DiskID{Serial: "ANOTHER", Size: diskSize}
	for _, tc := range []struct {
		name   string
		change func(f *fakeServer, m *machine, o *api.Order, p *inventory.Permit)
		cause  string
		key    ed25519.PrivateKey
	}{
		{"no permit", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.ID = "" }, "permit", nil},
		{"forged", nil, "permit", stranger},
		{"expired", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) {
			p.Issued, p.NotAfter = p.Issued.Add(-time.Hour), p.NotAfter.Add(-time.Hour)
		}, "permit", nil},
		{"lives too long", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) {
			p.NotAfter = p.NotAfter.Add(time.Hour)
		}, "permit", nil},
		{"another node", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.Node = "rig-02" }, "permit", nil},
		{"another agent", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) {
			p.Agent = agent.Fingerprint(make([]byte, 32))
		}, "permit", nil},
		{"another action", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.Action = "image" }, "permit", nil},
		{"another image", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.Image = "abc" }, "permit", nil},
		{"no plan", func(_ *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.Plan = "" }, "permit", nil},
		{"lower fence", func(f *fakeServer, _ *machine, o *api.Order, p *inventory.Permit) {
			o.Fence, p.Fence = f.fence-1, f.fence-1
		}, "fence", nil},
		{"permit of another fence", func(f *fakeServer, _ *machine, _ *api.Order, p *inventory.Permit) { p.Fence = f.fence + 1 }, "fence", nil},
		{"order names a disk the permit does not", func(_ *fakeServer, _ *machine, o *api.Order, _ *inventory.Permit) {
			o.Wipe.Disks = append(o.Wipe.Disks, other)
		}, "permit", nil},
		{"disk is not here", func(_ *fakeServer, _ *machine, o *api.Order, p *inventory.Permit) {
			o.Wipe.Disks, p.Disks = []inventory.DiskID{other}, []inventory.DiskID{other}
		}, "identity", nil},
		{"disk was swapped for another in the same bay", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) {
			m.write("sys/block/vda/serial", "NEW\n")
		}, "identity", nil},
		{"disk has another size", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) {
			m.write("sys/block/vda/size", "4096\n")
		}, "identity", nil},
		{"no disk named", func(_ *fakeServer, _ *machine, o *api.Order, p *inventory.Permit) { o.Wipe.Disks, p.Disks = nil, nil }, "identity", nil},
		{"two disks answer to it", func(_ *fakeServer, m *machine, o *api.Order, p *inventory.Permit) {
			id := inventory.DiskID{Serial: "GOOD-1", Size: diskSize} // no path: not unique any more
			m.disk("vdb", "GOOD-1", "twin")
			o.Wipe.Disks, p.Disks = []inventory.DiskID{id}, []inventory.DiskID{id}
		}, "identity", nil},
		{"mounted", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) {
			m.write("proc/self/mountinfo", "30 1 253:16 / /data rw - ext4 /dev/vda rw\n")
		}, "disk", nil},
		{"swapped to", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) {
			m.write("proc/swaps", "Filename Type Size Used Priority\n/dev/vda partition 1 0 -2\n")
		}, "disk", nil},
		{"held by an array", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) {
			m.write("sys/block/vda/holders/md0", "")
		}, "disk", nil},
		{"foreign data", func(_ *fakeServer, m *machine, _ *api.Order, _ *inventory.Permit) { luks(m, "vda") }, "foreign-data", nil},
		{"unknown level", func(_ *fakeServer, _ *machine, o *api.Order, _ *inventory.Permit) { o.Wipe.Level = "everything" }, "other", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			id := m.disk("vda", "GOOD-1", "somebody's data. ")
			f := newFakeServer(t, nil)
			s := start(t, f, m, agent.Convert, t.TempDir())
			o, p := f.wipeOrder("wipe-1", id)
			if tc.change != nil {
				tc.change(f, m, &o, &p)
			}
			key := f.key
			if tc.key != nil {
				key = tc.key
			}
			if p.ID != "" {
				o = f.sign(o, p, key)
			}
			before := m.sum("vda")
			r := f.result(o)
			if r.OK || r.Cause != tc.cause {
				t.Errorf("result = %+v, want cause %s", r, tc.cause)
			}
			if m.sum("vda") != before {
				t.Error("the disk was written")
			}
			if len(s.opened) > 0 {
				t.Errorf("opened: %v", s.opened)
			}
			if len(f.used) > 0 {
				t.Errorf("permits used: %v", f.used)
			}
		})
	}
}

func luks(m *machine, disk string) {
	f, err := os.OpenFile(filepath.Join(m.root, "dev", disk), os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("LUKS\xba\xbe\x00\x02"), 0); err != nil {
		m.t.Fatal(err)
	}
}

// The order that is right in everything is done, on the named disk only; the
// same permit does nothing a second time; and the disk is closed again.
func TestWipe(t *testing.T) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	m.disk("vdb", "GOOD-2", "not to be touched")
	luks(m, "vda")
	f := newFakeServer(t, nil)
	state := t.TempDir()
	s := start(t, f, m, agent.Convert, state)
	before, beside := m.sum("vda"), m.sum("vdb")

	o, p := f.wipeOrder("wipe-1", id)
	o.Wipe.Allow = []string{"crypto_LUKS"}
	o = f.sign(o, p, f.key)
	r := f.result(o)
	if !r.OK || len(r.Wiped) != 1 || r.Wiped[0].Level != "metadata" || r.Wiped[0].Disk != id {
		t.Fatalf("result = %+v", r)
	}
	if m.sum("vda") == before || m.sum("vdb") != beside {
		t.Error("the wrong disk was wiped")
	}
	if len(s.opened) != 1 || s.opened[0] != "vda" || s.open["vda"] {
		t.Errorf("opened %v, still open %v", s.opened, s.open)
	}

	// Another order with the same permit, and a server that says yes to anything.
	f.permit = func(string) int { return http.StatusOK }
	after := m.sum("vda")
	o.ID = "wipe-2"
	if r := f.result(o); r.OK || r.Cause != "permit" {
		t.Errorf("second use = %+v", r)
	}
	if m.sum("vda") != after {
		t.Error("a used permit wiped a disk")
	}
}

// A permit whose use was not answered, or not answered yes or no, is not used;
// the order is asked for again and done with another one.
func TestPermitWithoutAnswer(t *testing.T) {
	t.Parallel()
	for _, code := range []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusUnauthorized, http.StatusMovedPermanently, http.StatusConflict} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			t.Parallel()
			permitWithoutAnswer(t, func() int { return code })
		})
	}
	t.Run("connection lost", func(t *testing.T) {
		t.Parallel()
		permitWithoutAnswer(t, func() int { panic(http.ErrAbortHandler) })
	})
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		permitWithoutAnswer(t, func() int { return 0 })
	})
}

func permitWithoutAnswer(t *testing.T, first func() int) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	start(t, f, m, agent.Convert, t.TempDir())
	before := m.sum("vda")
	o, p := f.wipeOrder("wipe-1", id)
	second := p
	second.ID = "permit-2"
	replacement := f.sign(o, second, f.key)
	var asked []string
	f.permit = func(id string) int { // called with the lock held
		asked = append(asked, id)
		if len(asked) > 1 {
			return http.StatusOK
		}
		if m.sum("vda") != before {
			t.Error("written before the answer")
		}
		f.order = replacement
		return first()
	}
	if r := f.resultIn(f.sign(o, p, f.key), 40*time.Second); !r.OK {
		t.Errorf("result = %+v", r)
	}
	if len(asked) != 2 || asked[1] != "permit-2" {
		t.Errorf("asked for %v", asked)
	}
	if len(f.results) != 1 {
		t.Errorf("results: %+v", f.results)
	}
	if m.sum("vda") == before {
		t.Error("not wiped")
	}
}

// A server that never agrees is a failure at last, and another order begins to
// count again.
func TestPermitRefused(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	s := start(t, f, m, agent.Convert, t.TempDir())
	before := m.sum("vda")
	asked := 0
	f.permit = func(string) int { asked++; return http.StatusConflict }
	o, p := f.wipeOrder("wipe-1", id)
	if r := f.result(f.sign(o, p, f.key)); r.OK || r.Cause != "permit" {
		t.Errorf("result = %+v", r)
	}
	if asked != 4 {
		t.Errorf("%d questions, want 4", asked)
	}
	if m.sum("vda") != before || len(s.opened) > 0 {
		t.Errorf("written; opened %v", s.opened)
	}
	f.permit = func(string) int {
		if asked++; asked == 5 {
			return http.StatusConflict
		}
		return http.StatusOK
	}
	o, p = f.wipeOrder("wipe-2", id)
	if r := f.result(f.sign(o, p, f.key)); !r.OK || asked != 6 {
		t.Errorf("result = %+v after %d questions", r, asked)
	}
}

// While one disk is wiped, which takes hours, the next one may change. It is
// looked for again, and only one disk is ever writable.
func TestDisksChangeDuringWipe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(m *machine) // once the first disk is writable
		cause  string
		safe   string // what must stay as it is from then on
		wiped  string
	}{
		{"another disk took its name", func(m *machine) {
			m.write("sys/block/vdb/serial", "STICK\n")
			m.write("dev/vdb", string(bytes.Repeat([]byte("family photos  \n"), diskSize/16)))
		}, "identity", "vdb", ""},
		{"it is another size", func(m *machine) { m.write("sys/block/vdb/size", "4096\n") }, "identity", "vdb", ""},
		{"it came back under another name", func(m *machine) {
			m.write("sys/block/vdb/serial", "STICK\n")
			m.write("sys/block/vdc/serial", "GOOD-2\n")
		}, "", "vdb", "vdc"},
		{"it is in use now", func(m *machine) { m.write("sys/block/vdb/holders/md0", "") }, "disk", "vdb", ""},
		{"it holds foreign data now", func(m *machine) { luks(m, "vdb") }, "foreign-data", "vdb", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			first, second := m.disk("vda", "GOOD-1", "somebody's data. "), m.disk("vdb", "GOOD-2", "somebody's too...")
			m.disk("vdc", "OTHER", "something else...")
			second.Path = "" // the bay is not what the plan goes by
			f := newFakeServer(t, nil)
			s := start(t, f, m, agent.Convert, t.TempDir())
			var before, target string
			s.hook = func(name string, open bool) error {
				for n, is := range s.open {
					if is && open {
						t.Errorf("%s becomes writable while %s is", name, n)
					}
				}
				if open && before == "" {
					tc.change(m)
					before = m.sum(tc.safe)
					if tc.wiped != "" {
						target = m.sum(tc.wiped)
					}
				}
				return nil
			}
			o, p := f.wipeOrder("wipe-1", first, second)
			r := f.result(f.sign(o, p, f.key))
			if r.Cause != tc.cause || r.OK != (tc.cause == "") {
				t.Errorf("result = %+v, want cause %q", r, tc.cause)
			}
			if len(r.Wiped) == 0 || r.Wiped[0].Disk != first {
				t.Errorf("wiped = %+v, want the first disk in it", r.Wiped)
			}
			if m.sum(tc.safe) != before {
				t.Error("the wrong disk was written")
			}
			if tc.wiped != "" && m.sum(tc.wiped) == target {
				t.Error("the right disk was not written")
			}
			for n, is := range s.open {
				if is || n == tc.safe {
					t.Errorf("%s: writable %t", n, is)
				}
			}
		})
	}
}

// What is written is what was compared, not what has its name a moment later.
func TestSwapAfterComparison(t *testing.T) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	s := start(t, f, m, agent.Convert, t.TempDir())
	right := m.sum("vda")
	var stick string
	s.hook = func(_ string, open bool) error {
		if !open {
			return nil
		}
		if err := os.Rename(filepath.Join(m.root, "dev/vda"), filepath.Join(m.root, "dev/gone")); err != nil {
			return err
		}
		m.write("dev/vda", string(bytes.Repeat([]byte("family photos  \n"), diskSize/16)))
		stick = m.sum("vda")
		return nil
	}
	o, p := f.wipeOrder("wipe-1", id)
	if r := f.result(f.sign(o, p, f.key)); !r.OK {
		t.Errorf("result = %+v", r)
	}
	if m.sum("vda") != stick {
		t.Error("the disk that took the name was written")
	}
	if m.sum("gone") == right {
		t.Error("the disk that was compared was not written")
	}
}

// A disk that stays writable stops the order.
func TestSealFails(t *testing.T) {
	m := newMachine(t)
	first, second := m.disk("vda", "GOOD-1", "somebody's data. "), m.disk("vdb", "GOOD-2", "somebody's too...")
	f := newFakeServer(t, nil)
	s := start(t, f, m, agent.Convert, t.TempDir())
	before := m.sum("vdb")
	s.hook = func(_ string, open bool) error {
		if !open {
			return errors.New("the kernel says no")
		}
		return nil
	}
	o, p := f.wipeOrder("wipe-1", first, second)
	if r := f.result(f.sign(o, p, f.key)); r.OK || r.Cause != "disk" || len(r.Wiped) != 1 || m.sum("vdb") != before {
		t.Errorf("result = %+v", r)
	}
}

// On a real block device the number of what is open is held against the
// kernel's for that name.
func TestDeviceNumber(t *testing.T) {
	need(t, os.Geteuid() == 0, "root for loop devices")
	for _, tc := range []struct {
		name, number, cause string
	}{
		{"is", "", ""},
		{"is not", "253:16", "identity"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			id := m.disk("vda", "GOOD-1", "somebody's data. ")
			file := filepath.Join(m.root, "dev/vda")
			backing := filepath.Join(m.root, "backing")
			if err := os.Rename(file, backing); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
			if err != nil {
				t.Fatalf("losetup: %v\n%s", err, out)
			}
			dev := strings.TrimSpace(string(out))
			t.Cleanup(func() {
				if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
					t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
				}
			})
			if err := os.Symlink(dev, file); err != nil {
				t.Fatal(err)
			}
			number := tc.number
			if number == "" {
				b, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(dev), "dev"))
				if err != nil {
					t.Fatal(err)
				}
				number = string(b)
			}
			m.write("sys/block/vda/dev", number)
			before := m.sum("vda")
			f := newFakeServer(t, nil)
			s := start(t, f, m, agent.Convert, t.TempDir())
			o, p := f.wipeOrder("wipe-1", id)
			r := f.result(f.sign(o, p, f.key))
			if r.OK != (tc.cause == "") || r.Cause != tc.cause {
				t.Errorf("result = %+v", r)
			}
			if written := m.sum("vda") != before; written != r.OK || len(f.used) > 0 != r.OK || len(s.opened) > 0 != r.OK {
				t.Errorf("written %t, permits %v, opened %v", written, f.used, s.opened)
			}
		})
	}
}

// A result is small, however long what went wrong is.
func TestResultIsBounded(t *testing.T) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	start(t, f, m, agent.Convert, t.TempDir())
	o, _ := f.wipeOrder("wipe-1", id)
	o.Wipe.Level = strings.Repeat("\u00e4", 1<<19)
	r := f.result(o)
	if n := len(r.Error); n > 4<<10 || n < 4000 || !utf8.ValidString(r.Error) || !strings.HasPrefix(r.Error, "wipe level") || !strings.Contains(r.Error, "bytes in all") {
		t.Errorf("%d bytes: %.80q", n, r.Error)
	}
}

// An inspection boot writes nothing, whatever order and permit it is shown.
func TestInspectionBootNeverWrites(t *testing.T) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	s := start(t, f, m, agent.Inspect, t.TempDir())
	before := m.sum("vda")
	o, p := f.wipeOrder("wipe-1", id)
	if r := f.result(f.sign(o, p, f.key)); r.OK || r.Cause != "permit" {
		t.Errorf("result = %+v", r)
	}
	p.Action = "image"
	o = api.Order{ID: "image-1", Kind: api.OrderImage, Fence: f.fence, Image: &api.ImageOrder{Manifest: "00", Target: id}}
	if r := f.result(f.sign(o, p, f.key)); r.OK {
		t.Errorf("result = %+v", r)
	}
	if m.sum("vda") != before || len(s.opened) > 0 || len(f.used) > 0 {
		t.Error("an inspection boot wrote")
	}
}

// A process that starts again in the same boot keeps key and session, so that
// its nonce is not used twice; the permit it used stays used; and a result is
// sent again, not made again.
func TestRestartKeepsState(t *testing.T) {
	m := newMachine(t)
	id := m.disk("vda", "GOOD-1", "somebody's data. ")
	f := newFakeServer(t, nil)
	state := t.TempDir()
	t.Run("first life", func(t *testing.T) {
		f.t = t
		start(t, f, m, agent.Convert, state)
		o, p := f.wipeOrder("wipe-1", id)
		if r := f.result(f.sign(o, p, f.key)); !r.OK {
			t.Fatalf("result = %+v", r)
		}
	})
	after := m.sum("vda")
	f.mu.Lock()
	f.invs, f.results = nil, nil
	f.mu.Unlock()
	t.Run("second life", func(t *testing.T) {
		f.t = t
		s := start(t, f, m, agent.Convert, state)
		f.until("result sent again", 10*time.Second, func() bool { return len(f.results) > 0 })
		if r := f.results[0]; r.Order != "wipe-1" || !r.OK {
			t.Errorf("result = %+v", r)
		}
		if len(f.enrols) != 1 || len(s.opened) > 0 || m.sum("vda") != after {
			t.Errorf("%d enrolments, opened %v", len(f.enrols), s.opened)
		}
	})
}

// A machine that stands between and shows another certificate learns nothing.
func TestPin(t *testing.T) {
	m := newMachine(t)
	f := newFakeServer(t, nil)
	asked := false
	f.srv.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true })
	a, err := agent.New(agent.Config{
		Mode: agent.Inspect, Server: f.srv.URL, Pin: fmt.Sprintf("%064x", 1), SiteKey: f.key.Public().(ed25519.PublicKey), Nonce: "n",
		StateDir: t.TempDir(), System: inspect.System{Root: m.root}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if end, err := a.Run(ctx); end != 0 || err != nil {
		t.Errorf("Run = %v, %v", end, err)
	}
	if asked {
		t.Error("a request reached a server with another key")
	}
}
