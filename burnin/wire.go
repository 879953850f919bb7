package burnin

import "encoding/json"

// Request is what a check that runs as its own process (smelt-gpu) reads from
// its standard input: one JSON value.
type Request struct {
	Spec    Spec    `json:"spec"`
	Subject Subject `json:"subject"`
}

// Line is one line that it writes to its standard output. Exactly one field is
// set; the last line carries the Result.
type Line struct {
	Sample   *Sample   `json:"sample,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
	Result   *Result   `json:"result,omitempty"`
}

// Sample is a call of Recorder.Sample.
type Sample struct {
	Series string  `json:"series"`
	Unit   string  `json:"unit"`
	Value  float64 `json:"value"`
}

// Progress is a call of Recorder.Progress.
type Progress struct {
	Done  float64 `json:"done"`
	Doing string  `json:"doing"`
}

type plainSample Sample

type wireSample struct {
	plainSample
	Value jsonFloat `json:"value"`
}

// MarshalJSON survives NaN.
func (s Sample) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireSample{plainSample(s), jsonFloat(s.Value)})
}

// UnmarshalJSON is the inverse of MarshalJSON and refuses unknown fields.
func (s *Sample) UnmarshalJSON(b []byte) error {
	var w wireSample
	if err := decodeStrict(b, &w); err != nil {
		return err
	}
	*s = Sample(w.plainSample)
	s.Value = float64(w.Value)
	return nil
}
