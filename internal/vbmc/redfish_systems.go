package vbmc

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

var resetTypes = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}

// serve answers for what is behind the login.
func (r *Redfish) serve(w http.ResponseWriter, q *http.Request, path string, f RedfishFaults) {
	if r.serveAccounts(w, q, path, f) {
		return
	}
	if path == root+"/Systems" && q.Method == http.MethodGet {
		var all []string
		for _, s := range r.systems {
			all = append(all, s.at())
		}
		reply(w, http.StatusOK, collection(path, "ComputerSystemCollection", all...))
		return
	}
	for i, s := range r.systems {
		rest, ok := strings.CutPrefix(path, s.at())
		if ok && (rest == "" || rest[0] == '/') && r.serveSystem(w, q, i, rest, f) {
			return
		}
	}
	if r.serveChassis(w, q, path) || r.serveManager(w, q, path) {
		return
	}
	refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", q.Method+" "+path)
}

func (s *redfishSystem) at() string { return root + "/Systems/" + s.id }

// chassis of the i-th system.
func chassisPath(i int) string { return fmt.Sprintf("%s/Chassis/%d", root, i+1) }

func (r *Redfish) serveSystem(w http.ResponseWriter, q *http.Request, i int, rest string, f RedfishFaults) bool {
	s := r.systems[i]
	switch q.Method + " " + rest {
	case "GET ":
		doc, err := r.system(q.Context(), i, f)
		if err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return true
		}
		w.Header().Set("ETag", doc["@odata.etag"].(string))
		reply(w, http.StatusOK, doc)
	case "PATCH ":
		r.patch(w, q, s, f)
	case "POST /Actions/ComputerSystem.Reset":
		r.reset(w, q, s, f)
	case "GET /BootOptions":
		reply(w, http.StatusOK, collection(s.at()+rest, "BootOptionCollection", s.at()+"/BootOptions/1", s.at()+"/BootOptions/2"))
	case "GET /BootOptions/1":
		reply(w, http.StatusOK, map[string]any{"@odata.id": s.at() + rest, "@odata.type": "#BootOption.v1_0_4.BootOption", "Id": "1", "Name": "1",
			"BootOptionReference": "Boot0001", "DisplayName": "debian (simulated)", "UefiDevicePath": "HD(1,GPT,0)/\\EFI\\debian\\shimx64.efi"})
	case "GET /BootOptions/2":
		reply(w, http.StatusOK, map[string]any{"@odata.id": s.at() + rest, "@odata.type": "#BootOption.v1_0_4.BootOption", "Id": "2", "Name": "2",
			"BootOptionReference": "Boot0002", "DisplayName": "UEFI PXEv4 (simulated)", "UefiDevicePath": "PciRoot(0x0)/Pci(0x3,0x0)/MAC(525400000001,0x1)/IPv4(0.0.0.0)"})
	case "GET /LogServices":
		reply(w, http.StatusOK, collection(s.at()+rest, "LogServiceCollection", s.at()+rest+"/SEL"))
	case "GET /LogServices/SEL":
		reply(w, http.StatusOK, map[string]any{"@odata.id": s.at() + rest, "@odata.type": "#LogService.v1_1_0.LogService", "Id": "SEL", "Name": "SEL (simulated)", "Entries": id(s.at() + rest + "/Entries")})
	case "GET /LogServices/SEL/Entries":
		r.entries(w, s.at()+rest)
	default:
		return false
	}
	return true
}

func (r *Redfish) system(ctx context.Context, i int, f RedfishFaults) (map[string]any, error) {
	s := r.systems[i]
	on, err := s.power.State(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.reads++
	state := map[bool]string{true: "On", false: "Off"}[on]
	switch {
	case f.State != "":
		state = f.State
	case f.Toggle:
		state = map[bool]string{true: "On", false: "Off"}[s.reads%2 == 0]
	case s.moving != "":
		state = s.moving
	}
	target := s
	if f.Crossed {
		target = r.systems[(i+1)%len(r.systems)]
	}
	boot := map[string]any{
		"BootSourceOverrideTarget": s.override, "BootSourceOverrideEnabled": s.enabled, "BootSourceOverrideMode": s.mode,
		"BootSourceOverrideTarget@Redfish.AllowableValues": []string{"None", "Pxe", "Hdd"},
		"BootOrder": s.order, "BootOptions": id(s.at() + "/BootOptions"),
	}
	return map[string]any{
		"@odata.id": s.at(), "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem", "@odata.etag": fmt.Sprintf(`"%d"`, s.etag), "Id": s.id,
		"Name": "System", "PowerState": state, "Manufacturer": r.cfg.Vendor, "Model": "virtual machine (simulated)",
		"SerialNumber": fmt.Sprintf("SIM-%s", s.id), "BiosVersion": "1.0 (simulated)",
		"Status": map[string]any{"State": "Enabled", "Health": "OK"},
		"Boot":   boot, "PowerRestorePolicy": s.restore, "LocationIndicatorActive": s.lit,
		"LogServices": id(s.at() + "/LogServices"),
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{
			"target": target.at() + "/Actions/ComputerSystem.Reset",
			"ResetType@Redfish.AllowableValues": slices.DeleteFunc(slices.Clone(resetTypes),
				func(t string) bool { return slices.Contains(f.Reject, t) }),
		}},
		"Links": map[string]any{"Chassis": []any{id(chassisPath(i))}, "ManagedBy": []any{id(root + "/Managers/1")}},
	}, nil
}

func (r *Redfish) patch(w http.ResponseWriter, q *http.Request, s *redfishSystem, f RedfishFaults) {
	var c struct {
		Boot struct {
			BootSourceOverrideTarget, BootSourceOverrideEnabled, BootSourceOverrideMode string
			BootOrder                                                                   []string
		}
		LocationIndicatorActive *bool
		PowerRestorePolicy      string
	}
	if !readBody(w, q, &c) {
		return
	}
	r.mu.Lock()
	s.etag++
	if c.LocationIndicatorActive != nil && !f.Ignore {
		s.lit = *c.LocationIndicatorActive
	}
	if c.PowerRestorePolicy != "" && !f.Ignore {
		s.restore = c.PowerRestorePolicy
	}
	if o := c.Boot.BootOrder; o != nil && !f.BootIgnore {
		s.order = o
	}
	r.mu.Unlock()
	if c.Boot.BootSourceOverrideTarget == "" && c.Boot.BootSourceOverrideEnabled == "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if f.WantMode && c.Boot.BootSourceOverrideMode == "" {
		refuse(w, http.StatusBadRequest, "Base.1.8.PropertyMissing", "BootSourceOverrideMode is required")
		return
	}
	if f.NoMode && c.Boot.BootSourceOverrideMode != "" {
		refuse(w, http.StatusBadRequest, "Base.1.8.PropertyNotWritable", "BootSourceOverrideMode is not writable")
		return
	}
	if f.BootIgnore {
		reply(w, http.StatusOK, map[string]any{})
		return
	}
	once := c.Boot.BootSourceOverrideEnabled != "Continuous" && !f.BootAlways
	boot, ok := map[string]Boot{"Pxe": BootNetwork, "Hdd": BootDisk}[c.Boot.BootSourceOverrideTarget]
	if c.Boot.BootSourceOverrideEnabled == "Disabled" || c.Boot.BootSourceOverrideTarget == "None" {
		boot, ok = 0, true
	}
	if !ok {
		refuse(w, http.StatusBadRequest, "Base.1.8.PropertyValueNotInList", c.Boot.BootSourceOverrideTarget)
		return
	}
	if (boot != 0 || once) && !f.BootForget {
		if err := s.power.SetBoot(q.Context(), boot, once); err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return
		}
	}
	r.mu.Lock()
	s.override, s.enabled = c.Boot.BootSourceOverrideTarget, c.Boot.BootSourceOverrideEnabled
	switch {
	case c.Boot.BootSourceOverrideMode != "":
		s.mode = c.Boot.BootSourceOverrideMode
	case f.LoseMode:
		s.mode = "Legacy"
	}
	r.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (r *Redfish) reset(w http.ResponseWriter, q *http.Request, s *redfishSystem, f RedfishFaults) {
	var c struct{ ResetType string }
	if !readBody(w, q, &c) {
		return
	}
	r.mu.Lock()
	r.stats.Resets = append(r.stats.Resets, c.ResetType)
	r.resets++
	nth := r.resets
	r.mu.Unlock()
	switch {
	case !slices.Contains(resetTypes, c.ResetType) || slices.Contains(f.Reject, c.ResetType) || slices.Contains(f.Refuse, c.ResetType):
		refuse(w, http.StatusBadRequest, "Base.1.8.ActionParameterValueNotInList", "ResetType "+c.ResetType)
		return
	case nth <= f.Conflict:
		refuse(w, http.StatusConflict, "Base.1.8.ResourceInUse", "the system is busy")
		return
	case f.Ignore:
	case f.Lag > 0:
		r.mu.Lock()
		s.moving = "PoweringOn"
		if c.ResetType == "ForceOff" || c.ResetType == "GracefulShutdown" {
			s.moving = "PoweringOff"
		}
		s.timer = time.AfterFunc(f.Lag, func() {
			_ = r.act(context.Background(), s, c.ResetType) // a failure shows as the old state
			r.mu.Lock()
			defer r.mu.Unlock()
			s.moving = ""
		})
		r.mu.Unlock()
	default:
		if err := r.act(q.Context(), s, c.ResetType); err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return
		}
	}
	if f.ResetFails != 0 {
		refuse(w, f.ResetFails, "Base.1.8.InternalError", "the service failed")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (r *Redfish) act(ctx context.Context, s *redfishSystem, resetType string) error {
	r.Note("ResetType " + resetType)
	switch resetType {
	case "On":
		r.spend(s)
		return s.power.PowerOn(ctx)
	case "ForceOff":
		return s.power.PowerOff(ctx)
	case "GracefulShutdown":
		return s.power.Shutdown(ctx)
	case "ForceRestart":
		r.spend(s)
		return s.power.Reset(ctx)
	case "PowerCycle":
		r.spend(s)
		if err := s.power.PowerOff(ctx); err != nil {
			return err
		}
		return s.power.PowerOn(ctx)
	}
	return fmt.Errorf("reset type %q is unknown", resetType)
}

// spend forgets a one-time boot override that the coming boot uses up.
func (r *Redfish) spend(s *redfishSystem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.enabled == "Once" && !r.faults.BootAlways {
		s.override, s.enabled = "None", "Disabled"
	}
}
