package main

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"smelt/pxe"
)

// bootMetrics exports what the boot service counts. It reads a snapshot at
// each scrape: package pxe knows nothing of Prometheus.
type bootMetrics struct{ s *pxe.Server }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("smelt_boot_"+name, help, labels, nil)
}

var (
	bootDHCP       = desc("dhcp_total", "DHCP messages heard and sent, by network and type.", "network", "type")
	bootDropped    = desc("dropped_total", "Requests that got no decision, by protocol and reason.", "protocol", "reason")
	bootTFTP       = desc("tftp_transfers_total", "TFTP transfers, by result.", "result")
	bootTFTPBytes  = desc("tftp_bytes_total", "Bytes that TFTP clients acknowledged.")
	bootTFTPResent = desc("tftp_resent_blocks_total", "TFTP blocks sent once more.")
	bootFiles      = desc("http_files_total", "Boot files asked for by HTTP, by result.", "result")
	bootFileBytes  = desc("http_bytes_total", "Bytes of boot files sent by HTTP.")
	bootScripts    = desc("scripts_total", "Scripts and orders answered, by action.", "action")
	bootPoolUsed   = desc("pool_used", "Addresses of the pool that are given or promised.", "network")
	bootPoolSize   = desc("pool_size", "Addresses of the pool.", "network")
	bootRivals     = desc("rivals", "Other DHCP and ProxyDHCP servers heard of late, by network and whether they do harm.", "network", "alarm")
	bootKernel     = desc("kernel_seconds", "Time from a machine's first DISCOVER to its kernel, by the firmware that asked.", "firmware")
)

func (m bootMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{bootDHCP, bootDropped, bootTFTP, bootTFTPBytes, bootTFTPResent, bootFiles, bootFileBytes, bootScripts, bootPoolUsed, bootPoolSize, bootRivals, bootKernel} {
		ch <- d
	}
}

func (m bootMetrics) Collect(ch chan<- prometheus.Metric) {
	st := m.s.Stats()
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	for _, f := range []struct {
		d    *prometheus.Desc
		list []pxe.Count
	}{{bootDHCP, st.DHCP}, {bootDropped, st.Dropped}, {bootTFTP, st.TFTP}, {bootFiles, st.Files}, {bootScripts, st.Scripts}} {
		for _, c := range f.list {
			count(f.d, c.N, c.Labels...)
		}
	}
	count(bootTFTPBytes, st.TFTPBytes)
	count(bootTFTPResent, st.TFTPAgain)
	count(bootFileBytes, st.FileBytes)
	harm, known := map[string]int{}, map[string]int{}
	for _, r := range m.s.Rivals() {
		switch {
		case r.Gone:
		case r.Alarm != "":
			harm[r.Network]++
		default:
			known[r.Network]++
		}
	}
	for _, p := range st.Pools { // every network has one, if of no addresses
		gauge(bootPoolUsed, p.Used, p.Network)
		gauge(bootPoolSize, p.Size, p.Network)
		gauge(bootRivals, harm[p.Network], p.Network, "yes") // zeros too: an alert on absence is a trap
		gauge(bootRivals, known[p.Network], p.Network, "no")
	}
	for _, firmware := range slices.Sorted(maps.Keys(st.Kernels)) {
		h := st.Kernels[firmware]
		buckets, sum := map[float64]uint64{}, uint64(0)
		for i, bound := range h.Bounds {
			sum += h.Counts[i]
			buckets[bound] = sum
		}
		sum += h.Counts[len(h.Bounds)]
		ch <- prometheus.MustNewConstHistogram(bootKernel, sum, h.Sum, buckets, firmware)
	}
}
