package vbmc

import (
	"context"
	"crypto/md5" //nolint:gosec // AMT knows no better digest
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AMTConfig is a board with Intel AMT.
type AMTConfig struct {
	Listener net.Listener // plain TCP; closed by Close
	TLS      bool         // with a self-signed certificate, as on port 16993
	Password string       // of admin
}

// AMTFaults are the lies of a management engine.
type AMTFaults struct {
	Ignores bool // returns 0 and does nothing
	Returns int  // what every method returns, without doing anything; 0 obeys
	State   int  // the power state it says, whatever is the case: 4 sleeps
	Status  int  // every message with a good login is answered so, with a fault
	Hang    bool // answers nothing until the client gives up
	Garbage bool // answers with something else
}

// AMT is a small WS-Management server (DSP0226) with the classes that switch a
// machine: what Intel's SDK calls remote control. It is simulated.
type AMT struct {
	cfg   AMTConfig
	power Power
	pin   string
	http  http.Server
	wait  sync.WaitGroup

	mu      sync.Mutex
	faults  AMTFaults
	nonces  map[string]bool
	refused int
	role    bool   // the boot configuration is good for the next boot
	source  string // of that boot
	puts    []string
}

// StartAMT starts it in front of p.
func StartAMT(c AMTConfig, p Power) (*AMT, error) {
	a := &AMT{cfg: c, power: p, nonces: map[string]bool{}}
	l := c.Listener
	if c.TLS {
		key, err := NewRedfishKey()
		if err != nil {
			return nil, fmt.Errorf("virtual AMT: certificate: %w", err)
		}
		a.pin = key.pin
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{key.cert}, MinVersion: tls.VersionTLS12})
	}
	a.http = http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	a.wait.Go(func() { _ = a.http.Serve(l) })
	return a, nil
}

// URL is its address; Pin the SHA-256 of its public key.
func (a *AMT) URL() string {
	if a.cfg.TLS {
		return "https://" + a.cfg.Listener.Addr().String()
	}
	return "http://" + a.cfg.Listener.Addr().String()
}

// Pin is as Redfish.Pin; "" without TLS.
func (a *AMT) Pin() string { return a.pin }

func (a *AMT) String() string { return "virtual AMT " + a.cfg.Listener.Addr().String() }

// SetFaults replaces the lies.
func (a *AMT) SetFaults(f AMTFaults) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = f
}

// Refused is how many requests came with a wrong credential.
func (a *AMT) Refused() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refused
}

// Settings are the boot settings that were put, newest last.
func (a *AMT) Settings() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.puts...)
}

// Close stops it.
func (a *AMT) Close() error {
	err := a.http.Close()
	a.wait.Wait()
	return err
}

// digest holds an answer to a challenge against the password (RFC 2617, MD5,
// qop auth).
func (a *AMT) digest(q *http.Request) bool {
	text, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Digest ")
	if !ok {
		return false
	}
	v := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		k, val, _ := strings.Cut(strings.TrimSpace(part), "=")
		v[k] = strings.Trim(val, `"`)
	}
	sum := func(s ...string) string {
		h := md5.Sum([]byte(strings.Join(s, ":"))) //nolint:gosec // as above
		return hex.EncodeToString(h[:])
	}
	want := sum(sum("admin", v["realm"], a.cfg.Password), v["nonce"], v["nc"], v["cnonce"], v["qop"], sum(q.Method, q.URL.Path))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nonces[v["nonce"]] && v["username"] == "admin" && v["response"] == want {
		return true
	}
	a.refused++
	return false
}

// soapIn is what the server reads of a message.
type soapIn struct {
	Action   string `xml:"Header>Action"`
	Resource string `xml:"Header>ResourceURI"`
	ID       string `xml:"Header>MessageID"`
	Body     struct {
		Inner   string `xml:",innerxml"`
		Context string `xml:"Pull>EnumerationContext"`
		Mode    string `xml:"Enumerate>EnumerationMode"`
		State   string `xml:"RequestPowerStateChange_INPUT>PowerState"`
		Role    string `xml:"SetBootConfigRole_INPUT>Role"`
		Source  []struct {
			Name string `xml:"Name,attr"`
			Text string `xml:",chardata"`
		} `xml:"ChangeBootOrder_INPUT>Source>ReferenceParameters>SelectorSet>Selector"`
	} `xml:"Body"`
}

const (
	amtCIM   = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	amtIntel = "http://intel.com/wbem/wscim/1/amt-schema/1/"
	amtEnum  = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	amtMan   = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	amtAddr  = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
)

// ServeHTTP answers one message.
func (a *AMT) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	a.mu.Lock()
	f := a.faults
	a.mu.Unlock()
	if f.Hang {
		<-q.Context().Done()
		return
	}
	if q.URL.Path != "/wsman" || q.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if !a.digest(q) {
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		nonce := hex.EncodeToString(b)
		a.mu.Lock()
		a.nonces[nonce] = true
		a.mu.Unlock()
		w.Header().Set("WWW-Authenticate", `Digest realm="Digest:A3829B3A000000000000000000000000", nonce="`+nonce+`",stale="false",qop="auth"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	b, err := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	var in soapIn
	if err != nil || xml.Unmarshal(b, &in) != nil {
		amtFault(w, in, http.StatusBadRequest, "the message cannot be read")
		return
	}
	switch {
	case f.Garbage:
		_, _ = io.WriteString(w, "<html>busy")
	case f.Status != 0:
		amtFault(w, in, f.Status, "The service cannot comply with the request due to internal processing errors.")
	default:
		a.serve(q.Context(), w, in, f)
	}
}

func amtSay(w http.ResponseWriter, in soapIn, status int, action, body string) {
	w.Header().Set("Content-Type", "application/soap+xml; charset=UTF-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><a:Envelope xmlns:a="http://www.w3.org/2003/05/soap-envelope" xmlns:b="%s" xmlns:c="%s" xmlns:n="%s">`+
		`<a:Header><b:To>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</b:To><b:RelatesTo>%s</b:RelatesTo><b:Action a:mustUnderstand="true">%s</b:Action><b:MessageID>uuid:00000000-8086-8086-8086-000000000001</b:MessageID><c:ResourceURI>%s</c:ResourceURI></a:Header>`+
		`<a:Body>%s</a:Body></a:Envelope>`, amtAddr, amtMan, amtEnum, in.ID, action, in.Resource, body)
}

func amtFault(w http.ResponseWriter, in soapIn, status int, text string) {
	amtSay(w, in, status, amtAddr+"/fault", `<a:Fault><a:Code><a:Value>a:Receiver</a:Value><a:Subcode><a:Value>c:InternalError</a:Value></a:Subcode></a:Code><a:Reason><a:Text xml:lang="en-US">`+text+`</a:Text></a:Reason></a:Fault>`)
}

// amtState is the power state in CIM's numbers.
func (a *AMT) state(ctx context.Context, f AMTFaults) int {
	on, err := a.power.State(ctx)
	switch {
	case f.State != 0:
		return f.State
	case err != nil:
		return 0
	case on:
		return 2
	}
	return 8
}

func (a *AMT) serve(ctx context.Context, w http.ResponseWriter, in soapIn, f AMTFaults) {
	class := in.Resource[strings.LastIndex(in.Resource, "/")+1:]
	method := in.Action[strings.LastIndex(in.Action, "/")+1:]
	output := func(value int) {
		amtSay(w, in, http.StatusOK, in.Action+"Response", fmt.Sprintf(`<g:%s_OUTPUT xmlns:g="%s"><g:ReturnValue>%d</g:ReturnValue></g:%s_OUTPUT>`, method, in.Resource, value, method))
	}
	obey := func(do func() error) {
		value := f.Returns
		if value == 0 && !f.Ignores && do() != nil {
			value = 2
		}
		output(value)
	}
	switch method {
	case "Enumerate":
		mode := "objects"
		if strings.Contains(in.Body.Mode, "EPR") {
			mode = "references"
		}
		amtSay(w, in, http.StatusOK, in.Action+"Response", `<n:EnumerateResponse><n:EnumerationContext>`+mode+`</n:EnumerationContext></n:EnumerateResponse>`)
	case "Pull":
		items, ok := a.items(ctx, class, in.Body.Context, f)
		if !ok {
			amtFault(w, in, http.StatusBadRequest, "no such class")
			return
		}
		amtSay(w, in, http.StatusOK, in.Action+"Response", `<n:PullResponse><n:Items>`+items+`</n:Items><n:EndOfSequence></n:EndOfSequence></n:PullResponse>`)
	case "Get":
		amtSay(w, in, http.StatusOK, in.Action+"Response", `<g:AMT_BootSettingData xmlns:g="`+amtIntel+`AMT_BootSettingData"><g:BIOSLastStatus>2</g:BIOSLastStatus><g:BIOSPause>true</g:BIOSPause><g:BIOSSetup>false</g:BIOSSetup><g:BootMediaIndex>1</g:BootMediaIndex>`+
			`<g:ElementName>Intel(r) AMT Boot Configuration Settings</g:ElementName><g:InstanceID>Intel(r) AMT:BootSettingData 0</g:InstanceID><g:UseSOL>false</g:UseSOL></g:AMT_BootSettingData>`)
	case "Put":
		a.mu.Lock()
		a.puts = append(a.puts, in.Body.Inner)
		a.mu.Unlock()
		amtSay(w, in, http.StatusOK, in.Action+"Response", in.Body.Inner)
	case "RequestPowerStateChange":
		want, _ := strconv.Atoi(in.Body.State)
		obey(func() error { return a.request(ctx, want) })
	case "SetBootConfigRole":
		obey(func() error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.role = in.Body.Role == "1"
			return nil
		})
	case "ChangeBootOrder":
		obey(func() error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.source = ""
			for _, s := range in.Body.Source {
				if s.Name == "InstanceID" {
					a.source = s.Text
				}
			}
			return nil
		})
	default:
		amtFault(w, in, http.StatusBadRequest, "no such action")
	}
}

// items are the instances of a class, or the references to them.
func (a *AMT) items(ctx context.Context, class, mode string, f AMTFaults) (string, bool) {
	if class == "CIM_AssociatedPowerManagementService" && mode == "objects" {
		s := a.state(ctx, f)
		may := map[int]string{2: "8 5 10", 8: "2"}[s]
		var list string
		for n := range strings.FieldsSeq(may) {
			list += `<h:AvailableRequestedPowerStates>` + n + `</h:AvailableRequestedPowerStates>`
		}
		return fmt.Sprintf(`<h:CIM_AssociatedPowerManagementService xmlns:h="%sCIM_AssociatedPowerManagementService">%s<h:PowerState>%d</h:PowerState><h:RequestedPowerState>%d</h:RequestedPowerState></h:CIM_AssociatedPowerManagementService>`, amtCIM, list, s, s), true
	}
	selectors, ok := map[string][][2]string{
		"CIM_ComputerSystem":    {{"CreationClassName", "CIM_ComputerSystem"}, {"Name", "ManagedSystem"}},
		"CIM_BootConfigSetting": {{"InstanceID", "Intel(r) AMT: Boot Configuration 0"}},
		"CIM_BootSourceSetting": {{"InstanceID", "Intel(r) AMT: Force PXE Boot"}},
	}[class]
	if !ok || mode != "references" {
		return "", false
	}
	var set string
	for _, s := range selectors {
		set += `<c:Selector Name="` + s[0] + `">` + s[1] + `</c:Selector>`
	}
	return `<b:EndpointReference><b:Address>default</b:Address><b:ReferenceParameters><c:ResourceURI>` + amtCIM + class + `</c:ResourceURI><c:SelectorSet>` + set + `</c:SelectorSet></b:ReferenceParameters></b:EndpointReference>`, true
}

// request goes to a power state; the chosen boot is for this start alone.
func (a *AMT) request(ctx context.Context, want int) error {
	a.mu.Lock()
	once := a.role && a.source == "Intel(r) AMT: Force PXE Boot"
	a.mu.Unlock()
	switch want {
	case 2:
		if once {
			if err := a.power.SetBoot(ctx, BootNetwork, true); err != nil {
				return err
			}
			a.mu.Lock()
			a.role, a.source = false, ""
			a.mu.Unlock()
		}
		return a.power.PowerOn(ctx)
	case 6, 8:
		return a.power.PowerOff(ctx)
	}
	return fmt.Errorf("power state %d is not known", want)
}
