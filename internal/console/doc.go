// Package console records the serial consoles of machines, always, and lets
// one person at a time type into each.
//
// A Recorder keeps a session per machine open through what switches its power
// (a BMC's serial over LAN) and writes what comes into a ring of bounded size
// on disk, so that what a machine said before it died can be read when somebody
// asks. A console may print anything, secrets and terminal escapes included:
// the files are for the server's user alone, and Filter makes the bytes
// harmless before they reach a terminal or a page.
package console
