// Package inventory holds the nouns of a site (Position, Circuit, Node,
// Hardware, GPU, Disk), the life of a node (State, the transition table,
// Event, Apply) and the permit that a destructive step needs.
//
// It does no I/O and imports only the standard library: every other package
// may import it and it imports none of them. The one way to change a node is
// Node.Apply with an Event; a node is the fold of its events, which is what a
// property test holds the store against.
package inventory
