package config

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxFile bounds what is read: 24,000 nodes need about 6 MB.
const maxFile = 32 << 20

// at is the place of a value in the file. The zero value means the value is
// absent.
type at struct {
	line, col int
	path      string
}

func (a at) set() bool { return a.line > 0 }

// The leaves of the raw structs. Each knows where it stands.
type (
	text struct {
		at
		v string
	}
	number struct {
		at
		v float64
	}
	whole struct {
		at
		v int
	}
	flag struct {
		at
		v bool
	}
)

// A leaf decodes itself and describes itself for the schema.
type leaf interface {
	decode(d *decoder, n *yaml.Node, path string)
	schema() map[string]any
}

// decoder collects the mistakes of one file.
type decoder struct {
	file string
	errs Errors
}

func (d *decoder) fail(a at, hint, format string, args ...any) {
	d.errs = append(d.errs, Error{
		File: d.file, Line: max(a.line, 1), Column: max(a.col, 1), Path: a.path,
		Problem: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func place(n *yaml.Node, path string) at { return at{n.Line, n.Column, path} }

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// document reads the one document of data, or reports why there is none.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > maxFile {
		d.fail(at{}, "", "the file has %d bytes; at most %d are read", len(data), maxFile)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err == io.EOF {
			d.fail(at{}, "copy the example site.yaml and change it", "the file is empty")
			return nil
		}
		d.syntax(err)
		return nil
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		d.fail(place(&more, ""), "remove the line ---", "a second YAML document begins here; a site is one document")
	case err != io.EOF:
		d.syntax(err)
	}
	if len(doc.Content) != 1 {
		d.fail(at{}, "copy the example site.yaml and change it", "the file is empty")
		return nil
	}
	return doc.Content[0]
}

// syntax reports an error of the YAML parser, which gives line numbers only
// inside its text.
func (d *decoder) syntax(err error) {
	m := yamlLine.FindStringSubmatch(strings.TrimSpace(err.Error()))
	if m == nil {
		d.fail(at{}, "", "not YAML: %v", err)
		return
	}
	line, _ := strconv.Atoi(m[1])
	d.fail(at{line: line, col: 1}, "check indentation, quotes and brackets here and on the line above", "not YAML: %s", m[2])
}

// value decodes n into v, which is a leaf, a struct, a slice or a map of those.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fail(place(n, path), "write the value out", "anchors and aliases are not used in a site file")
		return
	}
	if l, ok := v.Addr().Interface().(leaf); ok {
		l.decode(d, n, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.object(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(place(n, path), "write [a, b] or one line a value with a dash", "want a list, got %s", found(n))
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(c, s.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		v.Set(s)
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			d.fail(place(n, path), "", "want keys and values, got %s", found(n))
			return
		}
		m := reflect.MakeMap(v.Type())
		d.pairs(n, path, func(k, c *yaml.Node) {
			e := reflect.New(v.Type().Elem()).Elem()
			d.value(c, e, path+"."+k.Value)
			m.SetMapIndex(reflect.ValueOf(k.Value), e)
		})
		v.Set(m)
	default:
		panic("config: raw structs hold no " + v.Type().String())
	}
}

// object decodes a mapping into a struct: each key once, none unknown, none
// that is needed missing.
func (d *decoder) object(n *yaml.Node, v reflect.Value, path string) {
	v.Addr().Interface().(interface{ put(*yaml.Node, string) }).put(n, path)
	if n.Kind != yaml.MappingNode {
		d.fail(place(n, path), "valid keys are "+strings.Join(keys(v.Type()), ", "), "want keys and values, got %s", found(n))
		return
	}
	seen := map[string]bool{}
	d.pairs(n, path, func(k, c *yaml.Node) {
		i, ok := fieldOf(v.Type(), k.Value)
		if !ok {
			d.fail(place(k, path), nearest(k.Value, keys(v.Type())), "unknown key %q", k.Value)
			return
		}
		seen[k.Value] = true
		d.value(c, v.Field(i), join(path, k.Value))
		d.enum(v.Field(i), v.Type().Field(i).Tag.Get("enum"))
	})
	for f := range v.Type().Fields() {
		if k := f.Tag.Get("yaml"); f.Tag.Get("need") == "yes" && !seen[k] {
			d.fail(place(n, path), "add "+k+": "+f.Tag.Get("doc"), "%q is missing", k)
		}
	}
}

// enum holds a decoded leaf against the words its tag allows.
func (d *decoder) enum(v reflect.Value, words string) {
	if words == "" {
		return
	}
	list := strings.Fields(words)
	switch l := v.Addr().Interface().(type) {
	case *text:
		if l.v != "" && !slices.Contains(list, l.v) {
			d.fail(l.at, nearest(l.v, list), "%q is not allowed here", clip(l.v))
		}
	case *whole:
		if l.set() && !slices.Contains(list, strconv.Itoa(l.v)) {
			d.fail(l.at, "valid are "+strings.Join(list, ", "), "%d is not allowed here", l.v)
		}
	}
}

// put lets the decoder set the embedded place of any raw struct.
func (a *at) put(n *yaml.Node, path string) { *a = place(n, path) }

// pairs calls f for each key and value, and reports keys that are no words or
// stand twice.
func (d *decoder) pairs(n *yaml.Node, path string, f func(k, v *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			d.fail(place(k, path), "", "a key must be a plain word")
			continue
		}
		if line, dup := first[k.Value]; dup {
			d.fail(place(k, path), "keep one of the two", "key %q stands twice, first in line %d", k.Value, line)
			continue
		}
		first[k.Value] = k.Line
		f(k, v)
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// keys lists the keys of a raw struct in the order of its fields.
func keys(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		if k := f.Tag.Get("yaml"); k != "" {
			out = append(out, k)
		}
	}
	return out
}

func fieldOf(t reflect.Type, key string) (int, bool) {
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("yaml"); k != "" && k == key {
			return i, true
		}
	}
	return 0, false
}

// found says in words what stands in the file.
func found(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
	default:
		return "something else"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return "the truth value " + n.Value
	case "!!timestamp":
		return "the date " + n.Value
	}
	return strconv.Quote(clip(n.Value))
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

func (t *text) decode(d *decoder, n *yaml.Node, path string) {
	t.at = place(n, path)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		hint := ""
		if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
			hint = fmt.Sprintf("put it in quotes: %q", n.Value)
		}
		d.fail(t.at, hint, "want text, got %s", found(n))
		return
	}
	if n.Value == "" {
		d.fail(t.at, "leave the key out to have its default", "the text is empty")
	}
	t.v = n.Value
}

func (x *number) decode(d *decoder, n *yaml.Node, path string) {
	x.at = place(n, path)
	if tag := n.ShortTag(); n.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || n.Decode(&x.v) != nil {
		d.fail(x.at, "", "want a number, got %s", found(n))
	}
}

func (x *whole) decode(d *decoder, n *yaml.Node, path string) {
	x.at = place(n, path)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || n.Decode(&x.v) != nil {
		d.fail(x.at, "", "want a whole number, got %s", found(n))
	}
}

func (x *flag) decode(d *decoder, n *yaml.Node, path string) {
	x.at = place(n, path)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&x.v) != nil {
		d.fail(x.at, "write true or false", "want true or false, got %s", found(n))
	}
}

// A secretRef is {secret: NAME}. The value itself is never written in a site
// file, and what was written by mistake is not repeated in the error.
type secretRef struct {
	at
	name string
}

func (s *secretRef) decode(d *decoder, n *yaml.Node, path string) {
	s.at = place(n, path)
	const how = "store it with: smelt secret set NAME, and write {secret: NAME} here"
	switch n.Kind {
	case yaml.MappingNode:
		var r struct {
			at
			Secret text `yaml:"secret" need:"yes" doc:"name of a stored secret"`
		}
		before := len(d.errs)
		d.object(n, reflect.ValueOf(&r).Elem(), path)
		if len(d.errs) > before {
			return
		}
		if !secretName.MatchString(r.Secret.v) {
			d.fail(r.Secret.at, "use a-z, 0-9, '-', '_' and '.'", "this is no name of a secret")
			return
		}
		s.name = r.Secret.v
	case yaml.ScalarNode:
		d.fail(s.at, how, "a secret stands here in clear")
	default:
		d.fail(s.at, how, "want {secret: NAME}, got %s", found(n))
	}
}
