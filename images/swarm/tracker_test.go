package swarm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"smelt/images"
)

func manifestOf(chunks int) images.Manifest {
	var m images.Manifest
	for i := range chunks {
		m.Chunks = append(m.Chunks, images.Chunk{Length: images.ChunkSize, Offset: int64(i) * images.ChunkSize, BlobLen: 1 << 20, Digest: images.Digest{byte(i)}})
	}
	m.Chunks[chunks-1].Zero = true
	return m
}

// honest holds the tracker's books together: each flight uses one slot of one
// source, and nobody has fewer than none.
func (t *Tracker) honest() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.images {
		busy, uses := 0, map[int32]int{}
		for _, n := range s.byID {
			seen := map[int32]bool{}
			for _, f := range n.flights {
				if seen[f.chunk] || n.has(f.chunk) {
					return fmt.Errorf("%s is given chunk %d, which it has or fetches", n.id, f.chunk)
				}
				seen[f.chunk] = true
				if f.source < 0 {
					busy++
				} else {
					uses[f.source]++
				}
			}
		}
		if busy != s.busy {
			return fmt.Errorf("%d transfers from the origin, counted %d", busy, s.busy)
		}
		for i, n := range s.nodes {
			if n.gone {
				continue
			}
			if n.uses != uses[int32(i)] {
				return fmt.Errorf("%d transfers from %s, counted %d", uses[int32(i)], n.id, n.uses)
			}
			if n.slots < 1 || n.slots > maxPeerSlots || n.credit < 1 {
				return fmt.Errorf("%s has %g slots and a credit of %g", n.id, n.slots, n.credit)
			}
		}
	}
	return nil
}

var someone = netip.MustParseAddr("10.0.0.7")

func TestReportRefused(t *testing.T) {
	m := func(images.Digest) (images.Manifest, error) { return manifestOf(10), nil }
	for name, r := range map[string]Report{
		"too greedy":        {Want: maxWant + 1, Map: make([]byte, 2)},
		"negative":          {Want: -1, Map: make([]byte, 2)},
		"short map":         {Map: make([]byte, 1)},
		"long map":          {Map: make([]byte, 200)},
		"no such chunk":     {Map: make([]byte, 2), Got: []Got{{Chunk: 10}}},
		"negative chunk":    {Map: make([]byte, 2), Got: []Got{{Chunk: -1}}},
		"zero chunk":        {Map: make([]byte, 2), Lost: []int{9}},
		"too many failures": {Map: make([]byte, 2), Failed: make([]Failure, maxListed+1)},
	} {
		if _, err := NewTracker(Limits{}).Report(time.Now(), "n", "", someone, r, m); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), "node n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	none := errors.New("no such image")
	if _, err := NewTracker(Limits{}).Report(time.Now(), "n", "", someone, Report{}, func(images.Digest) (images.Manifest, error) { return images.Manifest{}, none }); !errors.Is(err, none) {
		t.Errorf("an image that is not here: %v", err)
	}
}

// TestOneLiarShutsNobodyOut: complaints of one node count for itself only.
func TestOneLiarShutsNobodyOut(t *testing.T) {
	tr := NewTracker(Limits{})
	m := func(images.Digest) (images.Manifest, error) { return manifestOf(200), nil }
	now := time.Unix(1e9, 0)
	say := func(id string, addr byte, r Report) Plan {
		t.Helper()
		r.Port = 7
		p, err := tr.Report(now, id, "", netip.AddrFrom4([4]byte{10, 0, 0, addr}), r, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.honest(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(20 * time.Millisecond)
		return p
	}
	full := make([]byte, 25)
	for i := range full {
		full[i] = 0xff
	}
	say("good", 1, Report{Map: full})
	liar := say("liar", 2, Report{Map: make([]byte, 25), Want: 8})
	for range 20 {
		var r Report
		for _, task := range liar.Tasks {
			r.Failed = append(r.Failed, Failure{task.Chunk, Corrupt})
		}
		r.Want = 8
		liar = say("liar", 2, r)
		say("good", 1, Report{})
		now = now.Add(time.Second)
	}
	p := say("other", 3, Report{Map: make([]byte, 25), Want: 1})
	if len(p.Tasks) != 1 || p.Tasks[0].Peer != "10.0.0.1:7" {
		t.Errorf("others are not sent to the good node any more: %+v", p)
	}
	// Two that complain, and nobody who is content, do.
	say("other", 3, Report{Failed: []Failure{{p.Tasks[0].Chunk, Corrupt}}})
	if p := say("third", 4, Report{Map: make([]byte, 25), Want: 1}); len(p.Tasks) == 1 && p.Tasks[0].Peer != "" {
		t.Errorf("a node that two complained of is still used: %+v", p)
	}
}

// TestWhoJoinsAgainIsOne: a node that says again and again that it began anew
// complains as one, and costs the server no more than one.
func TestWhoJoinsAgainIsOne(t *testing.T) {
	tr := NewTracker(Limits{})
	const chunks = 4000
	m := func(images.Digest) (images.Manifest, error) { return manifestOf(chunks), nil }
	now := time.Unix(1e9, 0)
	say := func(id string, addr byte, r Report) (Plan, error) {
		r.Port = 7
		return tr.Report(now, id, "", netip.AddrFrom4([4]byte{10, 0, 0, addr}), r, m)
	}
	full := make([]byte, chunks/8)
	for i := range full {
		full[i] = 0xff
	}
	if _, err := say("good", 1, Report{Map: full}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p, err := say("liar", 2, Report{Map: make([]byte, len(full)), Want: 1})
		if err != nil || len(p.Tasks) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := say("liar", 2, Report{Failed: []Failure{{p.Tasks[0].Chunk, Corrupt}}}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	if p, err := say("other", 3, Report{Map: make([]byte, len(full)), Want: 1}); err != nil || len(p.Tasks) != 1 || p.Tasks[0].Peer != "10.0.0.1:7" {
		t.Errorf("others are not sent to the good node any more: %+v, %v", p, err)
	}

	busy := 0
	for range 2000 {
		if _, err := say("liar", 2, Report{Map: full}); errors.Is(err, ErrBusy) {
			busy++
		} else if err != nil {
			t.Fatal(err)
		}
		var got []Got
		var lost []int
		for c := range 100 {
			got, lost = append(got, Got{Chunk: c, Ms: -1 << 40}), append(lost, c)
		}
		if _, err := say("other", 3, Report{Got: got, Lost: lost}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(250 * time.Millisecond)
	}
	if busy != 1000 {
		t.Errorf("it began anew and was refused %d of 2000 times", busy)
	}
	s := tr.images[images.Digest{}]
	entries := 0
	for _, k := range s.chunks {
		entries += len(k.holders)
		for _, r := range k.racks {
			entries += len(r.nodes)
		}
	}
	if entries > maxDead+2*3*chunks {
		t.Errorf("%d entries of 3 nodes and %d chunks", entries, chunks)
	}
	if s.usual < 0 || s.usual > overdue {
		t.Errorf("a transfer is said to take %s", s.usual)
	}
	if err := tr.honest(); err != nil {
		t.Error(err)
	}
}

// TestSilentNodeIsGone: who says nothing is not asked, and what it was to fetch
// is given to others.
func TestSilentNodeIsGone(t *testing.T) {
	tr := NewTracker(Limits{})
	m := func(images.Digest) (images.Manifest, error) { return manifestOf(3), nil }
	now := time.Unix(1e9, 0)
	say := func(id string, port uint16, r Report) Plan {
		t.Helper()
		r.Port = port
		p, err := tr.Report(now, id, "", someone, r, m)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := say("a", 1, Report{Map: []byte{0}, Want: 4}); len(p.Tasks) != 2 {
		t.Fatalf("a gets %+v", p)
	}
	if p := say("b", 2, Report{Map: []byte{0}, Want: 4}); len(p.Tasks) != 0 {
		t.Fatalf("b gets what a fetches already: %+v", p)
	}
	say("a", 1, Report{Got: []Got{{Chunk: 0}}})
	if p := say("b", 2, Report{Want: 1}); len(p.Tasks) != 1 || p.Tasks[0].Peer != "10.0.0.7:1" {
		t.Fatalf("b is not sent to a: %+v", p)
	}
	for range 5 {
		now = now.Add(2 * time.Second)
		say("b", 2, Report{})
	}
	say("b", 2, Report{Failed: []Failure{{0, Gone}}})
	p := say("b", 2, Report{Want: 4})
	if len(p.Tasks) != 2 || p.Tasks[0].Peer != "" || p.Tasks[1].Peer != "" {
		t.Errorf("b should fetch both from the origin now: %+v", p)
	}
	if err := tr.honest(); err != nil {
		t.Error(err)
	}
}

// FuzzReports feeds a tracker with whatever nodes may say, one line of JSON a
// report: its books stay in order, and what it plans can be done.
func FuzzReports(f *testing.F) {
	f.Add([]byte(`{"map":"AAA=","port":9,"want":4}` + "\n" + `{"map":"AAA=","port":9,"want":4}` + "\n" + `{"port":9,"got":[{"c":0},{"c":1}],"want":1}`))
	f.Add([]byte(`{"map":"//8=","port":9}` + "\n" + `{"map":"AAA=","port":9,"want":64}` + "\n\n" + `{"port":9,"failed":[{"c":0,"why":"corrupt"},{"c":1,"why":"slow"},{"c":2,"why":"gone"},{"c":99,"why":"x"}],"lost":[1],"want":64}`))
	f.Add([]byte(`{"leave":true}` + "\n" + `{"map":"AAA=","want":64}` + "\n" + `{"port":1,"map":"AAA=","want":64}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := NewTracker(Limits{Origin: 50 << 20, Rack: 20 << 20})
		m := manifestOf(10)
		now := time.Unix(1e9, 0)
		for i, line := range strings.SplitN(string(data), "\n", 200) {
			now = now.Add(time.Duration(len(line)) * 50 * time.Millisecond)
			var r Report
			if json.Unmarshal([]byte(line), &r) != nil {
				continue
			}
			who := i % 3
			p, err := tr.Report(now, fmt.Sprint(who), fmt.Sprint(who%2), someone, r, func(images.Digest) (images.Manifest, error) { return m, nil })
			if err == nil && len(p.Tasks) > r.Want {
				t.Fatalf("%d tasks, wanted %d", len(p.Tasks), r.Want)
			}
			for _, task := range p.Tasks {
				if m.Chunks[task.Chunk].Zero {
					t.Fatalf("a task for a chunk of zeros: %+v", task)
				}
			}
			if err := tr.honest(); err != nil {
				t.Fatalf("after %q: %v", line, err)
			}
		}
	})
}
