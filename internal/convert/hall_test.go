package convert_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/internal/join"
	"smelt/internal/join/jointest"
	"smelt/internal/server"
	"smelt/internal/sim"
	"smelt/internal/store"
	"smelt/internal/vbmc"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/bmc"
	"smelt/pxe"

	"golang.org/x/sync/errgroup"
)

const operatorToken = "operator-token-of-a-test"

func siteKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
}

// A plan of a test site: everything that the server's process and the process
// of the machines must agree about.
type layout struct {
	Dir     string         // database, images
	Listen  string         // of the server
	World   string         // base URL of the machines' power switches and the cluster
	Nodes   int            //
	Faults  map[int]string // of machines, by number
	Manual  map[int]bool   // machines that nothing can switch
	Protect map[int]bool
	Max     int
	Auto    bool
	Bare    bool     // site.yaml names machines by their MAC alone
	boot    pxe.Path // of their class
	root    string   // of their class
	start   string   // of their class
	Dead    bool     // the machines never reach the boot server: the test is the agent
	Feed    float64  // amps at 230 V; 0: no power tree
	Cards   []string // models of the machines' cards; the last is that of all others, RTX 3090 if there is none
	// Drivers are the variants of the image; none: one image without a driver.
	Drivers map[string]images.Driver
	// Die makes the server's process kill itself once for each node, when the
	// node passes the boundary of that name.
	Die map[inventory.NodeID]string
	// BMC are the machines that are switched by Redfish.
	BMC map[inventory.NodeID]bmcAt

	agents string           // address of an agent listener with TLS, "" for none
	cert   *tls.Certificate // of it
	pin    string
}

func nodeID(i int) inventory.NodeID { return inventory.NodeID(fmt.Sprintf("rig-%02d", i)) }

func macOf(i int) inventory.MAC { return inventory.MAC{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)} }

func (l layout) site() convert.Site {
	agents := "http://" + l.Listen
	if l.agents != "" {
		agents = "https://" + l.agents
	}
	s := convert.Site{
		Name: "test", Lab: true, Rescue: true, MaxActive: l.Max, Cluster: "test", Server: agents, Pin: l.pin, ImageURL: "http://" + l.Listen,
		Classes: map[string]convert.Class{"rig": {Name: "rig", Image: "ai-node", Profile: "sim", Wipe: "discard", Target: "slurm-batch",
			GPUs: 1, MinLinkWidth: 8, Watts: 1000, Boot: l.boot, Root: l.root, Start: l.start}},
		Profiles: map[string]burnin.Profile{"sim": {Name: "sim", Version: 1, Limit: time.Minute, Checks: []burnin.Spec{
			{ID: burnin.CPU, Required: true, Deadline: time.Minute},
			{ID: burnin.GPUPresence, Required: true, Deadline: time.Minute},
		}}},
		StandsFor: map[inventory.NodeID][]convert.StandIn{},
	}
	if l.Auto {
		s.AutoOK = []string{"rig"}
	}
	circuit := ""
	if l.Feed > 0 {
		circuit = "pdu"
		s.Circuits = []inventory.Circuit{{Name: "pdu", Kind: "pdu", Volts: 230, Amps: l.Feed, Phases: 1, Derate: 0.8}}
	}
	for i := range l.Nodes {
		s.Specs = append(s.Specs, inventory.Spec{Name: nodeID(i), Position: inventory.Position(fmt.Sprintf("A%d", i)), Class: "rig",
			MACs: []inventory.MAC{macOf(i)}, Watts: 1000, Circuit: circuit, Protect: l.Protect[i]})
		if !l.Bare {
			s.Specs[i].Serial = fmt.Sprintf("SIM-B%05d", i)
		}
		s.StandsFor[nodeID(i)] = []convert.StandIn{{PCI: "0000:01:00.0", Model: l.card(i), UUID: fmt.Sprintf("GPU-%d", i), VRAM: 24 << 30}}
	}
	return s
}

// card is the model of a machine's card.
func (l layout) card(i int) string {
	if len(l.Cards) == 0 {
		return "RTX 3090"
	}
	return l.Cards[min(i, len(l.Cards)-1)]
}

// serve runs the server of l until ctx ends: store, conductor, HTTP.
func serve(ctx context.Context, l layout, log *slog.Logger, begin, up func(*convert.Conductor, *store.Store)) error {
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(l.Dir, "smelt.db"))
	if err != nil {
		return err
	}
	defer st.Close()
	img, err := imageStore(ctx, filepath.Join(l.Dir, "images"), l.Drivers)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(operatorToken))
	if err := st.PutToken(ctx, store.Token{Hash: hex.EncodeToString(sum[:]), Name: "test", Role: "operator", Created: time.Now()}); err != nil {
		return err
	}
	site := l.site()
	budget, err := power.NewBudget(site.Circuits, power.Rules{Window: time.Millisecond})
	if err != nil {
		return err
	}
	switches := map[inventory.NodeID]*power.Verified{}
	for i := range l.Nodes {
		if l.Manual[i] {
			continue
		}
		var s power.Controller = &remoteSwitch{world: l.World, node: nodeID(i)}
		if at, ok := l.BMC[nodeID(i)]; ok {
			s, err = bmc.New(bmc.Config{Kind: "redfish", Address: at.Address, Pin: at.Pin, User: "admin",
				Password: func(context.Context) (string, error) { return "a password", nil }})
			if err != nil {
				return err
			}
		}
		switches[nodeID(i)] = power.Verify(s, power.Limits{Reach: 5 * time.Second, Poll: 10 * time.Millisecond, Dwell: 5 * time.Millisecond, Spacing: time.Millisecond})
	}
	c, err := convert.New(convert.Config{
		Site: site, Store: st, Images: img, Power: switches, Budget: budget, Join: &remoteCluster{world: l.World},
		SiteKey: siteKey(), Owner: "test", Boot: convert.BootFiles{Kernel: "vmlinuz", Initrd: []string{"initrd"},
			Memtest: convert.Memtest{BIOS: "memtest.bin", EFI: "memtest.efi"}}, Log: log,
	})
	if err != nil {
		return err
	}
	if begin != nil {
		begin(c, st)
	}
	if len(l.Die) > 0 {
		c.OnBoundary(l.die)
	}
	srv, err := server.New(server.Config{
		Conductor: c, Store: st, Log: log, Version: "test", Site: "test", Lab: true,
		AgentURL: site.Server, ImageURL: site.ImageURL, Pin: l.pin, SiteKey: siteKey().Public().(ed25519.PublicKey),
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", l.Listen)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/agent/", srv.Agent())
	boot, err := bootServer(l, c, log)
	if err != nil {
		return err
	}
	mux.Handle("/boot/", boot)
	mux.Handle("/", srv.UI())
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	hs.RegisterOnShutdown(srv.Close)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Run(gctx) })
	listeners := []net.Listener{ln}
	if l.cert != nil {
		ln, err := tls.Listen("tcp", l.agents, &tls.Config{Certificates: []tls.Certificate{*l.cert}, MinVersion: tls.VersionTLS13})
		if err != nil {
			return err
		}
		listeners = append(listeners, ln)
	}
	for _, ln := range listeners {
		g.Go(func() error {
			if err := hs.Serve(ln); err != http.ErrServerClosed {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		srv.Close()
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if hs.Shutdown(sctx) != nil {
			hs.Close()
		}
		return nil
	})
	if up != nil {
		up(c, st)
	}
	return g.Wait()
}

// die kills this process where the layout says so, once for each node.
func (l layout) die(node inventory.NodeID, what string) {
	if l.Die[node] != what {
		return
	}
	f, err := os.OpenFile(l.grave(node), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return // it died here before
	}
	_ = f.Close()
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// grave is the file that says the process died for a node.
func (l layout) grave(node inventory.NodeID) string {
	return filepath.Join(l.Dir, "died-"+string(node))
}

// bootServer is the real one: its scripts are what the machines obey. Without
// Run it answers HTTP only.
func bootServer(l layout, c *convert.Conductor, log *slog.Logger) (http.Handler, error) {
	addr, err := netip.ParseAddrPort(l.Listen)
	if err != nil {
		return nil, err
	}
	files := new(pxe.Files)
	for _, name := range []string{"vmlinuz", "initrd", "memtest.bin", "memtest.efi"} {
		if err := files.Add(name, []byte(name)); err != nil {
			return nil, err
		}
	}
	s, err := pxe.New(pxe.Config{
		Networks: []pxe.Network{{Interface: "lo", Address: netip.MustParsePrefix("127.0.0.1/8")}},
		Files:    files, Booter: c, Log: log, Leases: filepath.Join(l.Dir, "leases"), HTTP: addr,
	})
	if err != nil {
		return nil, err
	}
	return s.Handler(), nil
}

// bmcs are real Redfish BMCs in front of the machines.
func (w *world) bmcs(l *layout) error {
	for id, m := range w.machines {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		r, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: ln, User: "admin", Password: "a password"}, m)
		if err != nil {
			return err
		}
		l.BMC[id] = bmcAt{Address: "https://" + r.Addr().String(), Pin: r.Pin()}
		end := w.close
		w.close = func() {
			_ = r.Close()
			end()
		}
	}
	return nil
}

// bmcAt is where the BMC of a machine is.
type bmcAt struct{ Address, Pin string }

// agentCertificate is a self-signed one with its pin.
func agentCertificate() (tls.Certificate, string, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	c := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &c, &c, pub, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(spki)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:]), nil
}

// imageStore is a store with one small image, made once.
func imageStore(ctx context.Context, dir string, drivers map[string]images.Driver) (*images.Store, error) {
	s, err := images.OpenStore(dir)
	if err != nil {
		return nil, err
	}
	if have, err := s.Titles("ai-node"); err != nil || len(have) > 0 {
		return s, err
	}
	raw := bytes.Repeat([]byte("smelt"), 1<<20/5+1)[:1<<20]
	m := images.Manifest{Name: "ai-node", Arch: "amd64", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Key: "0badcafe",
		Root: "0f0e0d0c-0b0a-0908-0706-050403020100", Kernel: "6.1.0-56-amd64"}
	if len(drivers) == 0 {
		_, err = s.Add(ctx, m, bytes.NewReader(raw), int64(len(raw)), siteKey(), nil)
		return s, err
	}
	for name, d := range drivers {
		m.Variant, m.Driver = name, &d
		if _, err := s.Add(ctx, m, bytes.NewReader(raw), int64(len(raw)), siteKey(), nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// A world is everything that is not the server: machines, their switches, the
// cluster. It outlives every server.
type world struct {
	machines map[inventory.NodeID]*sim.Machine
	cluster  *jointest.Fake
	url      string
	close    func()

	mu     sync.Mutex
	faults map[inventory.NodeID]error
	asked  map[string]int
}

func newWorld(l *layout, pace time.Duration) (*world, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l.World = "http://" + ln.Addr().String()
	w := &world{faults: map[inventory.NodeID]error{}, asked: map[string]int{}, machines: map[inventory.NodeID]*sim.Machine{}, cluster: jointest.NewFake(), url: l.World}
	boot := "http://" + l.Listen
	if l.Dead {
		boot = "http://127.0.0.1:1"
		pace = time.Hour
	}
	site := sim.Site{Boot: boot, Pin: l.pin, SiteKey: siteKey().Public().(ed25519.PublicKey), Pace: pace}
	for i := range l.Nodes {
		w.machines[nodeID(i)] = sim.New(site, sim.Config{
			Name: string(nodeID(i)), MAC: macOf(i), Hardware: sim.Hardware(i, macOf(i), 1), Fault: l.Faults[i], Chunks: 6,
			Joined: func(name string) { w.cluster.Register(inventory.NodeID(name)) },
		})
	}
	hs := &http.Server{Handler: w, ReadHeaderTimeout: time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { _ = hs.Serve(ln) })
	w.close = func() {
		for _, m := range w.machines {
			wg.Go(func() { _ = m.Close() })
		}
		_ = hs.Close()
		wg.Wait()
	}
	return w, nil
}

// ServeHTTP is the wire between the server's process and the world.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	ctx, node := r.Context(), inventory.NodeID(r.FormValue("node"))
	answer := func(v any, err error) {
		if err != nil {
			http.Error(rw, err.Error(), http.StatusConflict)
			return
		}
		_ = json.NewEncoder(rw).Encode(v)
	}
	if strings.HasPrefix(r.URL.Path, "/power/") {
		if err := w.fault(node, r.URL.Path); err != nil {
			status := http.StatusBadGateway
			if errors.Is(err, power.ErrAuth) {
				status = http.StatusUnauthorized
			}
			http.Error(rw, err.Error(), status)
			return
		}
	}
	switch r.URL.Path {
	case "/power/state":
		on, err := w.machines[node].State(ctx)
		answer(on, err)
	case "/power/on":
		answer(nil, w.machines[node].PowerOn(ctx))
	case "/power/off":
		answer(nil, w.machines[node].PowerOff(ctx))
	case "/power/boot":
		b := vbmc.BootNetwork
		if r.FormValue("device") == "disk" {
			b = vbmc.BootDisk
		}
		answer(nil, w.machines[node].SetBoot(ctx, b, true))
	case "/join/prepare":
		answer(nil, w.cluster.Prepare(ctx, join.Member{Node: node}))
	case "/join/observe":
		s, err := w.cluster.Observe(ctx, node)
		answer(s, err)
	case "/join/hold":
		answer(nil, w.cluster.Hold(ctx, node, r.FormValue("reason")))
	case "/join/release":
		answer(nil, w.cluster.Release(ctx, node))
	case "/join/verify":
		out, err := w.cluster.Verify(ctx, node)
		answer(out, err)
	case "/join/remove":
		answer(nil, w.cluster.Remove(ctx, node))
	default:
		http.NotFound(rw, r)
	}
}

func call(ctx context.Context, base, path string, out any, params ...string) error {
	u := base + path + "?"
	for i := 0; i+1 < len(params); i += 2 {
		u += params[i] + "=" + strings.ReplaceAll(params[i+1], " ", "+") + "&"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("%s: %w", path, power.ErrAuth)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, strings.TrimSpace(string(b)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// fault is what a machine's switch answers, by node.
func (w *world) fault(node inventory.NodeID, path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[string(node)+path]++
	return w.faults[node]
}

func (w *world) setFault(node inventory.NodeID, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[node] = err
}

// times tells how often a path was asked for a node.
func (w *world) times(node inventory.NodeID, path string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[string(node)+path]
}

// remoteSwitch is the power controller of a machine in the world.
type remoteSwitch struct {
	world string
	node  inventory.NodeID
}

func (s *remoteSwitch) String() string { return "switch of " + string(s.node) }

func (s *remoteSwitch) State(ctx context.Context) (power.State, error) {
	var on bool
	if err := call(ctx, s.world, "/power/state", &on, "node", string(s.node)); err != nil {
		return power.Unknown, err
	}
	if on {
		return power.On, nil
	}
	return power.Off, nil
}

func (s *remoteSwitch) Set(ctx context.Context, want power.State) error {
	return call(ctx, s.world, "/power/"+want.String(), nil, "node", string(s.node))
}

func (s *remoteSwitch) BootOnce(ctx context.Context, d power.Device) error {
	return call(ctx, s.world, "/power/boot", nil, "node", string(s.node), "device", d.String())
}

// remoteCluster is the cluster in the world.
type remoteCluster struct{ world string }

func (c *remoteCluster) String() string { return "test cluster" }

func (c *remoteCluster) Prepare(ctx context.Context, m join.Member) error {
	return call(ctx, c.world, "/join/prepare", nil, "node", string(m.Node))
}

func (c *remoteCluster) Grant(context.Context, join.Member) (join.Grant, error) {
	return join.Grant{Kind: "test"}, nil
}

func (c *remoteCluster) Observe(ctx context.Context, n inventory.NodeID) (s join.Standing, err error) {
	return s, call(ctx, c.world, "/join/observe", &s, "node", string(n))
}

func (c *remoteCluster) Hold(ctx context.Context, n inventory.NodeID, reason string) error {
	return call(ctx, c.world, "/join/hold", nil, "node", string(n), "reason", reason)
}

func (c *remoteCluster) Release(ctx context.Context, n inventory.NodeID) error {
	return call(ctx, c.world, "/join/release", nil, "node", string(n))
}

func (c *remoteCluster) Verify(ctx context.Context, n inventory.NodeID) (out string, err error) {
	return out, call(ctx, c.world, "/join/verify", &out, "node", string(n))
}

func (c *remoteCluster) Remove(ctx context.Context, n inventory.NodeID) error {
	return call(ctx, c.world, "/join/remove", nil, "node", string(n))
}

func operator(l layout) (*api.Client, error) {
	return api.NewClient("http://"+l.Listen, operatorToken, nil)
}

// freeAddr is an address nobody listens on now.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func testLog() *slog.Logger {
	level := slog.LevelWarn
	if os.Getenv("SMELT_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
