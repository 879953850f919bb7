package server

import (
	"encoding"
	"encoding/json"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"smelt/internal/api"
)

func (s *Server) getOpenAPI(w http.ResponseWriter, r *http.Request, _ who) {
	s.json(w, http.StatusOK, s.openAPI())
}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

// openAPI describes the routes of the table that are no pages (OpenAPI 3.1).
func (s *Server) openAPI() map[string]any {
	d := describer{schemas: map[string]any{}, names: map[reflect.Type]string{}}
	problem := map[string]any{
		"description": "A problem (RFC 9457): what, why, and what to try next",
		"content":     map[string]any{"application/problem+json": map[string]any{"schema": d.schema(reflect.TypeFor[api.Problem]())}},
	}
	paths := map[string]map[string]any{}
	for _, rt := range s.routes() {
		if rt.page {
			continue
		}
		ok := map[string]any{"description": "Done"}
		if rt.out != nil {
			ok["content"] = map[string]any{"application/json": map[string]any{"schema": d.schema(rt.out)}}
		}
		op := map[string]any{
			"operationId": rt.id, "summary": rt.summary,
			"responses": map[string]any{"200": ok, "default": problem},
		}
		if rt.role == nobody {
			op["security"] = []any{}
		} else {
			op["x-role"] = rt.role.String()
			op["responses"].(map[string]any)["401"] = map[string]any{"description": "No known token; no body"}
		}
		if rt.in != nil {
			op["requestBody"] = map[string]any{"required": true, "content": map[string]any{"application/json": map[string]any{"schema": d.schema(rt.in)}}}
			op["responses"].(map[string]any)["202"] = map[string]any{"description": "Taken; post it again with the same id to have the result"}
		}
		var params []any
		for _, m := range pathParam.FindAllStringSubmatch(rt.path, -1) {
			params = append(params, map[string]any{"name": m[1], "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
		}
		for _, q := range rt.query {
			params = append(params, map[string]any{"name": q, "in": "query", "schema": map[string]any{"type": "string"}})
		}
		if params != nil {
			op["parameters"] = params
		}
		if paths[rt.path] == nil {
			paths[rt.path] = map[string]any{}
		}
		paths[rt.path][strings.ToLower(rt.method)] = op
	}
	return map[string]any{
		"openapi":  "3.1.0",
		"info":     map[string]any{"title": "Smelt operator API", "version": api.Version, "description": "Every change is an intent: the conductor carries it out or says why not. Documents carry apiVersion and kind; fields are only ever added."},
		"security": []any{map[string]any{"bearer": []any{}}},
		"paths":    paths,
		"components": map[string]any{
			"schemas":         d.schemas,
			"securitySchemes": map[string]any{"bearer": map[string]any{"type": "http", "scheme": "bearer"}},
		},
	}
}

// describer makes JSON Schemas of the wire types, named ones as components.
type describer struct {
	schemas map[string]any
	names   map[reflect.Type]string
}

var (
	timeType    = reflect.TypeFor[time.Time]()
	textMarshal = reflect.TypeFor[encoding.TextMarshaler]()
	rawJSON     = reflect.TypeFor[json.RawMessage]()
)

func (d *describer) schema(t reflect.Type) map[string]any {
	switch {
	case t == timeType:
		return map[string]any{"type": "string", "format": "date-time"}
	case t == rawJSON:
		return map[string]any{}
	case t.Implements(textMarshal):
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return map[string]any{"type": "integer"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "contentEncoding": "base64"}
		}
		return map[string]any{"type": []string{"array", "null"}, "items": d.schema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		return d.named(t)
	}
	return map[string]any{}
}

func (d *describer) named(t reflect.Type) map[string]any {
	name, ok := d.names[t]
	if !ok {
		name = t.Name()
		if _, taken := d.schemas[name]; taken { // burnin.Spec beside inventory.Spec
			path := strings.Split(t.PkgPath(), "/")
			name = path[len(path)-1] + "." + name
		}
		d.names[t] = name
		d.schemas[name] = nil // a type that holds itself finds its name taken
		props, need := map[string]any{}, []string{}
		d.fields(t, props, &need)
		slices.Sort(need)
		d.schemas[name] = map[string]any{"type": "object", "properties": props, "required": need}
	}
	return map[string]any{"$ref": "#/components/schemas/" + name}
}

func (d *describer) fields(t reflect.Type, props map[string]any, need *[]string) {
	for f := range t.Fields() {
		tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && tag == "" {
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			d.fields(ft, props, need)
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		props[tag] = d.schema(f.Type)
		if !strings.Contains(opts, "omit") {
			*need = append(*need, tag)
		}
	}
}
