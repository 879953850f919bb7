package agent

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
	"smelt/images/swarm"
	"smelt/internal/api"
)

// manifest fetches a manifest from a mirror, or from Base. A mirror that caches
// learns the chunks by it.
func manifest(ctx context.Context, client *http.Client, w *api.ImageOrder, want images.Digest, signers images.Signers) (images.Manifest, error) {
	for _, base := range w.Mirrors {
		if m, err := disk.Manifest(ctx, client, base, want, signers); err == nil {
			return m, nil
		}
	}
	return disk.Manifest(ctx, client, w.Base, want, signers)
}

// sources says where chunks come from: the mirrors and the image store, and
// before those, when the site has it so, the nodes that write the same image.
// leave ends what this node serves them; it may be called twice, and must be
// before the disk becomes anything but the image.
func (a *Agent) sources(w *api.ImageOrder, m images.Manifest, path string, client *http.Client) (fetch disk.Fetch, peers disk.Source, leave func()) {
	var all []swarm.Fetch
	for _, base := range append(w.Mirrors[:len(w.Mirrors):len(w.Mirrors)], w.Base) {
		all = append(all, disk.HTTP(client, strings.TrimSuffix(base, "/")+"/blob/"+m.Blob.String()))
	}
	fetch = swarm.Mirrored(all...)
	if !w.Swarm {
		return fetch, nil, func() {}
	}
	d, err := images.ParseDigest(w.Manifest)
	if err != nil {
		return fetch, nil, func() {} // it was parsed before
	}
	c, err := swarm.Join(swarm.Config{
		Image: d, Manifest: m, Origin: fetch, Disk: path, Memory: spareMemory(), Log: a.log,
		Report: func(ctx context.Context, r swarm.Report) (swarm.Plan, error) {
			var p swarm.Plan
			err := a.client.call(ctx, http.MethodPost, api.PathSwarm, r, &p)
			if final(err) {
				err = fmt.Errorf("%w: %w", swarm.ErrRefused, err)
			}
			return p, err
		},
	})
	if err != nil {
		a.log.Warn("other nodes are not asked", "err", err)
		return fetch, nil, func() {}
	}
	left := false
	return fetch, c, func() {
		if left {
			return
		}
		left = true
		c.Close()
		st := c.Stats()
		a.log.Info("image shared", "fromOrigin", st.FromOrigin, "fromNodes", st.FromPeers, "toNodes", st.ToPeers, "reread", st.Reread, "failures", fmt.Sprint(st.Failures))
	}
}

// spareMemory is what may hold frames for other nodes: an eighth of what is
// free. What does not fit is read from the disk again.
func spareMemory() int64 {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 16 << 20
	}
	return min(max(int64(i.Freeram)*int64(i.Unit)/8, 16<<20), 512<<20)
}
