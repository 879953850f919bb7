package console

import "smelt/inventory"

// A Notice is what a Feed tells: an entry or a new state.
type Notice struct {
	Entry *Entry
	State *State
}

// feedSize is how many notices a slow reader may be behind.
const feedSize = 256

// A Feed is the console of one machine as it happens.
type Feed struct {
	// C carries what comes. It is closed when the reader is too slow: it then
	// reads Log from where it was, and follows again.
	C <-chan Notice

	c chan Notice
	n *node
}

// Follow begins a feed and asks for a session where there is none. What was
// said before is in Log: follow first, then read it, then leave out what
// comes twice.
func (r *Recorder) Follow(id inventory.NodeID) (*Feed, error) {
	n, err := r.node(id)
	if err != nil {
		return nil, err
	}
	c := make(chan Notice, feedSize)
	f := &Feed{C: c, c: c, n: n}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.feeds == nil {
		n.feeds = map[*Feed]bool{}
	}
	n.feeds[f] = true
	if n.now == nil {
		select {
		case n.want <- struct{}{}:
		default:
		}
	}
	return f, nil
}

// Close ends the feed.
func (f *Feed) Close() {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	delete(f.n.feeds, f)
}

// tell passes x on. n.mu is held.
func (n *node) tell(x Notice) {
	for f := range n.feeds {
		select {
		case f.c <- x:
		default:
			delete(n.feeds, f)
			close(f.c)
		}
	}
}
