package pxe

import (
	"net/netip"
	"sync"
)

const maxNeighbours = 1 << 14

// neighbours remembers which machine said that it uses which address, on a
// network whose addresses another server gives. It only puts names to
// transfers: nothing is decided by it. The zero value is ready.
type neighbours struct {
	mu     sync.Mutex
	byMAC  map[MAC]netip.Addr
	byAddr map[netip.Addr]MAC
}

func (t *neighbours) learn(mac MAC, a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byMAC == nil {
		t.byMAC, t.byAddr = make(map[MAC]netip.Addr), make(map[netip.Addr]MAC)
	}
	if t.byMAC[mac] == a {
		return
	}
	t.forget(mac)
	t.forget(t.byAddr[a])
	if len(t.byMAC) >= maxNeighbours {
		for old := range t.byMAC { // whichever: who matters is heard again at its next boot
			t.forget(old)
			break
		}
	}
	t.byMAC[mac], t.byAddr[a] = a, mac
}

func (t *neighbours) forget(mac MAC) {
	if a, ok := t.byMAC[mac]; ok {
		delete(t.byMAC, mac)
		delete(t.byAddr, a)
	}
}

func (t *neighbours) addr(mac MAC) netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byMAC[mac]
}

func (t *neighbours) holder(a netip.Addr) (MAC, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mac, ok := t.byAddr[a]
	return mac, ok
}
