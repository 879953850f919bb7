package vbmc

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"image/png"
	"math"
	"net/http"
	"strings"
	"time"
)

// nullable is a reading as JSON has it, which knows no NaN.
func nullable(f float64) any {
	if math.IsNaN(f) {
		return nil
	}
	return f
}

const inletName, fanName = "Inlet (simulated)", "Fan 1 (simulated)"

// serveChassis answers for the chassis, one for each system.
func (r *Redfish) serveChassis(w http.ResponseWriter, q *http.Request, path string) bool {
	if q.Method != http.MethodGet {
		return false
	}
	if path == root+"/Chassis" {
		var all []string
		for i := range r.systems {
			all = append(all, chassisPath(i))
		}
		reply(w, http.StatusOK, collection(path, "ChassisCollection", all...))
		return true
	}
	for i, s := range r.systems {
		rest, ok := strings.CutPrefix(path, chassisPath(i))
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		on, err := s.power.State(q.Context())
		if err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return true
		}
		r.mu.Lock()
		watts, rpm := r.watts, 3000.0
		r.mu.Unlock()
		if !on {
			watts, rpm = 0, 0
		}
		doc := r.chassis(i, rest, watts, rpm)
		if doc == nil {
			return false
		}
		doc["@odata.id"] = path
		if doc["Name"] == nil {
			doc["Name"] = "Chassis (simulated)"
		}
		reply(w, http.StatusOK, doc)
		return true
	}
	return false
}

func (r *Redfish) chassis(i int, rest string, watts, rpm float64) map[string]any {
	at := chassisPath(i)
	if rest == "" {
		doc := map[string]any{
			"@odata.type": "#Chassis.v1_21_0.Chassis", "Id": fmt.Sprint(i + 1), "ChassisType": "RackMount",
			"Links": map[string]any{"ComputerSystems": []any{id(r.systems[i].at())}},
		}
		if r.cfg.Modern {
			doc["EnvironmentMetrics"], doc["PowerSubsystem"], doc["ThermalSubsystem"] = id(at+"/EnvironmentMetrics"), id(at+"/PowerSubsystem"), id(at+"/ThermalSubsystem")
		} else {
			doc["Power"], doc["Thermal"] = id(at+"/Power"), id(at+"/Thermal")
		}
		return doc
	}
	if !r.cfg.Modern {
		switch rest {
		case "/Power":
			return map[string]any{"@odata.type": "#Power.v1_5_0.Power", "Id": "Power",
				"PowerControl": []any{map[string]any{"MemberId": "0", "Name": "System (simulated)", "PowerConsumedWatts": nullable(watts)}}}
		case "/Thermal":
			return map[string]any{"@odata.type": "#Thermal.v1_6_0.Thermal", "Id": "Thermal",
				"Temperatures": []any{
					map[string]any{"MemberId": "0", "Name": inletName, "ReadingCelsius": 24},
					map[string]any{"MemberId": "1", "Name": "CPU 2 (simulated)", "ReadingCelsius": 0, "Status": map[string]any{"State": "Absent"}},
				},
				"Fans": []any{map[string]any{"MemberId": "0", "Name": fanName, "Reading": rpm, "ReadingUnits": "RPM"}}}
		}
		return nil
	}
	switch rest {
	case "/EnvironmentMetrics":
		return map[string]any{"@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics", "Id": "EnvironmentMetrics", "PowerWatts": map[string]any{"Reading": nullable(watts)}}
	case "/PowerSubsystem":
		return map[string]any{"@odata.type": "#PowerSubsystem.v1_1_0.PowerSubsystem", "Id": "PowerSubsystem", "PowerSupplies": id(at + rest + "/PowerSupplies")}
	case "/PowerSubsystem/PowerSupplies":
		return collection(at+rest, "PowerSupplyCollection", at+rest+"/1", at+rest+"/2")
	case "/PowerSubsystem/PowerSupplies/1", "/PowerSubsystem/PowerSupplies/2":
		return map[string]any{"@odata.type": "#PowerSupply.v1_5_0.PowerSupply", "Id": rest[len(rest)-1:], "Metrics": id(at + rest + "/Metrics")}
	case "/PowerSubsystem/PowerSupplies/1/Metrics", "/PowerSubsystem/PowerSupplies/2/Metrics":
		return map[string]any{"@odata.type": "#PowerSupplyMetrics.v1_1_0.PowerSupplyMetrics", "Id": "Metrics", "InputPowerWatts": map[string]any{"Reading": nullable(watts / 2)}}
	case "/ThermalSubsystem":
		return map[string]any{"@odata.type": "#ThermalSubsystem.v1_1_0.ThermalSubsystem", "Id": "ThermalSubsystem", "ThermalMetrics": id(at + rest + "/ThermalMetrics"), "Fans": id(at + rest + "/Fans")}
	case "/ThermalSubsystem/ThermalMetrics":
		return map[string]any{"@odata.type": "#ThermalMetrics.v1_0_0.ThermalMetrics", "Id": "ThermalMetrics",
			"TemperatureReadingsCelsius": []any{map[string]any{"DeviceName": inletName, "Reading": 24}}}
	case "/ThermalSubsystem/Fans":
		return collection(at+rest, "FanCollection", at+rest+"/1")
	case "/ThermalSubsystem/Fans/1":
		return map[string]any{"@odata.type": "#Fan.v1_3_0.Fan", "Id": "1", "Name": fanName, "SpeedPercent": map[string]any{"Reading": 40, "SpeedRPM": rpm}}
	}
	return nil
}

// serveManager answers for the BMC itself.
func (r *Redfish) serveManager(w http.ResponseWriter, q *http.Request, path string) bool {
	const manager, update = root + "/Managers/1", root + "/UpdateService"
	switch q.Method + " " + path {
	case "GET " + root + "/Managers":
		reply(w, http.StatusOK, collection(path, "ManagerCollection", manager))
	case "GET " + manager:
		reply(w, http.StatusOK, map[string]any{"@odata.id": path, "@odata.type": "#Manager.v1_11_0.Manager", "Id": "1", "Name": "BMC (simulated)",
			"ManagerType": "BMC", "FirmwareVersion": "1.2.3 (simulated)", "NetworkProtocol": id(manager + "/NetworkProtocol")})
	case "GET " + manager + "/NetworkProtocol":
		r.mu.Lock()
		defer r.mu.Unlock()
		reply(w, http.StatusOK, map[string]any{"@odata.id": path, "@odata.type": "#ManagerNetworkProtocol.v1_7_0.ManagerNetworkProtocol", "Id": "NetworkProtocol", "Name": "Protocols (simulated)",
			"IPMI": map[string]any{"ProtocolEnabled": r.ipmi, "Port": 623}})
	case "PATCH " + manager + "/NetworkProtocol":
		var c struct {
			IPMI struct{ ProtocolEnabled *bool }
		}
		if !readBody(w, q, &c) {
			return true
		}
		r.mu.Lock()
		if c.IPMI.ProtocolEnabled != nil {
			r.ipmi = *c.IPMI.ProtocolEnabled
		}
		r.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case "GET " + update:
		reply(w, http.StatusOK, map[string]any{"@odata.id": path, "@odata.type": "#UpdateService.v1_8_0.UpdateService", "Id": "UpdateService", "Name": "Update (simulated)", "FirmwareInventory": id(update + "/FirmwareInventory")})
	case "GET " + update + "/FirmwareInventory":
		reply(w, http.StatusOK, collection(path, "SoftwareInventoryCollection", path+"/NIC"))
	case "GET " + update + "/FirmwareInventory/NIC":
		reply(w, http.StatusOK, map[string]any{"@odata.id": path, "@odata.type": "#SoftwareInventory.v1_2_0.SoftwareInventory", "Id": "NIC", "Name": "NIC (simulated)", "Version": "22.31"})
	case "POST " + manager + "/Oem/Dell/DellLCService/Actions/DellLCService.ExportServerScreenShot":
		if !strings.HasPrefix(r.cfg.Vendor, "Dell") {
			return false
		}
		reply(w, http.StatusOK, map[string]any{"ServerScreenShotFile": picture()})
	default:
		return false
	}
	return true
}

// picture is one of nothing, in base64.
func picture() string {
	var b bytes.Buffer
	_ = png.Encode(&b, image.NewGray(image.Rect(0, 0, 64, 48))) // to memory
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// maxRedfishLog is how many entries the log has before the oldest is overwritten.
const maxRedfishLog = 100

// Note writes into the log of the BMC.
func (r *Redfish) Note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 1
	if len(r.log) > 0 {
		n = r.log[len(r.log)-1]["n"].(int) + 1
	}
	r.log = append(r.log, map[string]any{"n": n, "text": text + " (simulated)", "at": time.Now().Add(r.cfg.Clock)})
	r.log = r.log[max(0, len(r.log)-maxRedfishLog):]
}

func (r *Redfish) entries(w http.ResponseWriter, at string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	doc := collection(at, "LogEntryCollection")
	all := []any{}
	for _, e := range r.log {
		all = append(all, map[string]any{"@odata.id": fmt.Sprintf("%s/%d", at, e["n"]), "Id": fmt.Sprint(e["n"]), "Name": "Log entry", "EntryType": "SEL",
			"Created": e["at"].(time.Time).UTC().Format(time.RFC3339), "Severity": "OK", "SensorType": "System Event", "Message": e["text"]})
	}
	doc["Members"], doc["Members@odata.count"] = all, len(all)
	reply(w, http.StatusOK, doc)
}
