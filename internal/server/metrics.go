package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"smelt/inventory"
)

// collector reads the site when it is scraped: a metric is never older than
// its scrape, and nothing is counted twice.
type collector struct{ s *Server }

var (
	descNodes    = prometheus.NewDesc("smelt_nodes", "Nodes by state.", []string{"state"}, nil)
	descStuck    = prometheus.NewDesc("smelt_nodes_stuck", "Nodes past the deadline of their state, by state.", []string{"state"}, nil)
	descHeld     = prometheus.NewDesc("smelt_nodes_held", "Nodes that are held.", nil, nil)
	descTasks    = prometheus.NewDesc("smelt_tasks_open", "Open tasks for technicians, by verb.", []string{"verb"}, nil)
	descGranted  = prometheus.NewDesc("smelt_power_granted_watts", "Power granted on a circuit.", []string{"circuit", "kind"}, nil)
	descLimit    = prometheus.NewDesc("smelt_power_limit_watts", "Derated rating of a circuit.", []string{"circuit", "kind"}, nil)
	descMeasured = prometheus.NewDesc("smelt_power_measured_watts", "Power measured on a circuit, as far as fresh readings tell.", []string{"circuit", "kind"}, nil)
	descPowerIs  = prometheus.NewDesc("smelt_power_circuit_state", "1 for the state that a circuit is in.", []string{"circuit", "kind", "state"}, nil)
	descHolds    = prometheus.NewDesc("smelt_power_held", "1 while nothing is started, by reason.", []string{"reason"}, nil)
	descCurtail  = prometheus.NewDesc("smelt_power_curtailed_watts", "Power that is to be given back, and what is given as measured.", []string{"what"}, nil)
	descShed     = prometheus.NewDesc("smelt_power_shed_nodes", "Nodes from which something was taken for want of power.", []string{"what"}, nil)
	descStop     = prometheus.NewDesc("smelt_stop", "1 while the global stop is set.", nil, nil)
	descSeq      = prometheus.NewDesc("smelt_events_total", "Events of the site.", nil, nil)
	descInfo     = prometheus.NewDesc("smelt_build_info", "Version of the server and name of the site.", []string{"version", "site"}, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descNodes, descStuck, descHeld, descTasks, descGranted, descLimit, descMeasured, descPowerIs, descHolds, descCurtail, descShed, descStop, descSeq, descInfo} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nodes, seq, err := c.s.nodes(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descNodes, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count, stuck, held, now := map[inventory.State]int{}, map[inventory.State]int{}, 0, c.s.Now()
	for _, n := range nodes {
		count[n.State]++
		if n.Stuck(now) {
			stuck[n.State]++
		}
		if n.Hold != nil {
			held++
		}
	}
	for _, st := range inventory.States() { // zeros too: an alert on absence is a trap
		gauge(descNodes, float64(count[st]), st.String())
		gauge(descStuck, float64(stuck[st]), st.String())
	}
	gauge(descHeld, float64(held))
	tasks, err := c.s.Store.Tasks(ctx, "")
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descTasks, err)
		return
	}
	open := map[string]int{}
	for _, t := range tasks {
		if t.Open() {
			open[t.Verb]++
		}
	}
	for v, n := range open {
		gauge(descTasks, float64(n), v)
	}
	for _, l := range c.s.Conductor.Levels() {
		gauge(descGranted, l.Granted, l.Name, l.Kind)
		gauge(descLimit, l.Limit, l.Name, l.Kind)
		gauge(descMeasured, l.Measured, l.Name, l.Kind)
		for _, state := range []string{"ok", "full", "held", "shedding"} {
			gauge(descPowerIs, truth(l.State == state), l.Name, l.Kind, state)
		}
	}
	p := c.s.Conductor.SitePower()
	gauge(descHolds, truth(p.Hold != nil), "hold")
	gauge(descHolds, truth(p.Blackout != nil && p.Blackout.Released.IsZero()), "blackout")
	asked, given := 0.0, 0.0
	if p.Curtail != nil {
		asked, given = p.Curtail.Watts, p.Curtail.Given()
	}
	gauge(descCurtail, asked, "asked")
	gauge(descCurtail, given, "given")
	shed := map[string]int{}
	for _, n := range nodes {
		for _, do := range []string{inventory.ShedCap, inventory.ShedPause, inventory.ShedOff} {
			if n.Sheds(do) {
				shed[do]++
			}
		}
	}
	for _, do := range []string{inventory.ShedCap, inventory.ShedPause, inventory.ShedOff} {
		gauge(descShed, float64(shed[do]), do)
	}
	gauge(descStop, truth(c.s.Conductor.Stopped()))
	ch <- prometheus.MustNewConstMetric(descSeq, prometheus.CounterValue, float64(seq))
	gauge(descInfo, 1, c.s.Version, c.s.Site)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *Server) serveMetrics() func(http.ResponseWriter, *http.Request, who) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(s.Metrics...)
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
	return func(w http.ResponseWriter, r *http.Request, _ who) { h.ServeHTTP(w, r) }
}
