package burnin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
	"unicode/utf8"
)

// The JSON of this package: durations are strings as time.ParseDuration reads
// them ("1m30s"), numbers that JSON cannot hold are the strings "NaN", "+Inf"
// and "-Inf" (a broken sensor must reach Judge, not vanish on the way), and an
// unknown field is an error: a profile that asks for something this version
// does not know must not run as if it had not asked.

type jsonDuration time.Duration

func (d jsonDuration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *jsonDuration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("negative duration %q", b)
	}
	*d = jsonDuration(v)
	return nil
}

type jsonFloat float64

func (f jsonFloat) MarshalJSON() ([]byte, error) {
	switch v := float64(f); {
	case math.IsNaN(v):
		return []byte(`"NaN"`), nil
	case math.IsInf(v, 1):
		return []byte(`"+Inf"`), nil
	case math.IsInf(v, -1):
		return []byte(`"-Inf"`), nil
	default:
		return json.Marshal(v)
	}
}

func (f *jsonFloat) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"NaN"`:
		*f = jsonFloat(math.NaN())
	case `"+Inf"`:
		*f = jsonFloat(math.Inf(1))
	case `"-Inf"`:
		*f = jsonFloat(math.Inf(-1))
	case "null":
		return errors.New("a number is missing (null)")
	default:
		var v float64
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		*f = jsonFloat(v)
	}
	return nil
}

func toJSONFloats(in []float64) []jsonFloat {
	if in == nil {
		return nil
	}
	out := make([]jsonFloat, len(in))
	for i, v := range in {
		out[i] = jsonFloat(v)
	}
	return out
}

func fromJSONFloats(in []jsonFloat) []float64 {
	if in == nil {
		return nil
	}
	out := make([]float64, len(in))
	for i, v := range in {
		out[i] = float64(v)
	}
	return out
}

// decodeStrict decodes exactly one JSON value without unknown fields.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}

// Each wire type shadows the fields whose JSON form differs: encoding/json
// prefers the shallower field of the same name.

type plainProfile Profile

type wireProfile struct {
	plainProfile
	Limit jsonDuration `json:"limit"`
}

// MarshalJSON writes durations as strings.
func (p Profile) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireProfile{plainProfile(p), jsonDuration(p.Limit)})
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (p *Profile) UnmarshalJSON(b []byte) error {
	var w wireProfile
	if err := decodeStrict(b, &w); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	*p = Profile(w.plainProfile)
	p.Limit = time.Duration(w.Limit)
	return nil
}

type plainSpec Spec

type wireSpec struct {
	plainSpec
	Duration jsonDuration         `json:"duration,omitempty"`
	Deadline jsonDuration         `json:"deadline"`
	Limits   map[string]jsonFloat `json:"limits,omitempty"`
}

// MarshalJSON writes durations as strings.
func (s Spec) MarshalJSON() ([]byte, error) {
	w := wireSpec{plainSpec: plainSpec(s), Duration: jsonDuration(s.Duration), Deadline: jsonDuration(s.Deadline)}
	if s.Limits != nil {
		w.Limits = make(map[string]jsonFloat, len(s.Limits))
		for k, v := range s.Limits {
			w.Limits[k] = jsonFloat(v)
		}
	}
	return json.Marshal(w)
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (s *Spec) UnmarshalJSON(b []byte) error {
	var w wireSpec
	if err := decodeStrict(b, &w); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	*s = Spec(w.plainSpec)
	s.Duration, s.Deadline = time.Duration(w.Duration), time.Duration(w.Deadline)
	s.Limits = nil
	if w.Limits != nil {
		s.Limits = make(map[string]float64, len(w.Limits))
		for k, v := range w.Limits {
			s.Limits[k] = float64(v)
		}
	}
	return nil
}

type plainResult Result

type wireResult struct {
	plainResult
	Work jsonFloat    `json:"work"`
	Took jsonDuration `json:"took"`
}

// MarshalJSON writes durations as strings and survives NaN.
func (r Result) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireResult{plainResult(r), jsonFloat(r.Work), jsonDuration(r.Took)})
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (r *Result) UnmarshalJSON(b []byte) error {
	var w wireResult
	if err := decodeStrict(b, &w); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	*r = Result(w.plainResult)
	r.Work, r.Took = float64(w.Work), time.Duration(w.Took)
	return nil
}

type plainFinding Finding

type wireFinding struct {
	plainFinding
	Value jsonFloat `json:"value"`
}

// MarshalJSON survives NaN.
func (f Finding) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireFinding{plainFinding(f), jsonFloat(f.Value)})
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (f *Finding) UnmarshalJSON(b []byte) error {
	var w wireFinding
	if err := decodeStrict(b, &w); err != nil {
		return fmt.Errorf("finding: %w", err)
	}
	*f = Finding(w.plainFinding)
	f.Value = float64(w.Value)
	return nil
}

type plainSeries Series

type wireSeries struct {
	plainSeries
	T []jsonFloat `json:"t"`
	V []jsonFloat `json:"v"`
}

// MarshalJSON survives NaN.
func (s Series) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireSeries{plainSeries(s), toJSONFloats(s.T), toJSONFloats(s.V)})
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (s *Series) UnmarshalJSON(b []byte) error {
	var w wireSeries
	if err := decodeStrict(b, &w); err != nil {
		return fmt.Errorf("series: %w", err)
	}
	*s = Series(w.plainSeries)
	s.T, s.V = fromJSONFloats(w.T), fromJSONFloats(w.V)
	return nil
}

// Bounds of a report that is read from outside. A standard run of sixteen GPUs
// stays two orders of magnitude below them.
const (
	MaxReportBytes = 16 << 20
	maxResults     = 64
	maxFindings    = 4096 // in one result
	maxSeries      = 1024
	maxPoints      = 1 << 20 // in all series together
	maxLog         = 1024    // lines in one result
	maxText        = 4096    // bytes in any text of a result
)

// The document around a report: DESIGN section 6.
const (
	apiVersion = "smelt/v1"
	kindReport = "BurninReport"
)

type document struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Report
}

// WriteJSON writes the report as one JSON document, without indentation: most
// of it is samples.
func WriteJSON(w io.Writer, r Report) error {
	if err := r.bounded(); err != nil {
		return fmt.Errorf("report %q: %w", r.ID, err)
	}
	b, err := json.Marshal(document{apiVersion, kindReport, r})
	if err != nil {
		return fmt.Errorf("report %q: %w", r.ID, err)
	}
	if len(b) >= MaxReportBytes {
		return fmt.Errorf("report %q: larger than %d bytes", r.ID, MaxReportBytes)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ParseJSON reads what WriteJSON wrote. It refuses unknown fields, another
// kind of document, more than MaxReportBytes, and series whose times and values
// do not pair up. It does not judge: the Verdict is what the document says.
func ParseJSON(rd io.Reader) (Report, error) {
	b, err := io.ReadAll(io.LimitReader(rd, MaxReportBytes+1))
	if err != nil {
		return Report{}, fmt.Errorf("report: %w", err)
	}
	if len(b) > MaxReportBytes {
		return Report{}, fmt.Errorf("report: larger than %d bytes", MaxReportBytes)
	}
	if !utf8.Valid(b) {
		return Report{}, errors.New("report: not UTF-8")
	}
	var d document
	if err := decodeStrict(b, &d); err != nil {
		return Report{}, fmt.Errorf("report: %w", err)
	}
	if d.APIVersion != apiVersion || d.Kind != kindReport {
		return Report{}, fmt.Errorf("report: document is %q %q, want %q %q", d.APIVersion, d.Kind, apiVersion, kindReport)
	}
	if err := d.bounded(); err != nil {
		return Report{}, fmt.Errorf("report %q: %w", d.ID, err)
	}
	return d.Report, nil
}

func (r Report) bounded() error {
	if len(r.Results) > maxResults || len(r.Profile.Checks) > maxResults {
		return fmt.Errorf("more than %d checks", maxResults)
	}
	if len(r.Series) > maxSeries {
		return fmt.Errorf("more than %d series", maxSeries)
	}
	texts := []string{r.ID, r.Image, r.Kernel, r.Driver, r.Agent, r.HWDigest}
	for _, res := range r.Results {
		if len(res.Findings) > maxFindings || len(res.Log) > maxLog {
			return fmt.Errorf("check %q has too many findings or log lines", res.ID)
		}
		texts = append(texts, res.ID, res.Reason, res.WorkUnit)
		texts = append(texts, res.Log...)
		for _, f := range res.Findings {
			texts = append(texts, f.Item, f.Where, f.Name, f.Unit, f.Limit, f.Fix, f.Cause)
		}
	}
	points := 0
	for _, s := range r.Series {
		if len(s.T) != len(s.V) {
			return fmt.Errorf("series %q has %d times and %d values", s.Name, len(s.T), len(s.V))
		}
		points += len(s.T)
		texts = append(texts, s.Name, s.Unit, s.Check)
	}
	if points > maxPoints {
		return fmt.Errorf("more than %d samples", maxPoints)
	}
	for _, t := range texts {
		if len(t) > maxText {
			return fmt.Errorf("a text is longer than %d bytes", maxText)
		}
	}
	return nil
}
