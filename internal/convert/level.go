package convert

import "smelt/power"

// Level is one circuit and what is granted on it, under a name that the server
// can use without importing power.
type Level = power.Level
