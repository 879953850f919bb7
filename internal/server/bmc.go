package server

import (
	"fmt"
	"net/http"

	"smelt/internal/api"
	"smelt/internal/convert"
	"smelt/inventory"
)

func (s *Server) getBMCs(w http.ResponseWriter, r *http.Request, _ who) {
	all, err := s.Conductor.BMCs(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	learned, err := s.Conductor.Learned(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	list := api.BMCList{APIVersion: api.Version, Kind: "BMCList", Items: []api.BMC{}, Learned: []api.Learned{}}
	for _, b := range all {
		v := bmcView(b)
		v.Keys = s.keys(b.Node)
		for _, k := range v.Keys {
			if k.Other != "" {
				v.Findings = append(v.Findings, api.BMCFinding{Code: "key-changed",
					What: fmt.Sprintf("%s answers with the key %s, not with %s (%s): nothing is sent to it", k.Via, k.Other, k.Pin, k.Word()),
					Fix:  fmt.Sprintf("find out who answers there; if its certificate was replaced, write pin: %s in site.yaml", k.Other)})
			}
		}
		list.Items = append(list.Items, v)
	}
	for _, l := range learned {
		list.Learned = append(list.Learned, api.Learned(l))
	}
	s.json(w, http.StatusOK, list)
}

// keys are those of the controllers of a node.
func (s *Server) keys(id inventory.NodeID) (out []api.DeviceKey) {
	if v := s.Power[id]; v != nil {
		for _, k := range v.Keys() {
			out = append(out, api.DeviceKey(k))
		}
	}
	return out
}

func bmcView(b convert.BMC) api.BMC {
	out := api.BMC{
		Node: b.Node, Via: b.Via, Adopted: b.Adopted, Vendor: b.Audit.Vendor, Model: b.Audit.Model, Serial: b.Audit.Serial,
		Firmware: b.Audit.Firmware, Restore: string(b.Audit.Restore), Boot: b.Audit.Boot, At: b.Audit.At,
	}
	for _, a := range b.Audit.Accounts {
		out.Accounts = append(out.Accounts, api.BMCAccount(a))
	}
	for _, f := range b.Audit.Findings {
		out.Findings = append(out.Findings, api.BMCFinding(f))
	}
	for _, q := range b.Quirks {
		out.Quirks = append(out.Quirks, api.BMCQuirk{Code: q.Code, What: q.What, Answer: q.Answer, Source: q.Source})
	}
	return out
}
