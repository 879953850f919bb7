package main

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"smelt/images"
	"smelt/images/swarm"
	"smelt/internal/config"
	"smelt/internal/server"
	"smelt/inventory"
)

// shareImages is how the site's nodes get images: from each other, and from the
// caches of their racks.
func shareImages(site *config.Site, imgs *images.Store) server.Swarm {
	racks := map[inventory.NodeID]string{}
	for _, n := range site.Nodes {
		racks[n.Name] = n.Position.Rack()
	}
	s := server.Swarm{
		Rack: func(id inventory.NodeID) string { return racks[id] },
		Mirrors: func(rack string) []string {
			var urls []string
			for _, c := range site.Swarm.Caches {
				if slices.Contains(c.Racks, rack) {
					urls = append(urls, c.URL+"/images")
				}
			}
			return urls
		},
	}
	if !site.Swarm.Off {
		s.Tracker = swarm.NewTracker(swarm.Limits{Node: site.Swarm.Node, Rack: site.Swarm.Rack, Origin: site.Swarm.Origin})
		s.Manifest = imgs.Manifest
	}
	return s
}

// swarmMetrics exports what the tracker planned. It reads a snapshot at each
// scrape: package swarm knows nothing of Prometheus.
type swarmMetrics struct{ t *swarm.Tracker } // nil: nodes do not share

var (
	swarmNodes    = prometheus.NewDesc("smelt_swarm_nodes", "Nodes that share the chunks of an image now.", nil, nil)
	swarmBytes    = prometheus.NewDesc("smelt_swarm_planned_bytes_total", "Bytes of chunks that nodes were told to fetch, by source: origin or node.", []string{"source"}, nil)
	swarmFailures = prometheus.NewDesc("smelt_swarm_failures_total", "Transfers that brought nothing of use, by reason: corrupt, gone, slow.", []string{"why"}, nil)
)

func (m swarmMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{swarmNodes, swarmBytes, swarmFailures} {
		ch <- d
	}
}

func (m swarmMetrics) Collect(ch chan<- prometheus.Metric) {
	if m.t == nil {
		return
	}
	st := m.t.Stats()
	ch <- prometheus.MustNewConstMetric(swarmNodes, prometheus.GaugeValue, float64(st.Nodes))
	ch <- prometheus.MustNewConstMetric(swarmBytes, prometheus.CounterValue, float64(st.OriginBytes), "origin")
	ch <- prometheus.MustNewConstMetric(swarmBytes, prometheus.CounterValue, float64(st.PeerBytes), "node")
	for _, why := range []swarm.Why{swarm.Corrupt, swarm.Gone, swarm.Slow} {
		ch <- prometheus.MustNewConstMetric(swarmFailures, prometheus.CounterValue, float64(st.Failures[why]), string(why))
	}
}
