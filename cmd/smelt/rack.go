package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/images/swarm"
)

// rackCache is smelt serve --roles boot: the images of a site's server, kept
// where a rack's nodes reach them without its uplink.
type rackCache struct {
	roles, origin, listen string
	keep                  int64 // GiB
}

func (r *rackCache) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.roles, "roles", "all", "all: a whole site; boot: a cache of images for a rack")
	cmd.Flags().StringVar(&r.origin, "origin", "", "with --roles boot: URL of the site's server, its listen.boot")
	cmd.Flags().StringVar(&r.listen, "listen", "", "with --roles boot: ADDRESS:PORT for the rack's nodes")
	cmd.Flags().Int64Var(&r.keep, "keep", 50, "with --roles boot: GiB of images to keep in the --cache folder")
}

func (r *rackCache) serve(ctx context.Context, dir string, log *slog.Logger) error {
	u, err := url.Parse(r.origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return usageError{fmt.Sprintf("--origin %q is no URL", r.origin), "give the address of the site's server: --origin http://10.20.0.1"}
	}
	if r.listen == "" {
		return usageError{"--listen is missing", "give the address that the rack's nodes reach, as in swarm: caches: of site.yaml: --listen 10.20.3.1:80"}
	}
	if r.keep < 1 || r.keep > 1<<20 {
		return usageError{fmt.Sprintf("--keep %d: a cache keeps from 1 to %d GiB", r.keep, 1<<20), ""}
	}
	cache, err := swarm.OpenCache(dir, strings.TrimSuffix(r.origin, "/")+"/images", r.keep<<30, log)
	if err != nil {
		return err
	}
	defer cache.Close()
	mux := http.NewServeMux()
	mux.Handle("/images/", http.StripPrefix("/images", cache.Handler()))
	ln, err := listen(r.listen)
	if err != nil {
		return fmt.Errorf("listen for the rack: %w", err)
	}
	return runAll(ctx, log, []task{newWebTask("image cache", ln, webServer(mux), func() {}), newTally(cache, log)})
}

// tally logs what a cache did, once a minute when it did anything.
type tally struct {
	cache *swarm.Cache
	log   *slog.Logger
	ready chan struct{}
}

func newTally(c *swarm.Cache, log *slog.Logger) *tally {
	t := &tally{c, log, make(chan struct{})}
	close(t.ready)
	return t
}

func (t *tally) String() string         { return "tally" }
func (t *tally) Ready() <-chan struct{} { return t.ready }

func (t *tally) Run(ctx context.Context) error {
	var last swarm.CacheStats
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if s := t.cache.Stats(); s != last {
			t.log.Info("image cache", "served", s.Served, "fetched", s.Fetched, "rejected", s.Rejected)
			last = s
		}
	}
}
