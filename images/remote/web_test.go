package remote

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A mirror that begins to answer and then says nothing does not keep a site
// waiting for ever.
func TestSilentServer(t *testing.T) {
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(done) })
	old := client
	t.Cleanup(func() { client = old })
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	client = &http.Client{Transport: impatient{transport, 50 * time.Millisecond}}
	if b, err := ReadAll(t.Context(), web{srv.URL}, "metadata/timestamp.json", 1<<20); !errors.Is(err, errSilent) {
		t.Errorf("read %q, %v", b, err)
	}
}
