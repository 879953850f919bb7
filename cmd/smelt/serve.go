package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"smelt/images"
	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/internal/convert"
	"smelt/internal/locate"
	"smelt/internal/server"
	"smelt/power"
	"smelt/pxe"
)

func newServe(o *options) *cobra.Command {
	var cache, agent string
	var rack rackCache
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a site: network boot, conductor, API and pages",
		Long: `Run a site: DHCP, TFTP and HTTP boot on its networks, the conductor that
converts nodes, the agents' API and the pages for people. It needs root (or
CAP_NET_BIND_SERVICE and CAP_NET_RAW) for DHCP. It can be killed at any time:
the next start goes on where it was.

With --roles boot it is a cache of images for a rack instead, beside a site's
server and without a site file: see swarm: caches: in site.yaml.`,
		Example: `  smelt site validate site.yaml && smelt serve --site site.yaml
  smelt serve --roles boot --origin http://10.20.0.1 --listen 10.20.3.1:80 --cache /var/cache/smelt`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			switch rack.roles {
			case "all":
				return serve(cmd.Context(), o.site, cache, agent, log)
			case "boot":
				return rack.serve(cmd.Context(), filepath.Join(cache, "images"), log)
			}
			return usageError{fmt.Sprintf("no role %q", rack.roles), "all (a whole site) or boot (a cache of images for a rack)"}
		},
	}
	cmd.Flags().StringVar(&cache, "cache", ".cache", "folder for what is fetched once: the RAM system's kernel")
	rack.flags(cmd)
	cmd.Flags().StringVar(&agent, "agent", "", "the agent that the RAM system runs (default: smelt-agent beside this program)")
	return cmd
}

// serve reads the site, builds every part, and runs them until one fails or
// ctx ends.
func serve(ctx context.Context, siteFile, cache, agent string, log *slog.Logger) error {
	site, err := config.Load(siteFile, known())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(site.State, 0o755); err != nil {
		return err
	}
	secrets, err := config.OpenSecrets(site.State)
	if err != nil {
		return err
	}
	for _, ref := range site.Secrets() {
		if _, err := secrets.Get(string(ref)); err != nil {
			return fmt.Errorf("secret %s, which %s names: %w; store it with: smelt secret set %s", ref, siteFile, err, ref)
		}
	}
	key, err := siteKey(site.State)
	if err != nil {
		return err
	}
	cert, pin, err := agentCertificate(site.State)
	if err != nil {
		return err
	}
	bootKey, err := secureBootKey(site.State, site.Name)
	if err != nil {
		return err
	}
	db, err := openStore(ctx, site)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := server.FirstToken(ctx, db, filepath.Join(site.State, "operator.token")); err != nil {
		return err
	}
	imgs, err := images.OpenStore(filepath.Join(site.State, "images"))
	if err != nil {
		return err
	}
	var released *releaseTask
	if site.Images != nil {
		if released, err = follow(site, secrets, imgs, log); err != nil {
			return err
		}
	}
	boots := ramConfig{
		Dir: filepath.Join(site.State, "boot"), Cache: cache, Agent: agent,
		SiteKey: key.Public().(ed25519.PublicKey), Pin: pin, SecureBoot: bootKey,
		Server: "https://" + site.Listen.Agent, Boot: "http://" + site.Listen.Boot,
	}
	if released != nil {
		boots.Images = released.keys
	}
	ram, err := makeRAMSystem(ctx, boots)
	if err != nil {
		return fmt.Errorf("make the RAM system: %w", err)
	}
	if err := addDebianLoaders(ctx, cache, ram.Files); err != nil {
		log.Warn("machines with Secure Boot and vendors' keys, and 64-bit ARM, do not boot: their loaders are not here; the next start tries again", "err", err)
	}
	memtest, rescue, err := addPrograms(ctx, filepath.Join(site.State, "boot"), cache, "http://"+site.Listen.Boot, bootKey, ram.Files)
	if err != nil {
		log.Warn("no memory test and no rescue: their programs are not here; the next start tries again", "err", err)
	} else {
		ram.Boot.Memtest, rescue.Keys = memtest, site.Rescue
	}
	budget, err := power.NewBudget(site.Circuits, power.Rules{Window: site.SlotWindow, PanelWindow: site.PanelWindow, Stale: site.MeterStale})
	if err != nil {
		return err
	}
	var ear ears
	units, err := pduUnits(site, secrets)
	if err != nil {
		return err
	}
	switches, err := controllers(site, secrets, units, &ear)
	if err != nil {
		return err
	}
	cluster, err := clusterDriver(site, secrets)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	wired := conductorSite(site, pin)
	wired.Rescue = rescue.Tools != "" && len(rescue.Keys) > 0
	conductor, err := convert.New(convert.Config{
		Site: wired, Store: db, Images: imgs, Power: switches, Care: devices(site, secrets), Budget: budget, PDUs: meters(site, units), Join: cluster,
		SiteKey: key, Owner: host + ":" + strconv.Itoa(os.Getpid()), Boot: ram.Boot, Log: log,
	})
	if err != nil {
		return err
	}
	ear.conductor = conductor
	bootAddr, err := netip.ParseAddrPort(site.Listen.Boot)
	if err != nil {
		return err
	}
	netboot, err := pxe.New(pxe.Config{
		Networks: networks(site), Files: ram.Files, Booter: conductor, Log: log,
		Leases: filepath.Join(site.State, "leases"), HTTP: bootAddr,
	})
	if err != nil {
		return err
	}
	consoles, err := recorder(site, switches, log)
	if err != nil {
		return err
	}
	lights, err := locate.New(locate.Config{Dir: filepath.Join(site.State, "locate"), Power: switches, Record: conductor.Record, Log: log})
	if err != nil {
		return err
	}
	shared := shareImages(site, imgs)
	front, err := server.New(server.Config{
		Conductor: conductor, Store: db, Images: imageList(imgs), Log: log, Version: version,
		Site: site.Name, Lab: site.Lab, AgentURL: wired.Server, ImageURL: wired.ImageURL, Pin: pin,
		Swarm:   shared,
		Console: consoles, Locate: lights, Power: switches,
		SiteKey: key.Public().(ed25519.PublicKey), Rescue: rescue, Boot: bootView(netboot, networks(site)), Metrics: []prometheus.Collector{bootMetrics{netboot}, swarmMetrics{shared.Tracker}},
	})
	if err != nil {
		return err
	}

	public := http.NewServeMux() // boot files and images: public or verified bits
	public.Handle("/boot/", netboot.Handler())
	public.Handle("/images/", http.StripPrefix("/images", imgs.Handler()))
	tasks := []task{conductor, netboot, consoles, lights}
	if released != nil {
		released.rekey = func(ctx context.Context, keys images.Signers) error {
			boots.Images, boots.Files = keys, ram.Files
			_, err := makeRAMSystem(ctx, boots)
			return err
		}
		tasks = append(tasks, released)
	}
	type listener struct {
		name, addr string
		srv        *http.Server
		tls        *tls.Config
		machines   bool // any machine of a network reaches it, before anybody knows it
	}
	listeners := []listener{
		// A plain handler in front of the mux: ServeMux redirects paths that it
		// cleans, and firmware does not follow (tianocore/edk2#9714).
		{"boot http", site.Listen.Boot, pxe.HTTPServer(noRedirect(netboot.Handler(), public)), nil, true},
		{"agents", site.Listen.Agent, webServer(front.Agent()), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, false},
		{"pages", site.Listen.UI, webServer(front.UI()), nil, false},
	}
	if site.Listen.BootTLS != "" {
		conf, err := bootTLS(site.State, site.Name, site.Listen.BootTLS)
		if err != nil {
			return err
		}
		listeners = append(listeners, listener{"boot https", site.Listen.BootTLS, pxe.HTTPServer(netboot.Handler()), conf, true})
	}
	for _, n := range site.Networks {
		if n.IPv6.IsValid() {
			addr := netip.AddrPortFrom(n.IPv6.Addr(), bootAddr.Port()).String()
			listeners = append(listeners, listener{"boot http of " + n.Name, addr, pxe.HTTPServer(noRedirect(netboot.Handler(), public)), nil, true})
		}
	}
	for _, l := range listeners {
		ln, err := listen(l.addr)
		if err != nil {
			return fmt.Errorf("listen for %s: %w", l.name, err)
		}
		if l.machines {
			ln = pxe.Limit(ln)
		}
		if l.tls != nil {
			ln = tls.NewListener(ln, l.tls)
		}
		tasks = append(tasks, newWebTask(l.name, ln, l.srv, front.Close))
	}
	return runAll(ctx, log, tasks)
}

// noRedirect sends boot paths, whatever their form, to the boot handler.
func noRedirect(boot, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/images/") {
			rest.ServeHTTP(w, r)
			return
		}
		boot.ServeHTTP(w, r)
	})
}

// task is everything long-lived.
type task interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	String() string
}

// runAll runs all tasks until one fails or ctx ends.
func runAll(ctx context.Context, log *slog.Logger, tasks []task) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.Run(gctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", t, err)
			}
			if gctx.Err() == nil {
				return fmt.Errorf("%s ended by itself", t)
			}
			return nil
		})
		g.Go(func() error {
			select {
			case <-t.Ready():
				log.Info("ready", "task", t.String())
			case <-gctx.Done():
			}
			return nil
		})
	}
	return g.Wait()
}

// listen opens an address, or takes over a socket that whoever started this
// process opened: "systemd" is the first such (sd_listen_fds(3)), "fd:N" names one.
func listen(addr string) (net.Listener, error) {
	fd := -1
	switch {
	case addr == "systemd":
		if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err != nil || n < 1 {
			return nil, errors.New("listen.ui is systemd but no socket was passed (LISTEN_FDS): start it through its socket unit, or write an address")
		}
		fd = 3
	case strings.HasPrefix(addr, "fd:"):
		n, err := strconv.Atoi(addr[len("fd:"):])
		if err != nil || n < 3 {
			return nil, fmt.Errorf("%q: want fd:N with N at least 3", addr)
		}
		fd = n
	default:
		return net.Listen("tcp", addr)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	return net.FileListener(f)
}

// webTask is one HTTP listener.
type webTask struct {
	name  string
	ln    net.Listener
	srv   *http.Server
	ready chan struct{}
}

// webServer is how h is served to agents and people.
func webServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
}

func newWebTask(name string, ln net.Listener, srv *http.Server, onShutdown func()) *webTask {
	srv.RegisterOnShutdown(onShutdown)
	return &webTask{name: name, ln: ln, srv: srv, ready: make(chan struct{})}
}

func (t *webTask) String() string         { return t.name + " at " + t.ln.Addr().String() }
func (t *webTask) Ready() <-chan struct{} { return t.ready }

func (t *webTask) Run(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- t.srv.Serve(t.ln) }()
	close(t.ready)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := t.srv.Shutdown(grace); err != nil {
		_ = t.srv.Close() // what has not ended within the grace is cut
	}
	<-ended
	return nil
}

// imageList lists the image store for the pages.
func imageList(s *images.Store) func() ([]api.Image, error) {
	return func() ([]api.Image, error) {
		list, err := s.List()
		if err != nil {
			return nil, err
		}
		out := make([]api.Image, 0, len(list))
		for _, e := range list {
			out = append(out, api.Image{Name: e.Manifest.Name, Digest: e.Digest.String(), Size: e.Manifest.Size, Created: e.Manifest.Created})
		}
		return out, nil
	}
}
