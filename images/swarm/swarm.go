// Package swarm spreads an image within a site: nodes that write the same image
// fetch its chunks from each other by HTTP, so that the server sends each about
// once, and a rack's uplink carries each about once.
//
// A Tracker at the server says who fetches which chunk from whom. A Client on a
// node does it, and serves what the node already wrote, read again from its own
// disk. A Cache is a server for a rack that keeps what passes through.
//
// Nobody is trusted for contents: the signed manifest has each chunk's digest,
// and what a peer sends is held against it before it is written. Nor for
// conduct: a peer that lies, is slow or dies costs one transfer with a
// deadline, and what one node says of another never shuts that other out alone.
// The origin is always the way out.
//
// The zstd frame of a chunk is any that unpacks to it: a peer compresses again
// what it reads from its disk, so frames of peers are not the blob's.
package swarm

import (
	"errors"
	"time"

	"smelt/images"
)

// Report is what a node tells the tracker, and how much it could fetch now.
type Report struct {
	Image images.Digest `json:"image"` // of the manifest
	// Port is where this node serves chunks, at the address that it reports
	// from: nobody can send peers to a third machine. 0: it serves none.
	Port uint16 `json:"port,omitempty"`
	// Map is all the node holds, one bit a chunk, lowest first: in the first
	// report, and when a plan asks for it.
	Map    []byte    `json:"map,omitempty"`
	Got    []Got     `json:"got,omitempty"`    // held since the last report
	Lost   []int     `json:"lost,omitempty"`   // not held any more: its disk does not return them
	Failed []Failure `json:"failed,omitempty"` // transfers that brought nothing
	Want   int       `json:"want,omitempty"`   // how many transfers it could begin now
	Leave  bool      `json:"leave,omitempty"`  // it serves no more, and wants no more
}

// Got is a chunk that a node holds since its last report.
type Got struct {
	Chunk int `json:"c"`
	Ms    int `json:"ms,omitempty"` // how long the transfer took
}

// Failure is a transfer that brought nothing of use.
type Failure struct {
	Chunk int `json:"c"`
	Why   Why `json:"why"`
}

// Why a transfer brought nothing.
type Why string

// The reasons.
const (
	Corrupt Why = "corrupt" // the bytes were not the chunk's
	Gone    Why = "gone"    // no connection, or no such chunk there
	Slow    Why = "slow"    // the deadline passed
)

// Plan is what the tracker answers.
type Plan struct {
	Tasks  []Task `json:"tasks,omitempty"`
	Wait   int    `json:"wait"`             // milliseconds until the node should report again, if nothing happens
	Pace   int    `json:"pace"`             // milliseconds between two reports at least
	Map    bool   `json:"map,omitempty"`    // send Map: the tracker does not know this node
	Upload int64  `json:"upload,omitempty"` // bytes a second that the node may send to peers; 0: as it can
}

// Task is one chunk to fetch.
type Task struct {
	Chunk int    `json:"c"`
	Peer  string `json:"peer,omitempty"` // ADDRESS:PORT; empty: the origin
}

// Limits are a site's caps, in bytes a second; 0 is none.
type Limits struct {
	Node   int64 // one node sends to peers
	Rack   int64 // into one rack, from other racks and the origin
	Origin int64 // the server and caches send by the tracker's plans
}

// Bounds of a report, for what reads it from a network.
const (
	maxWant   = 64
	maxListed = 4096
	// quiet is how long a node may say nothing before it counts as gone. A
	// client reports every heartbeat.
	quiet     = 8 * time.Second
	heartbeat = 2 * time.Second
	// reports is how many reports a second all nodes together may send: what
	// a core of a server takes.
	reports = 5000
)

// Errors that callers tell apart.
var (
	ErrReport = errors.New("report is not valid")
	ErrBusy   = errors.New("it began a moment ago: later")
)
