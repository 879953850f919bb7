package amt

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The words of WS-Management (DSP0226) and CIM that AMT uses.
const (
	soap        = "http://www.w3.org/2003/05/soap-envelope"
	addressing  = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
	anonymous   = addressing + "/role/anonymous"
	wsman       = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	enumeration = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	transfer    = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	cim         = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	intel       = "http://intel.com/wbem/wscim/1/amt-schema/1/"
)

// message is an envelope with one action on one resource.
func (s *session) message(resource, action, body string) string {
	s.sent++
	return `<?xml version="1.0" encoding="utf-8"?><s:Envelope xmlns:s="` + soap + `" xmlns:a="` + addressing + `" xmlns:w="` + wsman + `"><s:Header>` +
		`<a:Action>` + action + `</a:Action><a:To>/wsman</a:To><w:ResourceURI>` + resource + `</w:ResourceURI>` +
		fmt.Sprintf(`<a:MessageID>%d</a:MessageID>`, s.sent) +
		`<a:ReplyTo><a:Address>` + anonymous + `</a:Address></a:ReplyTo><w:OperationTimeout>PT30S</w:OperationTimeout>` +
		`</s:Header><s:Body>` + body + `</s:Body></s:Envelope>`
}

// reference is an endpoint reference to the instance of a class with selectors,
// given as name and value.
func reference(class string, selectors ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(selectors); i += 2 {
		b.WriteString(`<w:Selector Name="` + selectors[i] + `">` + selectors[i+1] + `</w:Selector>`)
	}
	return `<a:Address>` + anonymous + `</a:Address><a:ReferenceParameters><w:ResourceURI>` + class + `</w:ResourceURI>` +
		`<w:SelectorSet>` + b.String() + `</w:SelectorSet></a:ReferenceParameters>`
}

// invoke calls a method, whose return value must be 0.
func (s *session) invoke(ctx context.Context, class, method, input string) error {
	body, err := s.send(ctx, s.message(class, class+"/"+method,
		`<r:`+method+`_INPUT xmlns:r="`+class+`">`+input+`</r:`+method+`_INPUT>`))
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	t, err := read(body)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	// 2 and above are reasons: 2 not supported or busy, 0x1001 and up Intel's own.
	switch v := t.first("ReturnValue"); v {
	case "0":
		return nil
	case "":
		return fmt.Errorf("%s: the answer has no return value", method)
	default:
		return fmt.Errorf("%s: it returns %.10q", method, v)
	}
}

// maxPulls bounds an enumeration.
const maxPulls = 16

// enumerate reads all instances of a class.
func (s *session) enumerate(ctx context.Context, class string) (tree, error) {
	body, err := s.send(ctx, s.message(class, enumeration+"/Enumerate", `<n:Enumerate xmlns:n="`+enumeration+`"/>`))
	if err != nil {
		return nil, err
	}
	t, err := read(body)
	if err != nil {
		return nil, err
	}
	all := t
	for range maxPulls {
		next := t.first("EnumerationContext")
		if next == "" || t.has("EndOfSequence") {
			return all, nil
		}
		body, err := s.send(ctx, s.message(class, enumeration+"/Pull",
			`<n:Pull xmlns:n="`+enumeration+`"><n:EnumerationContext>`+escape(next)+`</n:EnumerationContext><n:MaxElements>16</n:MaxElements></n:Pull>`))
		if err != nil {
			return nil, err
		}
		if t, err = read(body); err != nil {
			return nil, err
		}
		all = append(all, t...)
	}
	return nil, errors.New("its list has no end")
}

// clearBootSettings puts AMT_BootSettingData back as it is, without what the
// last remote boot wanted.
func (s *session) clearBootSettings(ctx context.Context) error {
	class := intel + "AMT_BootSettingData"
	body, err := s.send(ctx, s.message(class, transfer+"/Get", ""))
	if err != nil {
		return err
	}
	t, err := read(body)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, e := range t {
		if e.parent != "AMT_BootSettingData" {
			continue
		}
		switch e.name {
		case "WinREBootEnabled", "UEFILocalPBABootEnabled", "UEFIHTTPSBootEnabled", "SecureBootControlEnabled",
			"BootguardStatus", "OptionsCleared", "BIOSLastStatus", "UefiBootParametersArray":
			continue // to be read only, as MeshCommander has it
		case "BIOSPause", "BIOSSetup", "UseSOL", "UseIDER", "ReflashBIOS", "ConfigurationDataReset":
			e.text = "false"
		case "BootMediaIndex":
			e.text = "0"
		}
		b.WriteString(`<r:` + e.name + `>` + escape(e.text) + `</r:` + e.name + `>`)
	}
	if b.Len() == 0 {
		return errors.New("it has none")
	}
	_, err = s.send(ctx, s.message(class, transfer+"/Put", `<r:AMT_BootSettingData xmlns:r="`+class+`">`+b.String()+`</r:AMT_BootSettingData>`))
	return err
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}

// A tree is the elements of an answer that hold text, in their order.
type tree []element

type element struct{ parent, name, text string }

func (t tree) first(name string) string {
	for _, e := range t {
		if e.name == name {
			return e.text
		}
	}
	return ""
}

func (t tree) has(name string) bool {
	for _, e := range t {
		if e.name == name {
			return true
		}
	}
	return false
}

func (t tree) all(name string) (out []string) {
	for _, e := range t {
		if e.name == name {
			out = append(out, e.text)
		}
	}
	return out
}

// The limits of an answer.
const (
	maxDepth    = 32
	maxElements = 4096
)

// read takes an answer apart. Only the body counts.
func read(b []byte) (tree, error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	var out tree
	var path []string
	inside := false
	for {
		tok, err := d.Token()
		if err == io.EOF && len(path) == 0 && inside {
			return out, nil
		}
		if err != nil {
			return nil, errors.New("its answer is no SOAP message")
		}
		switch e := tok.(type) {
		case xml.StartElement:
			if len(path) >= maxDepth || len(out) >= maxElements {
				return nil, errors.New("its answer is deeper or longer than any")
			}
			name := e.Name.Local
			if len(path) == 1 && name == "Body" && e.Name.Space == soap {
				inside = true
			}
			if len(path) > 1 && path[1] == "Body" {
				out = append(out, element{path[len(path)-1], name, ""})
			}
			path = append(path, name)
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if len(out) > 0 && len(path) > 2 && path[1] == "Body" && out[len(out)-1].name == path[len(path)-1] {
				out[len(out)-1].text += strings.TrimSpace(string(e))
			}
		}
	}
}

// fault is what a SOAP fault says, "" if b is none.
func fault(b []byte) string {
	t, err := read(b)
	if err != nil || !t.has("Fault") {
		return ""
	}
	why := t.first("Text")
	for _, e := range t {
		if e.parent == "Subcode" && e.name == "Value" {
			why += " (" + e.text + ")"
		}
	}
	if len(why) > 200 {
		why = strings.ToValidUTF8(why[:200], "")
	}
	return "fault: " + strings.Join(strings.Fields(why), " ")
}
