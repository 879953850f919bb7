package burnin

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func judged(profile string) Report {
	r := testReport(profile)
	r.Verdict = Judge(r)
	return r
}

func TestJSONRoundTrip(t *testing.T) {
	r := judged("standard")
	r.Results[0].Work = math.NaN()
	r.Results[0].Findings[0].Value = math.Inf(-1)
	r.Series[0].V[0] = math.Inf(1)
	var b bytes.Buffer
	if err := WriteJSON(&b, r); err != nil {
		t.Fatal(err)
	}
	got, err := ParseJSON(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, got, cmpopts.EquateNaNs()); d != "" {
		t.Error(d)
	}
	if v := Judge(got); v.Answer != REPAIR {
		t.Errorf("a report with NaN judges as %s after its journey", v.Answer)
	}
}

func TestJSONForms(t *testing.T) {
	b, err := json.Marshal(Spec{ID: CPU, Required: true, Duration: 90 * time.Second, Deadline: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `{"id":"cpu","required":true,"duration":"1m30s","deadline":"5m0s"}`; got != want {
		t.Errorf("spec is %s, want %s", got, want)
	}
	b, err = json.Marshal(Result{ID: CPU, Work: math.NaN(), Took: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b); !strings.Contains(got, `"work":"NaN"`) || !strings.Contains(got, `"took":"1s"`) || !strings.Contains(got, `"status":"error"`) {
		t.Errorf("result is %s", got)
	}
	b, err = json.Marshal(Line{Sample: &Sample{"a", "C", math.NaN()}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `{"sample":{"series":"a","unit":"C","value":"NaN"}}`; got != want {
		t.Errorf("line is %s, want %s", got, want)
	}
}

func TestParseJSONRefuses(t *testing.T) {
	var b bytes.Buffer
	if err := WriteJSON(&b, judged("lab")); err != nil {
		t.Fatal(err)
	}
	good := b.String()
	for _, tt := range []struct{ name, old, new, want string }{
		{"other kind", `"BurninReport"`, `"Node"`, "document is"},
		{"other version", `"smelt/v1"`, `"smelt/v2"`, "document is"},
		{"unknown field", `"lab":`, `"labb":`, "unknown field"},
		{"unknown field in a result", `"workUnit":`, `"workunits":`, "unknown field"},
		{"unknown status", `"status":"pass"`, `"status":"fine"`, "unknown check status"},
		{"negative duration", `"took":"3s"`, `"took":"-3s"`, "negative"},
		{"duration as number", `"took":"3s"`, `"took":3`, ""},
		{"no number", `"work":12.5`, `"work":null`, "null"},
		{"two documents", "}\n", "}\n{}", "after the JSON"},
		{"long text", "rig-007", strings.Repeat("x", maxText), "longer than"},
		{"text", good, "hello", "invalid"},
		{"invalid UTF-8", "rig-007", "rig\xff", "UTF-8"},
	} {
		s := strings.Replace(good, tt.old, tt.new, 1)
		if s == good {
			t.Fatalf("%s: nothing replaced", tt.name)
		}
		if _, err := ParseJSON(strings.NewReader(s)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}
	r := judged("lab")
	r.Series[0].V = r.Series[0].V[1:]
	if err := WriteJSON(&b, r); err == nil {
		t.Error("series with a value missing was written")
	}
	if _, err := ParseJSON(strings.NewReader(strings.Repeat(" ", MaxReportBytes+1))); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("too large: %v", err)
	}
}

func FuzzParseJSON(f *testing.F) {
	for _, p := range []string{"lab", "standard"} {
		var b bytes.Buffer
		r := judged(p)
		r.Series = r.Series[:1]
		r.Results[0].Work = math.NaN()
		if err := WriteJSON(&b, r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte(`{"apiVersion":"smelt/v1","kind":"BurninReport"}`))
	f.Add([]byte(`{"apiVersion":"smelt/v1","kind":"BurninReport","series":[{"name":"x","t":[0,1e308],"v":["NaN",-1e308]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseJSON(bytes.NewReader(b))
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if err := WriteJSON(&first, r); err != nil {
			return // grew past a bound by being written out
		}
		again, err := ParseJSON(bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("does not read back: %v", err)
		}
		if err := WriteJSON(&second, again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("written twice, two texts:\n%s\n%s", first.Bytes(), second.Bytes())
		}
		if a, b := Judge(r).Answer, Judge(again).Answer; a != b {
			t.Fatalf("judged %s, after a journey %s", a, b)
		}
		if err := WriteHTML(&bytes.Buffer{}, r); err != nil {
			t.Fatal(err)
		}
	})
}

func demoReport() Report {
	r := testReport("lab")
	r.Lab = true
	for i := range r.Hardware.GPUs {
		r.Hardware.GPUs[i].Simulated = true
	}
	for i := range r.Results {
		if strings.HasPrefix(r.Results[i].ID, "gpu-") {
			r.Results[i].Simulated = true
			r.Results[i].Log = []string{"libcuda is simulated: 16 MiB stand for 24 GiB"}
		}
	}
	r.set(GPUCompute, func(res *Result) {
		res.Status, res.Reason = Fail, "1 of 2 GPUs failed"
		res.Findings[2] = Finding{Item: "GPU 0000:02:00.0", Where: "2", Name: "on the bus", Value: 0, Limit: "= 1", Status: Fail, Cause: CauseGPULost}
	})
	r.set(Thermal, func(res *Result) {
		*res = Result{ID: Thermal, Status: Skip, Reason: "this machine has no temperature sensor"}
	})
	r.drop(Network)
	r.Verdict = Judge(r)
	return r
}

// TestWriteHTML checks what must be on the page. SMELT_TEST_KEEP names a
// folder to keep the pages in, for looking at them.
func TestWriteHTML(t *testing.T) {
	pages := map[string]Report{"pass": judged("standard"), "repair": demoReport(), "empty": {}}
	for name, r := range pages {
		var b bytes.Buffer
		if err := WriteHTML(&b, r); err != nil {
			t.Fatal(err)
		}
		if dir := os.Getenv("SMELT_TEST_KEEP"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, name+".html"), b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		page := b.String()
		for _, bad := range []string{"<script", "http://", "https://", "ZgotmplZ", "src="} {
			if strings.Contains(page, bad) {
				t.Errorf("%s: the page holds %q", name, bad)
			}
		}
	}
	var b bytes.Buffer
	if err := WriteHTML(&b, pages["repair"]); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{"REPAIR", "Reseat GPU RTX 3090 in slot 2: it fell off the bus under load (simulated)", "network did not run, and it is required", "limit 83", "slot 1: RTX 3090", "did not run", "<polyline"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// Every simulated row carries the tag: 3 checks, 2 cards, the findings of
	// the cards, 4 plots and their heading, 3 logs, and the banner.
	findings := 0
	for _, res := range pages["repair"].Results {
		if res.Simulated {
			findings += len(res.Findings)
		}
	}
	if got, want := strings.Count(page, `<span class="tag">simulated</span>`), 3+2+findings+4+1+3+1; got != want {
		t.Errorf("%d rows say simulated, want %d", got, want)
	}
	b.Reset()
	if err := WriteHTML(&b, pages["pass"]); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "simulated") {
		t.Error("a page without simulated parts says simulated")
	}
}

func TestHTMLEscapes(t *testing.T) {
	r := demoReport()
	r.Results[0].Reason = `<img onerror="x">`
	r.Series[0].Name = `"><svg onload=x>`
	r.Verdict.Answer = `"><b onclick=x>`
	var b bytes.Buffer
	if err := WriteHTML(&b, r); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<img", "<svg onload", "<b onclick"} {
		if strings.Contains(b.String(), bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
}

func TestThinKeepsPeaks(t *testing.T) {
	s := Series{Name: "x", Unit: "C", Check: CPU, T: make([]float64, 100000), V: make([]float64, 100000)}
	for i := range s.T {
		s.T[i], s.V[i] = float64(i), 50
	}
	s.V[77777], s.V[12345] = 99, 1
	s.V[5] = math.NaN()
	got := s.Thin(400)
	if len(got.V) > 401 || len(got.T) != len(got.V) || got.Check != CPU {
		t.Errorf("%d points", len(got.V))
	}
	lo, hi, nan := math.Inf(1), math.Inf(-1), 0
	for i, v := range got.V {
		if math.IsNaN(v) {
			nan++
			continue
		}
		lo, hi = min(lo, v), max(hi, v)
		if i > 0 && got.T[i] <= got.T[i-1] {
			t.Fatalf("time goes back at %d", i)
		}
	}
	if lo != 1 || hi != 99 || nan != 1 {
		t.Errorf("lowest %v highest %v, %d NaN", lo, hi, nan)
	}
	if same := (Series{T: []float64{1, 2}, V: []float64{3, 4}}).Thin(2); len(same.V) != 2 {
		t.Errorf("%+v", same)
	}
}
