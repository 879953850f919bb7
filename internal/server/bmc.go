package server

import (
	"net/http"

	"smelt/internal/api"
	"smelt/internal/convert"
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
		list.Items = append(list.Items, bmcView(b))
	}
	for _, l := range learned {
		list.Learned = append(list.Learned, api.Learned(l))
	}
	s.json(w, http.StatusOK, list)
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
