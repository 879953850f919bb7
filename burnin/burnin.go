// Package burnin decides whether a machine is fit: a Profile of checks with
// limits, what each Check found (Result), the Judge that makes a verdict of
// the results, and the Report that people read. It decides only; measuring is
// in burnin/check and burnin/gpu.
//
// It fails closed (DESIGN rule 6): a required check that did not run is an
// error, zero work is a failure, NaN is a failure.
package burnin

import (
	"context"
	"fmt"
	"time"

	"smelt/inventory"
)

// Status is the result of one check.
type Status int

// The statuses. The zero value is not a status: a forgotten result is Error.
const (
	_     Status = iota
	Pass         // ran, within limits
	Fail         // ran, outside limits: the hardware is at fault
	Error        // could not run: the tool or its surroundings are at fault
	Skip         // does not apply here, with a reason
)

var statusNames = map[Status]string{Pass: "pass", Fail: "fail", Error: "error", Skip: "skip"}

func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return fmt.Sprintf("status(%d)", int(s))
}

// MarshalText writes the word; the zero Status is written as error.
func (s Status) MarshalText() ([]byte, error) {
	if _, ok := statusNames[s]; !ok {
		s = Error
	}
	return []byte(s.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (s *Status) UnmarshalText(b []byte) error {
	for st, n := range statusNames {
		if n == string(b) {
			*s = st
			return nil
		}
	}
	return fmt.Errorf("unknown check status %q", b)
}

// A Profile is a named set of checks.
type Profile struct {
	Name    string        `json:"name"`
	Version int           `json:"version"`
	Checks  []Spec        `json:"checks"`
	Limit   time.Duration `json:"limit"` // for the whole run
}

// Spec asks for one check.
type Spec struct {
	ID       string             `json:"id"`       // system, cpu, memory, disk, network, pcie, thermal, gpu-presence, gpu-vram, gpu-compute
	Required bool               `json:"required"` // not run or skipped means no PASS
	Duration time.Duration      `json:"duration,omitempty"`
	Deadline time.Duration      `json:"deadline"`         // past it the check is Error
	Limits   map[string]float64 `json:"limits,omitempty"` // named in the documentation of the check
}

// Subject is the machine under test as a check needs to know it.
type Subject struct {
	Node     inventory.NodeID   `json:"node"`
	Hardware inventory.Hardware `json:"hardware"` // what inspection found: presence is checked against it
	Class    ClassLimits        `json:"class"`
	Server   string             `json:"server"`        // base URL for the network check
	Scratch  string             `json:"scratch"`       // folder on the target disk for the disk check
	Sim      *Simulation        `json:"sim,omitempty"` // only on a lab site: cards that are not there
	// Installed is what the image promises of the system; nil when the server
	// does not have the image any more.
	Installed *Installed `json:"installed,omitempty"`
}

// Installed is what an installed system must be.
type Installed struct {
	Kernel  string   `json:"kernel,omitempty"`  // release that its image was made with
	Driver  string   `json:"driver,omitempty"`  // version of its NVIDIA driver; empty: it has none
	MayFail []string `json:"mayFail,omitempty"` // units whose failure its class accepts
}

// ClassLimits is what the class of the node demands of it.
type ClassLimits struct {
	MinLinkWidth int     `json:"minLinkWidth,omitempty"`
	InletCelsius float64 `json:"inletCelsius,omitempty"` // worst inlet air the site allows; 27 if 0
}

// Simulation tells the simulated NVIDIA libraries which cards to show.
type Simulation struct {
	GPUs []SimGPU `json:"gpus"`
}

// SimGPU is one simulated card. Fault is none (""), lost (falls off the bus
// under load), vanish (the same, and the call of the driver never returns),
// vram (flips bits), hot (dead fan), compute (wrong results), hang, crash.
type SimGPU struct {
	PCI   string `json:"pci"`
	Model string `json:"model"`
	UUID  string `json:"uuid"`
	VRAM  int64  `json:"vram"`
	Fault string `json:"fault,omitempty"`
}

// A Check measures one thing. Run returns when done, when spec.Duration is
// over, or when ctx ends; it must leave the machine as it found it. It reports
// Error with a Reason when it could not measure. rec takes samples for the
// report and may be called from any goroutine.
type Check interface {
	ID() string
	Run(ctx context.Context, spec Spec, s Subject, rec Recorder) Result
}

// A Recorder takes samples while a check runs.
type Recorder interface {
	// Sample adds one point to a series ("cpu temperature", unit "C").
	Sample(series, unit string, value float64)
	// Progress says how far the check is, 0 to 1, and what it does now.
	Progress(done float64, doing string)
}

// Result is what one check found. Several items (one per GPU or disk) are
// several Findings.
type Result struct {
	ID        string        `json:"id"`
	Status    Status        `json:"status"`
	Reason    string        `json:"reason"` // one line: why this status
	Findings  []Finding     `json:"findings,omitempty"`
	Work      float64       `json:"work"` // amount of work done; 0 is a failure of a check that passed
	WorkUnit  string        `json:"workUnit,omitempty"`
	Started   time.Time     `json:"started"`
	Took      time.Duration `json:"took"`
	Simulated bool          `json:"simulated,omitempty"`
	Log       []string      `json:"log,omitempty"` // bounded excerpt
}

// Finding is one measured value against its limit.
type Finding struct {
	Item   string  `json:"item"`            // "GPU 0000:01:00.0", "disk S/N X"
	Where  string  `json:"where,omitempty"` // slot
	Name   string  `json:"name"`            // "link width", "write errors"
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Limit  string  `json:"limit,omitempty"` // ">= 8"
	Status Status  `json:"status"`
	Fix    string  `json:"fix,omitempty"`   // what to do about it: verb first
	Cause  string  `json:"cause,omitempty"` // gpu-lost, link-width, vram, hot, ...
}

// Series is what was sampled.
type Series struct {
	Name  string    `json:"name"`
	Unit  string    `json:"unit"`
	Check string    `json:"check"`
	T     []float64 `json:"t"` // seconds since the report's start
	V     []float64 `json:"v"`
}

// Answer is the verdict of a run.
type Answer string

// The answers.
const (
	PASS         Answer = "PASS"
	REPAIR       Answer = "REPAIR"       // a part is at fault: Repairs says which and where
	INCONCLUSIVE Answer = "INCONCLUSIVE" // nothing proven: a required check did not run
)

// Repair is one piece of work the verdict asks for.
type Repair struct {
	Verb  string `json:"verb"`
	What  string `json:"what"`
	Where string `json:"where"`
	Why   string `json:"why"`
}

// Verdict is what Judge says.
type Verdict struct {
	Answer    Answer   `json:"answer"`
	Reasons   []string `json:"reasons"`
	Repairs   []Repair `json:"repairs,omitempty"`
	Simulated bool     `json:"simulated"` // some required result was simulated
}

// Report is one run on one node: immutable once judged.
type Report struct {
	ID       string             `json:"id"`
	Node     inventory.NodeID   `json:"node"`
	Position inventory.Position `json:"position,omitempty"`
	Profile  Profile            `json:"profile"`
	Hardware inventory.Hardware `json:"hardware"`
	HWDigest string             `json:"hardwareDigest"`
	Image    string             `json:"image"` // digest
	Kernel   string             `json:"kernel,omitempty"`
	Driver   string             `json:"driver,omitempty"`
	Agent    string             `json:"agent"` // version
	Started  time.Time          `json:"started"`
	Finished time.Time          `json:"finished"`
	Results  []Result           `json:"results"`
	Series   []Series           `json:"series,omitempty"`
	Lab      bool               `json:"lab"`
	Verdict  Verdict            `json:"verdict"`
}
