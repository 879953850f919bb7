package config

import (
	"net/url"
	"strings"
)

// Swarm says how images spread within the site. Sizes are bytes a second; 0 is
// no cap.
type Swarm struct {
	Off    bool  // every node fetches from the server alone
	Node   int64 // what one node sends to others
	Rack   int64 // what goes into one rack
	Origin int64 // what the server sends
	Caches []Cache
}

// A Cache serves images to racks: smelt serve --roles boot.
type Cache struct {
	URL   string // http://HOST:PORT, without a slash at its end
	Racks []string
}

type rawSwarm struct {
	at
	Peers  flag       `yaml:"peers" doc:"nodes that write the same image fetch its chunks from each other; true (default)"`
	Node   text       `yaml:"node" format:"size" doc:"what one node sends to others at most, a second, for example 50MiB; as it can (default)"`
	Rack   text       `yaml:"rack" format:"size" doc:"what is fetched into one rack at most, a second: its uplink is shared with others"`
	Origin text       `yaml:"origin" format:"size" doc:"what nodes are told to fetch from the server at most, a second"`
	Caches []rawCache `yaml:"caches" doc:"servers of images for racks: smelt serve --roles boot"`
}

type rawCache struct {
	at
	URL   text   `yaml:"url" need:"yes" format:"url" doc:"http://HOST:PORT of the cache, as its racks reach it"`
	Racks []text `yaml:"racks" need:"yes" doc:"racks that it serves: positions of nodes up to their last dash"`
}

func (p *parser) swarm(raw rawSwarm) {
	s := Swarm{Off: raw.Peers.set() && !raw.Peers.v, Node: p.size(raw.Node), Rack: p.size(raw.Rack), Origin: p.size(raw.Origin)}
	where := map[string]int{}
	racks := map[string]bool{}
	for _, n := range p.site.Nodes {
		racks[n.Position.Rack()] = true
	}
	for _, r := range raw.Caches {
		c := Cache{URL: strings.TrimSuffix(r.URL.v, "/")}
		u, err := url.Parse(c.URL)
		if c.URL != "" && (err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
			p.fail(r.URL.at, "write it like http://10.20.3.1:80; what it serves is verified, so it has no TLS", "nodes cannot fetch from %q", clip(r.URL.v))
		}
		p.unique(where, r.URL.at, "cache", c.URL)
		for _, k := range r.Racks {
			if k.v != "" && !racks[k.v] {
				p.fail(k.at, "a rack is the position of its nodes up to the last dash: A3 for A3-S2", "no node of this site stands in rack %q", clip(k.v))
			}
			c.Racks = append(c.Racks, k.v)
		}
		s.Caches = append(s.Caches, c)
	}
	p.site.Swarm = s
}
