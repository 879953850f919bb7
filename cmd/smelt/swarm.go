package main

import (
	"slices"

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
