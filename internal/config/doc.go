// Package config turns site.yaml into a typed, checked Site, and keeps the
// secrets that site.yaml only names.
//
// The file is decoded strictly into raw structs that remember where each value
// stands (raw.go), and Parse turns those into types (parse.go): after Parse
// nothing needs checking again. Every mistake is reported, not only the first,
// with file, line, column, the value and the nearest valid word. The JSON
// Schema for editors is made from the same raw structs, so that the two cannot
// drift apart.
package config
