package vbmc

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func FuzzPayload(f *testing.F) {
	f.Add([]byte{6, 0, 0xff, 7, 6, rakp4, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0})
	f.Add(ping)
	f.Fuzz(func(t *testing.T, b []byte) {
		if typ, status := payload(b); typ < -1 || typ > 0x3f || status < -1 || status > 0xff {
			t.Errorf("type %d, status %d", typ, status)
		}
	})
}

func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"QMP":{}}` + "\n" + `{"event":"RESET"}` + "\n" + `{"return":{}}` + "\n"))
	f.Add([]byte(`{"error":{"class":"GenericError","desc":"no"}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := answer(bufio.NewScanner(bytes.NewReader(b)), "return", "RESET")
		if err != nil && v != nil {
			t.Errorf("error %v beside %s", err, v)
		}
	})
}

func FuzzPDU(f *testing.F) {
	var m Switch
	p, err := StartPDU(PDUConfig{Conn: deaf{}, Model: "apc-rpdu", Community: "hush", Outlets: []Outlet{{Power: &m}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("0)\x02\x01\x01\x04\x04hush\xa0\x1e\x02\x04\x00\x00\x00\x01\x02\x01\x00\x02\x01\x000\x100\x0e\x06\n+\x06\x01\x02\x01\x01\x02\x00\x05\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = p.answer(b)
		if on, err := m.State(context.Background()); err != nil || on && p.Sets() == 0 {
			t.Error("the machine was started without a command")
		}
	})
}

// Whoever has no session switches nothing, and nothing ends the BMC.
func FuzzRedfish(f *testing.F) {
	var m Switch
	r, err := NewRedfish(RedfishConfig{Password: "hush"}, &m)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close() })
	f.Add("POST", root+"/SessionService/Sessions", []byte(`{"UserName":"admin","Password":"no"}`))
	f.Add("POST", root+"/Systems/1/Actions/ComputerSystem.Reset", []byte(`{"ResetType":"On"}`))
	f.Add("PATCH", root+"/Systems/1", []byte(`{"Boot":{"BootSourceOverrideTarget":"Pxe","BootOrder":[]}}`))
	f.Add("GET", root+"/Chassis/1/Thermal", []byte(nil))
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		for _, token := range []string{"", "hush"} {
			q, err := http.NewRequest(method, "https://bmc/", bytes.NewReader(body))
			if err != nil {
				return
			}
			q.URL.Path = path
			q.Header.Set("X-Auth-Token", token)
			r.ServeHTTP(httptest.NewRecorder(), q)
		}
		if m.On() || r.Stats().OpenSessions > 0 {
			t.Errorf("%s %s %q: machine on %v, %+v", method, path, body, m.On(), r.Stats())
		}
		// Behind the login anything may happen, but for a panic.
		q := httptest.NewRequest(http.MethodGet, "/", bytes.NewReader(body))
		q.Method, q.URL.Path = method, path
		q.SetBasicAuth("admin", "hush")
		var other Switch
		if in, err := NewRedfish(RedfishConfig{Password: "hush", Key: r.key}, &other); err == nil {
			in.ServeHTTP(httptest.NewRecorder(), q)
			in.Close()
		}
	})
}

// deaf is a connection on which nothing ever arrives.
type deaf struct{ net.PacketConn }

func (deaf) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, net.ErrClosed }
