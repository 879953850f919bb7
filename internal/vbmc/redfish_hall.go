package vbmc

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// A RedfishHall serves many BMCs from one http.Server and one key: each has a
// listener of its own, and a request is for the BMC whose address it came in
// at. An idle BMC costs its listener and the goroutine that waits on it.
type RedfishHall struct {
	key  *RedfishKey
	http *http.Server
	bmcs sync.Map // address -> *Redfish
	wait sync.WaitGroup
}

// NewRedfishHall makes one without BMCs.
func NewRedfishHall() (*RedfishHall, error) {
	key, err := NewRedfishKey()
	if err != nil {
		return nil, err
	}
	h := &RedfishHall{key: key}
	h.http = redfishServer(h)
	return h, nil
}

// Add starts a BMC with the key of the hall on c.Listener, which the hall
// closes.
func (h *RedfishHall) Add(c RedfishConfig, p Power) (*Redfish, error) {
	c.Key = h.key
	r, err := NewRedfish(c, p)
	if err != nil {
		return nil, err
	}
	h.bmcs.Store(c.Listener.Addr().String(), r)
	l := tls.NewListener(c.Listener, &tls.Config{GetCertificate: r.certificate, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true})
	h.wait.Go(func() {
		_ = h.http.Serve(l) // always ErrServerClosed, by Close
	})
	return r, nil
}

// ServeHTTP hands a request to its BMC.
func (h *RedfishHall) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	local, ok := q.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		http.Error(w, "no address", http.StatusMisdirectedRequest)
		return
	}
	r, ok := h.bmcs.Load(local.String())
	if !ok {
		http.Error(w, "no BMC at "+local.String(), http.StatusMisdirectedRequest)
		return
	}
	r.(*Redfish).ServeHTTP(w, q)
}

// Close stops all of them.
func (h *RedfishHall) Close() error {
	err := h.http.Close()
	h.bmcs.Range(func(_, r any) bool {
		_ = r.(*Redfish).Close() // it serves nothing by itself
		return true
	})
	h.wait.Wait()
	return err
}
