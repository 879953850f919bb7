package bmc

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"smelt/power"
)

// Screen takes a picture with iDRAC's DellLCService.ExportServerScreenShot
// (iDRAC9 and later, with a licence; Dell's own scripts and bmclib use it). No
// other vendor's service is known to have one: DSP2046 has none, and
// Supermicro's is a CGI of its web pages that wants another login.
func (r *redfish) Screen(ctx context.Context) (power.Picture, error) {
	var out power.Picture
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if !strings.Contains(strings.ToLower(s.root.vendor()+sys.Manufacturer), "dell") || len(sys.Links.ManagedBy) == 0 {
			return fmt.Errorf("screen: only Dell's Redfish shows it: %w", power.ErrUnsupported)
		}
		manager := strings.TrimSuffix(sys.Links.ManagedBy[0].ID, "/")
		// The service moved below the manager with iDRAC9 firmware 5 or so
		// (unverified); the old place comes second.
		places := []string{
			manager + "/Oem/Dell/DellLCService",
			strings.Replace(manager, "/redfish/v1/", "/redfish/v1/Dell/", 1) + "/DellLCService",
		}
		for _, at := range places {
			res, body, err := s.sendLimited(ctx, http.MethodPost, at+"/Actions/DellLCService.ExportServerScreenShot", nil,
				map[string]string{"FileType": "ServerScreenShot"}, maxLog)
			if err != nil {
				return err
			}
			if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
				continue
			}
			if res.StatusCode/100 != 2 {
				return s.refusal(res, body)
			}
			out, err = screenShot(body)
			return err
		}
		return fmt.Errorf("screen: this iDRAC has no DellLCService: %w", power.ErrUnsupported)
	})
	return out, err
}

// screenShot reads the answer. Firmware spells the property two ways, which
// encoding/json takes for one, and sends PNG or JPEG.
func screenShot(body []byte) (power.Picture, error) {
	var v struct {
		File string `json:"ServerScreenShotFile"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return power.Picture{}, fmt.Errorf("screen: the answer is no JSON: %w", err)
	}
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(v.File), ""))
	if err != nil || len(b) == 0 {
		return power.Picture{}, fmt.Errorf("screen: the answer holds no picture (%d bytes)", len(v.File))
	}
	switch typ := http.DetectContentType(b); typ {
	case "image/png", "image/jpeg":
		return power.Picture{Type: typ, Data: b}, nil
	default:
		return power.Picture{}, fmt.Errorf("screen: the answer is %s, not a picture", typ)
	}
}
