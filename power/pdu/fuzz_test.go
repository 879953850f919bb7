package pdu

import (
	"math"
	"strings"
	"testing"

	"github.com/gosnmp/gosnmp"

	"smelt/power"
)

// What comes from the network is an error or what was asked for.
func FuzzAnswer(f *testing.F) {
	const state = enterprises + ".318.1.1.26.9.2.3.1.5.1"
	for _, p := range []gosnmp.SnmpPacket{
		{Version: gosnmp.Version2c, Community: "hush", PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: "." + sysObjectID, Type: gosnmp.ObjectIdentifier, Value: "1.3.6.1.4.1.318.1.3.4.5"}}},
		{Version: gosnmp.Version1, Community: "hush", PDUType: gosnmp.GetResponse, Error: gosnmp.NoSuchName, ErrorIndex: 1, Variables: []gosnmp.SnmpPDU{{Name: ".1.3", Type: gosnmp.Null}}},
		{Version: gosnmp.Version2c, PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: "." + state, Type: gosnmp.Integer, Value: 2}}},
		{Version: gosnmp.Version2c, PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: "." + state, Type: gosnmp.OctetString, Value: "2"}}},
		{Version: gosnmp.Version2c, PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: "." + state, Type: gosnmp.Counter64, Value: uint64(math.MaxUint64)}}},
	} {
		b, err := p.MarshalMsg()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var g gosnmp.GoSNMP
		p, err := g.SnmpDecodePacket(b)
		if err != nil {
			return
		}
		values, err := answer(p, nil, state)
		if err == nil && (p.Error != gosnmp.NoError || len(values) != 1 || strings.TrimPrefix(values[0].Name, ".") != state) {
			t.Errorf("%+v was taken for an answer", p)
		}
		for i := range models {
			for _, v := range values {
				s, err := models[i].state(v)
				if err != nil && s != power.Unknown {
					t.Errorf("%+v is %s, and %v", v, s, err)
				}
				if n, err := amount(v); math.IsNaN(n) || err != nil && n != 0 {
					t.Errorf("%+v is %g, and %v", v, n, err)
				}
				_ = text(v)
			}
			for _, v := range p.Variables {
				if n, ok := models[i].State.At.number(v.Name); ok {
					if oid, err := models[i].State.At.at(n); err != nil || oid != strings.TrimPrefix(v.Name, ".") {
						t.Errorf("%s is outlet %d, which is %s, %v", v.Name, n, oid, err)
					}
				}
			}
		}
	})
}

func FuzzModels(f *testing.F) {
	f.Add([]byte("- {name: a, objects: ['9'], on: {at: '9.[n]', word: 1}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := parseModels(b)
		if err != nil && ms != nil {
			t.Error("an error, and models")
		}
		for _, m := range ms {
			if oid, err := m.On.At.at(3); err == nil {
				if off, err := m.Off.At.at(3); err != nil || off == oid && m.On.Word == m.Off.Word {
					t.Errorf("on is off: %s %d", oid, m.On.Word)
				}
			}
		}
	})
}
